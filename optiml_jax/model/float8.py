"""Products of matrices in float8, each array with one scale: an experiment for Hopper GPUs.

Inputs and kernels are rounded to e4m3, gradients to e5m2 (Micikevicius et al. 2022, arXiv
2209.05433). The scale is the power of two that brings the largest magnitude of the array itself
just below the largest number of the format: nothing is kept from step to step. What was rounded is
written as a product of bfloat16 numbers; XLA makes float8 products of that on GPUs that have them,
and other backends compute the same numbers without being any faster.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from optiml_jax.errors import UserError
from optiml_jax.model import axes
from optiml_jax.model.kernels.choice import capability, platform

_NEEDED = (8, 9)  # compute capability


def check_device() -> None:
    """UserError where float8 would only cost time: on TPUs, and on GPUs without such products."""
    device = axes.device()
    able = capability(device)
    if platform(device) == "tpu" or (able is not None and able < _NEEDED):
        raise UserError(
            f"model_config.matmul='float8' is for GPUs of compute capability "
            f"{_NEEDED[0]}.{_NEEDED[1]} (Ada, Hopper) on, and this is a {device.device_kind}; "
            "set it to 'dtype'"
        )


def rounded(x: jax.Array, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """`x` times a scale in a float8 type, and bfloat16[], the inverse of the scale (exact)."""
    largest = jnp.max(jnp.abs(x)).astype(jnp.float32)
    limit = float(jnp.finfo(dtype).max)
    exponent = jnp.floor(jnp.log2(limit / jnp.where(largest > 0, largest, limit)))
    exponent = jnp.clip(exponent, -126, 126).astype(jnp.int32)
    scale, inverse = (jnp.ldexp(jnp.float32(1), n) for n in (exponent, -exponent))
    # A logarithm that was rounded up must not bring a number beyond the format.
    small = jnp.clip(x.astype(jnp.float32) * scale, -limit, limit).astype(dtype)
    return small, inverse.astype(jnp.bfloat16)


def float8_product(equation: str, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`layers.product` of rounded arrays; the result in the type of `x`."""
    return _float8_product(equation, kernel.dtype.name, x, kernel)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _float8_product(equation: str, kernel_type: str, x: jax.Array, kernel: jax.Array) -> jax.Array:
    return _forward(equation, kernel_type, x, kernel)[0]


def _forward(equation: str, kernel_type: str, x: jax.Array, kernel: jax.Array) -> Any:
    small = rounded(x, jnp.float8_e4m3fn), rounded(kernel, jnp.float8_e4m3fn)
    return _product(equation, *small, x.dtype), small


def _backward(equation: str, kernel_type: str, saved: Any, gradient: jax.Array) -> Any:
    x, kernel = saved
    inputs, result = equation.split("->")
    into, of = inputs.split(",")
    small = rounded(gradient, jnp.float8_e5m2)
    d_x = _product(f"{result},{of}->{into}", small, kernel, gradient.dtype)
    return d_x, _product(f"{into},{result}->{of}", x, small, kernel_type)


_float8_product.defvjp(_forward, _backward)


def _product(equation: str, left: Any, right: Any, dtype: Any) -> jax.Array:
    """The einsum of what `rounded` gave, in `dtype`."""
    a, b = (small.astype(jnp.bfloat16) * inverse for small, inverse in (left, right))
    return jnp.einsum(equation, a, b, preferred_element_type=dtype)
