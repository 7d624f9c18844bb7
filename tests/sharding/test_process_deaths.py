"""The processes of a job that do nothing but belong together: what they say when the first dies."""

import os
import signal
import socket
import subprocess
import sys

PROGRAM = """
import time
from optiml_jax.sharding import processes
processes.join()
print("joined", flush=True)
time.sleep(120)
"""


def test_the_death_of_process_0_is_named_at_once_by_the_others():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    started = []
    for i in range(2):
        names = ("COORDINATOR_ADDRESS", "NUM_PROCESSES", "PROCESS_ID")
        values = dict(zip((f"JAX_{n}" for n in names), (address, "2", str(i)), strict=True))
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", PROGRAM],
                env={**os.environ, "JAX_PLATFORMS": "cpu", **values},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    first, other = started
    assert [p.stdout.readline() for p in started] == ["joined\n"] * 2
    first.kill()
    said = other.communicate(timeout=60)[1]
    first.communicate()
    assert (first.returncode, other.returncode) == (-signal.SIGKILL, 1)
    assert "error: process 0, which coordinates the job, has died" in said.splitlines()[-1]
