"""Signals in the middle of a long call, which Python itself would answer after it."""

import signal
import subprocess
import sys
import time

import pytest

# A call of C code that runs for minutes and, as XLA's compiler, lets other threads run.
LONG = "hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)"
PROGRAM = """
import signal, sys
from optiml_jax import interrupt
interrupt._PATIENCE = 0.2
signal.signal(signal.SIGTERM, lambda *_: None)
with interrupt.watched():
    import hashlib, time
    print("ready", flush=True)
    {body}
"""


def ended_by(number, body):
    """The status of the program, and what it said, after a signal."""
    command = [sys.executable, "-c", PROGRAM.format(body=body)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            time.sleep(0.5)  # until it is inside the call: before, Python itself would answer
            process.send_signal(number)
            said = process.communicate(timeout=30)[1]
        finally:
            process.kill()
    return process.returncode, said


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_signal_ends_a_long_call(number, status):
    returned, said = ended_by(number, LONG)
    assert returned == status
    assert said.splitlines() == [
        f"interrupted: {number.name} in the middle of a long call; the same command continues"
    ]


def test_a_call_whose_result_must_be_saved_is_waited_for():
    body = """start = time.monotonic()
    hashlib.pbkdf2_hmac('sha256', b'', b'', 10**5)
    rounds = int(4 * 10**5 / (time.monotonic() - start))  # about four seconds
    with interrupt.patient(): hashlib.pbkdf2_hmac('sha256', b'', b'', rounds)"""
    returned, said = ended_by(signal.SIGTERM, body)
    assert (returned, said) == (0, "")


def test_ctrl_c_in_a_callback_is_not_lost():
    """Python prints what a `__del__` raises and goes on; so do callbacks of compiled code."""
    program = """
import signal
from optiml_jax import interrupt
class Garbage:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)
try:
    with interrupt.watched():
        garbage = Garbage()
        del garbage
        while True:
            pass
except KeyboardInterrupt:
    print("interrupted")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr, done.returncode) == ("interrupted\n", "", 0)


def test_ctrl_c_after_the_last_block_ends_the_program_without_a_word():
    program = """
from optiml_jax import interrupt
with interrupt.watched(last=True):
    pass
print("ready", flush=True)
import time
time.sleep(60)
"""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", program], **pipes) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=30)[1] == ""
    assert process.returncode == -signal.SIGINT  # 130 for a shell
