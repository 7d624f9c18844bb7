"""Runs verbs with too little disk, memory or file descriptors, or without write permission."""

import os
import pathlib
import random
import re
import resource
import subprocess
from collections.abc import Callable

from tools.chaos.line import VERBS, Line, ends, result
from tools.chaos.outcome import Outcome, Table, attempt

# How compiled code says that it finds no memory, before it ends the process: no Python can answer.
_NO_MEMORY = re.compile(
    "bad_alloc|Unable to allocate|Cannot allocate memory|std::system_error|out of memory", re.I
)
_BEFORE = dict(zip(VERBS, (None, *VERBS), strict=False))


def shortages(line: Line, rng: random.Random, number: int, table: Table) -> None:
    """`number` runs, each followed by one with enough, whose result must be right."""
    verbs = [verb for verb in VERBS if line.after(verb).exists()]
    wanted = {}
    for verb in verbs:
        line.restore(verb)
        wanted[verb] = _result(line, verb)
    for i in range(number):
        verb, name = verbs[i % len(verbs)], rng.choice(list(_SHORTAGES))
        line.restore(_BEFORE[verb])
        amount = rng.random()
        table.add(_judged(line, verb, name, amount, wanted[verb]))


def _judged(line: Line, verb: str, name: str, amount: float, wanted: dict) -> Outcome:
    said = line.root / "short.log"
    family, what = f"short of {name}", f"{verb}, {amount:.2f}"
    if name == "a writable folder":
        mount = ["mount", "--bind", "-o", "ro", str(line.written), str(line.written)]
        subprocess.run(mount[:2] + mount[4:], check=True)
        subprocess.run(["mount", "-o", "remount,ro,bind", str(line.written)], check=True)
    try:
        status = ends(_start(line, verb, said, lambda: _SHORTAGES[name](amount)), 120)
    finally:
        if name == "a writable folder":
            subprocess.run(["umount", str(line.written)], check=True)
    text = said.read_text(errors="replace")
    if status is None:
        return Outcome(family, what, "hang")
    if "Traceback" in text:
        return Outcome(family, what, "traceback", text[-400:])
    if status < 0 and not (name == "memory" and _NO_MEMORY.search(text)):
        return Outcome(family, what, "crash", f"signal {-status}: {text[-200:]}")
    again = ends(_start(line, verb, said, lambda: None), 300)
    if again != 0:
        return Outcome(family, what, "unmended", said.read_text(errors="replace")[-300:])
    if _result(line, verb) != wanted:
        return Outcome(family, what, "silent", "another result after mending")
    return Outcome(family, what, "noticed" if status else "survived", text.strip()[-200:])


def _start(line: Line, verb: str, said: pathlib.Path, shorten: Callable[[], None]) -> int:
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        descriptor = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        shorten()
        status = line.call(verb)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(status)


def _result(line: Line, verb: str) -> dict[str, str]:
    outcome = attempt("result", verb, lambda: ("survived", repr(result(line, verb))), 120)
    return eval(outcome.said) if outcome.kind == "survived" else {}  # created by this module


def _limited(what: int, low: int, high: int) -> Callable[[float], None]:
    def shorten(amount: float) -> None:
        value = int(low + amount * (high - low))
        resource.setrlimit(what, (value, value))

    return shorten


def _full(amount: float) -> None:
    """Limits the size of files, which looks like a full disk to one file."""
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    _limited(resource.RLIMIT_FSIZE, 2_000, 200_000)(amount)


_SHORTAGES: dict[str, Callable[[float], None]] = {
    "disk": _full,
    "descriptors": _limited(resource.RLIMIT_NOFILE, 16, 200),
    "memory": _limited(resource.RLIMIT_DATA, 1 << 28, 1 << 32),
    "a writable folder": lambda amount: None,
}
