"""From a study to its runs: which are the same, what they start from, what is refused."""

import pathlib

import gin
import pytest
from study_bench import planned, resolve, study_of

from optiml_jax.cli import study as verb
from optiml_jax.cli.gin_files import read_settings
from optiml_jax.errors import UserError
from optiml_jax.study.local import Failure
from optiml_jax.study.runs import plan_study
from optiml_jax.study.spec import Study

STUDIES = pathlib.Path(__file__).resolve().parents[2] / "gin" / "studies"


def test_a_variant_of_two_studies_is_one_run(tmp_path):
    eps = planned(tmp_path)
    tasks = planned(tmp_path, name="tasks", variants={"all": (), "4": ("Mixture.num_tasks = 4",)})
    assert eps.runs["20", 1234].folder == tasks.runs["all", 1234].folder
    assert eps.runs["10", 1234].folder != tasks.runs["4", 1234].folder
    assert (tmp_path / "tasks/all/seed_1234").resolve() == eps.runs["20", 1234].folder.resolve()
    # One preparation serves them: neither rates nor a subset of the tasks change what is cached.
    assert {*eps.preparations} == {*tasks.preparations}


def test_seeds_are_runs_of_their_own_and_free_settings_are_not(tmp_path):
    plan = planned(tmp_path, seeds=(1, 2))
    assert len({run.folder for run in plan.runs.values()}) == 6
    assert plan.runs["10", 2].settings["PlanConfig.seed"] == 2
    again = planned(tmp_path, seeds=(1, 2), bindings=("MeshConfig.tensor = 2",))
    assert {r.folder for r in again.runs.values()} == {r.folder for r in plan.runs.values()}
    other = planned(tmp_path, seeds=(1, 2), bindings=("TrainConfig.global_batch_size = 2",))
    assert not {r.folder for r in other.runs.values()} & {r.folder for r in plan.runs.values()}


def test_other_prompts_get_another_cache(tmp_path):
    variants = {"none": (), "two": ("PromptConfig.shots = 2",)}
    plan = planned(tmp_path, variants=variants)
    caches = [run.settings["Run.cache_dir"] for run in plan.runs.values()]
    assert caches[0] == "cache"
    assert caches[1].startswith("cache_")
    own = planned(tmp_path, variants=variants | {"two": (*variants["two"], 'Run.cache_dir = "c"')})
    assert own.runs["two", 1234].settings["Run.cache_dir"] == "c"


def test_variants_that_are_only_evaluated_otherwise_share_the_training(tmp_path):
    other = ('EvalConfig.separator = "##"',)
    variants = {"20": (), "20, ##": other, "40, ##": ("Mixture.eps = 40", *other)}
    plan = planned(tmp_path, variants=variants)
    usual, marked, alone = plan.runs.values()
    assert usual.folder == marked.folder != alone.folder
    assert usual.evaluation == usual.folder / "evaluation/step_4"
    assert len({usual.evaluation, marked.evaluation, usual.gin_file, marked.gin_file}) == 4
    assert "EvalConfig" not in usual.gin_file.read_text()
    assert "EvalConfig.separator = '##'" in marked.gin_file.read_text()
    assert {*plan.preparations} == {usual.prepare}
    # Another study evaluates the same training in one of these ways.
    assert planned(tmp_path, name="eps").runs["40", 1234].folder == alone.folder
    with pytest.raises(UserError, match="are the same run"):
        planned(tmp_path, variants={"a": other, "b": other})


def test_what_earlier_studies_chose_is_taken_but_for_what_varies(tmp_path):
    plan = planned(tmp_path, {"Mixture.eps": 512, "OptimizerConfig.learning_rate": 3e-5})
    for (variant, _), run in plan.runs.items():
        assert run.settings["OptimizerConfig.learning_rate"] == 3e-5
        assert run.settings.get("Mixture.eps") == (int(variant) if variant != "20" else None)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"variants": {}}, "it has no variants"),
        ({"seeds": (1, 1)}, "must be one or more different numbers"),
        ({"positions": {"10": 1.0}}, "positions lacks '20'"),
        ({"rows": {"11": "x"}}, "rows names '11', which is not one of 10, 20, 40"),
        ({"fit": True}, "a fit needs three different positions"),
        ({"variants": {"a": (), "b": ("Mixture.name = 1",)}}, "are the same run"),
    ],
)
def test_mistakes_are_named(tmp_path, more, message):
    with pytest.raises(UserError, match=message):
        plan_study(study_of(tmp_path, **more), resolve)


@pytest.fixture
def data(monkeypatch):
    monkeypatch.setenv("OPTIML_DATA", "/data")
    yield
    gin.clear_config()


@pytest.mark.parametrize("scale", ["30b", "one_gpu", "laptop"])
def test_every_study_of_the_paper_is_planned_at_every_scale(data, scale):
    gin.clear_config()
    read_settings([str(STUDIES / "all.gin"), str(STUDIES / "scale" / f"{scale}.gin")], [])
    studies = {study.name: study for study, _ in verb.read_studies()}
    numbers = {name: len(verb.plan_of(study, ()).runs) for name, study in studies.items()}
    seeds = {"30b": 1, "one_gpu": 3, "laptop": 2}[scale]
    # Section 3.3, table 4, table 5, figures 2 to 5, tables 7, 8, 21.
    expected = {
        "learning_rate": 12,
        "eps": 9,
        "proportions": 10,
        "tasks": 5,
        "categories": 4,
        "pretrain": 5,
        "reasoning": 4,
        "dialogue": 2,
        "metaicl": 5,
        "separators": 9,
    }
    assert numbers == {name: n * seeds for name, n in expected.items()}
    separators = verb.plan_of(studies["separators"], ())
    assert len({run.folder for run in separators.runs.values()}) == 3 * seeds
    shared = [("eps", "4096"), ("tasks", "all"), ("pretrain", "0"), ("dialogue", "none")]
    seed = studies["eps"].seeds[0]
    folders = {verb.plan_of(studies[n], ()).runs[variant, seed].folder for n, variant in shared}
    assert len(folders) == 1


def test_macros_of_the_base_are_settings_like_others(tmp_path):
    base = tmp_path / "base.gin"
    base.write_text(
        "STEPS = 20\nDELIM = 'A'\nTrainConfig.num_steps = %STEPS\nRun.cache_dir = 'cache'\n"
        "PromptConfig.delimiter = %DELIM\n"
    )
    variants = {"a": (), "b": ("DELIM = 'B'",), "c": ("PromptConfig.delimiter = 'C'",)}
    study = Study(name="x", base=(str(base),), variants=variants, folder=str(tmp_path))
    plan = plan_study(study, verb.resolve, {})
    assert [run.num_steps for run in plan.runs.values()] == [20] * 3
    caches = [run.settings["Run.cache_dir"] for run in plan.runs.values()]
    assert len({*caches}) == len(plan.preparations) == 3  # other prompts, other caches
    assert caches[0] == "cache"
    assert all(cache.startswith("cache_") for cache in caches[1:])
    prompts = [run.settings["PromptConfig.delimiter"] for run in plan.runs.values()]
    assert prompts == ["A", "B", "C"]


@pytest.mark.parametrize(("may_pass", "made"), [(True, ["x"]), (False, ["x", "y"])])
def test_a_study_waits_for_runs_that_may_still_change_the_choice_it_takes(
    monkeypatch, tmp_path, capsys, may_pass, made
):
    base = (str(STUDIES.parent / "runs" / "quickstart.gin"),)
    first, second = (
        Study(name=name, base=base, variants={"a": ()}, folder=str(tmp_path)) for name in "xy"
    )
    seen = []

    def made_here(plan, launch):
        seen.append(plan.study.name)
        (plan.folder / "choice.gin").parent.mkdir(exist_ok=True)
        (plan.folder / "choice.gin").write_text("# of the variants that are there")
        return {"x: b": Failure("train: lost", may_pass)} if plan.study.name == "x" else {}

    monkeypatch.setattr(verb, "read_studies", lambda: [(first, ()), (second, ("x",))])
    monkeypatch.setattr(verb, "made_here", made_here)
    assert verb.main() == (1 if may_pass else 2)
    assert seen == made
    assert ("failed: y: waits for runs of x" in capsys.readouterr().err) == may_pass
