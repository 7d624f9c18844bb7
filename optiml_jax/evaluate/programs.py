"""The programs of evaluation, traced from shapes alone: nothing here makes an array.

The devices of the mesh may be described ones (`jax.experimental.topologies`). Which batches an
evaluation runs is decided in scoring.py and decoding.py.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from optiml_jax.evaluate import decoding, scoring
from optiml_jax.model import kv_cache
from optiml_jax.model.config import DecoderConfig
from optiml_jax.model.decoder import abstract_model
from optiml_jax.sharding.rules import (
    abstract_params,
    activation_sharding,
    batch_sharding,
    use_mesh,
)


def trace_scoring(
    config: DecoderConfig,
    mesh: jax.sharding.Mesh,
    preset: str,
    rows: int,
    length: int,
    targets: int,
    params_dtype: str = "float32",
) -> jax.stages.Traced:
    """One batch of rank classification: log-probabilities of `targets` tokens in each row.

    Args:
      rows, length: of the batch; rows divisible by data x fsdp.
      params_dtype: of the weights.
    """
    rows_of = functools.partial(_rows, mesh)
    arrays = (
        [rows_of((rows, length)) for _ in range(4)] + [rows_of((rows, targets))] * 2 + [targets]
    )
    params = abstract_params(config, mesh, preset, params_dtype)
    with use_mesh(mesh, preset):
        function = scoring._jit_score_places
        return function.trace(abstract_model(config)[0], params, None, *arrays)


def trace_prefill(
    config: DecoderConfig,
    mesh: jax.sharding.Mesh,
    preset: str,
    rows: int,
    length: int,
    params_dtype: str = "float32",
) -> jax.stages.Traced:
    """Prefill: the cache of `rows` prompts of `length` tokens, and their first new tokens."""
    arrays = (
        _rows(mesh, (rows, length)),
        _rows(mesh, (rows,)),
        _rows(mesh, (rows,), jnp.uint32),
    )
    params = abstract_params(config, mesh, preset, params_dtype)
    with use_mesh(mesh, preset):
        graphdef = abstract_model(config)[0]
        return decoding._jit_read.trace(
            graphdef, params, config, decoding.Sampling(), None, *arrays
        )


def trace_decoding(
    config: DecoderConfig,
    mesh: jax.sharding.Mesh,
    preset: str,
    num_slots: int,
    capacity: int,
    params_dtype: str = "float32",
) -> jax.stages.Traced:
    """A few more tokens for `num_slots` answers with a cache of `capacity` tokens each."""
    params = abstract_params(config, mesh, preset, params_dtype)
    slots = abstract_slots(config, mesh, preset, num_slots, capacity)
    with use_mesh(mesh, preset):
        graphdef = abstract_model(config)[0]
        left = _rows(mesh, (num_slots,))
        return decoding._jit_step.trace(graphdef, params, config, decoding.Sampling(), slots, left)


def trace_putting(
    config: DecoderConfig,
    mesh: jax.sharding.Mesh,
    preset: str,
    rows: int,
    length: int,
    num_slots: int,
    capacity: int,
) -> jax.stages.Traced:
    """Puts `rows` prompts of `length` tokens that were read into slots of `capacity` tokens."""
    slots = abstract_slots(config, mesh, preset, num_slots, capacity)
    read = abstract_slots(config, mesh, preset, rows, length).cache
    into, first, seeds = (_rows(mesh, (rows,), t) for t in (jnp.int32, jnp.int32, jnp.uint32))
    with use_mesh(mesh, preset):
        parts = mesh.shape["data"] * mesh.shape["fsdp"]
        return decoding._jit_put.trace(parts, slots, into, read, None, first, seeds)


def abstract_slots(
    config: DecoderConfig, mesh: jax.sharding.Mesh, preset: str, num_slots: int, capacity: int
) -> decoding.Slots:
    """Shapes, types and shardings of the slots of a decoder; no memory is used."""
    shapes = jax.eval_shape(lambda: decoding.empty_slots(config, num_slots, capacity))

    def place(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        axes = kv_cache.AXES if leaf.ndim == 5 else ("batch", None)[: leaf.ndim]
        sharding = activation_sharding(leaf.shape, axes, mesh, preset)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(place, shapes)


def _rows(
    mesh: jax.sharding.Mesh, shape: tuple[int, ...], dtype: Any = jnp.int32
) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding(mesh))
