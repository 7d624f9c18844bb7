"""A thread that ends a training in which nothing happens any more, and says what it waited for."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from optiml_jax.interrupt import STALLED
from optiml_jax.sharding import processes

# A process whose own disk or loader stalls speaks before those that wait for it in a collective.
_LATER = 5.0  # seconds


class StallWatch:
    """Watches what the training waits for.

    Args:
      seconds: that one wait may take; None: for ever.
      end: called with the message once one takes longer, from the thread.
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
        """A wait, which ends the training if it takes too long.

        Args:
          what: of the message: what did not happen, and what to look at.
          for_others: whether it may be another process that is to blame.
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
                    f"stalled: {wait[1]}; nothing came for {self._seconds:g} s "
                    "(TrainConfig.stall_seconds); the same command goes on from the newest "
                    "checkpoint"
                )
                return


def _end(message: str) -> None:
    processes.end_at_once(message, STALLED)
