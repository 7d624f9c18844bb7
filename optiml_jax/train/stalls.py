"""A watchdog thread that ends a stalled training run and says what it was waiting for."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from optiml_jax.interrupt import STALLED
from optiml_jax.sharding import processes

# A process with a stalled disk or loader reports before those that wait for it in a collective.
_LATER = 5.0  # seconds


class StallWatch:
    """Watches the waits of a training run.

    Args:
      seconds: how long one wait may take; None: no limit.
      end: called from the thread with the message when a wait takes longer.
    """

    def __init__(self, seconds: float | None, end: Callable[[str], None] | None = None):
        self._seconds = seconds
        self._end = end or _end
        self._wait: tuple[float, str] | None = None  # deadline, what
        self._closed = threading.Event()

    @contextlib.contextmanager
    def open(self) -> Iterator["StallWatch"]:
        """Watches inside the block."""
        if self._seconds is None:
            yield self
            return
        thread = threading.Thread(target=self._look, name="stalls", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._closed.set()
            thread.join()

    @contextlib.contextmanager
    def waiting(self, what: str, for_others: bool = False) -> Iterator[None]:
        """A wait that ends the training if it takes too long.

        Args:
          what: for the message: what did not happen, and what to check.
          for_others: whether another process may be the cause.
        """
        if self._seconds is not None:
            later = _LATER if for_others else 0.0
            self._wait = time.monotonic() + self._seconds + later, what
        try:
            yield
        finally:
            self._wait = None

    def _look(self) -> None:
        while not self._closed.wait(min(1.0, self._seconds / 4)):
            wait = self._wait
            if wait is not None and time.monotonic() > wait[0]:
                self._end(
                    f"stalled: {wait[1]}; no progress for {self._seconds:g} s "
                    "(TrainConfig.stall_seconds); the same command continues from the newest "
                    "checkpoint"
                )
                return


def _end(message: str) -> None:
    processes.end_at_once(message, STALLED)
