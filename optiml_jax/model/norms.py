"""Layer norm and root-mean-square norm, computed in float32.

What their backward pass needs of an input is computed again from the input: only that is kept.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from optiml_jax.model.layers import parameter
from optiml_jax.model.sums import sum_of_columns, sum_of_rows


class LayerNorm(nnx.Module):
    """Layer norm over the last axis."""

    def __init__(self, width: int, epsilon: float = 1e-5):
        self.scale = parameter(jnp.ones((width,)), "norm")
        self.bias = parameter(jnp.zeros((width,)), "norm")
        self.epsilon = epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        y = _norm(True, self.epsilon, x, self.scale[...]) + self.bias[...]
        return y.astype(x.dtype)


class RMSNorm(nnx.Module):
    """Root-mean-square norm over the last axis."""

    def __init__(self, width: int, epsilon: float):
        self.scale = parameter(jnp.ones((width,)), "norm")
        self.epsilon = epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        return _norm(False, self.epsilon, x, self.scale[...]).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _norm(centred: bool, epsilon: float, x: jax.Array, scale: jax.Array) -> jax.Array:
    """float32[..., D]: `x` over its root mean square, or its standard deviation if `centred`."""
    return _standardised(centred, epsilon, x)[0] * scale


def _standardised(centred: bool, epsilon: float, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`x` without scale, and what it was multiplied with [..., 1]."""
    y = x.astype(jnp.float32)
    if centred:
        y = y - _mean(y)
    factor = jax.lax.rsqrt(_mean(y * y) + epsilon)
    return y * factor, factor


def _mean(x: jax.Array) -> jax.Array:
    return sum_of_rows(x) / x.shape[-1]


def _norm_fwd(centred: bool, epsilon: float, x: jax.Array, scale: jax.Array) -> Any:
    # Not by `_norm`: see `layers.product`.
    return _standardised(centred, epsilon, x)[0] * scale, (x, scale)


def _norm_bwd(centred: bool, epsilon: float, saved: Any, gradient: jax.Array) -> Any:
    x, scale = saved
    y, factor = _standardised(centred, epsilon, x)
    d_scale = sum_of_columns(gradient * y)
    d_y = gradient * scale
    d_x = d_y - y * _mean(d_y * y)
    if centred:
        d_x = d_x - _mean(d_y)
    return (factor * d_x).astype(x.dtype), d_scale


_norm.defvjp(_norm_fwd, _norm_bwd)
