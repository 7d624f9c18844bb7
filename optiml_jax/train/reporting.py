"""Reports during training, to terminal, log and TensorBoard, without slowing it down.

Metrics of a step stay on the devices until the next report.
"""

import contextlib
import logging
import math
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from optiml_jax.errors import UserError
from optiml_jax.model.config import DecoderConfig
from optiml_jax.paths import path_of
from optiml_jax.train import metrics
from optiml_jax.train.config import TrainConfig
from optiml_jax.train.goodput import Goodput, Kind
from optiml_jax.train.loss_scale import MINIMUM
from optiml_jax.train.stalls import StallWatch

logger = logging.getLogger(__name__)

# Steps dispatched to the devices before the host waits for the oldest: enough to keep them busy,
# few enough to react quickly to a signal or an error.
_STEPS_AHEAD = 2
_SECONDS_OF_ACCOUNT = 30.0  # between two writes of the goodput file


class Reporter:
    """Collects the metrics of the steps and reports them once per period.

    Args:
      writer: None on all processes but the first.
      start, num_steps: the run goes from step `start` to `num_steps`.
      slots: tokens in a global batch, padding included.
      flops_per_token: of one slot.
      total_peak_flops: FLOP/s of all devices together; None leaves MFU out.
      goodput: accounts for the time spent.
      watch: ends the run if a wait takes too long.
    """

    def __init__(
        self,
        writer: metrics.SummaryWriter | None,
        start: int,
        num_steps: int,
        slots: int,
        flops_per_token: float,
        total_peak_flops: float | None,
        goodput: Goodput,
        watch: StallWatch,
    ):
        self._writer = writer
        self._num_steps = num_steps
        self._slots = slots
        self._flops_per_token = flops_per_token
        self._total_peak_flops = total_peak_flops
        self._goodput = goodput
        self._watch = watch
        self._waited = 0.0  # seconds of this period, for rows
        self._pending: list[dict[str, jax.Array]] = []
        self._step = start
        self._since = time.perf_counter()
        self._bar = None
        if writer is not None and sys.stderr.isatty():
            self._bar = tqdm(total=num_steps, initial=start, unit="step", dynamic_ncols=True)

    @contextlib.contextmanager
    def waiting_for_rows(self) -> Iterator[None]:
        """A block that gets the next batch; it counts as a wait if the devices are idle."""
        before = time.perf_counter()
        step = self._step + 1
        with self._watch.waiting(
            f"the rows of step {step} did not arrive from the cache; check its disk"
        ):
            yield
        if all(step["loss_sum"].is_ready() for step in self._pending[-1:]):
            self._waited += time.perf_counter() - before

    @contextlib.contextmanager
    def waiting_for_devices(self, step: int) -> Iterator[None]:
        """A block that waits until the devices have finished the update that leads to `step`."""
        with self._watch.waiting(
            f"step {step} did not finish on the devices (one of them hangs, or a process does not "
            "take part in a collective)",
            for_others=True,
        ):
            yield

    def add(self, measured: dict[str, jax.Array]) -> None:
        """Takes the metrics of a step without waiting for that step."""
        self._pending.append(measured)
        self._step += 1
        if len(self._pending) > _STEPS_AHEAD:
            with self.waiting_for_devices(self._step - _STEPS_AHEAD):
                jax.block_until_ready(self._pending[-1 - _STEPS_AHEAD])
        if self._bar is not None:
            self._bar.update()

    def flush(self) -> None:
        """Waits for the steps so far and reports on them.

        Raises:
          UserError: the loss or gradient of one of them was not finite; names the first.
        """
        if not self._pending:
            return
        first = self._step - len(self._pending) + 1
        with self.waiting_for_devices(self._step):
            steps = jax.device_get(self._pending)
        seconds = time.perf_counter() - self._since
        self._goodput.add_updates(seconds - self._waited)
        self._goodput.add("data_wait", self._waited)
        self._pending.clear()
        self._waited = 0.0
        for step, measured in enumerate(steps, first):
            _check_finite(step, measured)
        self.scalars(self._summary(steps, seconds / len(steps)))
        if self._writer is not None:
            self._writer.scalars(self._step, self._goodput.scalars())
            self._writer.flush()
        self._goodput.write(every=_SECONDS_OF_ACCOUNT)
        self._since = time.perf_counter()

    def scalars(self, values: Mapping[str, float]) -> None:
        """Reports `values` at the current step."""
        if self._writer is None:
            return
        self._writer.scalars(self._step, values)
        self._writer.flush()
        text = ", ".join(f"{name} {_format(value)}" for name, value in values.items())
        if self._bar is None:
            logger.info("step %d/%d: %s", self._step, self._num_steps, text)
        elif "loss" in values:
            self._bar.set_postfix_str(f"loss {values['loss']:.3f}")
        else:
            logger.info("step %d: %s", self._step, text)

    @contextlib.contextmanager
    def paused(self, kind: Kind) -> Iterator[None]:
        """Keeps the block out of the step time, and counts it as `kind`.

        It is watched, but for evaluations: nobody knows how long those take.
        """
        watched = contextlib.nullcontext()
        if kind != "evaluation":
            watched = self._watch.waiting(f"{kind} after step {self._step} did not finish", True)
        before = time.perf_counter()
        with watched, self._goodput.spent(kind):
            yield
        self._since += time.perf_counter() - before

    @contextlib.contextmanager
    def open(self) -> Iterator["Reporter"]:
        """Keeps log lines from breaking the progress bar; closes it and the writer at the end."""
        with contextlib.ExitStack() as stack:
            if self._writer is not None:
                stack.callback(self._close_writer)
            if self._bar is not None:
                stack.callback(self._bar.close)
                stack.enter_context(logging_redirect_tqdm([logging.root]))
            yield self

    def _close_writer(self) -> None:
        """An upload that fails does not take the place of how training ended."""
        try:
            self._writer.close()
        except metrics.NotUploadedError as e:
            logger.warning("%s", e)

    def _summary(self, steps: list[dict[str, float]], seconds: float) -> dict[str, float]:
        totals = {name: sum(float(s[name]) for s in steps) for name in steps[0]}
        loss = totals["loss_sum"] / max(totals["loss_weight"], 1)
        if totals.get("skipped") == len(steps):
            loss = math.nan  # of no step in this period
        per_second = self._slots / seconds
        values = {
            "loss": loss,
            "perplexity": perplexity(loss),
            "gradient_norm": float(steps[-1]["gradient_norm"]),
            "learning_rate": float(steps[-1]["learning_rate"]),
            "tokens_per_second": per_second,
            "non_pad_fraction": totals["tokens"] / (len(steps) * self._slots),
            "step_seconds": seconds,
        }
        if "skipped" in totals:
            values |= {"loss_scale": float(steps[-1]["loss_scale"]), "skipped": totals["skipped"]}
        if self._total_peak_flops:
            values["mfu"] = self._flops_per_token * per_second / self._total_peak_flops
        return values


@contextlib.contextmanager
def make_reporter(
    config: TrainConfig,
    model: DecoderConfig,
    mesh: jax.sharding.Mesh,
    sequence_length: int,
    start: int,
    metadata: Mapping[str, Any],
    goodput: Goodput,
    watch: StallWatch,
) -> Iterator[Reporter]:
    """The open reporter of a run that continues after `start` updates.

    Args:
      metadata: of the run (`config.run_metadata`); TensorBoard shows it as hyperparameters, and
        the file config.gin of the run's folder, where there is one, as text.
      goodput, watch: of the run, see `Reporter`.
    """
    device = mesh.devices.flat[0]
    peak = config.peak_flops or metrics.peak_flops(device.device_kind, model.dtype)
    writer = None
    if jax.process_index() == 0:
        writer = metrics.SummaryWriter(path_of(config.run_dir) / "tensorboard", start + 1)
        said = f"peak_flops = {peak:g}" if peak else f"peak_flops of {device.device_kind} unknown"
        writer.text(start + 1, "mfu_formula", f"{metrics.MFU_FORMULA}; {said}")
        run_dir = path_of(config.run_dir)
        writer.hparams(start + 1, metadata, run_dir.resolve().name)
        if (gin := run_dir / "config.gin").exists():
            indented = textwrap.indent(gin.read_text("utf-8"), "    ")  # code, in Markdown
            writer.text(start + 1, "config_gin", indented)
    reporter = Reporter(
        writer,
        start,
        config.num_steps,
        slots=config.global_batch_size * sequence_length,
        flops_per_token=model.flops_per_token(sequence_length),
        total_peak_flops=peak and peak * mesh.size,
        goodput=goodput,
        watch=watch,
    )
    with reporter.open():
        yield reporter


def perplexity(loss: float) -> float:
    """exp(loss), infinite where that is too large for a float."""
    return math.exp(loss) if loss < 700 else math.inf


def _check_finite(step: int, measured: Mapping[str, float]) -> None:
    if measured.get("skipped"):
        scale = float(measured["loss_scale"])
        logger.warning("step %d overflowed in float16 and was skipped: loss scale %g", step, scale)
        if scale < MINIMUM:
            raise UserError(
                f"step {step} overflows in float16 whatever the loss scale (now {scale:g}): "
                "training stopped; lower OptimizerConfig.learning_rate, lengthen the warm-up or "
                "set model_config.dtype = 'bfloat16'"
            )
        return
    bad = [n for n in ("loss_sum", "gradient_norm") if not math.isfinite(measured[n])]
    if bad:
        raise not_finite(f"{' and '.join(bad)} of step {step}")


def not_finite(what: str) -> UserError:
    """The error of a run whose numbers, named in `what`, have run away."""
    return UserError(
        f"{what} not finite: training stopped, nothing was saved since; lower "
        "OptimizerConfig.learning_rate or lengthen the warm-up and start again in a new run_dir "
        "(TrainConfig.init_from takes up the last checkpoint)"
    )


def _format(value: float) -> str:
    if value and (abs(value) >= 1e6 or abs(value) < 1e-3):
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
