"""One update of the parameters, and the loss of one validation batch, as compiled functions."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from optiml_jax.model.attention import DocumentMask
from optiml_jax.model.axes import constrain
from optiml_jax.model.config import DecoderConfig
from optiml_jax.model.lora import join_params
from optiml_jax.sharding.rules import logical_axes
from optiml_jax.train.loss import label_loss
from optiml_jax.train.loss_scale import chosen, next_scale
from optiml_jax.train.optimizer import OptimizerConfig, apply_gradient
from optiml_jax.train.state import TrainState

Batch = dict[str, jax.Array]


def batch_loss(
    graphdef: nnx.GraphDef,
    params: dict[str, Any],
    batch: Batch,
    dropout_key: jax.Array | None,
    chunk: int,
) -> tuple[jax.Array, jax.Array]:
    """The label loss of packed rows.

    Args:
      graphdef: the model's structure.
      params: its parameters.
      batch: tokens, targets, segment_ids, positions int32[B, L], loss_weights float32[B, L].
      dropout_key: None turns dropout off.
      chunk: positions whose logits are in memory at once.

    Returns:
      (sum, weight) as `label_loss`.
    """
    model = nnx.merge(graphdef, params)
    mask = DocumentMask(batch["segment_ids"])
    hidden = model.hidden(batch["tokens"], batch["positions"], mask, dropout_key=dropout_key)
    return label_loss(hidden, model.unembed, batch["targets"], batch["loss_weights"], chunk)


def make_train_step(
    graphdef: nnx.GraphDef,
    model: DecoderConfig,
    optimizer: OptimizerConfig,
    *,
    num_steps: int,
    num_microbatches: int,
    seed: int,
    chunk: int,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """One update as a function, to be jitted with its first argument donated.

    The gradient is that of the whole batch's summed loss over its summed weight, whatever the
    number of microbatches. Microbatch m takes rows m, m + M, m + 2M, ..., so that every device
    keeps its own rows. The dropout key is a function of seed, step and microbatch alone.

    Returns:
      (state, batch) -> (state, measured); measured holds float32[] `loss_sum`, `loss_weight`,
      `gradient_norm`, `learning_rate` and `tokens` (those that are not padding). In float16 also
      `loss_scale` after the step and `skipped`, 1 where the gradient overflowed: parameters and
      moments then keep their old values, and the loss of the step is left out.
    """
    scaled, axes = model.dtype == "float16", logical_axes(model)
    has_dropout = bool(model.dropout or model.attention_dropout)

    def loss_and_gradient(state, rows, key, scale):
        def loss(params):
            params = join_params(params, state.base) if state.base else params
            total, weight = batch_loss(graphdef, params, rows, key if has_dropout else None, chunk)
            return total * scale, (total, weight)

        params = _typed(state.params, axes, optimizer.gradient_dtype)
        (_, sums), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        return sums, gradient

    def train_step(state: TrainState, batch: Batch):
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        scale = state.optimizer["loss_scale"]["scale"] if scaled else 1.0

        def accumulate(carry, inputs):
            index, rows = inputs
            (total, weight), gradient = loss_and_gradient(
                state, rows, jax.random.fold_in(key, index), scale
            )
            return jax.tree.map(jnp.add, carry, (gradient, total, weight)), None

        nothing = (jax.tree.map(jnp.zeros_like, state.params), jnp.zeros(()), jnp.zeros(()))
        if num_microbatches == 1:  # no second gradient tree to accumulate into
            (total, weight), gradient = loss_and_gradient(
                state, batch, jax.random.fold_in(key, 0), scale
            )
        else:
            parts = {name: _microbatches(rows, num_microbatches) for name, rows in batch.items()}
            sums, _ = jax.lax.scan(accumulate, nothing, (jnp.arange(num_microbatches), parts))
            gradient, total, weight = sums
        total_weight = jnp.maximum(weight, 1) * scale
        gradient = jax.tree.map(lambda g: g.astype(jnp.float32) / total_weight, gradient)
        # A skipped update counts neither for Adam's bias correction nor for the schedule.
        updates = state.step - state.optimizer["loss_scale"]["skipped"] if scaled else state.step
        params, moments, measured = apply_gradient(
            optimizer, num_steps, updates, state.params, state.optimizer, gradient, axes
        )
        if scaled:
            finite = jnp.isfinite(measured["gradient_norm"])
            old = {name: state.optimizer[name] for name in moments}
            params, moments = chosen(finite, (params, moments), (state.params, old))
            after = next_scale(optimizer, state.optimizer["loss_scale"], finite)
            moments["loss_scale"] = after
            total, weight = chosen(finite, (total, weight), (0.0, 0.0))
            measured |= {"loss_scale": after["scale"], "skipped": 1.0 - finite}
        measured |= {
            "loss_sum": total,
            "loss_weight": weight,
            "tokens": jnp.sum(batch["segment_ids"] != 0).astype(jnp.float32),
        }
        return TrainState(state.step + 1, params, moments, state.base), measured

    return train_step


def make_validation_step(
    graphdef: nnx.GraphDef, chunk: int
) -> Callable[[dict[str, Any], Batch], tuple[jax.Array, jax.Array]]:
    """(params, batch) -> (sum, weight) of the label loss without dropout."""

    def validation_step(params, batch):
        return batch_loss(graphdef, params, batch, None, chunk)

    return validation_step


def _typed(params: Any, axes: Any, dtype: str) -> Any:
    """The parameters, the blocks' matrices cast to `dtype`, which their gradients then have."""

    def typed(path: tuple[Any, ...], x: jax.Array) -> jax.Array:
        names = functools.reduce(lambda folder, entry: folder[entry.key], path, axes)
        return x.astype(dtype) if names[0] == "layers" and "embed" in names else x

    return jax.tree.map_with_path(typed, params)


def _microbatches(rows: jax.Array, number: int) -> jax.Array:
    """[B, L] -> [number, B / number, L], microbatch m being every number-th row from row m."""
    rows = rows.reshape(rows.shape[0] // number, number, rows.shape[1]).swapaxes(0, 1)
    return constrain(rows, None, "batch", None)
