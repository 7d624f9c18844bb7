"""Whether numbers are finite: what is not is neither saved nor taken from a checkpoint."""

from typing import Any

import jax
import jax.numpy as jnp


def first_not_finite(items: Any) -> str | None:
    """The path of the first array of a pytree that holds an infinity or NaN; None: all is finite.

    The arrays are read where they lie. With several processes, all of them must call it. What is
    no `jax.Array`, such as an array that is made while it is written, is left out.
    """
    leaves = jax.tree_util.tree_leaves_with_path(items)
    arrays = [(path, leaf) for path, leaf in leaves if isinstance(leaf, jax.Array)]
    finite = jax.device_get(_all_finite([leaf for _, leaf in arrays]))
    for (path, _), is_finite in zip(arrays, finite, strict=True):
        if not is_finite:
            return jax.tree_util.keystr(path, simple=True, separator=".")
    return None


@jax.jit
def _all_finite(arrays: list[jax.Array]) -> list[jax.Array]:
    return [jnp.isfinite(array).all() for array in arrays]
