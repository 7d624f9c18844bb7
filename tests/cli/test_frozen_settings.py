"""Cache, plan, checkpoint and evaluation refuse other settings than they were made with.

The settings are changed at each boundary of the line of verbs, and what the user reads must name
the setting and both values.
"""

import json
import pathlib

import gin
import pytest
from tiny_bench import write_tiny_bench

from optiml_jax.cli.evaluation_tasks import warn_of_globs
from optiml_jax.cli.main import main
from optiml_jax.data.plan import Plan
from optiml_jax.data.vocabulary import train_sentencepiece
from optiml_jax.evaluate.records import RunFolder
from optiml_jax.files import write_sealed


@pytest.fixture(scope="module")
def line(tmp_path_factory) -> pathlib.Path:
    """The folder after prepare, plan and two steps of training."""
    root = tmp_path_factory.mktemp("frozen")
    gin_file = f"--gin_file={write_tiny_bench(root)}"
    train_sentencepiece(["other words entirely"] * 9, root / "other.model", 280)
    for verb in ("prepare", "plan", "train"):
        assert main([verb, gin_file]) == 0, verb
        gin.clear_config()
    return root


def error_of(capsys, verb: str, root: pathlib.Path, *bindings: str) -> str:
    gin.clear_config()
    capsys.readouterr()
    arguments = [verb, f"--gin_file={root}/tiny.gin", *(f"--gin.{b}" for b in bindings)]
    assert main(arguments) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    return line


PROMPTS = [
    ("PromptConfig.delimiter=ZZZ", "PromptConfig.delimiter was None and is 'ZZZ' now"),
    ("PromptConfig.seed=5", "PromptConfig.seed was 1234 and is 5 now"),
    ("PromptConfig.shots=(0.5,0.5)", "PromptConfig.shots was [1.0] and is [0.5, 0.5] now"),
    ("PromptConfig.option_order=shuffled", "PromptConfig.option_order was 'given' and is 'shuff"),
    ("PlanConfig.sequence_length=200", "PlanConfig.sequence_length was 128 and is 200 now"),
]
PLANS = [
    ("PlanConfig.seed=5", "PlanConfig.seed was 1234 and is 5 now"),
    ("PlanConfig.lookahead=5", "PlanConfig.lookahead was 256 and is 5 now"),
    ("Mixture.eps=7", "Mixture.eps was 4096 and is 7 now"),
    ("SplitConfig.as_published=True", "SplitConfig.as_published was False and is True now"),
]


@pytest.mark.parametrize(("binding", "expected"), PROMPTS)
def test_plan_refuses_a_cache_made_with_other_prompts(line, capsys, binding, expected):
    assert expected in error_of(capsys, "plan", line, binding)


def test_plan_refuses_a_cache_made_with_another_vocabulary(line, capsys):
    error = error_of(capsys, "plan", line, f"Run.vocabulary=sentencepiece:{line}/other.model")
    assert f"Run.vocabulary was 'sentencepiece:{line}/vocabulary.model" in error
    assert f"is 'sentencepiece:{line}/other.model" in error


def test_plan_refuses_a_task_that_was_read_otherwise(line, capsys, monkeypatch):
    from tasks.superni import reader

    monkeypatch.setattr(reader, "READER_VERSION", 0)
    assert "and is 0 now" in error_of(capsys, "plan", line)


@pytest.mark.parametrize(("binding", "expected"), PROMPTS + PLANS)
def test_train_refuses_a_plan_made_with_other_settings(line, capsys, binding, expected):
    assert expected in error_of(capsys, "train", line, binding)


def test_train_refuses_a_plan_of_another_vocabulary_but_not_of_another_place(line, capsys):
    error = error_of(capsys, "train", line, f"Run.vocabulary=sentencepiece:{line}/other.model")
    assert f"is 'sentencepiece:{line}/other.model' now" in error
    gin.clear_config()
    copy = line / "copy.model"
    copy.write_bytes((line / "vocabulary.model").read_bytes())
    assert (
        main(["train", f"--gin_file={line}/tiny.gin", f"--gin.Run.vocabulary=sentencepiece:{copy}"])
        == 0
    )


def test_a_run_says_which_setting_of_its_plan_changed(line, capsys, tmp_path):
    copy = tmp_path / "cache"
    new = [f"Run.cache_dir={copy}", "PromptConfig.delimiter=ZZZ"]
    for verb in ("prepare", "plan"):
        gin.clear_config()
        bindings = [f"--gin.{b}" for b in new]
        assert main([verb, f"--gin_file={line}/tiny.gin", *bindings]) == 0
    try:
        error = error_of(capsys, "train", line, *new)
        assert "PromptConfig.delimiter was None and is 'ZZZ' now" in error
    finally:
        gin.clear_config()
        assert main(["plan", f"--gin_file={line}/tiny.gin"]) == 0


@pytest.mark.parametrize(
    ("binding", "expected"),
    [
        ("model_config.num_layers=3", "model_config.num_layers was"),
        ("model_config.d_model=128", "model_config.d_model was"),
    ],
)
def test_evaluate_refuses_another_model_for_the_run_s_own_checkpoint(
    line, capsys, binding, expected
):
    assert expected in error_of(capsys, "evaluate", line, binding)


def test_a_mixture_in_which_a_task_lost_its_training_part_is_refused(line, capsys, caplog):
    info = line / "cache" / "demo_superni.demo901_program_execution_first" / "optiml.json"
    whole = info.read_text()
    content = json.loads(whole)
    content["splits"]["train"] |= {"examples": 0, "drops": {"empty target": 46}}
    write_sealed(info, content)
    try:
        error = error_of(capsys, "plan", line)
        assert "demo_superni/demo901_program_execution_first (46 empty target)" in error
        gin.clear_config()
    finally:
        info.write_text(whole)


def test_plan_refuses_and_train_names_files_that_changed_after_prepare(line, capsys, caplog):
    """Also of the same size; but not the same bytes with another time."""
    file = line / "bench" / "tasks" / "demo901_program_execution_first.json"
    text = file.read_text()
    for changed, said in (("pink", "greyish"), ("pink", "grey")):
        file.write_text(text.replace(changed, said))
        error = error_of(capsys, "plan", line)
        assert "cache of task 'demo_superni/demo901_program_execution_first'" in error
        assert f"{file} has " in error
        assert "run `optiml prepare` again" in error
    gin.clear_config()
    assert main(["train", f"--gin_file={line}/tiny.gin"]) == 0
    assert "the files of 1 task changed since `optiml prepare`" in caplog.text
    assert f"{file} has another content" in caplog.text
    file.write_text(text)
    caplog.clear()
    for verb in ("plan", "train"):
        gin.clear_config()
        assert main([verb, f"--gin_file={line}/tiny.gin"]) == 0
    assert "changed since" not in caplog.text


def test_plan_refuses_to_do_without_a_task_that_was_cached(line, capsys, caplog):
    file = line / "bench" / "tasks" / "demo902_program_execution_second.json"
    aside = file.rename(line / "aside.json")
    try:
        error = error_of(capsys, "plan", line)
        assert f"1 task in the cache {line}/cache but no longer in the folders of Run.data" in error
        assert f"demo902_program_execution_second (was read from {file})" in error
        for binding in ("Mixture.missing=renormalise", "Mixture.tasks='*/demo901*'"):
            gin.clear_config()
            assert main(["plan", f"--gin_file={line}/tiny.gin", f"--gin.{binding}"]) == 0
    finally:
        aside.rename(file)
        gin.clear_config()
        assert main(["plan", f"--gin_file={line}/tiny.gin"]) == 0
    third = line / "bench" / "tasks" / "demo903_program_execution_third.json"  # held out
    aside = third.rename(line / "aside.json")
    try:
        gin.clear_config()
        assert main(["plan", f"--gin_file={line}/tiny.gin"]) == 0
    finally:
        aside.rename(third)


def test_precision_of_an_evaluation_is_that_of_gin_and_stored(line, capsys):
    """Whatever the checkpoint was written in; its records are not continued in another one."""
    arguments = [f"--gin_file={line}/tiny.gin", "--gin.Evaluate.shots=0"]
    arguments += ["--gin.model_config.dtype=bfloat16", "--gin.Evaluate.name=half"]
    gin.clear_config()
    assert main(["evaluate", *arguments]) == 0
    assert "weights bfloat16, computed in bfloat16" in capsys.readouterr().out
    stored = RunFolder(line / "run" / "evaluation" / "half").load()[0]
    assert (stored["dtype"], stored["params_dtype"]) == ("bfloat16", "bfloat16")
    bindings = [a.removeprefix("--gin.") for a in arguments[1:]]
    error = error_of(capsys, "evaluate", line, *bindings, "Evaluate.params_dtype=float32")
    assert "Evaluate.params_dtype was 'bfloat16' and is 'float32' now" in error


@pytest.mark.parametrize(
    ("verb", "binding", "expected"),
    [
        ("evaluate", "Evaluate.roles=('test', 'tset')", "Evaluate.roles: there is no role 'tset'"),
        ("plan", "Mixture.roles=('train', 'trian')", "Mixture.roles: there is no role 'trian'"),
        ("audit", "Audit.roles=('dev', 'tests')", "Audit.roles: there is no role 'tests'"),
    ],
)
def test_a_misspelt_role_beside_a_right_one_is_refused(line, capsys, verb, binding, expected):
    assert expected in error_of(capsys, verb, line, binding)


def test_train_refuses_to_validate_without_validation_rows(line, capsys):
    plan = line / "run" / "plan" / "validation"
    aside = plan.rename(line / "validation")
    try:
        error = error_of(capsys, "train", line)
        assert "TrainConfig.validate_every = 2, but there is no plan of validation rows" in error
    finally:
        aside.rename(plan)


def test_names_that_nothing_has_are_named(line, caplog):
    """Beside right ones: alone they leave nothing to do, which is refused elsewhere."""
    gin.clear_config()
    bindings = ["Mixture.benchmark_max_examples={'supreni': 5}", "Mixture.num_categories=1"]
    bindings += ["Mixture.always_categories=('Program Execution', 'Mathmatics')"]
    gin_file = f"--gin_file={line}/tiny.gin"
    folder = f"--gin.Run.run_dir='{line}/other'"
    assert main(["plan", gin_file, folder, *(f"--gin.{b}" for b in bindings)]) == 0
    assert "benchmark_max_examples names 'supreni', of which there is no task" in caplog.text
    assert "no task has a category of Mixture.always_categories: Mathmatics" in caplog.text
    warn_of_globs(["b/one"], ["b/*", "c/*"])
    assert "Evaluate.tasks: no evaluation task of these roles matches c/*" in caplog.text


def test_shots_that_the_manifest_does_not_list_are_named(line, caplog):
    gin.clear_config()
    assert main(["evaluate", f"--gin_file={line}/tiny.gin", "--gin.Evaluate.shots=(0, 3)"]) == 0
    assert "does not list 3 shots for 3 of 3 tasks" in caplog.text
    assert "demo_superni/demo903" in caplog.text


def test_prepare_says_which_setting_makes_it_work_again(line, tmp_path, caplog):
    arguments = [f"--gin_file={line}/tiny.gin", f"--gin.Run.cache_dir={tmp_path}/cache"]
    for more in ((), ("--gin.PromptConfig.delimiter=ZZZ",)):
        gin.clear_config()
        assert main(["prepare", *arguments, *more]) == 0
    assert "3 tasks are cached again: PromptConfig.delimiter was None and is 'ZZZ'" in caplog.text


def test_a_plan_keeps_the_settings_it_was_made_with(line):
    settings = Plan.load(line / "run" / "plan" / "train").meta["settings"]
    kinds = {name.split(".")[0] for name in settings}
    assert kinds == {"PromptConfig", "PlanConfig", "Mixture", "SplitConfig"}


def test_tasks_that_the_checkpoint_was_trained_on_do_not_pass_for_held_out(line, caplog):
    from optiml_jax.cli.evaluation_tasks import warn_of_trained
    from optiml_jax.evaluate.evaluator import EvalTask
    from optiml_jax.evaluate.records import TaskInfo

    def task(name, level):
        info = TaskInfo(name, "superni", "Misc.", level, "em")
        return EvalTask(info, list, list, ())

    tasks = [
        task("a", "fully_held_out"),
        task("b", "fully_supervised"),
        task("c", "fully_held_out"),
    ]
    warn_of_trained(tasks, ["a", "b"])
    assert "trained on 1 task of a level" in caplog.text
    assert caplog.text.strip().endswith(": a")
