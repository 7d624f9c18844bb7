"""How this process takes memory from the operating system."""

import ctypes
import importlib.util
import os
import sys

# Of glibc's <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
_OF_THE_USER = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")


def keep_freed_memory() -> bool:
    """Lets the C library keep what is freed, where programs run on the CPU; whether it does now.

    XLA takes the temporaries of a program from malloc whenever it runs. Pieces that large come from
    the operating system and go back to it, which clears each page at its first touch: at every step
    again. `tools/bench/page_faults.py` measures what that costs. Kept, they cost nothing, and the
    process stays as large as it ever was.

    Nothing is done where an accelerator may hold the arrays, without glibc, and where the
    environment says how malloc shall work (MALLOC_..., GLIBC_TUNABLES, LD_PRELOAD). Call it before
    threads start.
    """
    if any(name.startswith(_OF_THE_USER) for name in os.environ):
        return False
    if sys.platform != "linux" or not _only_a_cpu():
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # Only the first arena can hold large pieces without asking for pages of their own.
    wanted = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: 2**31 - 1, _M_ARENA_MAX: 1}
    results = [mallopt(name, value) for name, value in wanted.items()]  # all, whatever one says
    return all(results)


def _only_a_cpu() -> bool:
    """Whether JAX will find nothing else, judged without importing it."""
    if platforms := os.environ.get("JAX_PLATFORMS"):
        return platforms == "cpu"
    return not any(map(importlib.util.find_spec, ("jax_plugins", "libtpu")))
