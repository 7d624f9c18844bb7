"""Sums over an axis; on one CPU by a product with ones.

There XLA computes the sum of a product up to ten times as slowly as the product and a second
product that adds it up.
"""

import jax
import jax.numpy as jnp

from optiml_jax.model import axes


def sum_of_rows(x: jax.Array) -> jax.Array:
    """[..., 1]: the sum over the last axis of float32[..., D]."""
    if axes.is_one_cpu():
        return x @ jnp.ones((x.shape[-1], 1), x.dtype)
    return jnp.sum(x, -1, keepdims=True)


def sum_of_columns(x: jax.Array) -> jax.Array:
    """[D]: the sum over all axes but the last of float32[..., D]."""
    if axes.is_one_cpu():
        x = x.reshape(-1, x.shape[-1])
        return (jnp.ones((1, len(x)), x.dtype) @ x)[0]
    return jnp.sum(x, range(x.ndim - 1))
