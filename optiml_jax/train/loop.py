"""`train`: one run from its first step, or from where it stopped, to its end.

Every update is a function of (parameters, moments, step): the plan gives the rows of each step, and
dropout keys depend on seed and step alone. A checkpoint of the three is all that resuming needs.

Its parts: `start.py` (the initial state), `programs.py` (compiling), `batches.py` (rows onto
devices), `step.py` (one update), `duties.py` (reports, validation, checkpoints, evaluation).
"""

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Collection, Iterator, Sequence

import jax

from optiml_jax import interrupt
from optiml_jax.checkpoint.manager import CheckpointManager
from optiml_jax.model.config import DecoderConfig
from optiml_jax.model.decoder import abstract_model
from optiml_jax.paths import path_of
from optiml_jax.sharding import processes
from optiml_jax.sharding.mesh import MeshConfig, make_mesh
from optiml_jax.sharding.rules import use_mesh
from optiml_jax.train import goodput
from optiml_jax.train.batches import Batch, open_batches
from optiml_jax.train.config import TrainConfig, check_batch, run_metadata
from optiml_jax.train.duties import (
    Duty,
    Evaluation,
    EvaluationHook,
    Profiling,
    Reporting,
    Saving,
    Validation,
)
from optiml_jax.train.optimizer import OptimizerConfig
from optiml_jax.train.programs import compile_programs
from optiml_jax.train.reporting import Reporter, make_reporter
from optiml_jax.train.signals import StopRequest
from optiml_jax.train.stalls import StallWatch
from optiml_jax.train.start import files_of_checkpoints, load_plans, start_state
from optiml_jax.train.state import TrainState, abstract_state

logger = logging.getLogger(__name__)


def train(
    config: TrainConfig,
    model: DecoderConfig,
    mesh: MeshConfig,
    optimizer: OptimizerConfig,
    evaluation_hook: EvaluationHook | None = None,
    evaluation_steps: Collection[int] = (),
) -> int:
    """Trains, or resumes the run in `config.run_dir`.

    Args:
      config: the run.
      model: what is trained.
      mesh: the device mesh; it may change after a restart.
      optimizer: its settings.
      evaluation_hook: called as (step, graphdef, params) after each of `evaluation_steps`, and
        again when the run is resumed at one of them. It must not keep the params. Ctrl-C and
        SIGTERM raise in it, so that the state is saved at once.
      evaluation_steps: see `evaluation_hook`.

    Returns:
      0: the run is complete; `interrupt.STOPPED`: stopped early by SIGTERM, every step saved.

    Raises:
      UserError: settings do not fit, the disk is full, or the loss is no longer finite.
      KeyboardInterrupt: stopped by Ctrl-C; every step is saved.
    """
    # All checks come before anything is computed or written.
    optimizer.check(config.num_steps)
    devices = make_mesh(mesh)
    check_batch(config, devices)
    plan, validation_plan = load_plans(config, model)
    metadata = run_metadata(config, model, optimizer, plan)
    abstract, length = (
        abstract_state(model, optimizer, devices, mesh.preset),
        plan.config.sequence_length,
    )

    folder, files = path_of(config.run_dir) / "checkpoints", files_of_checkpoints(metadata)
    checkpoints = CheckpointManager(folder, config.keep, files=files)
    stop = StopRequest()
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.closing(checkpoints))
        stack.enter_context(stop.listening())
        stack.enter_context(use_mesh(devices, mesh.preset))
        state, step, first = None, 0, 0  # until they are known
        began = time.time()
        with stop.at_once():
            state, step = start_state(config, model, optimizer, abstract, checkpoints, metadata)
        record = path_of(config.run_dir) / goodput.FILE if processes.is_first() else None
        spent = goodput.Goodput(record, step, began)
        evaluation = Evaluation(evaluation_hook, evaluation_steps, abstract_model(model)[0], stop)
        if step:  # the last stop may have interrupted it
            with spent.spent("evaluation"):
                evaluation(step, state)
        validates = validation_plan is not None and config.validate_every > 0
        programs = None
        first = step
        if state is not None and step < config.num_steps and not stop.reached():
            spent.write()
            with stop.at_once(), spent.spent("starting"):
                programs = compile_programs(
                    config, model, optimizer, devices, mesh.preset, length, validates
                )
        if programs is not None:
            span = (config.global_batch_size, step, config.num_steps)
            batches = stack.enter_context(open_batches(plan, devices, *span))
            watch = stack.enter_context(StallWatch(config.stall_seconds).open())
            reporter = stack.enter_context(
                make_reporter(config, model, devices, length, step, metadata, spent, watch)
            )
            saving = Saving(config, reporter, checkpoints, metadata, spent, saved=step)
            duties: list[Duty] = [Reporting(config, reporter, checkpoints)]
            if validates:
                function = programs.validation_step
                duties.append(Validation(config, validation_plan, devices, function, reporter))
            profiling = stack.enter_context(contextlib.closing(Profiling(config)))
            profiling(step, state)  # the next update may be the first to profile
            duties += [saving, dataclasses.replace(evaluation, reporter=reporter), profiling]
            stack.enter_context(interrupt.patient())
            state, step = _steps(state, step, programs.train_step, batches, reporter, duties, stop)
            if not saving.finish(step, state, stop.seconds_left(config.grace_seconds)):
                processes.leave_now(
                    f"step {step} of {config.num_steps} is not saved: time ran out; the same "
                    f"command continues from the newest checkpoint in {config.run_dir}"
                )
            spent.finish(complete=step == config.num_steps)
        elif step == config.num_steps:
            logger.info("%s is complete: all %d steps are done", config.run_dir, step)
    said = f"step {step} of {config.num_steps} is saved in {config.run_dir}"
    if step == first < config.num_steps:
        said = f"stopped before the first update; {config.run_dir} is as it was"
    elif step > first and processes.is_first():
        said += f"; {spent.describe()}"
    if stop.interrupted:
        raise KeyboardInterrupt(said)
    logger.info("%s", said)
    return 0 if step == config.num_steps else interrupt.STOPPED


def _steps(
    state: TrainState,
    start: int,
    train_step: Callable,
    batches: Iterator[Batch],
    reporter: Reporter,
    duties: Sequence[Duty],
    stop: StopRequest,
) -> tuple[TrainState, int]:
    """Runs until the batches end or a stop is requested; returns the last state and its step."""
    step = start
    while not stop.reached():
        with reporter.waiting_for_rows():
            batch = next(batches, None)
        if batch is None:
            break
        with jax.transfer_guard("disallow"), reporter.waiting_for_devices(step + 1):
            state, measured = train_step(state, batch)
        reporter.add(measured)
        step += 1
        for duty in duties:
            duty(step, state)
    return state, step
