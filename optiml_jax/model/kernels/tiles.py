"""Tiles of attention: which pairs of blocks of queries and keys hold a pair that the mask allows.

Shared by the kernels that skip what the mask forbids. The test of a tile may say yes too often,
never too seldom; inside a tile the mask decides pair by pair.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from optiml_jax.model.attention import SHARED_SEGMENT, DocumentMask
from optiml_jax.model.kernels.contract import declaring

_FAR = 2**30


def block_size(length: int, largest: int) -> int:
    """The block that cuts `length` into the fewest equal pieces with the least padding."""
    pieces = -(-length // largest)
    return 8 * -(-length // (8 * pieces)) if length > 8 else length


def padded(x: jax.Array, axis: int, block: int) -> jax.Array:
    """`x` with zeros after it, so that whole blocks fill the axis."""
    missing = -x.shape[axis] % block
    if not missing:
        return x
    return jnp.pad(x, [(0, missing if i == axis else 0) for i in range(x.ndim)])


def key_ranges(
    queries: DocumentMask,
    keys: DocumentMask,
    block_q: int,
    block_k: int,
    own: bool,
    window: int | None,
) -> jax.Array:
    """int32[B, blocks of queries, 2]: first block of keys that a block of queries sees, and end.

    Args:
      queries, keys: fields [B, L] and [B, S], of the same rows, padded to whole blocks.
      own: queries and keys are the same tokens, and see only what is not later.
    """
    low_q, high_q = _segments(queries, block_q)
    low_k, high_k = _segments(keys, block_k)
    meets = (low_q[:, :, None] <= high_k[:, None]) & (low_k[:, None] <= high_q[:, :, None])
    shared = _blocks(keys.segment_ids == SHARED_SEGMENT, block_k).any(-1)
    # Shared tokens see each other too: what must be there is any token, not one of a segment.
    seen = (meets | shared[:, None]) & _blocks(queries.valid, block_q).any(-1)[:, :, None]
    i, j = jnp.arange(seen.shape[1])[:, None], jnp.arange(seen.shape[2])[None]
    if own:
        seen &= j * block_k < (i + 1) * block_q
    if window is not None:
        nearest = _blocks(jnp.where(queries.valid, queries.positions, _FAR), block_q).min(-1)
        farthest = _blocks(jnp.where(keys.valid, keys.positions, -_FAR), block_k).max(-1)
        seen &= nearest[:, :, None] - farthest[:, None] < window
    first = jnp.where(seen, j, _FAR).min(-1)
    end = jnp.where(seen, j + 1, 0).max(-1)
    return jnp.stack([jnp.minimum(first, end), end], axis=-1).astype(jnp.int32)


def transposed_ranges(ranges: jax.Array, num_blocks_k: int) -> jax.Array:
    """int32[B, blocks of keys, 2]: first block of queries that sees a block of keys, and end."""
    i = jnp.arange(ranges.shape[1])[None, :, None]
    j = jnp.arange(num_blocks_k)[None, None]
    seen = (ranges[..., :1] <= j) & (j < ranges[..., 1:])
    first, end = jnp.where(seen, i, _FAR).min(1), jnp.where(seen, i + 1, 0).max(1)
    return jnp.stack([jnp.minimum(first, end), end], axis=-1).astype(jnp.int32)


def mean_turns(num_blocks_q: int, num_blocks_k: int, own: bool) -> float:
    """Blocks of keys of a block of queries, on average, if every token saw all before it."""
    return (num_blocks_k + 1) / 2 if own and num_blocks_q > 1 else num_blocks_k


def loop(
    turns: float, first: jax.Array, end: jax.Array, body: Callable[[Any, Any], Any], init: Any
) -> Any:
    """`fori_loop(first, end, ...)`, whose program says how often it turns where nothing is skipped.

    `optiml_jax.ahead.flops` reads that: the number depends on the documents.
    """

    def turning(first: jax.Array, end: jax.Array, init: Any) -> Any:
        return jax.lax.fori_loop(first, end, body, init)

    return declaring("turns", turns, turning)(first, end, init)


def _segments(mask: DocumentMask, block: int) -> tuple[jax.Array, jax.Array]:
    """Lowest and highest segment of each block, its padding and shared tokens left out."""
    ids = _blocks(mask.segment_ids, block)
    return jnp.where(ids > 0, ids, _FAR).min(-1), jnp.where(ids > 0, ids, 0).max(-1)


def _blocks(x: jax.Array, block: int) -> jax.Array:
    return x.reshape(x.shape[0], math.ceil(x.shape[1] / block), block)
