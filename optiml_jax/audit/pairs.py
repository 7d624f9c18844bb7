"""Pairs of tasks and overlapping instances from the scans of all training tasks."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from optiml_jax.audit.index import Index
from optiml_jax.audit.scan import read_scan
from optiml_jax.audit.tables import read_table
from optiml_jax.errors import UserError
from optiml_jax.paths import path_of

DESCRIPTION = "tables.json"  # of the tables in an audit's folder
# One row for each (training task, evaluation task) with any overlap. `overlap` counts evaluation
# examples with an n-gram of content in common, or whose short content is there as a whole.
_PAIRS = pa.schema(
    [
        ("train_task", pa.string()),
        ("eval_task", pa.string()),
        ("train_examples", pa.int64()),
        ("eval_examples", pa.int64()),
        ("instantiated", pa.int64()),  # examples with any n-gram of the whole sequence
        ("content", pa.int64()),  # with one that no prompt brings in
        ("short", pa.int64()),  # whose content is shorter than an n-gram and there as a whole
        ("overlap", pa.int64()),
    ]
)
# One row for each evaluation task.
_TASKS = pa.schema(
    [
        ("eval_task", pa.string()),
        ("examples", pa.int64()),
        ("short", pa.int64()),  # examples whose content is shorter than an n-gram
        ("instantiated", pa.int64()),  # overlap with any training task
        ("overlap", pa.int64()),
        ("train_tasks", pa.int64()),  # training tasks with any overlap
    ]
)
_TRAIN_TASKS = pa.schema([("train_task", pa.string()), ("examples", pa.int64())])
_INSTANCES = pa.schema(
    [
        ("eval_task", pa.string()),
        ("example_id", pa.string()),
        ("prompt_id", pa.string()),
        ("train_task", pa.string()),
        ("content", pa.bool_()),
        ("short", pa.bool_()),
    ]
)


@dataclasses.dataclass(frozen=True)
class Pair:
    """One row of `pairs.parquet`."""

    train_task: str
    eval_task: str
    train_examples: int
    eval_examples: int
    instantiated: int
    content: int
    short: int
    overlap: int

    @property
    def share(self) -> float:
        """The part of the evaluation examples that overlap, prompts aside."""
        return self.overlap / self.eval_examples

    @property
    def instantiated_share(self) -> float:
        """The paper's figure: any common n-gram of the instantiated sequences."""
        return self.instantiated / self.eval_examples


def collect(scans: Mapping[str, pathlib.Path], index: Index) -> dict[str, pa.Table]:
    """The tables `pairs`, `eval_tasks`, `train_tasks` and `instances`.

    Their order depends on names and counts alone.
    """
    first = np.array([f for f, _ in index.tasks.values()], np.int64)
    sizes = np.array([n for _, n in index.tasks.values()], np.int64)
    names = list(index.tasks)
    columns = index.examples(["example_id", "prompt_id", "content_words"])
    ids, prompts = columns["example_id"], columns["prompt_id"]
    content_words = columns["content_words"].to_numpy()
    any_overlap = np.zeros(len(content_words), bool)
    any_instantiated = np.zeros(len(content_words), bool)
    with_overlap = np.zeros(len(names), np.int64)
    pair_rows: list[tuple[Any, ...]] = []
    train_rows: list[tuple[str, int]] = []
    instances: list[pa.Table] = []
    for train_task, path in sorted(scans.items()):
        table, about = read_scan(path)
        train_rows.append((train_task, about["examples"]))
        examples = table["example"].to_numpy().astype(np.int64)
        flags = {
            n: table[n].to_numpy(zero_copy_only=False) for n in ("instantiated", "content", "short")
        }
        overlap = flags["content"] | flags["short"]
        tasks = index.tasks_of(examples)
        for task in np.unique(tasks).tolist():
            own = tasks == task
            counts = [int(flags[n][own].sum()) for n in ("instantiated", "content", "short")]
            row = (train_task, names[task], about["examples"], int(sizes[task]), *counts)
            pair_rows.append((*row, int(overlap[own].sum())))
            with_overlap[task] += int(overlap[own].any())
        any_overlap[examples[overlap]] = True
        any_instantiated[examples[flags["instantiated"]]] = True
        found = examples[overlap]
        if len(found):
            instances.append(
                pa.table(
                    {
                        "eval_task": [names[t] for t in tasks[overlap]],
                        "example_id": ids.take(found),
                        "prompt_id": prompts.take(found),
                        "train_task": [train_task] * len(found),
                        "content": flags["content"][overlap],
                        "short": flags["short"][overlap],
                    },
                    schema=_INSTANCES,
                )
            )
    pair_rows.sort(key=lambda r: (-r[7] / r[3], -r[4] / r[3], r[0], r[1]))
    short = content_words < index.rules.n
    task_rows = []
    for i, name in sorted(enumerate(names), key=lambda item: item[1]):
        own = slice(first[i], first[i] + sizes[i])
        counts = (int(x[own].sum()) for x in (short, any_instantiated, any_overlap))
        task_rows.append((name, int(sizes[i]), *counts, int(with_overlap[i])))
    return {
        "pairs": _table(pair_rows, _PAIRS),
        "eval_tasks": _table(task_rows, _TASKS),
        "train_tasks": _table(train_rows, _TRAIN_TASKS),
        "instances": pa.concat_tables(instances) if instances else _INSTANCES.empty_table(),
    }


def _table(rows: list[tuple[Any, ...]], schema: pa.Schema) -> pa.Table:
    columns = list(zip(*rows, strict=True)) if rows else [[] for _ in schema]
    return pa.table(
        [pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema
    )


def read_pairs(folder: str | os.PathLike) -> list[Pair]:
    """The pairs of an audit, the largest share first.

    Raises:
      UserError: there was no audit, or its file is damaged.
    """
    return [Pair(**row) for row in read_rows(folder, "pairs")]


def scanned_tasks(folder: str | os.PathLike) -> set[str]:
    """The training tasks that an audit saw."""
    return {row["train_task"] for row in read_rows(folder, "train_tasks")}


def indexed_tasks(folder: str | os.PathLike) -> set[str]:
    """The evaluation tasks that an audit saw."""
    return {row["eval_task"] for row in read_rows(folder, "eval_tasks")}


def read_rows(folder: str | os.PathLike, name: str) -> list[dict[str, Any]]:
    """The rows of one of an audit's tables; errors as of `read_pairs`."""
    description = path_of(folder) / DESCRIPTION
    if not description.exists():
        raise UserError(f"no audit in {folder} ({DESCRIPTION} is missing); run optiml audit")
    return read_table(description, name).to_pylist()
