"""Ctrl-C and SIGTERM that also end a program inside a long call of compiled code.

Python runs its signal handlers between two instructions of its own: not while XLA compiles for
minutes. Here a thread sees each signal at once. If Python has not answered it after a moment, the
thread ends the process; every file that a verb writes is whole or not there, so nothing is lost.
"""

import _thread
import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

# Exit status of a run that was stopped before its end (sysexits.h: EX_TEMPFAIL, try again later).
STOPPED = 75
# ... of a training in which something that it waited for did not come.
STALLED = 76
_STATUS = {signal.SIGINT: 130, signal.SIGTERM: STOPPED}
# What TensorStore's callbacks raise after the first block of a save has failed, which is reported.
_LOOP_CLOSED = "Event loop is closed"
_PATIENCE = 2.0  # seconds that Python has to answer a signal


class _Watch:
    """What the thread and the handlers tell each other."""

    def __init__(self):
        self.patient = 0
        self.answered = threading.Event()
        self.before_end: Callable[[str], None] = lambda reason: None


_watch = _Watch()


def answered() -> None:
    """Called by every handler of a signal: Python runs, nobody need end the process."""
    _watch.answered.set()


def before_end(function: Callable[[str], None]) -> None:
    """`function(reason)` will be called before the thread ends this process."""
    _watch.before_end = function


@contextlib.contextmanager
def patient() -> Iterator[None]:
    """A block in which a signal is waited for as long as it takes: what it does must be saved."""
    _watch.patient += 1
    try:
        yield
    finally:
        _watch.patient -= 1


@contextlib.contextmanager
def watched(last: bool = False) -> Iterator[None]:
    """A block in which signals are answered, by Python or by the end of the process.

    Ctrl-C is a KeyboardInterrupt, as always; other handlers call `answered`. Outside of the main
    thread, which alone gets signals, nothing is done.

    Args:
      last: nothing but the end of the program comes after the block, which Ctrl-C then ends
        without a word.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.setblocking(end is ours)
    before = signal.signal(signal.SIGINT, raise_interrupt)
    descriptor = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    hook, sys.unraisablehook = sys.unraisablehook, _raising_again(sys.unraisablehook)
    thread = threading.Thread(target=_look, args=(ours,), name="signals", daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL if last else before)
        signal.set_wakeup_fd(descriptor)
        sys.unraisablehook = hook
        theirs.close()  # ends the thread
        thread.join()
        ours.close()


def raise_interrupt(number: int, frame: object) -> None:
    """Python's own handler of Ctrl-C."""
    answered()
    signal.default_int_handler(number, frame)


def _raising_again(before: Callable[[Any], None]) -> Callable[[Any], None]:
    """A hook for what Python only prints: errors in a `__del__` or a callback of compiled code.

    Ctrl-C is raised once more, after it. All else goes to `before`.
    """

    def hook(unraisable: Any) -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            # From a thread, a moment later: raised in here it would be lost again.
            threading.Timer(0.05, _thread.interrupt_main).start()
        elif str(unraisable.exc_value) != _LOOP_CLOSED:
            before(unraisable)

    return hook


def _look(ours: socket.socket) -> None:
    while numbers := ours.recv(64):
        for number in (n for n in numbers if n in _STATUS):
            if not _watch.answered.wait(_PATIENCE) and not _watch.patient:
                _end(signal.Signals(number))
            _watch.answered.clear()


def _end(number: signal.Signals) -> None:
    reason = f"{number.name} in the middle of a long call"
    _watch.before_end(reason)
    print(f"interrupted: {reason}; the same command continues", file=sys.stderr, flush=True)
    logging.shutdown()
    os._exit(_STATUS[number])
