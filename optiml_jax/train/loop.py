"""`train`: one run from its first step, or from where it stopped, to its end. Read from the top.

Every update is a function of (parameters, moments, step): the rows come from the plan by step, the
dropout keys from seed and step. So a checkpoint of the three is all there is to resume from.
"""

import contextlib
import dataclasses
import logging
import pathlib
import time
from collections.abc import Callable, Collection
from typing import Any

import jax
import numpy as np
from flax import nnx

from optiml_jax.checkpoint.manager import CheckpointManager, load_metadata, load_params
from optiml_jax.data.loader import PlanLoader
from optiml_jax.data.plan import Plan
from optiml_jax.model.config import OPTConfig
from optiml_jax.model.opt import abstract_model
from optiml_jax.sharding.mesh import MeshConfig, make_mesh
from optiml_jax.sharding.rules import batch_sharding, replicated, use_mesh
from optiml_jax.train import metrics
from optiml_jax.train.config import (
    TrainConfig,
    check_batch,
    check_initial_checkpoint,
    check_plan,
    check_same_run,
    run_metadata,
)
from optiml_jax.train.optimizer import OptimizerConfig
from optiml_jax.train.reporting import Reporter, perplexity
from optiml_jax.train.signals import StopRequest
from optiml_jax.train.state import (
    TrainState,
    abstract_state,
    initial_state,
    state_from_items,
    state_from_params,
)
from optiml_jax.train.step import make_train_step, make_validation_step

logger = logging.getLogger(__name__)

EvaluationHook = Callable[[int, nnx.GraphDef, dict[str, Any]], None]


@dataclasses.dataclass(frozen=True)
class _Run:
    """What does not change from the first step to the last."""

    config: TrainConfig
    model: OPTConfig
    optimizer: OptimizerConfig
    mesh: jax.sharding.Mesh
    plan: Plan
    validation_plan: Plan | None
    graphdef: nnx.GraphDef
    abstract: TrainState
    metadata: dict[str, Any]
    evaluation_hook: EvaluationHook | None
    evaluation_steps: Collection[int]


def train(
    config: TrainConfig,
    model: OPTConfig,
    mesh: MeshConfig,
    optimizer: OptimizerConfig,
    evaluation_hook: EvaluationHook | None = None,
    evaluation_steps: Collection[int] = (),
) -> int:
    """Trains, or resumes the run that lies in `config.run_dir`.

    Args:
      config: the run.
      model: what is trained.
      mesh: the arrangement of the devices; another one may be used after a restart.
      optimizer: how it is trained.
      evaluation_hook: called as (step, graphdef, params) after each of `evaluation_steps`, and
        again when the run is resumed at one of them. The params are only lent. Ctrl-C and SIGTERM
        raise in it, so that the state is saved at once.
      evaluation_steps: see `evaluation_hook`.

    Returns:
      0: the run is complete, or SIGTERM came and the state is saved.

    Raises:
      UserError: something does not fit, the disk is full, or the loss is no longer finite.
      KeyboardInterrupt: Ctrl-C came; the state is saved.
    """
    run = _prepare(config, model, mesh, optimizer, evaluation_hook, evaluation_steps)
    checkpoints = CheckpointManager(pathlib.Path(config.run_dir) / "checkpoints", config.keep)
    stop = StopRequest()
    with contextlib.closing(checkpoints), stop.listening(), use_mesh(run.mesh, mesh.preset):
        state, start = _start(run, checkpoints)
        if start:
            _evaluate(run, state, start, stop)  # the last stop may have come in the middle of it
        if start >= config.num_steps:
            logger.info("%s is complete: all %d steps are done", config.run_dir, start)
            end = start
        else:
            with _loader(run.plan, config.global_batch_size, start, config.num_steps) as batches:
                functions = _compile(run)
                with _reporter(run, start).open() as reporter:
                    end = _loop(run, state, start, batches, functions, checkpoints, reporter, stop)
    if stop.interrupted:
        raise KeyboardInterrupt(f"step {end} of {config.num_steps} is saved in {config.run_dir}")
    logger.info("step %d of %d is saved in %s", end, config.num_steps, config.run_dir)
    return 0


# ---------------------------------------------------------------- before the first step


def _prepare(
    config: TrainConfig,
    model: OPTConfig,
    mesh: MeshConfig,
    optimizer: OptimizerConfig,
    evaluation_hook: EvaluationHook | None,
    evaluation_steps: Collection[int],
) -> _Run:
    """Everything that can be found wrong before anything is computed or written."""
    optimizer.check(config.num_steps)
    devices = make_mesh(mesh)
    check_batch(config, devices)
    plan = Plan.load(config.plan_dir)
    validation_plan = None
    if config.validation_plan_dir is not None:
        validation_plan = Plan.load(config.validation_plan_dir)
        check_plan(validation_plan, model)
    check_plan(plan, model)
    return _Run(
        config=config,
        model=model,
        optimizer=optimizer,
        mesh=devices,
        plan=plan,
        validation_plan=validation_plan,
        graphdef=abstract_model(model)[0],
        abstract=abstract_state(model, devices, mesh.preset),
        metadata=run_metadata(config, model, optimizer, plan),
        evaluation_hook=evaluation_hook,
        evaluation_steps=evaluation_steps,
    )


def _start(run: _Run, checkpoints: CheckpointManager) -> tuple[TrainState, int]:
    """The state to go on from, and how many updates it has seen."""
    config = run.config
    latest = checkpoints.latest_intact_step()
    if latest is not None:
        check_same_run(config.run_dir, checkpoints.metadata(latest), run.metadata)
        checkpoints.set_aside_after(latest)
        logger.info("resuming %s at step %d", config.run_dir, latest)
        items = checkpoints.restore(latest, run.abstract.items())
        return state_from_items(items, latest, run.abstract), latest
    if config.init_from is not None:
        check_initial_checkpoint(config.init_from, load_metadata(config.init_from), run.metadata)
        logger.info("starting from the parameters of %s", config.init_from)
        params = load_params(config.init_from, run.abstract.params)
        return state_from_params(params, run.abstract), 0
    return initial_state(run.model, config.seed, run.abstract), 0


def _compile(run: _Run) -> tuple[Callable, Callable | None]:
    """The compiled update, and the validation loss as a function of the parameters."""
    began = time.perf_counter()
    config = run.config
    function = make_train_step(
        run.graphdef,
        run.model,
        run.optimizer,
        num_steps=config.num_steps,
        num_microbatches=config.num_microbatches,
        seed=config.seed,
        chunk=config.loss_chunk,
    )
    shardings = jax.tree.map(lambda leaf: leaf.sharding, run.abstract)
    batch = _abstract_batch(run, run.plan, config.global_batch_size)
    jitted = jax.jit(
        function,
        in_shardings=(shardings, batch_sharding(run.mesh)),
        out_shardings=(shardings, replicated(run.mesh)),
        donate_argnums=0,
    )
    train_step = jitted.lower(run.abstract, batch).compile()
    validate = _compile_validation(run) if run.validation_plan and config.validate_every else None
    sizes = ", ".join(f"{name} {size}" for name, size in run.mesh.shape.items())
    logger.info(
        "%s parameters on %d %s devices (%s), compiled in %.1f s",
        f"{run.model.num_params:,}",
        run.mesh.size,
        run.mesh.devices.flat[0].device_kind,
        sizes,
        time.perf_counter() - began,
    )
    return train_step, validate


def _compile_validation(run: _Run) -> Callable[[dict[str, Any]], tuple[float, float]]:
    """params -> (sum, weight) of the loss over the validation batches."""
    config, plan = run.config, run.validation_plan
    # Pieces as large as a microbatch fit where training fits; the rows are the same whatever M.
    rows = config.global_batch_size // config.num_microbatches
    wanted = config.validation_batches * config.num_microbatches
    pieces = max(1, min(wanted, plan.num_rows // rows))
    if pieces < wanted:
        logger.info("validating on the %d rows that %s holds", pieces * rows, plan.folder)
    function = make_validation_step(run.graphdef, config.loss_chunk)
    abstract = (run.abstract.params, _abstract_batch(run, plan, rows))
    compiled = jax.jit(function, out_shardings=replicated(run.mesh)).lower(*abstract).compile()

    def validate(params: dict[str, Any]) -> tuple[float, float]:
        with _loader(plan, rows, 0, pieces) as batches:
            results = [compiled(params, _to_devices(batch, run.mesh)) for batch in batches]
        total, weight = np.sum(jax.device_get(results), axis=0, dtype=np.float64)
        return float(total), float(weight)

    return validate


def _reporter(run: _Run, start: int) -> Reporter:
    config, model, length = run.config, run.model, run.plan.config.sequence_length
    device = run.mesh.devices.flat[0]
    peak = config.peak_flops or metrics.peak_flops(device.device_kind, model.dtype)
    writer = None
    if jax.process_index() == 0:
        writer = metrics.SummaryWriter(pathlib.Path(config.run_dir) / "tensorboard", start + 1)
        said = f"peak_flops = {peak:g}" if peak else f"peak_flops of {device.device_kind} unknown"
        writer.text(start + 1, "mfu_formula", f"{metrics.MFU_FORMULA}; {said}")
    return Reporter(
        writer,
        start,
        config.num_steps,
        slots=config.global_batch_size * length,
        flops_per_token=metrics.flops_per_token(model, length),
        total_peak_flops=peak and peak * run.mesh.size,
    )


# ---------------------------------------------------------------- the steps


def _loop(
    run: _Run,
    state: TrainState,
    start: int,
    batches: PlanLoader,
    functions: tuple[Callable, Callable | None],
    checkpoints: CheckpointManager,
    reporter: Reporter,
    stop: StopRequest,
) -> int:
    """Runs to the end or until asked to stop; the last state is saved. Returns its step."""
    config = run.config
    train_step, validate = functions
    step, saved = start, start or None

    def due(every: int) -> bool:
        return every > 0 and (step % every == 0 or step == config.num_steps)

    def save() -> None:
        reporter.flush()  # nothing that is not finite is ever saved
        with reporter.paused():
            checkpoints.save(step, state.items(), run.metadata | {"step": step})

    while step < config.num_steps and not stop.reached(step):
        batch = _to_devices(next(batches), run.mesh)
        with jax.transfer_guard("disallow"):
            state, measured = train_step(state, batch)
        reporter.add(measured)
        step += 1
        if due(config.log_every):
            reporter.flush()
            checkpoints.check()
        if validate is not None and due(config.validate_every):
            reporter.flush()
            with reporter.paused():
                _report_validation(*validate(state.params), reporter)
        if due(config.checkpoint_every):
            save()
            saved = step
        if step in run.evaluation_steps:
            reporter.flush()  # nothing that is not finite is evaluated
            with reporter.paused():
                _evaluate(run, state, step, stop)
    if saved != step:
        save()
    checkpoints.wait()
    return step


def _report_validation(total: float, weight: float, reporter: Reporter) -> None:
    loss = total / max(weight, 1)
    reporter.scalars({"validation/loss": loss, "validation/perplexity": perplexity(loss)})


def _evaluate(run: _Run, state: TrainState, step: int, stop: StopRequest) -> None:
    """Calls the hook if it is due after `step`, unless the run is to stop."""
    if step in run.evaluation_steps and not stop.reached(step):
        with stop.at_once():
            run.evaluation_hook(step, run.graphdef, state.params)


# ---------------------------------------------------------------- batches


def _loader(plan: Plan, rows: int, start: int, end: int) -> PlanLoader:
    """This process's share of the batches of `rows` rows from `start` up to `end`."""
    return PlanLoader(
        plan,
        rows,
        start_step=start,
        num_steps=end,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def _to_devices(batch: dict[str, np.ndarray], mesh: jax.sharding.Mesh) -> dict[str, jax.Array]:
    sharding = batch_sharding(mesh)
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}


def _abstract_batch(run: _Run, plan: Plan, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
    shape = (rows, plan.config.sequence_length)
    sharding = batch_sharding(run.mesh)
    names = dict.fromkeys(("tokens", "targets", "segment_ids", "positions"), np.int32)
    names["loss_weights"] = np.float32
    return {k: jax.ShapeDtypeStruct(shape, v, sharding=sharding) for k, v in names.items()}
