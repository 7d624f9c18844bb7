"""What a run does between steps: report, validate, save, evaluate; each decides when it is due."""

import contextlib
import dataclasses
import logging
import pathlib
import tempfile
import time
from collections.abc import Callable, Collection
from typing import Any, Protocol

import jax
import numpy as np
from flax import nnx

from optiml_jax.checkpoint.finite import first_not_finite
from optiml_jax.checkpoint.manager import CheckpointManager
from optiml_jax.data.plan import Plan
from optiml_jax.paths import is_bucket, path_of, upload_folder
from optiml_jax.sharding import processes
from optiml_jax.train.batches import open_batches
from optiml_jax.train.config import TrainConfig
from optiml_jax.train.goodput import Goodput
from optiml_jax.train.reporting import Reporter, not_finite, perplexity
from optiml_jax.train.signals import StopRequest
from optiml_jax.train.state import TrainState

logger = logging.getLogger(__name__)

EvaluationHook = Callable[[int, nnx.GraphDef, dict[str, Any]], None]


class Duty(Protocol):
    """Called after every step with the number of updates made and the resulting state."""

    def __call__(self, step: int, state: TrainState) -> None: ...


def is_due(step: int, every: int, num_steps: int) -> bool:
    """After every `every`-th step and the last; never if `every` is 0."""
    return every > 0 and (step % every == 0 or step == num_steps)


@dataclasses.dataclass(frozen=True)
class Reporting:
    """Reports the metrics of the steps, and errors of a background save."""

    config: TrainConfig
    reporter: Reporter
    checkpoints: CheckpointManager

    def __call__(self, step: int, state: TrainState) -> None:
        if is_due(step, self.config.log_every, self.config.num_steps):
            self.reporter.flush()
            self.checkpoints.check()


@dataclasses.dataclass(frozen=True)
class Validation:
    """Reports the loss on the first rows of the validation plan.

    Attributes:
      validation_step: (params, batch) -> (sum, weight), for batches of one microbatch's size, which
        fit in memory where training does. The rows do not depend on the number of microbatches.
    """

    config: TrainConfig
    plan: Plan
    mesh: jax.sharding.Mesh
    validation_step: Callable
    reporter: Reporter

    def __call__(self, step: int, state: TrainState) -> None:
        if not is_due(step, self.config.validate_every, self.config.num_steps):
            return
        self.reporter.flush()
        with self.reporter.paused("validation"):
            total, weight = self.loss(state.model_params)
            loss = total / max(weight, 1)
            self.reporter.scalars(
                {"validation/loss": loss, "validation/perplexity": perplexity(loss)}
            )

    def loss(self, params: dict[str, Any]) -> tuple[float, float]:
        """(sum, weight) of the label loss."""
        with open_batches(self.plan, self.mesh, self._rows, 0, self._batches()) as batches:
            results = [self.validation_step(params, batch) for batch in batches]
        total, weight = np.sum(jax.device_get(results), axis=0, dtype=np.float64)
        return float(total), float(weight)

    @property
    def _rows(self) -> int:
        return self.config.global_batch_size // self.config.num_microbatches

    def _batches(self) -> int:
        wanted = self.config.validation_batches * self.config.num_microbatches
        there = min(wanted, self.plan.num_rows // self._rows)
        if there < wanted:
            logger.info("validating on the %d rows of %s", there * self._rows, self.plan.folder)
        return there


@dataclasses.dataclass
class Profiling:
    """Traces the updates of `TrainConfig.profile_steps` for TensorBoard's profiler."""

    config: TrainConfig
    _running: bool = False
    _local: tempfile.TemporaryDirectory | None = None  # where the run's folder is in a bucket

    def __call__(self, step: int, state: TrainState) -> None:
        first, last = self.config.profile_steps or (0, 0)
        if step + 1 == first:
            jax.block_until_ready(state)  # so that the trace holds no earlier update
            self._local = tempfile.TemporaryDirectory() if is_bucket(self._folder) else None
            folder = self._local.name if self._local else self._folder
            jax.profiler.start_trace(folder, profiler_options=_without_python())
            self._running = True
        elif self._running and step >= last:
            jax.block_until_ready(state)
            self.close()

    def close(self) -> None:
        """Writes the trace."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
            if self._local:
                with self._local:
                    upload_folder(pathlib.Path(self._local.name), self._folder)
            logger.info("trace for TensorBoard's profiler: %s", self._folder)

    @property
    def _folder(self) -> pathlib.Path:
        return path_of(self.config.run_dir) / "tensorboard"


def _without_python() -> jax.profiler.ProfileOptions:
    """No event for every call of a Python function.

    Until Python 3.12 the profiler sets and removes its hooks by walking through all threads while
    others, those of a save for instance, begin and end: that has crashed processes and lost the
    errors of threads.
    """
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    return options


@dataclasses.dataclass
class Saving:
    """Writes checkpoints; non-finite values are never saved.

    Attributes:
      saved: the newest step that is already saved, or the one the run started from.
    """

    config: TrainConfig
    reporter: Reporter
    checkpoints: CheckpointManager
    metadata: dict[str, Any]
    goodput: Goodput
    saved: int

    def __call__(self, step: int, state: TrainState) -> None:
        if is_due(step, self.config.checkpoint_every, self.config.num_steps):
            self.save(step, state)

    def save(self, step: int, state: TrainState) -> None:
        """Starts saving this step, unless it is saved already."""
        if step == self.saved:
            return
        self.reporter.flush()
        self.goodput.saving(step)
        with self.reporter.paused("checkpoint"):
            check_state(step, state)
            self.checkpoints.save(step, state.items(), self.metadata | {"step": step})
        self.saved = step

    def finish(self, step: int, state: TrainState, seconds: float | None) -> bool:
        """Saves the last step; False if that takes longer than `seconds` (None: no limit).

        A save in progress has all of them; another one begins if the rest is as long as the last
        one took. The next start removes what is half-written.
        """
        deadline = None if seconds is None else time.monotonic() + seconds

        def left() -> float:
            return deadline - time.monotonic()

        def ends() -> bool:
            # Process 0 decides: it alone knows how long a save takes.
            return deadline is None or processes.on_first(
                lambda: self.checkpoints.ends_within(left())
            )

        if step != self.saved and deadline is not None:
            if not ends():
                return False
            if not processes.on_first(lambda: left() >= (self.checkpoints.save_seconds or 0.0)):
                return False
        self.save(step, state)
        with self.reporter.paused("checkpoint"):
            if not ends():
                return False
            self.checkpoints.wait()
        return True


def check_state(step: int, state: TrainState) -> None:
    """UserError if a parameter or moment is not finite, whatever the loss was."""
    if (name := first_not_finite(state.items())) is not None:
        raise not_finite(f"{name} after step {step} is")


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Passes the parameters to a hook after certain steps, unless the run is to stop."""

    hook: EvaluationHook | None
    steps: Collection[int]
    graphdef: nnx.GraphDef
    stop: StopRequest
    reporter: Reporter | None = None

    def __call__(self, step: int, state: TrainState) -> None:
        if step not in self.steps or self.stop.reached():
            return
        if self.reporter is not None:
            self.reporter.flush()
            check_state(step, state)  # non-finite parameters are not evaluated
        pause = (
            contextlib.nullcontext()
            if self.reporter is None
            else self.reporter.paused("evaluation")
        )
        with pause, self.stop.at_once():
            self.hook(step, self.graphdef, state.model_params)
