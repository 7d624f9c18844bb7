"""Worker processes that die: the jobs under way are named."""

import os
import time
from multiprocessing import popen_forkserver

import pytest

from optiml_jax.data import pool
from optiml_jax.errors import UserError


def test_what_a_worker_died_of_is_named():
    with pytest.raises(UserError, match=r"died, .* at one of these: job 1, job 2; run the same"):
        list(pool.run(os._exit, [1, 2, 3, 4], 2, "json", lambda job: f"job {job}"))


def test_a_worker_that_dies_at_once_is_named_though_others_are_slow_to_start(monkeypatch):
    """The executor itself waits for ever, or fails to start the second one, when the first dies."""
    launch, started = popen_forkserver.Popen._launch, []

    def launch_slowly(popen, process):
        if started:
            time.sleep(1)
        started.append(process)
        return launch(popen, process)

    monkeypatch.setattr(popen_forkserver.Popen, "_launch", launch_slowly)
    with pytest.raises(UserError, match=r"died, .* at one of these: job 1, job 2; run the same"):
        list(pool.run(os._exit, [1, 2, 3, 4], 2, "json", lambda job: f"job {job}"))
    assert len(started) == 2


def test_results_come_as_they_are_made():
    assert sorted(pool.run(abs, [-1, 2, -3], 2, "json")) == [1, 2, 3]
