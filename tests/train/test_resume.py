"""Runs in processes of their own, stopped in every way that there is, and started again."""

import functools
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys

import jax
import pytest
import tiny_run
from tiny_run import DECODERS

from optiml_jax import interrupt
from optiml_jax.checkpoint.manager import CheckpointManager
from optiml_jax.model.decoder import init_params
from optiml_jax.sharding.rules import abstract_params

PROGRAM = pathlib.Path(tiny_run.__file__)
STEPS = 40
TRAIN = {"num_steps": STEPS, "log_every": 1, "checkpoint_every": 8}


@pytest.fixture(scope="module")
def start(plan_dir, compiled_once):
    """Starts the run in a folder; returns its process."""

    def start(run_dir, **options):
        options = {"plan_dir": str(plan_dir), "run_dir": str(run_dir), "train": TRAIN} | options
        options["optimizer"] = tiny_run.SMOOTH
        return subprocess.Popen(
            [sys.executable, str(PROGRAM), json.dumps(options)],
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | compiled_once,
        )

    return start


@pytest.fixture(scope="module")
def finish(start):
    """Runs to the end; returns what the program said."""

    def finish(run_dir, **options):
        process = start(run_dir, **options)
        said = process.communicate(timeout=300)[1]
        assert process.returncode == 0, said
        return said

    return finish


@pytest.fixture(scope="module")
def uninterrupted(finish, tmp_path_factory):
    """Decoder -> the last state of a run that was never stopped."""

    @functools.cache
    def uninterrupted(decoder="opt"):
        run_dir = tmp_path_factory.mktemp("uninterrupted")
        finish(run_dir, model=DECODERS[decoder])
        return last_state(run_dir, decoder)

    return uninterrupted


def send(process, number, step):
    """Sends a signal once the process has reported `step`; returns everything it said."""
    said = []
    for line in process.stderr:
        said.append(line)
        if f"step {step}/" in line:
            process.send_signal(number)
    process.wait(timeout=300)
    return "".join(said)


def last_state(run_dir, decoder="opt"):
    """Parameters and moments of the newest checkpoint, which must be that of the last step."""
    params = abstract_params(tiny_run.configs("", "", model=DECODERS[decoder])[1])
    manager = CheckpointManager(pathlib.Path(run_dir) / "checkpoints")
    assert manager.latest_intact_step() == STEPS
    targets = {"params": params, "optimizer": {"mu": params, "nu": params}}
    items = jax.device_get(manager.restore(STEPS, targets))
    manager.close()
    return items


def steps(run_dir):
    folders = (pathlib.Path(run_dir) / "checkpoints").iterdir()
    return sorted(int(p.name) for p in folders if p.name.isdigit())


def assert_bit_identical(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_run_killed_at_any_moment_ends_with_the_same_bits(
    start, finish, uninterrupted, tmp_path, decoder
):
    model = DECODERS[decoder]
    for moment in ({"killed_while_compiling": 0.3}, {"killed_while_saving": 8}):
        process = start(tmp_path, model=model, **moment)
        process.communicate(timeout=300)
        assert process.returncode == -signal.SIGKILL
        assert steps(tmp_path) == []
    assert list((tmp_path / "checkpoints").glob("8.*tmp*"))

    for low, high in ((10, 20), (22, STEPS - 5)):
        process = start(tmp_path, model=model)
        send(process, signal.SIGKILL, random.randint(low, high))
        assert process.returncode == -signal.SIGKILL

    said = finish(tmp_path, model=model)
    assert "resuming" in said
    assert "4 restarts" in said
    assert not list((tmp_path / "checkpoints").glob("*tmp*"))
    assert_bit_identical(last_state(tmp_path, decoder), uninterrupted(decoder))
    for points in tiny_run.read_scalars(tmp_path).values():
        assert [step for step, _ in points] == list(range(1, STEPS + 1))


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_run_stopped_politely_and_damaged_ends_with_the_same_bits(
    start, finish, uninterrupted, tmp_path, decoder
):
    model = DECODERS[decoder]
    process = start(tmp_path, model=model)
    send(process, signal.SIGTERM, 3)
    assert process.returncode == interrupt.STOPPED
    (stopped,) = steps(tmp_path)
    assert 3 <= stopped < 12

    process = start(tmp_path, model=model)
    said = send(process, signal.SIGINT, 12)
    assert process.returncode == 130
    assert "Traceback" not in said
    *_, kept, interrupted = steps(tmp_path)
    assert f"interrupted: step {interrupted} of {STEPS} is saved in {tmp_path}" in said
    assert 12 <= interrupted < STEPS

    newest = tmp_path / "checkpoints" / str(interrupted)
    for path in (newest / "params").rglob("*"):
        if path.is_file() and path.stat().st_size > 1000:
            path.write_bytes(path.read_bytes()[:-100])
    said = finish(tmp_path, model=model)
    assert f"skipping a damaged checkpoint: {newest}" in said
    assert f"at step {kept}" in said
    assert_bit_identical(last_state(tmp_path, decoder), uninterrupted(decoder))


def test_a_save_that_does_not_end_in_the_grace_time_is_dropped(start, finish, tmp_path):
    train = TRAIN | {"grace_seconds": 2}
    process = start(tmp_path, train=train, save_slowly=10**6)  # never ends
    said = send(process, signal.SIGTERM, 9)  # while step 8 is being saved
    assert process.returncode == interrupt.STOPPED
    assert "is not saved: time ran out" in said
    assert steps(tmp_path) == []
    assert "compiled in" in finish(tmp_path)
    assert steps(tmp_path)[-1] == STEPS


def test_a_run_goes_on_with_another_number_of_devices(finish, uninterrupted, tmp_path):
    """Of Llama's kind; OPT does so in test_training_processes.py."""
    model = DECODERS["llama"]
    finish(tmp_path, devices=8, mesh={"data": 2, "fsdp": 2, "tensor": 2}, model=model)
    for step in steps(tmp_path)[1:]:
        shutil.rmtree(tmp_path / "checkpoints" / str(step))
    finish(tmp_path, model=model)
    before = jax.device_get(init_params(tiny_run.configs("", "", model=model)[1], 1234)[1])
    here, there = last_state(tmp_path, "llama")["params"], uninterrupted("llama")["params"]
    tiny_run.assert_same_parameters(here, there, before)
