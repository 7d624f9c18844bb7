"""The processes of a job that do nothing but belong together: how they end, and what they say."""

import contextlib
import os
import signal
import socket
import subprocess
import sys

import pytest

from optiml_jax.interrupt import STOPPED

IDLE = """
import time
from optiml_jax.sharding import processes
processes.join()
print("joined", flush=True)
time.sleep(120)
"""
# The last save after a stop, which fails on one machine while the others wait for it.
FAILING_AFTER_A_STOP = """
import jax
from optiml_jax.errors import UserError
from optiml_jax.sharding import processes
from optiml_jax.train.signals import StopRequest
processes.join()
with processes.ending_together(), StopRequest().listening() as stop:
    print("joined", flush=True)
    while not stop.reached():
        processes.gather("a step")
    if jax.process_index() == 1:
        raise UserError("stale file handle")
    processes.gather("the last save")
"""
# Process 1 has finished when process 0 is asked to stop.
STOPPED_AT_THE_END = """
import os, signal, time
import jax
from optiml_jax.sharding import processes
from optiml_jax.train.signals import StopRequest
processes.join()
with processes.ending_together(), StopRequest().listening():
    print("joined", flush=True)
    processes.gather("the last step")
    if jax.process_index() == 0:
        time.sleep(3)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(2)
print("left", flush=True)
"""
TWO_VERBS = """
import sys
import jax
from optiml_jax.errors import UserError
from optiml_jax.sharding import processes
for verb in ("train", "evaluate"):
    processes.join()
    with processes.ending_together():
        print(*processes.gather(f"{verb} {jax.process_index()}"), sep=", ", flush=True)
        if verb == "evaluate" and jax.process_index() == 1:
            raise UserError("the disk is full")
        processes.gather("the end of a verb")
"""


@contextlib.contextmanager
def started(program, number=2):
    """The processes of a job, each of which runs `program`."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    members = []
    for i in range(number):
        names = ("COORDINATOR_ADDRESS", "NUM_PROCESSES", "PROCESS_ID")
        values = dict(zip((f"JAX_{n}" for n in names), (address, str(number), str(i)), strict=True))
        members.append(
            subprocess.Popen(
                [sys.executable, "-c", program],
                env={**os.environ, "JAX_PLATFORMS": "cpu", **values},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    try:
        yield members
    finally:
        for member in members:
            member.kill()


def ends(members):
    """What each of the processes printed, what it said, and its status."""
    printed, said = zip(*(p.communicate(timeout=60) for p in members), strict=True)
    return printed, said, [p.returncode for p in members]


def wait_until_joined(members):
    assert [p.stdout.readline() for p in members] == ["joined\n"] * len(members)


def test_the_death_of_process_0_is_named_at_once_by_the_others():
    with started(IDLE) as members:
        wait_until_joined(members)
        members[0].kill()
        _, said, status = ends(members)
    assert status == [-signal.SIGKILL, 1]
    assert "error: process 0, which coordinates the job, has died" in said[1].splitlines()[-1]


@pytest.mark.parametrize("number", [1, 2])
def test_sigterm_before_anything_listens_to_it_ends_all(number):
    with started(IDLE, number) as members:
        wait_until_joined(members)
        members[-1].send_signal(signal.SIGTERM)
        _, said, status = ends(members)
    assert status == [STOPPED] * number, said
    assert "stopped by SIGTERM; the same command continues" in said[-1]
    assert number == 1 or "process 1 ended: stopped by SIGTERM" in said[0]


def test_an_error_of_one_process_after_a_stop_ends_all():
    with started(FAILING_AFTER_A_STOP) as members:
        wait_until_joined(members)
        members[0].send_signal(signal.SIGTERM)
        _, said, status = ends(members)
    assert status == [1, 2], said
    assert "error: process 1 ended: UserError: stale file handle" in said[0]
    assert "error: stale file handle" in said[1]


def test_a_stop_asked_for_when_another_process_is_done_changes_nothing():
    with started(STOPPED_AT_THE_END) as members:
        printed, said, status = ends(members)
    assert status == [0, 0], said
    assert printed == ("joined\nleft\n",) * 2


def test_the_processes_belong_together_in_each_verb_of_a_command():
    with started(TWO_VERBS) as members:
        printed, said, status = ends(members)
    assert printed == ("train 0, train 1\nevaluate 0, evaluate 1\n",) * 2, said
    assert status == [1, 2], said
    assert "error: process 1 ended: UserError: the disk is full" in said[0]
