"""Goodput: the share of a run's wall-clock time spent in updates that count, over all restarts.

The totals are stored in the run's folder and so persist over restarts. An update counts once: time
spent on updates after the newest checkpoint, which have to be repeated, does not count, nor does
time in which the run was not running.
"""

import contextlib
import logging
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Literal

from optiml_jax.errors import UserError
from optiml_jax.files import read_sealed, write_sealed

logger = logging.getLogger(__name__)

FILE = "goodput.json"
# Time not spent in updates. "starting": restoring the state and compiling.
Kind = Literal["data_wait", "checkpoint", "validation", "evaluation", "starting"]
KINDS: tuple[Kind, ...] = ("data_wait", "checkpoint", "validation", "evaluation", "starting")


class Goodput:
    """The time of one run.

    Args:
      path: the file of the totals; None: not stored (all processes but the first).
      step: that this start resumes from; time of later updates is dropped.
      began: when this start began, in seconds since the epoch.
      clock: gives the time in such seconds.
    """

    def __init__(
        self,
        path: pathlib.Path | None,
        step: int,
        began: float,
        clock: Callable[[], float] = time.time,
    ):
        self._path, self._clock = path, clock
        stored = _read(path)
        self._began: float = stored.get("began", began)
        if (complete := stored.get("complete")) is not None:
            self._began += began - complete  # nobody waited for a run that was complete
        self._starts: int = stored.get("starts", 0) + 1
        self._seconds: dict[str, float] = {k: stored.get("seconds", {}).get(k, 0.0) for k in KINDS}
        # Seconds in updates until each step of which there may be a checkpoint.
        saved = {int(k): v for k, v in stored.get("updates", {}).items()}
        self._saved = {k: v for k, v in saved.items() if k <= step}
        self._updates = self._saved.get(max(self._saved, default=0), 0.0)
        self._complete: float | None = None
        self._written = 0.0
        self.add("starting", clock() - began)

    def add_updates(self, seconds: float) -> None:
        """Adds time spent in updates."""
        self._updates += seconds

    def add(self, kind: Kind, seconds: float) -> None:
        """Adds time spent in something else."""
        self._seconds[kind] += seconds

    @contextlib.contextmanager
    def spent(self, kind: Kind) -> Iterator[None]:
        """Adds the time of a block."""
        before = time.perf_counter()
        try:
            yield
        finally:
            self.add(kind, time.perf_counter() - before)

    def saving(self, step: int) -> None:
        """A checkpoint of this step begins: a restart from it keeps the updates until now."""
        self._saved[step] = self._updates
        self.write()

    def finish(self, complete: bool) -> None:
        """This start ends. Time after a complete run does not belong to it."""
        self._complete = self._clock() if complete else None
        self.write()

    def write(self, every: float = 0.0) -> None:
        """Writes the totals to the file.

        Args:
          every: does nothing if the last write is less than so many seconds ago: a bucket is slow.
        """
        if self._path is not None and abs(self._clock() - self._written) >= every:
            self._written = self._clock()
            value = {
                "began": self._began,
                "starts": self._starts,
                "seconds": self._seconds,
                "updates": {str(step): seconds for step, seconds in self._saved.items()},
                "complete": self._complete,
            }
            write_sealed(self._path, value)

    def scalars(self) -> dict[str, float]:
        """The totals so far, for TensorBoard: tag -> value."""
        seconds = {f"time/{kind}_seconds": value for kind, value in self._seconds.items()}
        return {
            "time/goodput": self._updates / self._elapsed(),
            **seconds,
            "time/restarts": self._starts - 1,
        }

    def describe(self) -> str:
        """The totals so far, in words."""
        elapsed = self._elapsed()
        others = elapsed - self._updates - sum(self._seconds.values())
        parts = [f"updates {duration(self._updates)}"]
        parts += [f"{k.replace('_', ' ')} {duration(v)}" for k, v in self._seconds.items()]
        return (
            f"goodput {100 * self._updates / elapsed:.1f} % of {duration(elapsed)} since the first "
            f"start ({', '.join(parts)}, lost or not running {duration(others)}), "
            f"{self._starts - 1} restarts"
        )

    def _elapsed(self) -> float:
        """Seconds since the first start; a clock that was set back does not make goodput > 1."""
        passed = (self._complete or self._clock()) - self._began
        return max(passed, self._updates + sum(self._seconds.values()), 1e-9)


def duration(seconds: float) -> str:
    """Below a minute as "7.3 s", else as hours, minutes and seconds: "26:03:07"."""
    if seconds < 59.95:
        return f"{max(seconds, 0):.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _read(path: pathlib.Path | None) -> dict:
    if path is None or not path.exists():
        return {}
    try:
        return read_sealed(path, "the record of the run's time", "it starts again from zero")
    except UserError as e:  # no update depends on it
        logger.warning("%s", e)
        return {}
