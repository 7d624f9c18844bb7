"""Attention over documents: who may look at whom (`DocumentMask`).

Masks are values. Each kernel of `optiml_jax.model.kernels` lowers a mask to what it understands.
The cache of keys and values lives in kv_cache.py.
"""

import jax
import jax.numpy as jnp
from flax import struct

# Not -inf: a row that sees nothing (padding) then averages over all keys instead of giving NaN.
MASKED_SCORE = -1e30


SHARED_SEGMENT = -1  # of tokens that every later segment continues, whatever its number


@struct.dataclass
class DocumentMask:
    """Causal attention inside documents, for the tokens of a packed row.

    A token sees itself and the earlier tokens of its segment; segment 0 is padding, which sees
    nothing and is seen by nothing. What a padding token computes is finite and means nothing.
    A segment may end in branches: continuations of the same beginning that do not see each other.

    Every field is an array with leading axes [B, L]; the cache keeps, for each key, what the mask
    said about it, by mapping over the fields.

    Attributes:
      segment_ids: int32[B, L], 0 for padding, `SHARED_SEGMENT` for what all segments continue.
      branch_ids: int32[B, L], 0 for the beginning of a segment, then the number of the branch;
        None: no branches.
      positions: int32[B, L], the place of each token in its document; only a sliding window asks
        for them.
    """

    segment_ids: jax.Array
    branch_ids: jax.Array | None = None
    positions: jax.Array | None = None

    @property
    def valid(self) -> jax.Array:
        """bool[B, L]: the tokens that are not padding."""
        return self.segment_ids != 0

    def lower(self, window: int | None = None) -> jax.Array:
        """bool[B, L, L]: whether the token of axis 1 sees the token of axis 2, in the same rows.

        With a `window`, a token sees itself and the window - 1 positions before it.
        """
        index = jnp.arange(self.segment_ids.shape[1])
        return self.lower_earlier(self, window) & (index[:, None] >= index[None, :])

    def lower_earlier(self, keys: "DocumentMask", window: int | None = None) -> jax.Array:
        """bool[B, L, S]: whether the tokens see `keys`, S tokens that all come before them.

        `keys` may have fewer rows, A, of which each stands before B // A consecutive rows.
        """
        keys = jax.tree.map(lambda x: jnp.repeat(x, len(self.segment_ids) // len(x), axis=0), keys)
        of_query, of_key = self.segment_ids[:, :, None], keys.segment_ids[:, None, :]
        sees = (of_query == of_key) | (of_key == SHARED_SEGMENT)
        if keys.branch_ids is not None:
            of_key = keys.branch_ids[:, None, :]
            sees &= (of_key == 0) | (of_key == self.branch_ids[:, :, None])
        if window is not None:
            sees &= self.positions[:, :, None] - keys.positions[:, None, :] < window
        return sees & keys.valid[:, None, :]


def drop(x: jax.Array, probability: float, key: jax.Array | None) -> jax.Array:
    """Inverted dropout; without a key, `x` itself."""
    if key is None or probability == 0:
        return x
    keep = jax.random.bernoulli(key, 1 - probability, x.shape)
    return jnp.where(keep, x / (1 - probability), 0).astype(x.dtype)
