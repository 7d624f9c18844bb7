"""The evaluation hook: when it is called, and how signals leave it."""

import logging
import os
import signal

import jax
import numpy as np
import pytest
import tiny_run
from test_loop import PURE_DATA, params_of

from optiml_jax.interrupt import STOPPED
from optiml_jax.train.loop import train
from optiml_jax.train.reporting import Reporter


@pytest.fixture
def run(plan_dir, compiled_once, caplog):
    """run(run_dir, hook, steps): trains 12 steps with checkpoints at 4, 8 and 12."""
    caplog.set_level(logging.INFO)

    def run(run_dir, hook, steps):
        return train(*tiny_run.configs(plan_dir, run_dir, mesh=PURE_DATA), hook, steps)

    return run


def test_the_hook_sees_the_parameters_of_its_steps(run, tmp_path):
    seen = {}

    def hook(step, graphdef, params):
        seen[step] = jax.device_get(params)

    assert run(tmp_path, hook, {3, 8, 12}) == 0
    assert list(seen) == [3, 8, 12]
    for step in (8, 12):
        expected = params_of(tmp_path / "checkpoints" / str(step))
        jax.tree.map(np.testing.assert_array_equal, seen[step], expected)


def test_a_signal_leaves_the_hook_and_the_resumed_run_calls_it_again(run, tmp_path):
    called, completed = [], []

    def hook(step, graphdef, params):
        called.append(step)
        if called == [6]:
            try:
                os.kill(os.getpid(), signal.SIGINT)
            except Exception:  # a task's failure is caught like this; a signal is none
                completed.append("swallowed")
        completed.append(step)

    with pytest.raises(KeyboardInterrupt, match="step 6 of 12 is saved"):
        run(tmp_path, hook, {6, 12})
    assert (called, completed) == ([6], [])
    assert run(tmp_path, hook, {6, 12}) == 0
    assert (called, completed) == ([6, 6, 12], [6, 12])


def test_a_stop_in_the_last_evaluation_is_taken_up_by_the_same_command(run, tmp_path, caplog):
    called, completed = [], []

    def hook(step, graphdef, params):
        called.append(step)
        if len(called) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        completed.append(step)

    assert run(tmp_path, hook, {12}) == run(tmp_path, hook, {12}) == 0
    assert (called, completed) == ([12, 12], [12])
    assert "is complete: all 12 steps are done" in caplog.text


def test_no_evaluation_after_a_stop_was_asked_for(run, tmp_path, monkeypatch):
    add, called = Reporter.add, []

    def add_and_stop(self, measured):
        add(self, measured)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Reporter, "add", add_and_stop)
    assert run(tmp_path, lambda step, *_: called.append(step), {1}) == STOPPED
    assert not called
