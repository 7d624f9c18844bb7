"""Attention over documents: who may look at whom (`DocumentMask`), and the reference computation.

Masks are values. Each kernel lowers a mask to what it understands; the XLA path below is the
reference for all of them. The cache of keys and values lives in kv_cache.py.
"""

import jax
import jax.numpy as jnp
from flax import struct

# Not -inf: a row that sees nothing (padding) then averages over all keys instead of giving NaN.
MASKED_SCORE = -1e30


@struct.dataclass
class DocumentMask:
    """Causal attention inside documents, for the tokens of a packed row.

    A token sees itself and the earlier tokens of its segment; segment 0 is padding, which sees
    nothing and is seen by nothing. What a padding token computes is finite and means nothing.

    Every field is an array with leading axes [B, L]; the cache keeps, for each key, what the mask
    said about it, by mapping over the fields.

    Attributes:
      segment_ids: int32[B, L], 0 for padding.
    """

    segment_ids: jax.Array

    @property
    def valid(self) -> jax.Array:
        """bool[B, L]: the tokens that are not padding."""
        return self.segment_ids != 0

    def lower(self) -> jax.Array:
        """bool[B, L, L]: whether the token of axis 1 sees the token of axis 2, in the same rows."""
        index = jnp.arange(self.segment_ids.shape[1])
        return self.lower_earlier(self) & (index[:, None] >= index[None, :])

    def lower_earlier(self, keys: "DocumentMask") -> jax.Array:
        """bool[B, L, S]: whether the tokens see `keys`, S tokens that all come before them."""
        same = self.segment_ids[:, :, None] == keys.segment_ids[:, None, :]
        return same & keys.valid[:, None, :]


def attend(
    query: jax.Array,
    parts: list[tuple[jax.Array, jax.Array, jax.Array]],
    dropout: float = 0.0,
    dropout_key: jax.Array | None = None,
) -> jax.Array:
    """Softmax attention over keys that lie in several arrays; the reference path.

    The parts are one sequence of keys for the softmax. They are kept apart so that a cache is read
    where it lies and never copied together with the new keys.

    Args:
      query: [B, H, L, Dh], already divided by sqrt(Dh).
      parts: (key [B, H, S, Dh], value [B, H, S, Dh], allowed bool[B, L, S]), S may differ.
      dropout: probability of dropping an attention weight; needs `dropout_key`.
      dropout_key: key of the dropout; None turns it off.

    Returns:
      [B, H, L, Dh] in the type of `query`. The softmax is computed in float32.
    """
    scores = jnp.concatenate([_scores(query, key, allowed) for key, _, allowed in parts], axis=-1)
    weights = jax.nn.softmax(scores, axis=-1).astype(query.dtype)
    if dropout_key is not None and dropout > 0:
        weights = drop(weights, dropout, dropout_key)
    out, start = 0.0, 0
    for _, value, _ in parts:
        size = value.shape[2]
        out += jnp.einsum("bhls,bhsk->bhlk", weights[..., start : start + size], value)
        start += size
    return out


def _scores(query: jax.Array, key: jax.Array, allowed: jax.Array) -> jax.Array:
    scores = jnp.einsum("bhlk,bhsk->bhls", query, key, preferred_element_type=jnp.float32)
    return jnp.where(allowed[:, None], scores, MASKED_SCORE)


def drop(x: jax.Array, probability: float, key: jax.Array | None) -> jax.Array:
    """Inverted dropout; without a key, `x` itself."""
    if key is None or probability == 0:
        return x
    keep = jax.random.bernoulli(key, 1 - probability, x.shape)
    return jnp.where(keep, x / (1 - probability), 0).astype(x.dtype)
