"""A run whose cache lies in one bucket and everything else of it in another.

What the same verbs write into plain folders is what they must write there. The service is one of
this machine (bucket_server.py); who talks to it are gcsfs, s3fs and TensorStore.
"""

import contextlib
import os
import pathlib
import subprocess
import sys

import gin
import jax.numpy as jnp
import pytest
from etils.epath import gpath

from optiml_jax.checkpoint.manager import CheckpointManager, find_checkpoint
from optiml_jax.cli.main import main
from optiml_jax.paths import path_of, sizes
from optiml_jax.train.config import TrainConfig
from optiml_jax.train.duties import Profiling

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "cli"))
from tiny_bench import write_tiny_bench

CACHE, RUN = "gs://caches/tiny", "s3://runs/a"
STEPS = {"num_steps": 2, "global_batch_size": 1}
WITHOUT_TENSORFLOW = """
import sys
for name in ("tensorflow", "seqio", "tensorflow_datasets", "t5"):
    sys.modules[name] = None
from optiml_jax.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def arguments(verb, gin_file, bindings):
    return [verb, f"--gin_file={gin_file}"] + [
        f"--gin.{k.replace('__', '.')}={v}" for k, v in bindings.items()
    ]


def run(verb, gin_file, **bindings):
    gin.clear_config()
    assert main(arguments(verb, gin_file, bindings)) == 0, verb


def weights(source, destination, to="optiml"):
    return {"Convert__source": source, "Convert__destination": destination, "Convert__to": to}


def files(folder, *without):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in without}


def test_a_run_in_buckets_is_the_run_in_folders(objects, tmp_path, capsys):
    gin_file = write_tiny_bench(tmp_path)
    for file in (tmp_path / "bench").rglob("*.json"):
        os.utime(file, (1, 1))  # of files that are not new yet a cache keeps no time
    places = {"Run__cache_dir": CACHE, "Run__run_dir": RUN}
    for settings in ({}, places):
        for verb in ("prepare", "plan"):
            run(verb, gin_file, **settings)
    here, there = tmp_path / "run", path_of(RUN)
    task = "demo_superni.demo901_program_execution_first"
    assert files(path_of(f"{CACHE}/{task}")) == files(tmp_path / "cache" / task)
    assert files(there / "plan/train", "plan.json") == files(here / "plan/train", "plan.json")
    run("prepare", gin_file, **places)
    assert "0 tasks cached, 3 unchanged" in capsys.readouterr().out

    run("train", gin_file, **places)
    run("evaluate", gin_file, **places)
    run("evaluate", gin_file, Evaluate__checkpoint=RUN, Evaluate__name="alone")
    records = files(there / "evaluation/step_4/records")
    assert len(records) == 12
    assert records == files(here / "evaluation/alone/records")
    run("report", gin_file, **places, Report__runs=f"('{RUN}/evaluation/*',)")
    assert "report.html" in files(there / "report")

    run("convert", gin_file, **weights(RUN, tmp_path / "weights", "huggingface"))
    vocabulary = {"Convert__vocabulary": f"sentencepiece:{tmp_path}/vocabulary.model"}
    run("convert", gin_file, **weights(tmp_path / "weights", "gs://weights/again"), **vocabulary)
    run("convert", gin_file, **weights("gs://weights/again", tmp_path / "again", "huggingface"))
    first, second = (tmp_path / name / "model.safetensors" for name in ("weights", "again"))
    assert first.read_bytes() == second.read_bytes()

    # A byte of the newest checkpoint changes: the one before it is taken, and the run goes on.
    damaged = next(k for k in objects.keys("runs", "a/checkpoints/4/params/") if "/d/" in k)
    data, *rest = objects.content["runs", damaged]
    objects.content["runs", damaged] = (data[:-1] + bytes([data[-1] ^ 1]), *rest)
    objects.put("runs", "a/checkpoints/6/params/d/begun", b"a save that was killed")
    assert "tensorflow" in sys.modules  # whose own file systems epath would take, ...
    assert gpath._is_tf_installed()
    command = [sys.executable, "-c", WITHOUT_TENSORFLOW, *arguments("train", gin_file, places)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "skipping a damaged checkpoint" in done.stderr
    assert "resuming s3://runs/a at step 2" in done.stderr  # ... and without it
    assert find_checkpoint(RUN).name == "4"
    assert [p.name for p in (there / "checkpoints.damaged").iterdir()] == ["4"]
    assert not objects.keys("runs", "a/.train.lock")
    assert len(objects.keys("runs", "a/tensorboard/events")) == 2


def test_what_needs_a_plain_folder_says_so(objects, tmp_path, capsys):
    gin_file = write_tiny_bench(tmp_path)
    places = {"Run__cache_dir": CACHE, "Run__run_dir": RUN}
    for verb, name, bindings in (
        (
            "prepare",
            "Run.data['demo_superni']",
            {"Run__data": "{'demo_superni': 'gs://data/bench'}"},
        ),
        ("audit", "Audit.folder", places),
        ("export", "Export.output", places),
        ("convert", "Convert.destination", weights(RUN, "gs://weights/there", "huggingface")),
        ("convert", "Convert.source", weights("s3://weights/facebook", tmp_path / "weights")),
    ):
        gin.clear_config()
        assert main(arguments(verb, gin_file, bindings)) == 2, verb
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith(f"error: {name} = "), said
        assert said.endswith("set it to a plain folder, not a bucket")


def test_an_older_checkpoint_that_cannot_be_deleted_costs_no_newer_one(objects, monkeypatch):
    """Orbax deletes it after it has put the new one in place, and its error is that of the save."""
    manager = CheckpointManager("gs://box/run/checkpoints", keep=1)
    items = {"params": {"a": jnp.ones(4)}}
    manager.save(1, items, {"step": 1})
    manager.wait()
    files = type(path_of("gs://box/run").files)
    remove = files.rm

    def refused(self, path, *arguments, **named):
        if str(path).rstrip("/").endswith("checkpoints/1"):
            raise OSError("503 service unavailable")
        return remove(self, path, *arguments, **named)

    monkeypatch.setattr(files, "rm", refused)
    manager.save(2, items, {"step": 2})
    with pytest.raises(OSError, match="503"):
        manager.wait()
    assert find_checkpoint("gs://box/run").name == "2"
    monkeypatch.undo()


@pytest.mark.parametrize("place", ["gs://box/run", "run"])
def test_a_trace_for_the_profiler_goes_to_the_folder_of_the_run(objects, place, tmp_path):
    run_dir = place if "://" in place else str(tmp_path / place)
    profiling = Profiling(TrainConfig(plan_dir="", run_dir=run_dir, profile_steps=(1, 1), **STEPS))
    with contextlib.closing(profiling), contextlib.chdir(tmp_path):
        profiling(0, {})
        jnp.ones(4).block_until_ready()
        profiling(1, {})
    folder = path_of(run_dir) / "tensorboard"
    assert [name for name in sizes(folder) if name.endswith(".xplane.pb")]
    assert not list(tmp_path.glob("gs*"))
