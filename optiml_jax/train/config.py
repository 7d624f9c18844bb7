"""The settings of a training run, and the checks that are made before any work."""

import dataclasses
import json
import logging
from collections.abc import Mapping
from typing import Any

import jax

from optiml_jax.checkpoint.adapters import describe_base
from optiml_jax.data.plan import Plan
from optiml_jax.errors import UserError
from optiml_jax.frozen import changes
from optiml_jax.model.architectures import config_from_dict
from optiml_jax.model.config import DecoderConfig
from optiml_jax.settings import NotNegative, Positive, PositiveFloat, Seed, configurable
from optiml_jax.train.optimizer import OptimizerConfig

logger = logging.getLogger(__name__)

# Properties of the plan that its fingerprint covers.
_IN_THE_FINGERPRINT = {"plan_configuration", "plan_seed", "plan_settings", "trained_tasks"}
# Fields of the model that may change when a run is resumed: they trade memory for time.
_FREE_FIELDS = {"remat", "attention", "unroll"}
# Fields that may also differ from those of the checkpoint that a run starts from.
FINE_TUNING_FIELDS = _FREE_FIELDS | {"dtype", "dropout", "attention_dropout", "init_std"}
FINE_TUNING_FIELDS |= {"matmul", "lora_rank", "lora_alpha", "lora_targets"}
FINE_TUNING_FIELDS |= {"pad_id"}  # padding is masked, and published models name none or several


@configurable
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run.

    Attributes:
      plan_dir: the plan to train on.
      run_dir: where checkpoints/ and tensorboard/ go; a run found there is resumed.
      num_steps: updates in the whole run.
      global_batch_size: packed rows per update, over all devices.
      num_microbatches: parts into which the rows of an update are split, computed one by one.
      seed: for the initial weights and dropout.
      validation_plan_dir: the plan to compute the validation loss on; None: no validation.
      validate_every: updates between validations; the last step is validated too. 0: never.
      validation_batches: batches of the validation plan each time, always the first ones.
      log_every: updates between reports (terminal and TensorBoard).
      checkpoint_every: updates between checkpoints; one is also written at the end.
      keep: how many of the newest checkpoints are kept.
      grace_seconds: from SIGTERM until the processes are killed (SLURM's KillWait is 30): a save
        that takes longer is dropped, and the newest complete checkpoint remains; None: no limit.
      stall_seconds: how long training may wait for the rows of a step, the devices, a validation or
        a checkpoint before it exits with status 76 and names what stalled. None: no limit.
      init_from: a checkpoint (run folder, checkpoints folder or step folder) whose parameters the
        run starts from, with a fresh optimiser; None starts from random weights.
      loss_chunk: positions of a row whose logits are in memory at once.
      profile_steps: (first, last) update to trace for TensorBoard's profiler; None: no trace. A few
        are enough: each takes many megabytes.
      peak_flops: peak FLOP/s of one device, for MFU; None: looked up by device name.
    """

    plan_dir: str
    run_dir: str
    num_steps: Positive
    global_batch_size: Positive
    num_microbatches: Positive = 1
    seed: Seed = 1234
    validation_plan_dir: str | None = None
    validate_every: NotNegative = 0
    validation_batches: Positive = 10
    log_every: Positive = 10
    checkpoint_every: Positive = 500
    keep: Positive = 3
    grace_seconds: PositiveFloat | None = None
    stall_seconds: PositiveFloat | None = 3600.0
    init_from: str | None = None
    loss_chunk: Positive = 128
    profile_steps: tuple[Positive, Positive] | None = None
    peak_flops: PositiveFloat | None = None


def check_batch(config: TrainConfig, mesh: jax.sharding.Mesh) -> None:
    """UserError when a microbatch cannot be split evenly over the devices."""
    data, fsdp = mesh.shape["data"], mesh.shape["fsdp"]
    parts = data * fsdp * config.num_microbatches
    if config.global_batch_size % parts:
        raise UserError(
            f"TrainConfig.global_batch_size={config.global_batch_size} is not divisible by {parts} "
            f"(mesh data {data} * fsdp {fsdp} * num_microbatches {config.num_microbatches}); "
            f"possible: {', '.join(str(n * parts) for n in range(1, 5))}, ..."
        )


def check_plan(plan: Plan, model: DecoderConfig, more_rows: bool) -> None:
    """UserError when the plan's tokens or rows do not fit the model.

    `more_rows`: its embedding may have more rows than the vocabulary needs, as that of a checkpoint
    from elsewhere may.
    """
    vocabulary = plan.meta["vocabulary"]
    rows = vocabulary["padded_size"]
    if rows > model.vocab_size or (rows < model.vocab_size and not more_rows):
        raise UserError(
            f"the plan in {plan.folder} was made with vocabulary {vocabulary['spec']} of "
            f"{vocabulary['padded_size']} ids, the model has vocab_size {model.vocab_size}; set "
            f"model_config.vocab_size = {vocabulary['padded_size']} or plan with the model's own"
        )
    if plan.config.sequence_length > model.max_positions:
        raise UserError(
            f"the plan in {plan.folder} has rows of {plan.config.sequence_length} tokens, the "
            f"model only max_positions {model.max_positions}; plan again with shorter rows"
        )


def run_metadata(
    config: TrainConfig, model: DecoderConfig, optimizer: OptimizerConfig, plan: Plan
) -> dict[str, Any]:
    """The metadata of a run's checkpoints: everything but the step that determines the parameters.

    Raises:
      UserError: adapters are to be trained without a base checkpoint.
    """
    base = {}
    if model.lora_rank:
        if config.init_from is None:
            raise UserError(
                "model_config.lora_rank trains adapters only; set TrainConfig.init_from to the "
                "checkpoint they adapt"
            )
        base = {"base": describe_base(config.init_from)}
    return {
        **base,
        "model": model.to_dict(),
        "vocabulary": plan.meta["vocabulary"],
        "bos_id": plan.config.bos_id,
        "plan_fingerprint": plan.fingerprint,
        "plan_configuration": plan.configuration,
        "plan_seed": plan.config.seed,
        "plan_settings": plan.meta["settings"],
        "trained_tasks": [row["task"] for row in plan.meta["tasks"] if row["rate"]],
        "seed": config.seed,
        "global_batch_size": config.global_batch_size,
        "num_microbatches": config.num_microbatches,
        "num_steps": config.num_steps,
        "continued": [list(end) for end in optimizer.continued.items()],
        "optimizer": _deciding_fields(optimizer, model),
        "init_from": config.init_from,
    }


def _deciding_fields(optimizer: OptimizerConfig, model: DecoderConfig) -> dict[str, Any]:
    """The optimiser's settings that affect the parameters; the loss scale's in float16 only."""
    values = json.loads(json.dumps(dataclasses.asdict(optimizer)))  # as JSON gives them back
    del values["continued"]  # compared with the number of steps
    scaled = model.dtype == "float16"
    return {k: v for k, v in values.items() if scaled or not k.startswith("loss_scale")}


def check_same_run(run_dir: str, stored: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """UserError when the run in `run_dir` was started with settings other than `current`.

    A run may continue beyond its planned number of steps if its settings say how.
    """
    # The number of microbatches may change with the machine: the update is the same but for
    # rounding and other dropout masks.
    if stored.get("num_microbatches") != current["num_microbatches"]:
        logger.warning(
            "%s was trained with %s microbatches so far and now continues with %d: dropout "
            "differs from a run without the change",
            run_dir,
            stored.get("num_microbatches"),
            current["num_microbatches"],
        )
    apart = {"model", "num_microbatches", "num_steps", "continued"} | _IN_THE_FINGERPRINT
    stored = {**stored, "optimizer": _defaults_of_optimizer() | stored.get("optimizer", {})}
    stored["optimizer"] = {k: stored["optimizer"].get(k) for k in current["optimizer"]}
    differences = _differences(stored, current, [name for name in current if name not in apart])
    differences += _other_end(stored, current)
    if stored.get("plan_fingerprint") != current["plan_fingerprint"]:
        differences += changes(stored.get("plan_settings", {}), current["plan_settings"])
    fields = [name for name in current["model"] if name not in _FREE_FIELDS]
    differences += _differences(_model_of(stored), current["model"], fields)
    if differences:
        raise UserError(
            f"{run_dir} holds another run: {'; '.join(differences)}; choose a new run_dir (with "
            "TrainConfig.init_from to start from these weights) or restore the old settings"
        )


def _defaults_of_optimizer() -> dict[str, Any]:
    """The values that stand for settings which an older version did not have."""
    fields = dataclasses.fields(OptimizerConfig)
    return {
        f.name: f.default_factory() if f.default is dataclasses.MISSING else f.default
        for f in fields
    }


def _other_end(stored: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """What is wrong if the run neither ends where it was planned to nor continues from there."""
    planned, now = stored.get("num_steps"), current["num_steps"]
    ends = [list(end) for end in stored.get("continued", [])]
    if now == planned:
        return _differences({"continued": ends}, current, ["continued"])
    if now > planned:
        before = [end for end in current["continued"] if end[0] < planned]
        if before == ends and planned in dict(current["continued"]):
            return []
    how = {**dict(ends), planned: "constant"}
    way_out = f" (to continue it: OptimizerConfig.continued = {how}, or 'decay')"
    return [f"num_steps is {planned} there and {now} now{way_out if now > planned else ''}"]


def check_initial_checkpoint(path: str, stored: Mapping[str, Any], current: Mapping[str, Any]):
    """UserError when the weights in `path` do not fit this run's model or plan."""
    fields = [name for name in current["model"] if name not in FINE_TUNING_FIELDS]
    differences = _differences(_model_of(stored), current["model"], fields)
    names = {kind: values["vocabulary"] for kind, values in (("old", stored), ("new", current))}
    if names["old"]["fingerprint"] != names["new"]["fingerprint"]:
        differences.append(
            f"vocabulary is {names['old']['spec']} there and {names['new']['spec']} in the plan"
        )
    if differences:
        raise UserError(
            f"cannot start from the checkpoint {path}: {'; '.join(differences)}; prepare, plan and "
            "configure the model as the checkpoint was"
        )


def _model_of(metadata: Mapping[str, Any]) -> Mapping[str, Any]:
    """The model of a checkpoint with all fields, whichever version wrote it."""
    return config_from_dict(metadata["model"]).to_dict()


def _differences(stored: Mapping[str, Any], current: Mapping[str, Any], names: list[str]) -> list:
    return [
        f"{name} is {stored.get(name)} there and {current[name]} now"
        for name in names
        if stored.get(name) != current[name]
    ]
