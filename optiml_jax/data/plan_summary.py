"""A plan in numbers, for tables: totals, requested and planned shares."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def summarise(
    rows: Sequence[dict[str, Any]],
    entry_tasks: np.ndarray,
    lengths: np.ndarray,
    num_rows: int,
    sequence_length: int,
) -> dict[str, Any]:
    """What a plan holds, for tables; adds the planned numbers to every task of `rows`.

    Returns:
      `rows`, `examples`, `tokens` (filled slots), `loss_tokens` (those with loss weight 1), `fill`
      (tokens / slots), `epochs` (least, median and most passes over a task's examples),
      `benchmarks` and `categories` (see `_shares`), and the names of `tasks_without_examples` and
      `tasks_never_drawn` (those that have a rate).
    """
    source, target = lengths.T.astype(np.int64)
    examples = np.bincount(entry_tasks, minlength=len(rows))
    tokens = np.bincount(entry_tasks, source + target, minlength=len(rows)).astype(np.int64)
    for row, n, t in zip(rows, examples.tolist(), tokens.tolist(), strict=True):
        row |= {"planned_examples": n, "planned_tokens": t, "share": n / len(entry_tasks)}
    drawn = [row for row in rows if row["rate"]]
    epochs = [row["planned_examples"] / row["examples"] for row in drawn]
    whole = {
        "examples": len(entry_tasks),
        "tokens": int(tokens.sum()),
        "rate": sum(row["rate"] for row in rows),
    }
    return {
        "rows": num_rows,
        "examples": whole["examples"],
        "tokens": whole["tokens"],
        "loss_tokens": int(np.where(source == 0, source + target, target).sum()),
        "fill": whole["tokens"] / (num_rows * sequence_length),
        "epochs": {"min": min(epochs), "median": float(np.median(epochs)), "max": max(epochs)},
        "benchmarks": _shares(rows, "benchmark", whole),
        "categories": _shares(rows, "category", whole),
        "tasks_without_examples": [row["task"] for row in rows if not row["examples"]],
        "tasks_never_drawn": [row["task"] for row in drawn if not row["planned_examples"]],
    }


def _shares(
    rows: Sequence[Mapping[str, Any]], key: str, whole: Mapping[str, float]
) -> dict[str, dict[str, float]]:
    """Sums over the tasks with the same `key`, and their shares of the whole.

    Returns:
      name -> number of `tasks`, planned `examples` and `tokens`; the `rate` asked for and the
      `share` planned of all examples; and `token_share`, which is the share of the rows' slots.
    """
    shares = {}
    for name in sorted({row[key] for row in rows}):
        members = [row for row in rows if row[key] == name]
        examples = sum(row["planned_examples"] for row in members)
        tokens = sum(row["planned_tokens"] for row in members)
        shares[name] = {
            "tasks": len(members),
            "examples": examples,
            "tokens": tokens,
            "rate": sum(row["rate"] for row in members) / whole["rate"],
            "share": examples / whole["examples"],
            "token_share": tokens / whole["tokens"],
        }
    return shares
