"""Worker processes that die: the jobs under way are named."""

import os

import pytest

from optiml_jax.data import pool
from optiml_jax.errors import UserError


def test_what_a_worker_died_of_is_named():
    with pytest.raises(UserError, match=r"died, .* at one of these: job 1, job 2; run the same"):
        list(pool.run(os._exit, [1, 2, 3, 4], 2, "json", lambda job: f"job {job}"))


def test_results_come_as_they_are_made():
    assert sorted(pool.run(abs, [-1, 2, -3], 2, "json")) == [1, 2, 3]
