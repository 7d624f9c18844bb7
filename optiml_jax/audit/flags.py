"""Marks evaluation examples that overlap with the training data of a run, for its records."""

import os

from optiml_jax.audit import pairs
from optiml_jax.audit.tables import MEND
from optiml_jax.files import read_sealed, write_sealed
from optiml_jax.paths import path_of

_TRAINED = "trained.json"
Flags = dict[str, frozenset[tuple[str, str]]]


def write_trained(folder: str | os.PathLike, tasks: list[str]) -> None:
    """Notes which of the scanned tasks the mixture trains on."""
    write_sealed(path_of(folder) / _TRAINED, {"tasks": sorted(tasks)})


def read_flags(folder: str | os.PathLike) -> Flags | None:
    """Audited task -> (example id, prompt id) of its examples that overlap with training tasks.

    None: there was no audit. One that did not finish, or whose files are damaged, is a UserError.
    """
    if not any((path_of(folder) / name).exists() for name in (_TRAINED, pairs.DESCRIPTION)):
        return None
    stored = read_sealed(path_of(folder) / _TRAINED, "the training tasks of an audit", MEND)
    trained = {*stored["tasks"]}
    found: dict[str, set[tuple[str, str]]] = {
        row["eval_task"]: set() for row in pairs.read_rows(folder, "eval_tasks")
    }
    for row in pairs.read_rows(folder, "instances"):
        if row["train_task"] in trained:
            found[row["eval_task"]].add((row["example_id"], row["prompt_id"]))
    return {task: frozenset(ids) for task, ids in found.items()}
