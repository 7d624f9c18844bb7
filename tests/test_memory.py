"""Freed memory that is kept: counted by the kernel, as page faults of a process of its own."""

import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource
import numpy as np
from optiml_jax.memory import keep_freed_memory
print(int(keep_freed_memory()))
for i in range(5):
    np.ones(1 << 23)  # 64 MiB: 16,384 pages of 4 KiB
    if i == 0:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def kept_and_faults(**environment) -> tuple[bool, int]:
    names = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
    cleared = {k: v for k, v in os.environ.items() if not k.startswith(names)}
    said = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=cleared | environment,
        check=True,
        capture_output=True,
        text=True,
    )
    kept, faults = map(int, said.stdout.split())
    return bool(kept), faults


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these settings")
def test_freed_memory_is_kept_where_programs_run_on_the_cpu():
    kept, faults = kept_and_faults(JAX_PLATFORMS="cpu")
    assert kept
    assert faults < 100


@pytest.mark.parametrize(
    "environment", [{"JAX_PLATFORMS": "cuda"}, {"JAX_PLATFORMS": "cpu", "MALLOC_ARENA_MAX": "4"}]
)
def test_accelerators_and_settings_of_the_user_are_left_alone(environment):
    assert not kept_and_faults(**environment)[0]
