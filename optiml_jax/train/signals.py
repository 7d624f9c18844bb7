"""SIGTERM and Ctrl-C as requests to stop after the current step."""

import contextlib
import logging
import signal
import threading
import time
from collections.abc import Iterator

from optiml_jax import interrupt
from optiml_jax.sharding import processes

logger = logging.getLogger(__name__)


class StopRequest:
    """Set by the first SIGTERM or SIGINT inside `listening`; a second Ctrl-C stops at once."""

    def __init__(self):
        self._interrupted = False
        self._received = False
        self._at_once = False
        self._since: float | None = None  # of the signal, in time.monotonic

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C stopped the run, in any process."""
        job = processes.job()
        if job is not None:
            return job.stopped_by is not None and job.stopped_by[1] == "SIGINT"
        return self._interrupted

    def seconds_left(self, grace: float | None) -> float | None:
        """Seconds left of the grace period after SIGTERM; None: no limit, or no SIGTERM."""
        job = processes.job()
        since = self._since if job is None else job.stopped_at
        if grace is None or since is None or self.interrupted:
            return None
        return max(0.0, since + grace - time.monotonic())

    def reached(self) -> bool:
        """Whether to stop here; the same answer on all processes."""
        job = processes.job()
        return self._received if job is None else job.reached()

    @contextlib.contextmanager
    def listening(self) -> Iterator["StopRequest"]:
        """Handles both signals inside the block; only in the main thread, as Python requires.

        With several processes, one that gets a signal tells the others.
        """
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        names = (signal.SIGINT, signal.SIGTERM)
        before = {name: signal.signal(name, self._receive) for name in names}
        try:
            yield self
        finally:
            for name, handler in before.items():
                # None stands for a handler that was not installed from Python.
                signal.signal(name, signal.SIG_DFL if handler is None else handler)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """A block that the signals end by an exception that stays inside: where they come, or with
        several processes where all of them next call `processes.leave_if_asked`.
        """
        job = processes.job()
        self._at_once = job is None
        if job is not None:
            job.leaves_at_once = True
        try:
            yield
        except processes.Leave:
            pass
        finally:
            self._at_once = False
            if job is not None:
                job.leaves_at_once = False

    def _receive(self, number: int, frame: object) -> None:
        interrupt.answered()
        self._received, self._since = True, time.monotonic()
        self._interrupted |= number == signal.SIGINT
        signal.signal(number, interrupt.raise_interrupt if self._interrupted else signal.SIG_IGN)
        again = " (Ctrl-C again stops at once)" if self._interrupted else ""
        what = "stopping" if self._at_once else "saving after this step"
        # From a thread: this may have interrupted the very call that writes a line.
        said = ("%s: %s%s", signal.Signals(number).name, what, again)
        threading.Thread(target=logger.warning, args=said, name="signal").start()
        if (job := processes.job()) is not None:
            job.ask_to_stop(signal.Signals(number).name)
        if self._at_once:
            raise processes.Leave
