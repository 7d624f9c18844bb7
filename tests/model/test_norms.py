"""Norms and their gradients against Flax's own, which are differentiated by JAX."""

import jax
import numpy as np
import pytest
from flax import nnx

from optiml_jax.model.norms import LayerNorm, RMSNorm
from optiml_jax.sharding.mesh import MeshConfig, make_mesh
from optiml_jax.sharding.rules import use_mesh

WIDTH = 48
PAIRS = {
    "layer norm": (LayerNorm(WIDTH), nnx.LayerNorm(WIDTH, epsilon=1e-5, rngs=nnx.Rngs(0))),
    "RMS norm": (RMSNorm(WIDTH, 1e-6), nnx.RMSNorm(WIDTH, epsilon=1e-6, rngs=nnx.Rngs(0))),
}


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("name", PAIRS)
def test_norms_and_their_gradients_are_those_of_flax(name, devices):
    rng = np.random.default_rng(0)
    x, above = rng.normal(3, 2, (2, 4, 6, WIDTH)).astype("float32")
    values = {"scale": rng.uniform(0.5, 2, WIDTH), "bias": rng.normal(size=WIDTH)}

    def results(module):
        graphdef, state = nnx.split(module)
        state = {n: values[n].astype("float32") for n in nnx.to_pure_dict(state)}
        y, derivative = jax.vjp(lambda state, x: nnx.merge(graphdef, state)(x), state, x)
        return y, derivative(above)

    ours, theirs = PAIRS[name]
    with use_mesh(make_mesh(MeshConfig(devices, 1, 1), jax.devices()[:devices])):
        found = jax.jit(lambda: results(ours))()
    for a, b in zip(*map(jax.tree.leaves, (found, results(theirs))), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", PAIRS)
def test_bfloat16_is_computed_in_float32_and_returned_in_bfloat16(name):
    x = 100 + jax.random.normal(jax.random.key(0), (2, WIDTH), "bfloat16")
    ours, theirs = PAIRS[name]
    assert ours(x).dtype == "bfloat16"
    np.testing.assert_allclose(ours(x).astype("float32"), theirs(x.astype("float32")), rtol=1e-2)
