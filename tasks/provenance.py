"""What each task is made of: the upstream data sets of `data/provenance.yaml`, and their relations.

What follows from it for training is in `splits.py`.
"""

import dataclasses
import functools
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from optiml_jax.errors import UserError
from optiml_jax.yaml_files import read_yaml
from tasks.patterns import expand, matcher

DEFAULT_PROVENANCE = pathlib.Path(__file__).parent / "data" / "provenance.yaml"
_DATASET_KEYS = ("of", "context", "why")
_ROW_KEYS = ("tasks", "data", "unknown", "evidence")


@dataclasses.dataclass(frozen=True)
class Origin:
    """The provenance of one task.

    Attributes:
      data: the data sets that it is made of by its rows.
      evidence: how we know, one for each row.
      unknown: why its source is not known; "" if it is, or if no row speaks of the task.
    """

    data: tuple[str, ...] = ()
    evidence: tuple[str, ...] = ()
    unknown: str = ""


class Provenance:
    """The rows of one provenance file.

    Args:
      datasets: data set -> its relations: `of`, `context` (lists of data sets), `why`.
      rows: (where, pattern of task names, Origin), in order.
    """

    def __init__(
        self,
        datasets: Mapping[str, Mapping[str, Any]],
        rows: Sequence[tuple[str, re.Pattern[str], Origin]],
    ):
        self._datasets = datasets
        self._rows: dict[str, list[tuple[re.Pattern[str], Origin]]] = {}
        for benchmark, pattern, origin in rows:
            self._rows.setdefault(benchmark, []).append((pattern, origin))
        self._origins: dict[str, Origin] = {}

    @classmethod
    def load(cls, path: str | pathlib.Path | None = None) -> "Provenance":
        """Reads a provenance file; None: the project's own.

        Raises:
          UserError: the file is missing or damaged, or a row is wrong; it names file and row.
        """
        return _load(pathlib.Path(path or DEFAULT_PROVENANCE))

    def origin(self, task: str) -> Origin:
        """The provenance of a task, all matching rows merged."""
        if task not in self._origins:
            found = [o for p, o in self._rows.get(task.split("/", 1)[0], ()) if p.fullmatch(task)]
            data = tuple(dict.fromkeys(d for o in found for d in o.data))
            self._origins[task] = Origin(
                data,
                tuple(e for o in found for e in o.evidence),
                "" if data else next((o.unknown for o in found if o.unknown), ""),
            )
        return self._origins[task]

    def items_of(self, task: str) -> dict[str, tuple[str, ...]]:
        """All data sets whose items the task holds -> the way there, from one of its own."""
        ways: dict[str, tuple[str, ...]] = {d: (d,) for d in self.origin(task).data}
        waiting = list(ways)
        for dataset in waiting:
            for parent in self._datasets.get(dataset, {}).get("of", ()):
                if parent not in ways:
                    ways[parent] = (*ways[dataset], parent)
                    waiting.append(parent)
        return ways

    def context_of(self, task: str) -> frozenset[str]:
        """The data sets that the task's items share source texts with, by the file."""
        return frozenset(
            c for d in self.items_of(task) for c in self._datasets.get(d, {}).get("context", ())
        )

    def shared_context(self, task: str, other: str) -> tuple[str, ...]:
        """The data sets or sources, if any, from which both tasks have source texts."""
        own = {*self.items_of(task)} | self.context_of(task)
        its = {*self.items_of(other)} | self.context_of(other)
        return tuple(sorted(own & its))

    def why(self, dataset: str) -> str:
        """How we know what a data set is made of; "" where it is related to none."""
        return " ".join(str(self._datasets.get(dataset, {}).get("why", "")).split())


@functools.cache
def _load(path: pathlib.Path) -> Provenance:
    content = read_yaml(path, "provenance table")
    if not isinstance(content.get("rows"), list):
        raise UserError(f"provenance table has no list of rows: {path}")
    rows = [r for i, row in enumerate(content["rows"], 1) for r in _row(row, f"{path}, row {i}")]
    datasets = content.get("datasets") or {}
    known = {d for _, _, origin in rows for d in origin.data}
    for name, relations in datasets.items():
        _check_dataset(name, relations, known | {*datasets}, str(path))
    return Provenance(datasets, rows)


def _row(row: Any, where: str) -> list[tuple[str, re.Pattern[str], Origin]]:
    if not isinstance(row, dict) or "tasks" not in row:
        raise UserError(f"{where}: a row must be a mapping with `tasks`, not {row!r}")
    unknown = [k for k in row if k not in _ROW_KEYS]
    if unknown:
        raise UserError(f"{where}: unknown key {unknown[0]!r}; known: {', '.join(_ROW_KEYS)}")
    data = row.get("data", [])
    if not isinstance(data, list) or bool(data) == bool(row.get("unknown")):
        raise UserError(f"{where}: give either `data`, a list of data sets, or `unknown`, a reason")
    if not row.get("evidence"):
        raise UserError(f"{where}: evidence is missing")
    origin = Origin(tuple(data), (str(row["evidence"]),), str(row.get("unknown", "")))
    by_benchmark: dict[str, list[str]] = {}
    for pattern in expand(row["tasks"], where):
        by_benchmark.setdefault(pattern.split("/", 1)[0], []).append(pattern)
    return [(b, matcher(patterns), origin) for b, patterns in by_benchmark.items()]


def _check_dataset(name: str, relations: Any, known: set[str], where: str) -> None:
    if not isinstance(relations, dict) or not {*relations} <= {*_DATASET_KEYS}:
        raise UserError(
            f"{where}: data set {name!r} must be a mapping of {', '.join(_DATASET_KEYS)}"
        )
    if not relations.get("why"):
        raise UserError(f"{where}: data set {name!r} does not say why")
    for parent in relations.get("of", ()):
        if parent not in known or parent == name:
            raise UserError(f"{where}: data set {name!r} is made of {parent!r}, which no row names")
