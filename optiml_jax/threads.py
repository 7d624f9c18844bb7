"""A thread that finds no memory to begin is a MemoryError.

`threading.Thread.start`, in libraries too, waits forever for such a thread (CPython issue 140746).
"""

import functools
import threading

_PATIENCE = 30.0  # seconds for a thread to begin


def bound_starts() -> None:
    """Makes `Thread.start` give up on a thread that does not begin, in this process."""
    start = threading.Thread.start
    if hasattr(start, "__wrapped__"):
        return

    @functools.wraps(start)
    def bounded(thread: threading.Thread) -> None:
        if not thread._started.is_set():
            thread._started = _Begun()
        try:
            start(thread)
        except RuntimeError as e:
            if "can't start new thread" in str(e):  # no memory, or `ulimit -u`
                raise MemoryError(str(e)) from e
            raise

    threading.Thread.start = bounded


class _Begun(threading.Event):
    """What `start` waits for, and the thread sets when it begins."""

    def wait(self, timeout: float | None = None) -> bool:
        if timeout is None and not super().wait(_PATIENCE):
            raise MemoryError("a thread did not begin")
        return super().wait(timeout)
