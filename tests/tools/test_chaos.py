"""A short run of the campaign that disturbs the verbs; the long one is docs/reliability.md's."""

import os
import pathlib
import signal
import subprocess
import sys

from tools.chaos.outcome import Outcome, Table, attempt

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_a_short_campaign_finds_nothing_silent(tmp_path):
    amounts = ["--attacks=18", "--inputs=11", "--damages=0", "--resources=0", "--kills=0"]
    command = [sys.executable, "-m", "tools.chaos", "--seed=3", "--verbs=", *amounts]
    done = subprocess.run(
        [*command, f"--folder={tmp_path}"],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "29 attempts" in done.stdout


def test_an_attempt_tells_how_it_ended():
    def fails():
        raise ZeroDivisionError

    endings = {
        "survived": lambda: ("survived", ""),
        "traceback": fails,
        "crash": lambda: os.kill(os.getpid(), signal.SIGKILL),
        "hang": lambda: os.read(os.pipe()[0], 1),
    }
    table = Table()
    for wanted, function in endings.items():
        table.add(attempt("a", wanted, function, 5.0))
        assert table.outcomes[-1].kind == wanted
    assert table.bad == table.outcomes[1:]
    assert isinstance(table.bad[0], Outcome)
