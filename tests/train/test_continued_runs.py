"""Runs that go on beyond the number of steps that they were planned with."""

import shutil

import jax
import numpy as np
import pytest
import tiny_run

from optiml_jax.checkpoint.manager import load_metadata, load_params
from optiml_jax.errors import UserError
from optiml_jax.sharding.rules import abstract_params
from optiml_jax.train.loop import train

MESH = {"data": 8, "fsdp": 1}


@pytest.fixture(scope="module")
def plans(tmp_path_factory):
    """num_steps -> a plan of just as many rows as those steps need."""
    folder = tmp_path_factory.mktemp("plans")
    return {steps: tiny_run.make_plan(folder, num_rows=8 * steps) for steps in (12, 20)}


@pytest.fixture
def run(plans, compiled_once):
    """run(run_dir, num_steps, **settings of the optimiser): the parameters that come of it."""

    def run(run_dir, num_steps, **optimizer):
        configs = tiny_run.configs(
            plans[num_steps],
            run_dir,
            mesh=MESH,
            train={"num_steps": num_steps, "log_every": 1, "checkpoint_every": 8},
            model={"num_layers": 1, "d_model": 16},
            optimizer=optimizer,
        )
        assert train(*configs) == 0
        assert load_metadata(run_dir)["step"] == num_steps
        return jax.device_get(load_params(run_dir, abstract_params(configs[1])))

    return run


def assert_bit_identical(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


def test_a_continued_run_of_a_constant_schedule_is_that_of_one_piece(run, tmp_path):
    schedule = {"schedule": "constant"}
    run(tmp_path / "pieces", 12, **schedule)
    told = r"num_steps is 12 there and 20 now .*OptimizerConfig.continued = {12: 'constant'}"
    for not_said in ({}, {11: "decay"}):
        with pytest.raises(UserError, match=told):
            run(tmp_path / "pieces", 20, **schedule, continued=not_said)
    pieces = run(tmp_path / "pieces", 20, **schedule, continued={12: "constant"})
    assert_bit_identical(pieces, run(tmp_path / "one", 20, **schedule))
    losses = [tiny_run.read_scalars(tmp_path / name)["loss"] for name in ("pieces", "one")]
    assert losses[0] == losses[1]


def test_a_continued_run_ends_as_one_that_was_told_so_at_its_start(run, tmp_path):
    continued = {12: "decay"}
    run(tmp_path / "pieces", 12)
    shutil.rmtree(tmp_path / "pieces" / "checkpoints" / "12")  # also from before the planned end
    pieces = run(tmp_path / "pieces", 20, continued=continued)
    assert_bit_identical(pieces, run(tmp_path / "one", 20, continued=continued))
    rates = dict(tiny_run.read_scalars(tmp_path / "pieces")["learning_rate"])
    assert rates[12] == pytest.approx(1e-2 / 9, rel=1e-5)
    assert rates[13] == pytest.approx(1e-2 * 8 / 17, rel=1e-5)

    with pytest.raises(UserError, match=r"continued is \[\[12, 'decay'\]\] there and \[\] now"):
        run(tmp_path / "pieces", 20)
    with pytest.raises(UserError, match=r"num_steps is 20 there and 12 now; choose"):
        run(tmp_path / "pieces", 12)
