"""`optiml VERB... --gin_file=... --gin.NAME=VALUE`: picks verbs, reads gin, reports errors.

Every verb is a module next to this one with a function `main()`, called after gin is parsed.
Several verbs run one after another in one process, which imports only once. A UserError becomes one
line on stderr and exit status 2; Ctrl-C becomes one line and 130.
"""

import argparse
import ast
import importlib
import itertools
import logging
import os
import sys
from collections.abc import Sequence

from optiml_jax import interrupt
from optiml_jax.errors import UserError, may_pass, printable, status_of
from optiml_jax.files import OF_THE_MACHINE
from optiml_jax.memory import keep_freed_memory
from optiml_jax.threads import bound_starts

VERBS = {
    "fetch": "download the data of collections and suites",
    "prepare": "read the source files and cache every task of the mixture",
    "audit": "find evaluation examples in the training data; decide what to do about them",
    "plan": "compute the packed, step-addressed training order of the mixture",
    "train": "fine-tune a model on the plan; run it again to resume",
    "evaluate": "score the evaluation tasks; run it again to resume",
    "export": "export the prompts of an evaluation, or the training data, for other programs",
    "report": "roll evaluations up to task, category and level and print tables",
    "splits": "count the tasks by role and level, and list what is missing or left out",
    "inspect": "show prompts, training rows and the mixture; write them as a page",
    "generate": "continue prompts: one, those of a file, or as you type them",
    "doctor": "check this machine and the paths of a gin file, and show what is missing",
    "convert": "convert weights of other programs to a checkpoint, and back",
    "study": "run or continue a study (variants x seeds), and report",
    "compile": "compile a run for a machine you do not have, and show whether it fits",
}
_RUNS_MODELS = {"train", "evaluate", "generate"}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the verbs. Returns the exit status.

    0: done; 1: something failed that the same command may do later; 2: errors that the user can
    fix, of the verb or of some of its tasks; 75: SIGTERM stopped training early, and the same
    command resumes it; 130: Ctrl-C.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    bound_starts()
    if _is_the_program(argv) and _RUNS_MODELS.intersection(arguments):
        keep_freed_memory()
    try:
        with interrupt.watched(last=_is_the_program(argv)):
            return _answer(arguments)
    except UserError as e:
        # Gin adds lines of its own to what is raised inside a configurable.
        print(f"error: {str(e).splitlines()[0]}", file=sys.stderr)
        return status_of([may_pass(e)])
    except BrokenPipeError:  # the reader of our output (head, less) has exited
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as e:
        if e.errno not in OF_THE_MACHINE:
            raise
        name = f"{printable(str(e.filename))}: " if e.filename else ""
        print(f"error: {name}{e.strerror}; fix that and run it again", file=sys.stderr)
        return status_of([may_pass(e)])
    except MemoryError:
        print("error: out of memory; use a machine with more, or smaller batches", file=sys.stderr)
        return 2
    except KeyboardInterrupt as e:
        print(
            f"interrupted{f': {e}' if str(e) else ''}; the same command continues", file=sys.stderr
        )
        return 130


def _is_the_program(argv: Sequence[str] | None) -> bool:
    """Whether this process exists to run verbs: `optiml VERB`, `python -m optiml_jax.cli.VERB`."""
    return argv is None or sys.argv[0].endswith(os.path.join("cli", f"{(*argv, '')[0]}.py"))


def _answer(arguments: list[str]) -> int:
    verbs = list(itertools.takewhile(VERBS.__contains__, arguments))
    if arguments[:1] in ([], ["-h"], ["--help"]):
        print(_usage())
        return 0 if arguments else 2
    if not verbs:
        raise UserError(f"unknown verb {arguments[0]!r}; the verbs are {', '.join(VERBS)}")
    _logging()
    parse_gin(verbs, arguments[len(verbs) :])
    from optiml_jax.cli.compilation_cache import CompilationCache

    CompilationCache().enable()
    return _run(verbs)


def _run(verbs: Sequence[str]) -> int:
    """Runs the verbs one after another until one fails; returns the status of the last."""
    for verb in verbs:
        if len(verbs) > 1:
            print(f"\n{verb}: {VERBS[verb]}", flush=True)
        status = importlib.import_module(f"optiml_jax.cli.{verb}").main() or 0
        if status:
            break
    return status


def parse_gin(verbs: Sequence[str], arguments: Sequence[str]) -> None:
    """Reads `--gin_file` and `--gin.NAME=VALUE` into gin; errors are one-line UserErrors."""
    parser = argparse.ArgumentParser(
        prog=f"optiml {' '.join(verbs)}",
        description="; ".join(VERBS[verb] for verb in verbs),
        epilog="--gin.NAME=VALUE sets any gin parameter or macro; plain words need no quotes.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--gin_file", action="append", default=[], help="may be given several times"
    )
    if {"prepare", "audit"} & set(verbs):
        parser.add_argument("--runner", help="an Apache Beam runner, e.g. DirectRunner")
    if "fetch" in verbs:
        parser.add_argument("--dry_run", action="store_true", help="print sizes and licences only")
    if "audit" in verbs:
        parser.add_argument("--review", action="store_true", help="decide the undecided pairs")
    if "study" in verbs:
        parser.add_argument("--status", action="store_true", help="show how far the runs are")
        parser.add_argument("--report", action="store_true", help="only write the report")
    if {"plan", "train", "evaluate"} & set(verbs):
        help_text = "in paper mode, print the undecided pairs of the audit and continue"
        parser.add_argument(
            "--allow-undecided", "--allow_undecided", action="store_true", help=help_text
        )
    parsed, others = parser.parse_known_args(arguments)
    bindings = [_binding(argument) for argument in others]
    if getattr(parsed, "runner", None):
        by_beam = [verb for verb in ("prepare", "audit") if verb in verbs]
        bindings += [f"{verb.capitalize()}.runner = {parsed.runner!r}" for verb in by_beam]
    flags = {"dry_run": "Fetch", "review": "Audit", "allow_undecided": "Audit"}
    flags |= {"status": "Launch", "report": "Launch"}
    bindings += [f"{flags[name]}.{name} = True" for name in flags if getattr(parsed, name, False)]
    # These imports take seconds: here, where signals are handled.
    import optiml_jax.cli.compilation_cache
    import optiml_jax.cli.settings  # noqa: F401 - registers what gin may set
    from optiml_jax.cli.gin_files import read_settings

    read_settings(parsed.gin_file, bindings)


def _binding(argument: str) -> str:
    """`--gin.NAME=VALUE` as a gin binding; a value that is not a gin literal is a string."""
    name, separator, value = argument.removeprefix("--gin.").partition("=")
    if not argument.startswith("--gin.") or not separator:
        raise UserError(f"cannot parse {argument!r}; use --gin_file=FILE or --gin.NAME=VALUE")
    try:
        ast.literal_eval(value)
    except (ValueError, SyntaxError):
        if not value.startswith(("@", "%", "[", "(", "{'", '{"')):  # but "{checkpoint}" is a string
            value = repr(value)
    return f"{name} = {value}"


def _logging() -> None:
    logging.basicConfig()  # does nothing if Orbax's import of absl has already done it
    for handler in logging.root.handlers:
        if type(handler) is logging.StreamHandler:
            handler.setFormatter(_Printable("%(levelname)s: %(message)s"))
    for name in ("optiml_jax", "tasks"):
        logging.getLogger(name).setLevel(logging.INFO)


class _Printable(logging.Formatter):
    """Escapes control characters, which names of files may contain."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def _usage() -> str:
    verbs = "\n".join(f"  {name:10}{text}" for name, text in VERBS.items())
    return (
        f"usage: optiml VERB... [--gin_file=FILE ...] [--gin.NAME=VALUE ...]\n\n{verbs}\n\n"
        "Several verbs run one after another until one fails.\n"
        "Start with gin/runs/quickstart.gin; README.md explains how to use your own data."
    )


if __name__ == "__main__":
    sys.exit(main())
