"""Runs of several processes: the same results as of one, and all of them end when one does."""

import functools
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
import tiny_run
from tiny_run import DECODERS

from optiml_jax import interrupt
from optiml_jax.checkpoint.manager import load_params
from optiml_jax.model.decoder import init_params
from optiml_jax.paths import local_copies, path_of
from optiml_jax.sharding.mesh import make_mesh
from optiml_jax.sharding.rules import abstract_params
from optiml_jax.train import loop

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "buckets"))
import bucket_server

PROGRAM = pathlib.Path(tiny_run.__file__)
TRAIN = {"num_steps": 10, "log_every": 1, "checkpoint_every": 5}
LAYOUTS = {  # processes x devices: mesh, decoder
    "2x1, fsdp across": (2, 1, {"fsdp": 2}, "opt"),
    "2x2, tensor across": (2, 2, {"fsdp": 1, "tensor": 4}, "llama"),
    "4x1, tensor and fsdp across": (4, 1, {"fsdp": 2, "tensor": 2}, "opt"),
    "2x4, tensor inside": (2, 4, {"data": 2, "fsdp": 2, "tensor": 2}, "llama"),
}


@pytest.fixture(scope="module")
def start(plan_dir, compiled_once):
    """Starts the processes of a run; `last` are more options of the last one."""

    def start(run_dir, number, devices, mesh, last=None, **more):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        options = {"plan_dir": str(plan_dir), "run_dir": str(run_dir), "optimizer": tiny_run.SMOOTH}
        options |= {"train": TRAIN, "devices": devices, "mesh": mesh} | more
        started = []
        for i in range(number):
            process = {
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": str(number),
                "JAX_PROCESS_ID": str(i),
            }
            own = options | ({"process": process} if number > 1 else {})
            own = json.dumps(own | (last or {} if i == number - 1 else {}))
            started.append(
                subprocess.Popen(
                    [sys.executable, str(PROGRAM), own],
                    stderr=subprocess.PIPE,
                    text=True,
                    env=os.environ | compiled_once,
                )
            )
        return started

    return start


def ends(started):
    """What each of the processes said, and its status."""
    said = [p.communicate(timeout=600)[1] for p in started]
    return said, [p.returncode for p in started]


def wait_for_step(process, step):
    """Reads what the process reports until it has made `step`."""
    for line in process.stderr:
        if f"step {step}/" in line:
            return


@pytest.fixture
def alone(plan_dir, compiled_once, tmp_path, monkeypatch):
    """alone(number, mesh, decoder): the folder of the run of this process, on as many devices."""

    def alone(number, mesh, decoder="opt"):
        some = functools.partial(make_mesh, devices=jax.devices()[:number])
        monkeypatch.setattr(loop, "make_mesh", some)
        run_dir = tmp_path / "alone"
        options = {"train": TRAIN, "mesh": mesh, "optimizer": tiny_run.SMOOTH}
        options["model"] = DECODERS[decoder]
        assert loop.train(*tiny_run.configs(plan_dir, run_dir, **options)) == 0
        return run_dir

    return alone


def params_of(run_dir, decoder="opt"):
    config = tiny_run.configs("", "", model=DECODERS[decoder])[1]
    return jax.device_get(load_params(run_dir, abstract_params(config)))


def assert_same_training(run_dir, expected, decoder="opt"):
    config = tiny_run.configs("", "", model=DECODERS[decoder])[1]
    losses, wanted = (dict(tiny_run.read_scalars(d)["loss"]) for d in (run_dir, expected))
    assert list(losses) == list(wanted) == [*range(1, 11)]
    np.testing.assert_allclose(list(losses.values()), list(wanted.values()), rtol=1e-5)
    before = jax.device_get(init_params(config, 1234)[1])
    ends = (params_of(folder, decoder) for folder in (run_dir, expected))
    tiny_run.assert_same_parameters(*ends, before)


@pytest.mark.parametrize("name", LAYOUTS)
def test_processes_train_as_one(start, alone, tmp_path, name):
    number, devices, mesh, decoder = LAYOUTS[name]
    said, status = ends(start(tmp_path / "run", number, devices, mesh, model=DECODERS[decoder]))
    assert status == [0] * number, said
    assert_same_training(tmp_path / "run", alone(number * devices, mesh, decoder), decoder)


def test_four_processes_stopped_then_two_then_one_end_as_one(start, alone, tmp_path):
    """SIGTERM to one of four, SIGKILL to one of two; then a single process goes on."""
    run_dir = tmp_path / "run"
    four = start(run_dir, 4, 1, {"fsdp": 2, "tensor": 2})
    wait_for_step(four[0], 2)
    four[2].send_signal(signal.SIGTERM)
    said, status = ends(four)
    assert status == [interrupt.STOPPED] * 4, said
    assert all("process 2 got SIGTERM: all processes save and end" in text for text in said[:2])
    (stopped,) = {int(re.search(r"step (\d+) of 10 is saved", text)[1]) for text in said}
    assert 2 <= stopped < 10

    table = json.loads((run_dir / "checkpoints" / str(stopped) / "optiml.json").read_text())
    assert any("ocdbt.process_3" in name for name in table["files"])
    two = start(run_dir, 2, 1, {"fsdp": 2}, count_reads=str(tmp_path / "reads"))
    wait_for_step(two[0], stopped + 1)
    two[1].kill()
    said, status = ends(two)
    assert status[0] == 1, said
    assert "error: process 1 ended: no heartbeat for 15 s" in said[0]

    folder = f"{run_dir}/checkpoints/{stopped}/"
    read = [name for name in (tmp_path / "reads").read_text().split() if folder in name]
    assert sorted(read) == sorted(folder + name for name in table["files"])  # by both together

    (one,) = start(run_dir, 1, 1, {})
    assert ends([one])[1] == [0]
    assert_same_training(run_dir, alone(2, {"fsdp": 2}))


def test_two_processes_stopped_in_a_bucket_then_one_end_as_one(start, alone, tmp_path, monkeypatch):
    with bucket_server.serving() as (address, objects):
        environment = bucket_server.environment(address)
        for name, value in (environment | {"OPTIML_COPIES": str(tmp_path / "copies")}).items():
            monkeypatch.setenv(name, value)
        run_dir = "gs://box/run"
        two = start(run_dir, 2, 1, {"fsdp": 2})
        wait_for_step(two[0], 2)
        two[1].send_signal(signal.SIGTERM)
        said, status = ends(two)
        assert status == [interrupt.STOPPED] * 2, said
        (stopped,) = {int(re.search(r"step (\d+) of 10 is saved", text)[1]) for text in said}
        saved = f"run/checkpoints/{stopped}/params/ocdbt.process_"
        assert {key[len(saved)] for key in objects.keys("box", saved)} == {"0", "1"}

        (one,) = start(run_dir, 1, 1, {})
        said, status = ends([one])
        assert status == [0], said
        assert f"resuming {run_dir} at step {stopped}" in said[0]
        (tmp_path / "run").mkdir()
        events = local_copies(path_of(run_dir) / "tensorboard")
        (tmp_path / "run" / "tensorboard").symlink_to(events)
        losses = dict(tiny_run.read_scalars(tmp_path / "run")["loss"])
        expected = alone(2, {"fsdp": 2})
        assert losses == pytest.approx(dict(tiny_run.read_scalars(expected)["loss"]), rel=1e-5)
        before = jax.device_get(init_params(tiny_run.configs("", "")[1], 1234)[1])
        tiny_run.assert_same_parameters(params_of(run_dir), params_of(expected), before)


@pytest.mark.parametrize(
    ("where", "culprit", "named"),
    [
        ("rows", 1, "stalled: the rows of step 6 did not arrive from the cache"),
        ("process", 0, r"stalled: step \d+ did not finish on the devices"),
    ],
)
def test_a_stall_ends_all_processes_and_is_named(start, tmp_path, where, culprit, named):
    """The rows, or the program, of process 1 come to a stop; the culprit loses patience first.

    On a busy machine both could notice at the same moment.
    """
    patience = [TRAIN | {"stall_seconds": 6 if i == culprit else 60} for i in range(2)]
    last = {"stall": where, "train": patience[1]}
    started = start(tmp_path, 2, 1, {"fsdp": 2}, train=patience[0], last=last)
    said, status = ends(started)
    assert status[culprit] == interrupt.STALLED, said
    assert re.search(f"error: {named}.*TrainConfig.stall_seconds.*newest checkpoint", said[culprit])
    assert status[1 - culprit] == 1, said
    assert re.search(f"error: process {culprit} ended: {named}", said[1 - culprit])
