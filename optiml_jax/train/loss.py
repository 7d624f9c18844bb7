"""The label loss (equation 1 of OPT-IML): negative log-likelihood of the target tokens.

A loss is always a pair (sum over tokens, sum of their weights); it is divided once, when it is
reported, after summing over chunks, microbatches, devices and batches.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from optiml_jax.model import axes
from optiml_jax.model.axes import constrain
from optiml_jax.model.kernels.tiles import loop


def label_loss(
    hidden: jax.Array,
    unembed: Callable[[jax.Array], jax.Array],
    targets: jax.Array,
    loss_weights: jax.Array,
    chunk: int,
) -> tuple[jax.Array, jax.Array]:
    """Weighted negative log-likelihood of `targets`, in float32.

    Logits are computed only where labels are: every device works through its own rows' positions,
    those with labels first, in chunks that are as large as `chunk` positions of each row, until no
    device has labels left. So no float32[B, L, V] is ever materialised. Where a gradient is asked
    for, it is taken chunk by chunk together with the loss: no logits are computed twice.

    Args:
      hidden: [B, L, D], the model's last hidden states.
      unembed: [P, C, D] -> logits float32[P, C, V], for P pieces of the batch.
      targets: int32[B, L].
      loss_weights: float32[B, L], 0 where there is no label; they have no gradient.
      chunk: maximum positions of a row per chunk; the largest divisor of L up to it is used.

    Returns:
      Sum of weight * -log p(target), and sum of weights: float32[] each, nats. The gradient is
      computed for a cotangent of 1 and then multiplied: in float16, scale the weights instead.
    """
    rows, length = targets.shape
    devices = axes.parts(rows, "batch")
    # The rows of a device become one row, so that its labels are counted together.
    hidden, targets, weights = (
        constrain(x.reshape(devices, -1, *x.shape[2:]), "batch", *(None,) * (x.ndim - 1))
        for x in (constrain(hidden, "batch", None, None), targets, loss_weights)
    )
    chunk = rows // devices * length // _pieces(length, chunk)
    unembed, params = jax.closure_convert(unembed, hidden[:, :chunk])
    return _loss(unembed, chunk, params, hidden, targets, weights), jnp.sum(loss_weights)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _loss(
    unembed: Callable[..., jax.Array],
    chunk: int,
    params: list[jax.Array],
    hidden: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
) -> jax.Array:
    """The loss of rows of whole devices; `params` are further arguments of `unembed`."""
    labels = _Labels(weights, chunk)

    def turn(c: jax.Array, total: jax.Array) -> jax.Array:
        of_chunk = labels.chunk(c, hidden, targets, weights)
        return total + _loss_of_chunk(unembed, params, *of_chunk)

    return labels.loop(turn, jnp.zeros((), jnp.float32))


def _loss_and_gradient(unembed, chunk, params, hidden, targets, weights):
    """(loss, its gradients of `params` and `hidden`); None for a parameter that is not trained."""
    trained = [param.value for param in params if param.perturbed]
    hidden, targets, weights = hidden.value, targets.value, weights.value
    labels = _Labels(weights, chunk)

    def loss(trained, *of_chunk):
        trained = iter(trained)
        merged = [next(trained) if param.perturbed else param.value for param in params]
        return _loss_of_chunk(unembed, merged, *of_chunk)

    def turn(c, carry):
        total, d_trained, d_hidden = carry
        of_chunk = labels.chunk(c, hidden, targets, weights)
        value, (d_params, d_chunk) = jax.value_and_grad(loss, (0, 1))(trained, *of_chunk)
        d_hidden = jax.lax.dynamic_update_slice_in_dim(d_hidden, d_chunk, c * chunk, 1)
        return total + value, jax.tree.map(jnp.add, d_trained, d_params), d_hidden

    nothing = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, trained), jnp.zeros_like(hidden))
    total, d_trained, d_hidden = labels.loop(turn, nothing)
    d_trained = iter(d_trained)
    d_params = [next(d_trained) if param.perturbed else None for param in params]
    return total, (d_params, labels.put_back(d_hidden))


def _multiplied(unembed, chunk, gradients, cotangent):
    d_params, d_hidden = jax.tree.map(lambda x: (x * cotangent).astype(x.dtype), gradients)
    return d_params, d_hidden, None, None


_loss.defvjp(_loss_and_gradient, _multiplied, symbolic_zeros=True)


def _loss_of_chunk(unembed, params, hidden, targets, weights) -> jax.Array:
    logits = unembed(hidden, *params).astype(jnp.float32)
    logits = constrain(logits, "batch", None, "vocab")
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jnp.sum((jax.nn.logsumexp(logits, axis=-1) - picked) * weights)


class _Labels:
    """The positions of each row, those with a label first, cut into chunks."""

    def __init__(self, weights: jax.Array, chunk: int):
        self._chunk = chunk
        self._order = jnp.argsort(weights == 0, axis=1, stable=True)
        self._most = jnp.sum(weights != 0, axis=1).max()

    def loop(self, turn: Callable[[jax.Array, Any], Any], init: Any) -> Any:
        """`turn` by `turn`, over the chunks of which a row has a label."""
        end = (self._most + self._chunk - 1) // self._chunk
        return loop(self._order.shape[1] // self._chunk, 0, end, turn, init)

    def chunk(self, c: jax.Array, *arrays: jax.Array) -> list[jax.Array]:
        """[B, chunk, ...]: number `c` of each array [B, L, ...]."""
        index = jax.lax.dynamic_slice_in_dim(self._order, c * self._chunk, self._chunk, 1)
        return [_taken(x, index) for x in arrays]

    def put_back(self, x: jax.Array) -> jax.Array:
        """[B, L, ...], chunk by chunk, in the order of the rows."""
        return _taken(x, jnp.argsort(self._order, axis=1))


def _taken(x: jax.Array, index: jax.Array) -> jax.Array:
    """Positions [B, C] of each row of [B, L, ...]."""
    return jnp.take_along_axis(x, index.reshape(*index.shape, *(1,) * (x.ndim - 2)), axis=1)


def _pieces(length: int, chunk: int) -> int:
    """The smallest number of equal parts of `length` positions with at most `chunk` each."""
    return next(n for n in range(1, length + 1) if length % n == 0 and length // n <= max(chunk, 1))
