"""Where a run starts: from its newest checkpoint, another run's parameters, or random ones."""

import logging
from collections.abc import Mapping
from typing import Any

from optiml_jax.checkpoint.adapters import load_model_params
from optiml_jax.checkpoint.manager import CheckpointManager, load_metadata
from optiml_jax.data.loader import check_rows
from optiml_jax.data.plan import Plan
from optiml_jax.data.vocabulary_files import content_for_checkpoint
from optiml_jax.errors import UserError
from optiml_jax.model.architectures import model_config
from optiml_jax.model.config import DecoderConfig
from optiml_jax.train.config import (
    TrainConfig,
    check_initial_checkpoint,
    check_plan,
    check_same_run,
)
from optiml_jax.train.optimizer import OptimizerConfig
from optiml_jax.train.state import (
    TrainState,
    adapted_state,
    initial_state,
    state_from_items,
    state_from_params,
)

logger = logging.getLogger(__name__)


def load_plans(config: TrainConfig, model: DecoderConfig) -> tuple[Plan, Plan | None]:
    """The plans to train and to validate on, checked against the model and the run."""
    plan, validation, more_rows = Plan.load(config.plan_dir), None, config.init_from is not None
    if config.validation_plan_dir is not None:
        validation = Plan.load(config.validation_plan_dir)
        check_plan(validation, model, more_rows)
        if config.validate_every:
            check_rows(validation, config.global_batch_size // config.num_microbatches, 1)
    check_plan(plan, model, more_rows)
    check_rows(plan, config.global_batch_size, config.num_steps)
    return plan, validation


def run_model(padded_size: int, init_from: str | None) -> DecoderConfig:
    """The model that gin configures, with the vocabulary of the checkpoint it starts from.

    Args:
      padded_size: rows of the embedding where nothing else says how many there are.
      init_from: the checkpoint; None: the weights will be random.
    """
    fields: dict[str, Any] = {"vocab_size": padded_size}
    if init_from is not None:
        stored = load_metadata(init_from)["model"]
        names = ("vocab_size", "vocab_padding", "eos_id", "more_eos_ids")
        fields |= {name: stored[name] for name in names if name in stored}
    return model_config(**fields)


def files_of_checkpoints(metadata: Mapping[str, Any]) -> dict[str, bytes]:
    """What a checkpoint holds besides its arrays: its vocabulary, so that it can be moved."""
    try:
        return content_for_checkpoint(metadata["vocabulary"]["spec"])
    except (UserError, OSError) as e:
        logger.warning("checkpoints will be saved without their vocabulary: %s", e)
        return {}


def start_state(
    config: TrainConfig,
    model: DecoderConfig,
    optimizer: OptimizerConfig,
    abstract: TrainState,
    checkpoints: CheckpointManager,
    metadata: dict[str, Any],
) -> tuple[TrainState, int]:
    """The state to continue from, and its number of updates.

    Args:
      abstract: shapes, types and shardings of the state.
      metadata: of the run (`config.run_metadata`).

    Raises:
      UserError: the checkpoints there are another run's, or all of them are damaged.
    """
    latest = checkpoints.latest_intact_step()
    if latest is not None:
        check_same_run(config.run_dir, checkpoints.metadata(latest), metadata)
        checkpoints.set_aside_after(latest)
        logger.info("resuming %s at step %d", config.run_dir, latest)
        items = checkpoints.restore(latest, abstract.items())
        base = load_model_params(config.init_from, abstract.base) if abstract.base else {}
        return state_from_items(items, latest, abstract, base), latest
    if config.init_from is not None:
        check_initial_checkpoint(config.init_from, load_metadata(config.init_from), metadata)
        logger.info("starting from the parameters of %s", config.init_from)
        params = load_model_params(config.init_from, abstract.base or abstract.params)
        if abstract.base:
            return adapted_state(params, model, optimizer, config.seed, abstract), 0
        return state_from_params(params, model, optimizer, abstract), 0
    return initial_state(model, optimizer, config.seed, abstract), 0
