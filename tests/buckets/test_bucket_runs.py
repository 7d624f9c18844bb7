"""A run whose cache lies in one bucket and everything else of it in another.

What the same verbs write into plain folders is what they must write there. The service is one of
this machine (bucket_server.py); who talks to it are gcsfs, s3fs and TensorStore.
"""

import pathlib
import sys

import gin

from optiml_jax.checkpoint.manager import find_checkpoint
from optiml_jax.cli.main import main
from optiml_jax.paths import path_of

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "cli"))
from tiny_bench import write_tiny_bench

CACHE, RUN = "gs://caches/tiny", "s3://runs/a"


def run(verb, gin_file, **bindings):
    gin.clear_config()
    arguments = [f"--gin.{k.replace('__', '.')}={v}" for k, v in bindings.items()]
    assert main([verb, f"--gin_file={gin_file}", *arguments]) == 0, verb


def files(folder, *without):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in without}


def test_a_run_in_buckets_is_the_run_in_folders(objects, tmp_path, caplog, capsys):
    gin_file = write_tiny_bench(tmp_path)
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
    run("report", gin_file, **places)
    assert "report.html" in files(there / "report")

    # A byte of the newest checkpoint changes: the one before it is taken, and the run goes on.
    damaged = next(k for k in objects.keys("runs", "a/checkpoints/4/params/") if "/d/" in k)
    data, *rest = objects.content["runs", damaged]
    objects.content["runs", damaged] = (data[:-1] + bytes([data[-1] ^ 1]), *rest)
    objects.put("runs", "a/checkpoints/6/params/d/begun", b"a save that was killed")
    run("train", gin_file, **places)
    assert "skipping a damaged checkpoint" in caplog.text
    assert "resuming s3://runs/a at step 2" in caplog.text
    assert find_checkpoint(RUN).name == "4"
    assert [p.name for p in (there / "checkpoints.damaged").iterdir()] == ["4"]
    assert not objects.keys("runs", "a/.train.lock")
    assert len(objects.keys("runs", "a/tensorboard/events")) == 2
