"""Checks Parquet and Arrow files for damage in a separate process.

A damaged one can make the library read memory that is not its own, which ends the process. So each
file is read once, whole, by a helper that may die; then it is read here.
"""

import functools
import json
import os
import pathlib
import select
import subprocess
import sys
import threading

from optiml_jax.errors import UserError
from optiml_jax.files import regular_file

_PROGRAM = pathlib.Path(__file__).with_name("columnar_check.py")
_SECONDS_PER_MIB, _SECONDS = 5.0, 120.0  # however slow the disk is: a file that takes longer hangs


def check(file: str) -> None:
    """UserError if the file is damaged; every file is checked once, until it changes."""
    status = regular_file(file).stat()
    if said := _problem(file, status.st_size, status.st_mtime_ns):
        raise UserError(f"{file} is damaged ({said}); download it again")


@functools.lru_cache(maxsize=100_000)
def _problem(file: str, size: int, mtime_ns: int) -> str:
    return _helper.ask(file, _SECONDS + _SECONDS_PER_MIB * size / (1 << 20))


class _Helper:
    """The process, started when it is first asked and again when it has died."""

    def __init__(self):
        self._lock = threading.Lock()
        self._process: subprocess.Popen | None = None
        self._owner = 0

    def ask(self, file: str, seconds: float) -> str:
        with self._lock:
            process = self._running()
            try:
                process.stdin.write(json.dumps(os.path.abspath(file)).encode() + b"\n")
                process.stdin.flush()
                if not select.select([process.stdout], [], [], seconds)[0]:
                    process.kill()
                answer = process.stdout.readline()
            except BrokenPipeError:
                answer = b""
            if answer:
                return json.loads(answer)
            self._process = None
            process.kill()
            status = process.wait()
            return f"reading it ends the process, status {status}"

    def _running(self) -> subprocess.Popen:
        # A forked process must not talk to its parent's helper.
        if self._process is None or self._owner != os.getpid():
            self._owner = os.getpid()
            self._process = subprocess.Popen(
                [sys.executable, "-I", str(_PROGRAM)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for us; it ends with its input
            )
        return self._process


_helper = _Helper()
