"""Damages what the verbs stored, uses it, and repairs it by the command that the message names."""

import hashlib
import logging
import pathlib
import random
import re
import shutil

import numpy as np

from optiml_jax.errors import UserError
from tools.chaos.damage import KINDS, TEXT_KINDS, damage
from tools.chaos.line import VERBS, Line, arrays, result
from tools.chaos.outcome import Kind, Table, attempt, warnings


def damages(line: Line, rng: random.Random, number: int, table: Table) -> None:
    """`number` damages, shared by all that the verbs stored."""
    line.restore(VERBS[-1])
    wanted = {name: _use(line, name) for name in _USES}
    for i in range(number):
        line.restore(VERBS[-1])
        name = list(_USES)[i % len(_USES)]
        path = rng.choice(_files(line, name))
        kinds = KINDS + (TEXT_KINDS if path.suffix in (".json", ".jsonl") else ())
        what = _damaged(rng, path, rng.choice(kinds), name)

        def judge(name=name) -> tuple[Kind, str]:
            with warnings() as said:
                try:
                    found = _USES[name](line)
                except UserError as e:
                    return _mended(line, name, str(e), wanted[name])
            if found == wanted[name]:
                return "survived", ""
            return ("noticed", said[0]) if said else ("silent", "another result")

        table.add(attempt(f"damage {name}", f"{what} in {path.parent.name}", judge, 120))


def _damaged(rng: random.Random, path: pathlib.Path, kind: str, name: str) -> str:
    """Also damage that only people cause: a folder or file of another step or task."""
    if name == "checkpoint" and rng.random() < 0.1:
        newest = path
        while not newest.name.isdigit():
            newest = newest.parent
        shutil.rmtree(newest)
        other = next(f for f in newest.parent.iterdir() if f.name.isdigit())
        shutil.copytree(other, newest)
        return f"step {other.name} copied to {newest.name}"
    return damage(rng, path, kind)


def _files(line: Line, name: str) -> list[pathlib.Path]:
    folder = {
        "cache": line.cache,
        "plan": line.run / "plan",
        "checkpoint": line.run / "checkpoints" / "6",
        "vocabulary": line.run / "checkpoints" / "6" / "tokenizer",
        "evaluation": line.run / "evaluation",
        "audit": line.run / "audit",
    }[name]
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and not p.name.startswith(".")]
    if name == "audit":  # its report is for people
        files = [p for p in files if not p.name.startswith("report")]
    if name == "cache":  # SeqIO verifies its own files; they are ours to repair, not to read
        files = [p for p in files if "tfrecord" not in p.name]
    return files


def _use(line: Line, name: str) -> object:
    """The result of an undamaged state, from a separate process."""
    outcome = attempt("use", name, lambda: ("survived", repr(_USES[name](line))), 120)
    if outcome.kind != "survived":
        raise RuntimeError(f"{name} cannot be used undamaged: {outcome.said}")
    return eval(outcome.said)  # of our own making


def _rows(line: Line) -> dict[str, str]:
    from optiml_jax.data.loader import read_rows
    from optiml_jax.data.plan import Plan

    plan = Plan.load(line.run / "plan" / "train")
    batch = read_rows(plan, np.arange(plan.num_rows))
    return {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in batch.items()}


def _checkpoint(line: Line) -> dict[str, str]:
    from optiml_jax.checkpoint.manager import find_checkpoint

    return arrays(find_checkpoint(line.run))


def _vocabulary(line: Line) -> str:
    from optiml_jax.data.vocabulary import load_vocabulary

    return load_vocabulary(f"checkpoint:{line.run / 'checkpoints' / '6'}").fingerprint


def _audit(line: Line) -> str:
    """What evaluations and paper mode read of it, and how `optiml audit` repairs it."""
    from optiml_jax.audit import flags, pairs

    folder = line.run / "audit"
    seen = [flags.read_flags(folder), pairs.read_pairs(folder), pairs.scanned_tasks(folder)]
    if line.call("audit") != 0:
        raise UserError("optiml audit failed")
    seen = [{k: sorted(v) for k, v in seen[0].items()}, seen[1], sorted(seen[2])]
    return repr(seen) + repr(sorted(result(line, "audit").items()))


def _evaluation(line: Line) -> tuple[list, dict[str, float]]:
    from optiml_jax.evaluate.rollup import rollup

    (folder,) = (p.parent for p in (line.run / "evaluation").glob("*/tasks.json"))
    table = rollup(folder)
    for reason in table.failures.values():
        logging.getLogger("optiml_jax").warning("%s", reason)
    return sorted(table.failures), dict(sorted(table.scalars().items()))


_USES = {
    "cache": _rows,
    "plan": _rows,
    "checkpoint": _checkpoint,
    "vocabulary": _vocabulary,
    "evaluation": _evaluation,
    "audit": _audit,
}


def _mended(line: Line, name: str, message: str, wanted: object) -> tuple[Kind, str]:
    """Does what the message says (delete a folder, `optiml prepare`, ...), uses the result."""
    foreign = re.search(r"(/\S+) was not written by .*; delete it", message)
    if foreign is not None:
        shutil.rmtree(foreign[1])
    verb = re.search(r"optiml (prepare|plan|audit)\b", message)
    if verb is None:
        return "noticed", message
    if line.call(verb[1]) != 0:
        return "unmended", f"{verb[1]} failed after: {message}"
    if _USES[name](line) != wanted:
        return "unmended", f"another result after {verb[1]}: {message}"
    return "noticed", message
