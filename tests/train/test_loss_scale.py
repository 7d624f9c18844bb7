"""Training in float16: overflows are skipped, counted and logged, and the scale follows."""

import logging

import jax
import numpy as np
import pytest
import tiny_run

from optiml_jax.data.loader import read_rows
from optiml_jax.data.plan import Plan
from optiml_jax.errors import UserError
from optiml_jax.model.decoder import abstract_model, init_params
from optiml_jax.sharding.mesh import MeshConfig, make_mesh
from optiml_jax.sharding.rules import use_mesh
from optiml_jax.train.loop import train
from optiml_jax.train.optimizer import OptimizerConfig
from optiml_jax.train.state import abstract_state, state_from_params
from optiml_jax.train.step import make_train_step


@pytest.fixture(autouse=True)
def _float16():
    """XLA needs F16C for float16, which the instruction set SSE4_2 has not."""
    try:
        jax.jit(lambda x: x.astype("float16") + 1)(np.ones(8, np.float32)).block_until_ready()
    except jax.errors.JaxRuntimeError as e:
        pytest.skip(f"XLA cannot compile float16 here: {e}")


def start(loss_scale, interval):
    """The state and the compiled step of a tiny model in float16 on one device."""
    config = tiny_run.configs("", "", model={"dtype": "float16"})[1]
    optimizer = OptimizerConfig(1e-2, 2, loss_scale=loss_scale, loss_scale_interval=interval)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    function = make_train_step(
        abstract_model(config)[0],
        config,
        optimizer,
        num_steps=20,
        num_microbatches=2,
        seed=0,
        chunk=32,
    )
    with use_mesh(mesh):
        abstract = abstract_state(config, optimizer, mesh, "standard")
        params = init_params(config, 0, jax.tree.map(lambda x: x.sharding, abstract.params))[1]
        return state_from_params(params, config, optimizer, abstract), jax.jit(function)


def test_an_overflow_skips_the_step_and_halves_the_scale(plan_dir):
    batch = read_rows(Plan.load(plan_dir), range(8))
    state, step = start(loss_scale=2.0**100, interval=2)
    after, measured = step(state, batch)
    scale = after.optimizer["loss_scale"]
    assert (float(measured["skipped"]), float(scale["scale"])) == (1, 2.0**99)
    assert (int(scale["skipped"]), int(after.step)) == (1, 1)
    for name in ("mu", "nu"):
        jax.tree.map(np.testing.assert_array_equal, after.optimizer[name], state.optimizer[name])
    jax.tree.map(np.testing.assert_array_equal, after.params, state.params)


def test_updates_without_overflow_double_the_scale(plan_dir):
    batch = read_rows(Plan.load(plan_dir), range(8))
    state, step = start(loss_scale=64.0, interval=2)
    scales = []
    for _ in range(4):
        before = state.params
        state, measured = step(state, batch)
        scales.append(float(measured["loss_scale"]))
        assert float(measured["skipped"]) == 0
        assert np.any(state.params["token_embedding"] != before["token_embedding"])
    assert scales == [64, 128, 128, 256]


def test_a_run_that_overflows_whatever_the_scale_ends(plan_dir, tmp_path, compiled_once, caplog):
    caplog.set_level(logging.WARNING)
    settings = {"model": {"dtype": "float16"}, "optimizer": {"learning_rate": 1e30}}
    settings["optimizer"]["loss_scale"] = 2.0**-10
    settings["train"] = {"num_steps": 40}
    with pytest.raises(UserError, match="overflows in float16 whatever the loss scale"):
        train(*tiny_run.configs(plan_dir, tmp_path, **settings))
    assert "overflowed in float16 and was skipped" in caplog.text
