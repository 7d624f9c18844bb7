"""Products in float8: as exact as the formats are, and refused where there are none."""

import dataclasses

import decoders
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from optiml_jax.errors import UserError
from optiml_jax.model import axes
from optiml_jax.model.attention import DocumentMask
from optiml_jax.model.decoder import abstract_model
from optiml_jax.model.float8 import float8_product, rounded

HALF = {"float8_e4m3fn": 2.0**-4, "float8_e5m2": 2.0**-3}  # half a unit of the last digit


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("size", [1e-30, 1e-4, 1.0, 3e5])
def test_rounding_is_that_of_the_format_at_every_size(dtype, size):
    x = size * np.random.default_rng(0).standard_normal(4096).astype(np.float32)
    small, inverse = rounded(jnp.asarray(x), jnp.dtype(dtype))
    back = np.asarray(small, np.float32) * float(inverse)
    large = np.abs(x) > np.abs(x).max() * 2.0**-6
    assert (np.abs(back - x)[large] <= HALF[dtype] * np.abs(x)[large]).all()
    assert np.abs(small).max() > float(jnp.finfo(dtype).max) / 2.1


def test_zeros_and_infinities_pass():
    small, inverse = rounded(jnp.zeros(3), jnp.float8_e4m3fn)
    assert small.tolist() == [0, 0, 0]
    assert inverse == 1
    x = jnp.array([[1.0, jnp.inf]], jnp.bfloat16)
    assert not np.isfinite(float8_product("bd,df->bf", x, jnp.ones((2, 1)))).all()


def test_products_and_gradients_are_those_of_rounded_arrays():
    """float64 NumPy on the rounded arrays, forward and both gradients."""
    generator = np.random.default_rng(0)
    x, kernel, gradient = (
        jnp.asarray(generator.standard_normal(shape), jnp.float32)
        for shape in ((2, 5, 32), (32, 4, 8), (2, 5, 4, 8))
    )
    equation = "bld,dhk->blhk"
    y, back = jax.vjp(lambda x, kernel: float8_product(equation, x, kernel), x, kernel)
    d_x, d_kernel = back(gradient)
    types = (jnp.float8_e4m3fn, jnp.float8_e4m3fn, jnp.float8_e5m2)
    x, kernel, gradient = (
        np.asarray(small, np.float64) * float(inverse)
        for small, inverse in map(rounded, (x, kernel, gradient), types)
    )
    np.testing.assert_allclose(y, np.einsum(equation, x, kernel), rtol=1e-5, atol=1e-5)
    of_x = np.einsum("blhk,dhk->bld", gradient, kernel)
    np.testing.assert_allclose(d_x, of_x, rtol=1e-5, atol=1e-5)
    of_kernel = np.einsum("bld,blhk->dhk", x, gradient)
    np.testing.assert_allclose(d_kernel, of_kernel, rtol=1e-5, atol=1e-5)


def test_a_model_differs_from_bfloat16_by_roundings_and_by_no_parameter():
    config = dataclasses.replace(decoders.DECODERS["opt"], dtype="bfloat16")
    params = decoders.random_params(config)
    tokens = np.random.default_rng(0).integers(3, 64, (2, 20)).astype(np.int32)
    positions = np.broadcast_to(np.arange(20), tokens.shape)

    def logits(config):
        graphdef, abstract = abstract_model(config)
        assert jax.tree.structure(nnx.to_pure_dict(abstract)) == jax.tree.structure(params)
        model = nnx.merge(graphdef, params)
        return jax.jit(model)(tokens, positions, DocumentMask(jnp.ones_like(tokens)))

    plain = logits(config)
    small = dataclasses.replace(config, matmul="float8")
    apart = np.abs(logits(small) - plain).mean() / np.abs(plain).mean()
    assert 0.005 < apart < 0.2
    assert small.as_evaluated() == config


@pytest.mark.parametrize(
    ("kind", "platform", "able"), [("TPU v5", "tpu", None), ("NVIDIA A100", "cuda", "8.0")]
)
def test_devices_without_such_products_refuse_by_name(monkeypatch, kind, platform, able):
    class Device:
        device_kind = kind
        compute_capability = able

    Device.platform = platform
    monkeypatch.setattr(axes, "device", Device)
    config = dataclasses.replace(decoders.DECODERS["opt"], dtype="bfloat16", matmul="float8")
    graphdef, params = abstract_model(config)
    tokens = jnp.ones((1, 4), jnp.int32)

    def run(params):
        return nnx.merge(graphdef, params)(tokens, tokens, DocumentMask(tokens))

    with pytest.raises(UserError, match=f"matmul='float8' is for GPUs .* this is a {kind}"):
        jax.eval_shape(run, params)


def test_other_types_of_the_computation_are_refused():
    with pytest.raises(UserError, match="goes with dtype='bfloat16' only, not float16"):
        dataclasses.replace(decoders.DECODERS["opt"], dtype="float16", matmul="float8")
