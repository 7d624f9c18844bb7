"""The outcome of one attempt, and the table of all of them."""

import collections
import contextlib
import dataclasses
import logging
import multiprocessing
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Literal

from optiml_jax.errors import UserError
from optiml_jax.files import OF_THE_MACHINE

# survived: the result is the same. noticed: a one-line error, a warning or a counted drop says what
# is wrong. Nothing else may happen: silent (a different result without a message), traceback, crash
# (the process died), hang, unmended (the command in the message does not repair it).
Kind = Literal["survived", "noticed", "silent", "traceback", "crash", "hang", "unmended"]
GOOD = ("survived", "noticed")
KINDS = (*GOOD, "silent", "traceback", "crash", "hang", "unmended")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One attempt: its family and name, its outcome, and the message."""

    family: str
    name: str
    kind: Kind
    said: str = ""


class Table:
    """Counts outcomes by family; prints the counts, and each forbidden outcome."""

    def __init__(self):
        self.outcomes: list[Outcome] = []

    def add(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        if outcome.kind not in GOOD:
            print(f"{outcome.kind}: {outcome.family}: {outcome.name}: {outcome.said}", flush=True)

    @property
    def bad(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.kind not in GOOD]

    def __str__(self) -> str:
        counts = collections.Counter((o.family, o.kind) for o in self.outcomes)
        families = list(dict.fromkeys(o.family for o in self.outcomes))
        lines = [f"{'':24}" + "".join(f"{kind:>11}" for kind in KINDS)]
        for family in families:
            numbers = "".join(f"{counts[family, kind]:>11}" for kind in KINDS)
            lines.append(f"{family:24}{numbers}")
        return "\n".join(lines)


def attempt(
    family: str, name: str, function: Callable[[], tuple[Kind, str]], seconds: float = 60.0
) -> Outcome:
    """Runs `function` in a forked process: what it returns, or how it ended.

    A UserError of one line is "noticed". The process has `seconds`.
    """
    ours, theirs = multiprocessing.Pipe(duplex=False)
    child = os.fork()
    if not child:
        ours.close()
        _in_child(theirs, function)
    theirs.close()
    try:
        if not ours.poll(seconds):
            return Outcome(family, name, "hang", f"more than {seconds:.0f} s")
        kind, said = ours.recv()
        return Outcome(family, name, kind, said)
    except EOFError:
        return Outcome(family, name, "crash", "the process died")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        ours.close()


def _in_child(pipe, function: Callable[[], tuple[Kind, str]]) -> None:
    try:
        with silenced():
            result = judged(function)
        pipe.send(result)
    finally:
        pipe.close()
        os._exit(0)


def judged(function: Callable[[], tuple[Kind, str]]) -> tuple[Kind, str]:
    """What the function returns; how it ended where it raises."""
    try:
        return function()
    except UserError as e:
        text = str(e)
        if any(ord(c) < 32 or 127 <= ord(c) < 160 for c in text.splitlines()[0]):
            return "traceback", f"control characters in the message: {text!r}"
        return "noticed", text
    except OSError as e:
        if e.filename is None or e.errno not in OF_THE_MACHINE:
            raise
        return "noticed", f"{e.filename}: {e.strerror}"  # as the command line prints it
    except Exception as e:
        last = traceback.extract_tb(e.__traceback__)[-1]
        place = f"{os.path.basename(last.filename)}:{last.lineno}"
        return "traceback", f"{type(e).__name__} at {place}: {str(e)[:200]}"


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Standard output and error of the block, and of C code in it, go nowhere."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        for descriptor, number in zip(kept, (1, 2), strict=True):
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.close(nowhere)


@contextlib.contextmanager
def limit(what: int, value: int) -> Iterator[None]:
    """A lower limit of `resource` inside the block."""
    soft, hard = resource.getrlimit(what)
    resource.setrlimit(what, (value, hard))
    try:
        yield
    finally:
        resource.setrlimit(what, (soft, hard))


@contextlib.contextmanager
def warnings() -> Iterator[list[str]]:
    """The warnings of the block."""
    said: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    handler = Keep(logging.WARNING)
    logging.getLogger().addHandler(handler)
    try:
        yield said
    finally:
        logging.getLogger().removeHandler(handler)
