"""The label loss (equation 1 of OPT-IML): negative log-likelihood of the target tokens.

A loss is always a pair (sum over tokens, sum of their weights); it is divided once, when it is
reported, after summing over chunks, microbatches, devices and batches.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from optiml_jax.model.axes import constrain


def label_loss(
    hidden: jax.Array,
    unembed: Callable[[jax.Array], jax.Array],
    targets: jax.Array,
    loss_weights: jax.Array,
    chunk: int,
) -> tuple[jax.Array, jax.Array]:
    """Weighted negative log-likelihood of `targets`, in float32.

    Processes the rows in chunks of at most `chunk` positions and recomputes the logits of a chunk
    in the backward pass, so that no float32[B, L, V] is ever materialised. Chunks are not cut along
    the batch dimension: all devices work on every chunk.

    Args:
      hidden: [B, L, D], the model's last hidden states.
      unembed: [B, C, D] -> logits float32[B, C, V].
      targets: int32[B, L].
      loss_weights: float32[B, L].
      chunk: maximum positions per chunk; the largest divisor of L up to it is used.

    Returns:
      Sum of weight * -log p(target), and sum of weights: float32[] each, nats.
    """

    @jax.checkpoint
    def piece(carry: jax.Array, inputs: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        hidden, targets, weights = inputs
        logits = constrain(unembed(hidden).astype(jnp.float32), "batch", None, "vocab")
        picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        losses = jax.nn.logsumexp(logits, axis=-1) - picked
        return carry + jnp.sum(losses * weights), None

    # The scan takes one chunk at a time, so each must be spread over all devices.
    hidden = constrain(hidden, "batch", None, None)
    pieces = _pieces(hidden.shape[1], chunk)
    inputs = tuple(_split(x, pieces) for x in (hidden, targets, loss_weights))
    total, _ = jax.lax.scan(piece, jnp.zeros((), jnp.float32), inputs)
    return total, jnp.sum(loss_weights)


def _pieces(length: int, chunk: int) -> int:
    """The smallest number of equal parts of `length` positions with at most `chunk` each."""
    return next(n for n in range(1, length + 1) if length % n == 0 and length // n <= max(chunk, 1))


def _split(x: jax.Array, pieces: int) -> jax.Array:
    """[B, L, ...] -> [pieces, B, L / pieces, ...]."""
    x = x.reshape(x.shape[0], pieces, x.shape[1] // pieces, *x.shape[2:])
    return jnp.moveaxis(x, 1, 0)
