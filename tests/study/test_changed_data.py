"""A finished run whose data changed since is not done; the cache and the plans are real ones.

Training and evaluation are stand-ins; what an evaluation notes of its files is real.
"""

import json
import pathlib
import shutil
import sys

import gin
import pytest
from study_bench import SUMMARY, states

from optiml_jax.cli import main as command_line
from optiml_jax.cli import study as verb
from optiml_jax.cli.settings import Study, configured
from optiml_jax.evaluate.origin import Origin
from optiml_jax.evaluate.records import Record, RunFolder, TaskInfo
from optiml_jax.study import local
from optiml_jax.study.runs import write_runs
from optiml_jax.study.slurm import submit
from optiml_jax.study.spec import Launch

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "cli"))
from tiny_bench import write_tiny_bench

STUDY = """
Study.name = 'eps'
Study.title = 'EPS'
Study.base = ('{root}/tiny.gin',)
Study.variants = {{'10': ('Mixture.eps = 10',), '20': ('Mixture.eps = 20',)}}
Study.factor = 'EPS'
Study.folder = '{root}/studies'
Study.replicates = 100
"""


def evaluate(run, file, trained_with) -> None:
    """One task with records of the examples in a file."""
    info = TaskInfo("b/t", "b", "C", "fully_supervised", "rougeL")
    folder = RunFolder(run.evaluation)
    folder.open({"step": 4, "seed": 1, "plan": trained_with}, [info])
    stamp = Origin("r", (str(file),)).stamp(((), ()))
    records = [Record(f"e{i}", "p", f"e{i}", ("a",), "a", i / 20) for i in range(20)]
    folder.write(info.task, 0, records, SUMMARY | {"source": stamp})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A study whose runs are all made, and where its gin file is."""
    root = tmp_path_factory.mktemp("changed")
    write_tiny_bench(root)
    file = root / "study.gin"
    file.write_text(STUDY.format(root=root))
    gin.parse_config_file(str(file))
    plan = verb.plan_of(configured(Study), ())
    write_runs(plan)
    (root / "tests.txt").write_text("test examples")
    for preparation in plan.preparations.values():
        assert command_line.main(["prepare", f"--gin_file={preparation.gin_file}"]) == 0
    for run in plan.runs.values():
        assert command_line.main(["plan", f"--gin_file={run.gin_file}"]) == 0
        (run.folder / "checkpoints/4").mkdir(parents=True)
        planned = json.loads((run.folder / "plan/train/plan.json").read_text())["fingerprint"]
        evaluate(run, root / "tests.txt", planned)
    gin.clear_config()
    return plan, root


@pytest.fixture
def study(made, tmp_path):
    """The same for one test, which may change the data."""
    plan, root = made
    kept = tmp_path / "kept"
    shutil.copytree(root, kept, symlinks=True)  # with the times of files
    yield plan, root
    shutil.rmtree(root)
    shutil.move(kept, root)


def trained_on(root):
    return root / "bench/tasks/demo901_program_execution_first.json"


def test_runs_are_done_while_their_data_is_what_it_was(study):
    plan, root = study
    assert states(plan) == {"10": "done", "20": "done"}
    file = trained_on(root)
    content = file.read_text()
    file.unlink()
    assert states(plan) == {"10": "done", "20": "done"}  # not on this machine
    file.write_text(content)  # at another time
    assert states(plan) == {"10": "done", "20": "done"}
    shutil.rmtree(root / "cache")  # nobody needs it any more
    assert states(plan) == {"10": "done", "20": "done"}


def test_a_run_is_not_done_when_a_file_that_it_was_trained_on_has_changed(study, capfd):
    plan, root = study
    file = trained_on(root)
    size = file.stat().st_size
    file.write_text(file.read_text().replace("first", "very first"))
    what = (
        f"made from other data: task demo_superni/{file.stem}: {file} has {size + 5:,} bytes and "
        f"had {size:,}"
    )
    assert states(plan) == {"10": what, "20": what}
    assert local.printed([plan]) == []  # nor made again of itself
    assert submit(plan, Launch(launcher="slurm"), []).commands == []
    assert command_line.main(["study", f"--gin_file={root}/study.gin"]) == 2
    out, err = capfd.readouterr()
    folder = plan.runs["10", 1234].folder
    mend = f"restore the data, or remove {folder} to make the run from what is there"
    assert f"failed: eps: 10, seed 1234: {what}; {mend}" in err
    assert "2 runs: 2 made from other data; 0.0 min now\n" in out
    note = "made from other data than there is now: 10, seed 1234 (task demo_superni/"
    assert note in (plan.folder / "report/report.md").read_text()
    assert command_line.main(["study", f"--gin_file={root}/study.gin", "--status"]) == 0
    assert "made from other data: task" in capfd.readouterr().out


def test_a_run_is_not_done_when_its_data_was_prepared_again(study):
    plan, root = study
    file = trained_on(root)
    file.write_text(file.read_text().replace("first", "very first"))
    (preparation,) = plan.preparations.values()
    assert command_line.main(["prepare", f"--gin_file={preparation.gin_file}"]) == 0
    again = f"task demo_superni/{file.stem}: it was cached again with other contents"
    assert states(plan)["10"] == f"made from other data: {again}"
    run = plan.runs["10", 1234]
    gin.clear_config()
    assert command_line.main(["plan", f"--gin_file={run.gin_file}"]) == 0
    place = run.folder / "plan/train"
    assert states(plan)["10"] == f"made from other data: the plan in {place} was made again"
    shutil.rmtree(run.folder)  # what it says to do
    assert states(plan)["10"] == "plan waiting"


def test_a_run_is_evaluated_again_when_the_files_of_an_evaluated_task_have_changed(study):
    plan, root = study
    (root / "tests.txt").write_text("other test examples")
    why = "evaluate waiting: b/t at 0 shots: its files changed since"
    assert states(plan) == {"10": why, "20": why}
    assert [line.split()[1] for line in local.printed([plan])[1:]] == ["evaluate"] * 2
    (root / "tests.txt").unlink()
    assert states(plan) == {"10": "done", "20": "done"}  # not on this machine
