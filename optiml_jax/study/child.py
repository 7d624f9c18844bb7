"""Runs a verb as a child of `optiml study`: with CPU affinity, and a SIGTERM if the parent dies.

    python -m optiml_jax.study.child PARENT PROCESSORS VERB ARGUMENTS...

PROCESSORS are CPU numbers separated by commas, or "-" for all. Doing this after a fork could
deadlock, because the parent has threads.
"""

import ctypes
import os
import signal
import sys

_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux's prctl


def main() -> None:
    parent, processors, *arguments = sys.argv[1:]
    if processors != "-":
        os.sched_setaffinity(0, {int(number) for number in processors.split(",")})
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGTERM)
        if os.getppid() != int(parent):  # it died before
            sys.exit(128 + signal.SIGTERM)
    os.execv(sys.executable, [sys.executable, "-m", "optiml_jax.cli.main", *arguments])


if __name__ == "__main__":
    main()
