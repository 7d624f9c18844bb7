import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optiml_jax.errors import UserError
from optiml_jax.train.optimizer import (
    OptimizerConfig,
    apply_gradient,
    init_optimizer,
    learning_rate_at,
)


def test_learning_rate_is_exact_at_the_boundaries():
    config = OptimizerConfig(learning_rate=5e-5, warmup_steps=60)
    rate = [float(learning_rate_at(config, 4000, step)) for step in range(4001)]
    assert rate[0] == pytest.approx(5e-5 / 60)
    assert rate[59] == pytest.approx(5e-5)
    assert rate[60] == pytest.approx(5e-5)
    assert rate[30] == pytest.approx(5e-5 * 31 / 60)
    assert rate[2030] == pytest.approx(5e-5 / 2)
    assert rate[3999] == pytest.approx(5e-5 / 3940, rel=1e-5)
    assert rate[4000] == 0
    assert min(rate[:4000]) > 0


def test_without_warm_up_the_first_update_has_the_peak():
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=0)
    assert [float(learning_rate_at(config, 4, s)) for s in range(5)] == [1, 0.75, 0.5, 0.25, 0]


def test_a_warm_up_longer_than_the_run_is_refused():
    with pytest.raises(UserError, match=r"warmup_steps=60 .*num_steps=50"):
        OptimizerConfig().check(50)


@pytest.mark.parametrize("gradient_scale", [1e-3, 10.0])
def test_updates_are_those_of_optax_adamw_after_clipping(gradient_scale):
    config = OptimizerConfig(learning_rate=1e-2, warmup_steps=2, weight_decay=0.1)
    reference = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(lambda n: learning_rate_at(config, 9, n), 0.9, 0.95, 1e-8, weight_decay=0.1),
    )
    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.normal(size=(4, 3)), jnp.float32), "b": jnp.ones(3)}
    expected, expected_state, state = params, reference.init(params), init_optimizer(params)
    for step in range(5):
        gradient = jax.tree.map(lambda p: gradient_scale * jnp.cos(p * 7), expected)
        updates, expected_state = reference.update(gradient, expected_state, expected)
        expected = optax.apply_updates(expected, updates)
        params, state, measured = apply_gradient(
            config, 9, jnp.int32(step), params, state, gradient
        )
        assert measured["gradient_norm"] == pytest.approx(float(optax.global_norm(gradient)))
        for name in params:
            np.testing.assert_allclose(params[name], expected[name], rtol=1e-5, atol=1e-7)
    assert jax.tree.all(jax.tree.map(lambda m: m.dtype == jnp.float32, state))
