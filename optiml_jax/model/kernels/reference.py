"""The reference: scores of all pairs of tokens in float32, masked, in plain array operations."""

import jax
import jax.numpy as jnp

from optiml_jax.model import axes
from optiml_jax.model.attention import MASKED_SCORE, DocumentMask, drop
from optiml_jax.model.kernels.contract import Case, Keys, grouped


class Reference:
    """Computes every case on every platform, with memory that grows with L * (L + S)."""

    name = "reference"
    platforms = ("cpu", "gpu", "tpu")

    def refuses(self, case: Case) -> str | None:
        return None

    def pays(self, case: Case) -> bool:
        return True

    def attend(
        self,
        query: jax.Array,
        mask: DocumentMask,
        parts: list[Keys],
        window: int | None,
        dropout: float,
        dropout_key: jax.Array | None,
    ) -> jax.Array:
        """See `Kernel`. The parts are kept apart: a cache is read where it lies, never copied."""
        scores = jnp.concatenate([_scores(query, mask, part, window) for part in parts], axis=-1)
        weights = jax.nn.softmax(scores, axis=-1).astype(query.dtype)
        if dropout_key is not None and dropout > 0:
            weights = drop(weights, dropout, dropout_key)
        out, start = 0.0, 0
        for part in parts:
            size = part.value.shape[2]
            out += _mean(weights[..., start : start + size], part.value)
            start += size
        return out


def _mean(weights: jax.Array, value: jax.Array) -> jax.Array:
    """[B, H, L, Dh]: values [A, Hkv, S, Dh] weighted by [B, H, L, S]."""
    if weights.shape[:3] == (*value.shape[:2], 1) and axes.is_one_cpu():
        # A product of one row runs on one core, a sum on all.
        weights = jax.lax.optimization_barrier(weights[:, :, 0, :, None])
        return jnp.sum(weights * value, axis=2, keepdims=True)
    chosen = jnp.einsum("aghils,ahsk->aghilk", grouped(weights, value), value)
    return chosen.reshape(*weights.shape[:3], value.shape[3])


def _scores(query: jax.Array, mask: DocumentMask, part: Keys, window: int | None) -> jax.Array:
    scores = jnp.einsum(
        "aghilk,ahsk->aghils",
        grouped(query, part.key),
        part.key,
        preferred_element_type=jnp.float32,
    )
    scores = scores.reshape(*query.shape[:3], part.key.shape[2])
    allowed = mask.lower(window) if part.own else mask.lower_earlier(part.mask, window)
    return jnp.where(allowed[:, None], scores, MASKED_SCORE)
