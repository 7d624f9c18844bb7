"""SIGTERM and Ctrl-C as a wish to stop after the current step."""

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils

logger = logging.getLogger(__name__)


class _Leave(KeyboardInterrupt):
    """No Exception, which code on the way might take for a failure of its own."""


class StopRequest:
    """Set by the first SIGTERM or SIGINT inside `listening`; a second Ctrl-C stops at once."""

    def __init__(self):
        self.interrupted = False  # by Ctrl-C
        self._received = False
        self._at_once = False

    def reached(self, step: int) -> bool:
        """Whether to stop before `step`; with several processes, the same answer on all of them."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._received

    @contextlib.contextmanager
    def listening(self) -> Iterator["StopRequest"]:
        """Takes the two signals inside the block.

        Not outside the main thread, where Python cannot, and not with several processes, where
        JAX's distributed service takes SIGTERM for all of them.
        """
        if threading.current_thread() is not threading.main_thread() or jax.process_count() > 1:
            yield self
            return
        names = (signal.SIGINT, signal.SIGTERM)
        before = {name: signal.signal(name, self._receive) for name in names}
        try:
            yield self
        finally:
            for name, handler in before.items():
                signal.signal(name, handler)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """A block that the signals end, where they come, by an exception that stays inside."""
        self._at_once = True
        try:
            yield
        except _Leave:
            pass
        finally:
            self._at_once = False

    def _receive(self, number: int, frame: object) -> None:
        self._received = True
        self.interrupted |= number == signal.SIGINT
        signal.signal(number, signal.default_int_handler if self.interrupted else signal.SIG_IGN)
        again = " (Ctrl-C again stops at once)" if self.interrupted else ""
        logger.warning("%s: saving after this step%s", signal.Signals(number).name, again)
        if self._at_once:
            raise _Leave
