"""The page of `optiml report`: scores, lines and gains as plots, and every table."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from optiml_jax.evaluate.rollup import MEAN, Cell, Key, Rollup
from optiml_jax.evaluate.statistics import Difference, Estimate
from optiml_jax.report.html_page import table_data, write_filled
from optiml_jax.report.run_tables import (
    AVERAGE,
    Evidence,
    all_shots,
    cell_keys,
    level_name,
    shots_name,
)
from optiml_jax.report.tables import Table

_MAX_NAMED = 20


def write_page(
    path: str | os.PathLike,
    runs: Mapping[str, Rollup],
    found: Evidence,
    tables: Sequence[Table],
    paper: Sequence[Table],
    axis: str,
    positions: Sequence[float],
    answers: Mapping[str, Any] | None = None,
    labels: Sequence[str] = (),
    printed: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Writes the page.

    Args:
      path: of the file.
      runs: name -> evaluation; the first is the baseline of the others.
      found: their intervals and gains.
      tables: shown one below the other.
      paper: the same, in a tab of their own.
      axis: what `positions` are.
      positions: where on it each run is; empty: by training step.
      answers: from `answers_data`.
      labels: of the positions, where they are no numbers.
      printed: points of others beside the lines: `level` and `name` as in the rows, `shots`,
        `position`, `value`, `label`.
    """
    failed = sum(len(tree.failures) for tree in runs.values())
    summary = f"{len(runs)} evaluation{'s' * (len(runs) != 1)}"
    summary += f", {failed} task x shots failed or missing" if failed else ""
    data = {
        "title": f"{' and '.join(runs)}: evaluation" if len(runs) < 3 else "Evaluations",
        "summary": summary,
        "runs": list(runs),
        "axis": axis,
        "positions": list(positions) or [tree.run.get("step") or 0 for tree in runs.values()],
        "shots": [shots_label(k) for k in all_shots(runs)],
        "rows": _rows(runs, found),
        "tables": [table_data(table) for table in tables],
        "paper": [table_data(table) for table in paper],
        "answers": answers,
        "labels": list(labels),
        "printed": list(printed),
    }
    write_filled(path, "report.html", data)


def _rows(runs: Mapping[str, Rollup], found: Evidence) -> list[dict[str, Any]]:
    """The average, levels and categories: scores and gains by number of shots, run by run."""
    rows = []
    for kind, depth in (("average", 0), ("level", 1), ("category", 2)):
        for key in cell_keys(runs, depth):
            at = {shots_label(k): Key(k, *key.path) for k in all_shots(runs)}
            rows.append(
                {
                    "kind": kind,
                    "level": level_name(key.level),
                    "name": key.category or level_name(key.level) or AVERAGE,
                    "scores": {
                        shots: [
                            _score(tree.cells.get(k), found.estimates[name].get(k))
                            for name, tree in runs.items()
                        ]
                        for shots, k in at.items()
                    },
                    "gains": {
                        shots: [_gain(found.gains.get(name, {}).get(k)) for name in runs]
                        for shots, k in at.items()
                    },
                }
            )
    return rows


def shots_label(shots: int | str) -> str:
    """What the page calls a number of shots."""
    return "mean over shots" if shots == MEAN else shots_name(shots)


def _score(cell: Cell | None, estimate: Estimate | None) -> dict[str, Any] | None:
    if cell is None:
        return None
    ends = estimate and [estimate.fixed_tasks.low, estimate.fixed_tasks.high]
    return {
        "value": cell.value,
        "baseline": cell.baseline,
        "interval": ends,
        "missing": cell.missing[:_MAX_NAMED],
        "num_missing": len(cell.missing),
    }


def _gain(d: Difference | None) -> dict[str, Any] | None:
    if d is None:
        return None
    return {
        "value": d.delta,
        "interval": [d.fixed_tasks.low, d.fixed_tasks.high],
        "new_tasks": d.new_tasks and [d.new_tasks.low, d.new_tasks.high],
        "p": d.p,
        "num_missing": len(d.missing),
    }
