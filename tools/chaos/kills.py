"""Kills verbs at random moments, starts them again, and compares with an undisturbed run."""

import os
import random
import signal
import threading
import time

from tools.chaos.line import VERBS, Line, ends, result, start
from tools.chaos.outcome import Outcome, Table, attempt

_SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


def kills(line: Line, seconds: dict[str, float], rng: random.Random, number: int, table: Table):
    """`number` kills of every verb."""
    before = dict(zip(VERBS, (None, *VERBS), strict=False))
    for verb in [verb for verb in VERBS if verb in seconds]:
        wanted = _digest(line, verb, line.after(verb))
        done = 0
        while done < number:
            line.restore(before[verb])
            sent = []
            for _ in range(min(rng.randint(1, 4), number - done)):
                done += 1
                sent.append(_kill(line, verb, rng, seconds[verb]))
            table.outcomes += _judge(line, verb, sent, wanted)


def _while_compiling(wait: float) -> None:
    """The process kills itself while it traces and compiles the first program."""
    from optiml_jax.train import loop

    compile_programs = loop.compile_programs

    def killed(*arguments):
        threading.Timer(wait, os.kill, (os.getpid(), signal.SIGKILL)).start()
        compile_programs(*arguments)
        time.sleep(60)

    loop.compile_programs = killed


def _while_saving(wait: float) -> None:
    """The process kills itself before the arrays of the first checkpoint are moved into place."""
    from optiml_jax.checkpoint.manager import CheckpointManager

    CheckpointManager._seal = lambda self: os.kill(os.getpid(), signal.SIGKILL)


def _kill_inside(line: Line, rng: random.Random) -> str:
    """Training is killed at one of the worst moments before its first checkpoint."""
    moment, wait = rng.choice((_while_compiling, _while_saving)), rng.uniform(0, 2)
    more = ("--gin.CompilationCache.folder=",)  # nothing was compiled before
    child = start(line, "train", line.root / "killed.log", *more, prepared=lambda: moment(wait))
    if ends(child, 120) is None:
        return "hang"
    return f"SIGKILL {moment.__name__.strip('_').replace('_', ' ')}"


def _kill(line: Line, verb: str, rng: random.Random, seconds: float) -> str:
    if verb == "train" and rng.random() < 0.2:
        return _kill_inside(line, rng)
    number, wait = rng.choice(_SIGNALS), rng.uniform(0, 1.1 * seconds)
    child = start(line, verb, line.root / "killed.log")
    time.sleep(wait)
    os.kill(child, number)  # an ended process is still to be reaped
    status = ends(child, 60)
    if status is None:
        return "hang"
    said = (line.root / "killed.log").read_text()
    if "Traceback" in said:
        return f"traceback after {number.name} at {wait:.2f} s: {said[-300:]}"
    return f"{number.name} at {wait:.2f} s"


def _judge(line: Line, verb: str, sent: list[str], wanted: dict[str, str]) -> list[Outcome]:
    """Runs the verb to its end and compares; the outcome is that of all its kills."""
    said = line.root / "after.log"
    status = ends(start(line, verb, said), 600)
    kind, why = "survived", ""
    if status is None:
        kind, why = "hang", "the run after the kills"
    elif status != 0:
        kind, why = "unmended", f"{sent}: {said.read_text()[-300:]}"
    elif (found := _digest(line, verb, line.written)) != wanted:
        names = [n for n in wanted.keys() | found.keys() if wanted.get(n) != found.get(n)]
        kind, why = "silent", f"{sent}: other {sorted(names)[:3]}"
    outcomes = []
    for one in sent:
        own = "traceback" if one.startswith("traceback") else "hang" if one == "hang" else kind
        outcomes.append(Outcome(f"kill {verb}", one, own, why))
    return outcomes


def _digest(line: Line, verb: str, folder) -> dict[str, str]:
    """The result of a verb in a folder, read in another process (it starts threads)."""
    found: dict[str, str] = {}

    def read():
        return "survived", repr(result(Line(line.root), verb))

    keep = line.written
    if folder != keep:
        line.restore(verb)
    outcome = attempt("digest", verb, read, 120)
    if outcome.kind == "survived":
        found = eval(outcome.said)  # of our own making
    return found or {"nothing": outcome.said}
