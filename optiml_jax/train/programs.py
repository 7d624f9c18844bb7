"""The programs of training, traced from settings and shapes alone.

The devices of the mesh may be described ones (`jax.experimental.topologies`): nothing here
allocates an array. `trace_train_step(...).lower().compile()` is what a run calls at every step.
"""

import dataclasses
import logging
import time
from collections.abc import Callable

import jax

from optiml_jax.model.config import DecoderConfig
from optiml_jax.model.decoder import abstract_model
from optiml_jax.sharding.rules import batch_sharding, replicated, use_mesh
from optiml_jax.train.batches import abstract_batch
from optiml_jax.train.config import TrainConfig
from optiml_jax.train.optimizer import OptimizerConfig
from optiml_jax.train.state import abstract_model_params, abstract_state
from optiml_jax.train.step import make_train_step, make_validation_step

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Programs:
    """Compiled: the update, and the loss of a validation batch (None without validation)."""

    train_step: Callable
    validation_step: Callable | None


def compile_programs(
    config: TrainConfig,
    model: DecoderConfig,
    optimizer: OptimizerConfig,
    mesh: jax.sharding.Mesh,
    preset: str,
    sequence_length: int,
    validates: bool,
) -> Programs:
    """Compiles the programs of a run."""
    began = time.perf_counter()
    settings = (mesh, preset, sequence_length)
    train_step = trace_train_step(config, model, optimizer, *settings).lower().compile()
    validation_step = None
    if validates:
        validation_step = trace_validation_step(config, model, *settings).lower().compile()
    logger.info(
        "%s parameters on %d %s devices (%s), compiled in %.1f s",
        f"{model.num_params:,}",
        mesh.size,
        mesh.devices.flat[0].device_kind,
        ", ".join(f"{name} {size}" for name, size in mesh.shape.items()),
        time.perf_counter() - began,
    )
    return Programs(train_step, validation_step)


def trace_train_step(
    config: TrainConfig,
    model: DecoderConfig,
    optimizer: OptimizerConfig,
    mesh: jax.sharding.Mesh,
    preset: str,
    sequence_length: int,
) -> jax.stages.Traced:
    """(TrainState, batch) -> (TrainState, measured) of one update, the state donated.

    Args:
      config: batch, microbatches, number of steps, seed, loss chunk; its folders are not used.
      preset: the sharding rules.
      sequence_length: slots of a row.
    """
    function = make_train_step(
        abstract_model(model)[0],
        model,
        optimizer,
        num_steps=config.num_steps,
        num_microbatches=config.num_microbatches,
        seed=config.seed,
        chunk=config.loss_chunk,
    )
    abstract = abstract_state(model, optimizer, mesh, preset)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    jitted = jax.jit(
        function,
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )
    batch = abstract_batch(mesh, config.global_batch_size, sequence_length)
    with use_mesh(mesh, preset):
        return jitted.trace(abstract, batch)


def trace_validation_step(
    config: TrainConfig,
    model: DecoderConfig,
    mesh: jax.sharding.Mesh,
    preset: str,
    sequence_length: int,
) -> jax.stages.Traced:
    """(params, batch of one microbatch's size) -> (sum, weight) of the loss, see `batch_loss`."""
    function = make_validation_step(abstract_model(model)[0], config.loss_chunk)
    rows = config.global_batch_size // config.num_microbatches
    arguments = (
        abstract_model_params(model, mesh, preset),
        abstract_batch(mesh, rows, sequence_length),
    )
    with use_mesh(mesh, preset):
        return jax.jit(function, out_shardings=replicated(mesh)).trace(*arguments)
