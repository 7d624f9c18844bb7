"""Many checkpoints in one evaluation, evaluation inside training, and evaluations that stop."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import types

import gin
import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from tiny_bench import write_tiny_bench

from optiml_jax.checkpoint import manager
from optiml_jax.checkpoint.manager import find_checkpoint, load_metadata, load_params
from optiml_jax.cli.checkpoints import _name, find_places
from optiml_jax.cli.main import main
from optiml_jax.cli.settings import Evaluate, Run
from optiml_jax.cli.train import evaluation_steps
from optiml_jax.errors import UserError
from optiml_jax.evaluate.records import RunFolder
from optiml_jax.model.architectures import config_from_dict
from optiml_jax.one_writer import one_writer
from optiml_jax.sharding.rules import abstract_params

SHARDED = ["--gin.MeshConfig.data=2", "--gin.MeshConfig.fsdp=2", "--gin.MeshConfig.tensor=2"]
SMALL = ["--gin.Evaluate.shots=(0,)", "--gin.EvalConfig.instances_per_round=1"]


def optiml(verb: str, root: pathlib.Path, *more: str) -> int:
    gin.clear_config()
    return main([verb, f"--gin_file={root}/tiny.gin", *SHARDED, *SMALL, *more])


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
    """Most of the time of these tests is compiling; gives the environment for programs."""
    settings = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
        "jax_disable_most_optimizations": True,
    }
    before = {name: jax.config.values[name] for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield {name.upper(): str(value) for name, value in settings.items()}
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> pathlib.Path:
    """A run of four steps, evaluated at 2 and 4 while it was trained on a mesh of 8 devices."""
    root = tmp_path_factory.mktemp("trained")
    write_tiny_bench(root)
    for verb in ("prepare", "plan"):
        assert optiml(verb, root) == 0
    assert optiml("train", root, "--gin.Evaluate.during_training=2") == 0
    return root


@pytest.fixture
def copy(trained, tmp_path) -> str:
    """A copy of the run without its evaluations, as an argument."""
    ignored = shutil.ignore_patterns("evaluation", "tensorboard")
    shutil.copytree(trained / "run", tmp_path / "run", ignore=ignored)
    return f"--gin.Run.run_dir={tmp_path}/run"


def records(run: pathlib.Path) -> dict[str, tuple[str, int]]:
    """Path below the evaluations -> (content, when written) of every record file."""
    folder = run / "evaluation"
    files = sorted(folder.glob("*/records/*.jsonl"))
    return {str(f.relative_to(folder)): (f.read_text(), f.stat().st_mtime_ns) for f in files}


def scalars(run: pathlib.Path) -> dict[str, list[int]]:
    sys.modules.setdefault("tensorboard.compat.notf", types.ModuleType("notf"))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard" / "evaluation")).Reload()
    steps = {tag: [e.step for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    return {tag: at for tag, at in steps.items() if at}  # TensorBoard knows the names of old ones


def test_evaluation_in_training_does_not_change_training(trained, tmp_path):
    shutil.copytree(trained / "run" / "plan", tmp_path / "run" / "plan")
    assert optiml("train", trained, f"--gin.Run.run_dir={tmp_path}/run") == 0
    for step in ("2", "4"):
        folders = [root / "run" / "checkpoints" / step for root in (trained, tmp_path)]
        config = config_from_dict(load_metadata(folders[0])["model"])
        params = [load_params(folder, abstract_params(config)) for folder in folders]
        jax.tree.map(np.testing.assert_array_equal, *params)
    assert not (tmp_path / "run" / "evaluation").exists()


def test_the_checkpoints_evaluate_as_the_live_parameters_did_and_compile_nothing(trained, caplog):
    before = records(trained / "run")
    assert sorted({name.split("/")[0] for name in before}) == ["step_2", "step_4"]
    assert len(before) == 2 * 3
    assert optiml("evaluate", trained, "--gin.Evaluate.checkpoint=all") == 0
    assert records(trained / "run") == before
    again = "--gin.Evaluate.name={checkpoint}_again"
    with jax.log_compiles():
        assert optiml("evaluate", trained, "--gin.Evaluate.checkpoint=*", again) == 0
    assert "Compiling" not in caplog.text
    for name, (content, _) in records(trained / "run").items():
        assert content == before[name.replace("_again", "")][0]
    for step in (2, 4):
        shutil.rmtree(trained / "run" / "evaluation" / f"step_{step}_again")


def test_resumed_training_evaluates_no_step_twice(trained, tmp_path):
    shutil.copytree(trained / "run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "4")
    for tasks_file in (tmp_path / "run" / "evaluation").glob("*/tasks.json"):
        text = tasks_file.read_text().replace(str(trained), str(tmp_path))
        tasks_file.write_text(text)
    before = records(tmp_path / "run")
    arguments = [f"--gin.Run.run_dir={tmp_path}/run", "--gin.Evaluate.during_training=(2, 4)"]
    assert optiml("train", trained, *arguments) == 0
    assert (tmp_path / "run" / "checkpoints" / "4").is_dir()
    assert records(tmp_path / "run") == before
    assert set(map(tuple, scalars(tmp_path / "run").values())) == {(2, 4)}


def test_a_damaged_checkpoint_is_reported_and_the_others_are_evaluated(copy, trained, capsys):
    run = pathlib.Path(copy.split("=")[1])
    (run / "checkpoints" / "2" / "optiml.json").write_text("{}")
    assert optiml("evaluate", trained, copy, "--gin.Evaluate.checkpoint=all") == 2
    said = capsys.readouterr().err
    assert f"failed: checkpoint {run}/checkpoints/2: " in said
    assert len(records(run)) == 3
    assert set(map(tuple, scalars(run).values())) == {(4,)}


def test_a_checkpoint_that_goes_while_it_is_read_is_named_and_the_others_are_evaluated(
    copy, trained, monkeypatch, capsys
):
    run, check = pathlib.Path(copy.split("=")[1]), manager._check_shapes

    def check_and_remove(path, *shapes):
        check(path, *shapes)
        if path.parent.name == "2":  # what a training that goes on does (TrainConfig.keep)
            shutil.rmtree(path.parent)

    monkeypatch.setattr(manager, "_check_shapes", check_and_remove)
    assert optiml("evaluate", trained, copy, "--gin.Evaluate.checkpoint=all") == 1
    said = capsys.readouterr().err
    assert f"failed: checkpoint {run}/checkpoints/2: it was deleted while being read" in said
    assert len(records(run)) == 3


def test_one_folder_for_two_checkpoints_is_refused(copy, trained, capsys):
    several = {"evaluate": "checkpoint=(2, 4)", "train": "during_training=1"}
    for verb, asked in several.items():
        more = [f"--gin.Evaluate.{asked}", "--gin.Evaluate.name=one"]
        assert optiml(verb, trained, copy, *more) == 2
        assert "include {checkpoint} in it" in capsys.readouterr().err


def test_a_folder_that_another_evaluation_writes_is_refused(copy, trained, tmp_path, capsys):
    with one_writer(tmp_path / "run" / "evaluation" / "step_4", "optiml evaluate"):
        assert optiml("evaluate", trained, copy) == 2
    assert "another `optiml evaluate` is at work in" in capsys.readouterr().err


def test_an_interrupted_evaluation_goes_on_with_the_next_task(copy, trained, monkeypatch, capsys):
    run, write = pathlib.Path(copy.split("=")[1]), RunFolder.write

    def write_and_stop(self, *arguments):
        write(self, *arguments)
        signal.raise_signal(signal.SIGINT)  # os.kill may reach another thread first

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "write", write_and_stop)
        assert optiml("evaluate", trained, copy) == 130
    assert "the same command continues" in capsys.readouterr().err
    first = records(run)
    assert len(first) == 1
    assert optiml("evaluate", trained, copy) == 0
    assert len(records(run)) == 3
    assert records(run).items() >= first.items()


KILLED = """
import os, signal, sys
from optiml_jax.cli.main import main
from optiml_jax.evaluate.records import RunFolder

write = RunFolder.write

def write_and_stop(*arguments):
    write(*arguments)
    os.kill(os.getpid(), signal.SIGTERM)

RunFolder.write = write_and_stop
main(sys.argv[1:])
"""


def test_a_terminated_evaluation_goes_on_with_the_next_task(copy, trained, compiled_once):
    run = pathlib.Path(copy.split("=")[1])
    arguments = ["evaluate", f"--gin_file={trained}/tiny.gin", *SHARDED, *SMALL, copy]
    command = [sys.executable, "-c", KILLED, *arguments]
    killed = subprocess.run(command, env=os.environ | compiled_once, check=False)
    assert killed.returncode == -signal.SIGTERM
    first = records(run)
    assert len(first) == 1
    assert optiml("evaluate", trained, copy) == 0
    assert len(records(run)) == 3
    assert records(run).items() >= first.items()


def test_what_the_names_of_checkpoints_mean(tmp_path):
    run = Run(data={}, vocabulary="", cache_dir="", run_dir=str(tmp_path / "run"))
    steps = {n: tmp_path / "run" / "checkpoints" / str(n) for n in (2, 10, 100)}
    other = tmp_path / "other" / "checkpoints" / "7"
    for folder in (*steps.values(), other, steps[2].with_name("4.orbax-checkpoint-tmp")):
        folder.mkdir(parents=True)

    def places(*asked):
        asked = asked[0] if len(asked) == 1 else asked
        return find_places(run, Evaluate(checkpoint=asked))

    assert places("all") == [str(steps[n]) for n in (2, 10, 100)]
    assert places("*0") == places(10, 100, "10") == [str(steps[n]) for n in (10, 100)]
    assert places("latest", "init") == ["latest", "init"]
    assert places(f"{tmp_path}/*/checkpoints/[27]") == [str(other), str(steps[2])]
    assert (_name(run, steps[2]), _name(run, other)) == ("step_2", "other_step_7")
    with pytest.raises(UserError, match="no such checkpoint"):
        places("3*")


def test_when_training_evaluates():
    assert evaluation_steps(0, 10) == evaluation_steps((), 10) == set()
    assert evaluation_steps(4, 10) == {4, 8, 10}
    assert evaluation_steps((3, 10), 10) == {3, 10}
    with pytest.raises(UserError, match=r"step 12 is not one of 1 \.\.\. 10"):
        evaluation_steps((3, 12), 10)


def test_a_foreign_run_has_a_folder_of_its_own(copy, trained, tmp_path):
    asked = f"--gin.Evaluate.checkpoint={trained}/run/checkpoints/2"
    assert find_checkpoint(trained / "run" / "checkpoints" / "2").name == "2"
    assert optiml("evaluate", trained, copy, asked) == 0
    assert [p.name for p in (tmp_path / "run" / "evaluation").iterdir()] == ["run_step_2"]
