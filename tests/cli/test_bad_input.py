"""Mistakes a user is likely to make: one line that names the thing and the way out, status 2."""

import io
import json
import logging
import pathlib
import shutil

import pytest
from tiny_bench import write_tiny_bench

from optiml_jax.cli.main import _logging, main


@pytest.fixture(scope="module")
def pristine(tmp_path_factory) -> pathlib.Path:
    root = tmp_path_factory.mktemp("bench")
    write_tiny_bench(root)
    return root


@pytest.fixture
def root(pristine, tmp_path) -> pathlib.Path:
    """A fresh copy of the tiny bench, its gin file pointing at the copy."""
    shutil.copytree(pristine, tmp_path, dirs_exist_ok=True)
    gin_file = tmp_path / "tiny.gin"
    gin_file.write_text(gin_file.read_text().replace(str(pristine), str(tmp_path)))
    return tmp_path


def error_of(capsys, *arguments: str) -> str:
    """Runs a verb that must fail; returns its one line."""
    import gin

    gin.clear_config()
    capsys.readouterr()
    assert main(arguments) == 2
    lines = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def run(verb: str, root: pathlib.Path, *more: str) -> int:
    import gin

    gin.clear_config()
    return main([verb, f"--gin_file={root}/tiny.gin", *more])


def edit_task(root: pathlib.Path, number: int, **fields) -> pathlib.Path:
    (path,) = (root / "bench" / "tasks").glob(f"demo{number}_*.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    return path


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["trian"], ["trian", "prepare, audit, plan, train"]),
        (["train", "gin_file=x.gin"], ["gin_file=x.gin", "--gin_file=FILE"]),
        (["train", "--gin_file=nowhere.gin"], ["nowhere.gin", "not found"]),
        (["train"], ["Run.data", "--gin_file"]),
        (["train", "--gin.Trainer.num_steps=3"], ["Trainer"]),
        (["train", "--gin.TrainConfig.steps=3"], ["TrainConfig", "steps"]),
    ],
)
def test_command_line_mistakes(capsys, arguments, expected):
    error = error_of(capsys, *arguments)
    assert all(part in error for part in expected), error


@pytest.mark.parametrize(
    ("binding", "expected"),
    [
        (
            "--gin.Run.data={'demo_superni': '/no/such/folder'}",
            ["demo_superni", "/no/such/folder", "clone"],
        ),
        ("--gin.Run.data={'demos': '/proc'}", ["demos", "superni"]),
        ("--gin.Run.data={'demo_superni': '$NO_SUCH_VARIABLE/x'}", ["NO_SUCH_VARIABLE", "export"]),
        ("--gin.Run.vocabulary=sentencepiece:/no/such.model", ["/no/such.model"]),
        ("--gin.Run.vocabulary=wordpiece:x", ["wordpiece:x", "sentencepiece:"]),
        ("--gin.Mixture.tasks=('demo_superni/demo999*',)", ["tiny", "demo_superni/demo999*"]),
        ("--gin.Mixture.proportions={'flan': 1.0}", ["tiny", "flan", "demo_superni"]),
    ],
)
def test_wrong_settings_are_named_before_any_work(root, capsys, binding, expected):
    error = error_of(capsys, "prepare", f"--gin_file={root}/tiny.gin", binding)
    assert all(part in error for part in expected), error
    assert not list((root / "cache").glob("*/COMPLETED"))


def test_gin_files_of_the_project_are_found_from_any_folder(tmp_path, monkeypatch, capsys, caplog):
    monkeypatch.chdir(tmp_path)
    error = error_of(capsys, "report", "--gin_file=gin/runs/quickstart.gin")
    assert "no evaluation in runs/quickstart/evaluation" in error
    assert "Path not found" not in caplog.text


def test_broken_task_files_are_all_named_and_the_others_cached(root, capsys):
    cut = edit_task(root, 901)
    cut.write_text(cut.read_text()[: cut.stat().st_size // 2])
    empty = edit_task(root, 902, Definition=[""])
    error = error_of(capsys, "prepare", f"--gin_file={root}/tiny.gin")
    assert f"{cut}, line " in error
    assert f"{empty} has an empty Definition" in error
    assert [p.parent.name for p in (root / "cache").glob("*/COMPLETED")] == [
        "demo_superni.demo903_program_execution_third"
    ]


def test_output_as_a_string_is_one_reference_and_counted(root, capsys):
    path = edit_task(root, 901)
    content = json.loads(path.read_text())
    for instance in content["Instances"]:
        (instance["output"],) = instance["output"]
    path.write_text(json.dumps(content))
    assert run("prepare", root) == 0
    out = capsys.readouterr().out
    assert "output is a string" in out
    assert "demo_superni/demo901_program_execution_first (" in out


def test_verbs_out_of_order_say_what_to_run_first(root, capsys):
    assert "optiml prepare" in error_of(capsys, "plan", f"--gin_file={root}/tiny.gin")
    assert "optiml plan" in error_of(capsys, "train", f"--gin_file={root}/tiny.gin")
    assert "no checkpoint" in error_of(capsys, "evaluate", f"--gin_file={root}/tiny.gin")
    assert "optiml evaluate" in error_of(capsys, "report", f"--gin_file={root}/tiny.gin")


OWN_TASK = """
rows: {train: copy.jsonl, test: copy.jsonl}
prompt: "{{ word }}"
target: "{{ word }}"
level: fully_supervised
role: [train, test]
"""


def test_validation_without_a_validation_split_is_refused_before_any_plan(root, capsys):
    (root / "mine").mkdir()
    (root / "mine/copy.yaml").write_text(OWN_TASK)
    (root / "mine/copy.jsonl").write_text('{"word": "red"}\n{"word": "green"}\n')
    data = f"--gin.Run.data={{'mine': '{root}/mine'}}"
    settings = (f"--gin_file={root}/tiny.gin", data, "--gin.Mixture.tasks='mine/*'")
    assert run("prepare", root, *settings[1:]) == 0
    error = error_of(capsys, "plan", *settings)
    assert "TrainConfig.validate_every = 2, but mixture 'tiny' (1 task) has no " in error
    assert "set TrainConfig.validate_every = 0, or give a task a validation split" in error
    assert not list((root / "run").rglob("plan.json"))
    assert run("plan", root, *settings[1:], "--gin.TrainConfig.validate_every=0") == 0


def test_batch_and_vocabulary_must_fit(root, capsys):
    assert run("prepare", root) == 0
    assert run("plan", root) == 0
    gin_file = f"--gin_file={root}/tiny.gin"
    error = error_of(capsys, "train", gin_file, "--gin.TrainConfig.global_batch_size=3")
    assert "global_batch_size=3" in error
    assert "divisible by 8" in error
    error = error_of(capsys, "train", gin_file, "--gin.MeshConfig.tensor=3")
    assert "tensor" in error
    error = error_of(capsys, "train", gin_file, "--gin.model_config.max_positions=64")
    assert "max_positions 64" in error

    assert run("train", root, "--gin.TrainConfig.validate_every=0") == 0
    from optiml_jax.data.vocabulary import train_sentencepiece

    train_sentencepiece(["other words entirely"] * 9, root / "other.model", 280)
    other = f"--gin.Run.vocabulary=sentencepiece:{root}/other.model"
    error = error_of(capsys, "evaluate", gin_file, other)
    assert "vocabulary" in error
    assert "fingerprint" in error


def test_log_lines_are_ours_whoever_set_logging_up(monkeypatch):
    """Importing Orbax gives the root logger a handler that would print control characters."""
    written = io.StringIO()
    monkeypatch.setattr(logging.root, "handlers", [logging.StreamHandler(written)])
    _logging()
    logging.getLogger("optiml_jax.data").info("file \x1b[31m.jsonl")
    assert written.getvalue() == "INFO: file \\x1b[31m.jsonl\n"
