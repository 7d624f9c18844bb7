"""The training state: what an update changes, and what a checkpoint stores of it."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from optiml_jax.model.config import DecoderConfig
from optiml_jax.model.decoder import init_adapters, init_params
from optiml_jax.model.lora import join_params, split_params
from optiml_jax.sharding.rules import abstract_params, logical_axes, replicated
from optiml_jax.train import transforms
from optiml_jax.train.loss_scale import init_scale
from optiml_jax.train.optimizer import OptimizerConfig


@struct.dataclass
class TrainState:
    """Attributes:
    step: int32[], updates made so far.
    params: the trained parameters: a pure nested dict of float32 arrays, as made by
      `model.decoder.init_params`; under LoRA the adapters alone.
    optimizer: pure dict of the optimiser's state (`transforms.init_state`); for Adam two moments
      shaped and sharded as `params`; in float16 also `loss_scale`, see `train.loss_scale`.
    base: the frozen parameters under LoRA; else empty.
    """

    step: jax.Array
    params: dict[str, Any]
    optimizer: dict[str, Any]
    base: dict[str, Any] = struct.field(default_factory=dict)

    @property
    def model_params(self) -> dict[str, Any]:
        """All parameters of the model."""
        return join_params(self.params, self.base) if self.base else self.params

    def items(self) -> dict[str, Any]:
        """The items of a checkpoint, by name. The step is the checkpoint's number."""
        return {"params": self.params, "optimizer": self.optimizer}


def abstract_state(
    model: DecoderConfig, optimizer: OptimizerConfig, mesh: jax.sharding.Mesh, preset: str
) -> TrainState:
    """Shapes, dtypes and shardings of the whole state; nothing is allocated."""
    params, base = _abstract_parts(model, mesh, preset)
    step = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated(mesh))
    state = transforms.abstract_state(optimizer.made(logical_axes(model)), params)
    if model.dtype == "float16":
        scale = jax.eval_shape(lambda: init_scale(optimizer))
        state["loss_scale"] = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh)), scale
        )
    return TrainState(step=step, params=params, optimizer=state, base=base)


def abstract_model_params(
    model: DecoderConfig, mesh: jax.sharding.Mesh, preset: str
) -> dict[str, Any]:
    """All parameters of the model in training: shapes, dtypes and shardings."""
    params, base = _abstract_parts(model, mesh, preset)
    return join_params(params, base) if base else params


def _abstract_parts(
    model: DecoderConfig, mesh: jax.sharding.Mesh, preset: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(trained parameters, frozen parameters)."""
    params = abstract_params(model, mesh, preset)
    if not model.lora_rank:
        return params, {}
    params, base = split_params(params)
    return params, _in_type_of_use(base, model.dtype)


def _in_type_of_use(base: dict[str, Any], dtype: str) -> dict[str, Any]:
    """Frozen parameters are stored in the compute dtype; norms are in float32."""

    def typed(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        in_norm = any(str(getattr(key, "key", "")).endswith("_norm") for key in path)
        kind = leaf.dtype if in_norm else jnp.dtype(dtype)
        return jax.ShapeDtypeStruct(leaf.shape, kind, sharding=leaf.sharding)

    return jax.tree_util.tree_map_with_path(typed, base)


def initial_state(
    model: DecoderConfig, optimizer: OptimizerConfig, seed: int, abstract: TrainState
) -> TrainState:
    """The state before the first update, with random weights from `seed`, created sharded."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract.params)
    _, params = init_params(model, seed, shardings)
    return state_from_params(params, model, optimizer, abstract)


def adapted_state(
    base: dict[str, Any],
    model: DecoderConfig,
    optimizer: OptimizerConfig,
    seed: int,
    abstract: TrainState,
) -> TrainState:
    """The state before the first update of new adapters on `base`."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract.params)
    adapters = init_adapters(model, seed, shardings)
    return state_from_params(adapters, model, optimizer, abstract, base)


def state_from_params(
    params: dict[str, Any],
    model: DecoderConfig,
    optimizer: OptimizerConfig,
    abstract: TrainState,
    base: dict[str, Any] | None = None,
) -> TrainState:
    """The state before the first update of `params`."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract.optimizer)
    transform = optimizer.made(logical_axes(model))

    def init(params: dict[str, Any]) -> dict[str, Any]:
        moments = transforms.init_state(transform, params)
        scaled = "loss_scale" in abstract.optimizer
        return moments | ({"loss_scale": init_scale(optimizer)} if scaled else {})

    state = jax.jit(init, out_shardings=shardings)(params)
    return state_from_items({"params": params, "optimizer": state}, 0, abstract, base)


def state_from_items(
    items: dict[str, Any], step: int, abstract: TrainState, base: dict[str, Any] | None = None
) -> TrainState:
    """The state after `step` updates, from its checkpoint's items and the frozen parameters."""
    number = jax.device_put(jnp.asarray(step, jnp.int32), abstract.step.sharding)
    return TrainState(step=number, **items, base=base or {})
