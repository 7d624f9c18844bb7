"""Whether arrays are finite: others are neither saved nor loaded from a checkpoint."""

from typing import Any

import jax
import jax.numpy as jnp


def first_not_finite(items: Any) -> str | None:
    """The path of the first array of a pytree with an infinity or NaN; None: all are finite.

    The arrays are checked on their devices. With several processes, all of them must call it.
    Leaves that are not a `jax.Array`, such as a `StreamedArray`, are skipped.
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
