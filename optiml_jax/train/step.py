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

    def backward(state, rows, key, scale):
        """(sum, weight) of the loss of some rows, and its derivative, to be called with 1."""

        def loss(params):
            params = _typed(params, axes, optimizer.gradient_dtype)
            params = join_params(params, state.base) if state.base else params
            # The scale is in the weights, so that the whole backward pass has it.
            scaled_rows = rows | {"loss_weights": rows["loss_weights"] * scale}
            sums = batch_loss(graphdef, params, scaled_rows, key if has_dropout else None, chunk)
            return sums[0], jax.tree.map(lambda x: x / scale, sums)

        _, derivative, sums = jax.vjp(loss, state.params, has_aux=True)
        return sums, derivative

    def train_step(state: TrainState, batch: Batch):
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        scale = state.optimizer["loss_scale"]["scale"] if scaled else 1.0
        one = jnp.ones(())
        if num_microbatches == 1:
            sums, derivative = backward(state, batch, jax.random.fold_in(key, 0), scale)
            (gradient,) = derivative(one)
        else:
            totals = jax.tree.map(lambda p: jax.new_ref(jnp.zeros_like(p)), state.params)

            def add(sums, inputs):
                index, rows = inputs
                more, derivative = backward(state, rows, jax.random.fold_in(key, index), scale)
                if optimizer.gradient_dtype == "float32":
                    # The backward pass adds in place: there is no second tree of gradients.
                    derivative.with_refs(totals)(one)
                else:  # what it adds in place must have one type throughout
                    jax.tree.map(
                        lambda t, g: jax.ref.addupdate(t, ..., g), totals, *derivative(one)
                    )
                return jax.tree.map(jnp.add, sums, more), None

            parts = {name: _microbatches(rows, num_microbatches) for name, rows in batch.items()}
            nothing = (jnp.zeros(()), jnp.zeros(()))
            sums, _ = jax.lax.scan(add, nothing, (jnp.arange(num_microbatches), parts))
            gradient = jax.tree.map(jax.freeze, totals)
        total, weight = sums
        divisor = jnp.maximum(weight, 1) * scale
        # A skipped update counts neither for Adam's bias correction nor for the schedule.
        updates = state.step - state.optimizer["loss_scale"]["skipped"] if scaled else state.step
        params, moments, measured = apply_gradient(
            optimizer, num_steps, updates, state.params, state.optimizer, gradient, axes, divisor
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
