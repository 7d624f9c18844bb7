"""Published results of a paper: the numbers of each table, and the meaning of its columns.

The facts are in a YAML file whose first lines describe it; here they are read and checked. How they
are laid out beside an evaluation is in `paper_tables.py`.
"""

import collections
import dataclasses
import fnmatch
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from optiml_jax.errors import UserError
from optiml_jax.evaluate.rollup import LEVELS, Key, Rollup, from_columns
from optiml_jax.words import counted
from optiml_jax.yaml_files import LineLoader, read_yaml

_TABLE = (
    *("table", "title", "roles", "shots", "columns", "rows", "average", "selection", "note"),
    "source",
)
_COLUMN = ("name", "level", "category", "benchmark", "tasks", "shots", "merge")
_ROW = ("model", "setting", "cells", "average")
_NOT_PRINTED = "-"
_LEVELS = (*LEVELS, "held_out_unspecified")  # of the split manifest


@dataclasses.dataclass(frozen=True)
class Wanted:
    """An evaluation task of the split manifest; `task` is a glob where the manifest has one.

    Attributes:
      prompts: how many it should have; None: not said.
    """

    task: str
    category: str
    level: str
    role: tuple[str, ...]
    shots: tuple[int, ...]
    aggregate_as: str | None = None
    prompts: int | None = None

    @property
    def benchmark(self) -> str:
        return self.task.split("/", 1)[0]


@dataclasses.dataclass(frozen=True, eq=False)
class Column:
    """A column: the mean of the evaluation tasks that its fields choose.

    Attributes:
      place: (level, name), by which cells of it are found in a `Rollup`.
      shots: those that the table prints for it.
      tasks: a glob, or several.
      merge: glob -> name: tasks that count as one in this column.
      where: file, line, table and column.
    """

    name: str
    place: tuple[str, str]
    shots: tuple[int, ...]
    level: str | None = None
    category: str | None = None
    benchmark: str | None = None
    tasks: str | Sequence[str] = "*"
    merge: Mapping[str, str] = dataclasses.field(default_factory=dict)
    where: str = ""

    def merged(self, task: str, aggregate: str | None) -> str:
        """The name under which a task counts."""
        fitting = (name for glob, name in self.merge.items() if fnmatch.fnmatchcase(task, glob))
        return next(fitting, aggregate or task)

    def chooses(self, wanted: Wanted) -> bool:
        fields = ("level", "category", "benchmark")
        asked = {name: value for name in fields if (value := getattr(self, name))}
        fits = all(getattr(wanted, name) == value for name, value in asked.items())
        globs = [self.tasks] if isinstance(self.tasks, str) else self.tasks
        return fits and any(fnmatch.fnmatchcase(wanted.task, glob) for glob in globs)


@dataclasses.dataclass(frozen=True)
class PublishedRow:
    """One model: its printed numbers, and its printed average per number of shots.

    Attributes:
      name: model and setting; where a table has one model, its setting.
      names: all that it can be called by: its setting, too.
    """

    name: str
    values: Mapping[Key, float]
    average: Mapping[int, float]
    names: tuple[str, ...] = ()

    def rolled_up(self) -> Rollup:
        """Averages and selection scores of the printed cells, by the project's own rule."""
        return from_columns(self.values)


@dataclasses.dataclass(frozen=True)
class PublishedTable:
    """One printed table; see the top of the YAML file."""

    number: int | str
    title: str
    source: str
    roles: tuple[str, ...]
    columns: tuple[Column, ...]
    rows: tuple[PublishedRow, ...]
    averaged: bool
    selection: bool
    note: str

    @property
    def name(self) -> str:
        """`Table 9`; a table that has no number goes by its name."""
        return f"Table {self.number}" if isinstance(self.number, int) else self.number

    @property
    def shots(self) -> tuple[int, ...]:
        return tuple(sorted({k for column in self.columns for k in column.shots}))

    def row(self, name: str) -> PublishedRow | None:
        """The row of that name, or the only one that can be called so."""
        called = [row for row in self.rows if name in row.names]
        exact = [row for row in called if name == row.name]
        return exact[0] if exact else called[0] if len(called) == 1 else None


def load(path: str | pathlib.Path) -> list[PublishedTable]:
    """Reads and checks a file of published results.

    Raises:
      UserError: it is damaged: the message names file, table and row.
    """
    content = read_yaml(path, "the file of published results", loader=LineLoader)
    if not isinstance(content.get("tables"), list):
        raise UserError(f"{path} has no list of tables")
    source = str(content.get("source", path))
    return [
        _table(value, source, path, f"table {i}") for i, value in enumerate(content["tables"], 1)
    ]


def load_all(paths: Sequence[str | pathlib.Path]) -> list[PublishedTable]:
    """The tables of several files.

    Raises:
      UserError: as `load`, or two tables have one number.
    """
    tables = [table for path in paths for table in load(path)]
    numbers = collections.Counter(table.number for table in tables)
    twice = [number for number, times in numbers.items() if times > 1]
    if twice:
        files = ", ".join(map(str, paths))
        raise UserError(f"published results: table {twice[0]!r} is there twice, in {files}")
    return tables


def _table(value: Any, source: str, path: str | pathlib.Path, name: str) -> PublishedTable:
    where = _where(path, value, name)
    _check(value, _TABLE, ("table", "title", "roles", "shots", "columns", "rows"), where)
    name = f"{name} ({value['table']})"
    drafts = [
        _column(column, value, _where(path, column, f"{name}, column {i}"))
        for i, column in enumerate(value["columns"], 1)
    ]
    if len({c.place for c in drafts}) < len(drafts):
        raise UserError(f"{where} ({value['table']}): two columns of one level have the same name")
    rows = tuple(
        _row(row, drafts, value["shots"], _where(path, row, f"{name}, row {i}"))
        for i, row in enumerate(value["rows"], 1)
    )
    models = {row["model"] for row in value["rows"]}
    title = value["title"]
    if len(models) == 1 < len(rows):  # said once
        (model,) = models
        rows = tuple(dataclasses.replace(r, name=r.name.removeprefix(f"{model}, ")) for r in rows)
        title = f"{title}, {model}"
    printed = {key for row in rows for key in row.values}
    columns = tuple(
        dataclasses.replace(c, shots=tuple(k for k in c.shots if Key(k, *c.place) in printed))
        for c in drafts
    )
    return PublishedTable(
        number=value["table"],
        title=title,
        source=str(value.get("source", source)),
        roles=tuple(value["roles"]),
        columns=columns,
        rows=rows,
        averaged=value.get("average") == "columns",
        selection=bool(value.get("selection")),
        note=value.get("note", ""),
    )


def _where(path: str | pathlib.Path, value: Any, name: str) -> str:
    line = f", line {value.line}" if hasattr(value, "line") else ""
    return f"{path}{line}, {name}"


def _column(value: Any, table: Mapping[str, Any], where: str) -> Column:
    _check(value, _COLUMN, ("name",), where)
    level = value.get("level", f"table {table['table']}")
    if "level" in value and level not in _LEVELS:
        raise UserError(f"{where}: unknown level {level!r}; known: {', '.join(_LEVELS)}")
    own = {"place": (level, value["name"]), "shots": tuple(value.get("shots", table["shots"]))}
    return Column(**(value | own), where=where)


def _row(value: Any, columns: Sequence[Column], shots: Sequence[int], where: str) -> PublishedRow:
    _check(value, _ROW, ("model", "cells"), where)
    if len(value["cells"]) != len(columns):
        cells, wanted = counted(len(value["cells"]), "cell"), counted(len(columns), "column")
        raise UserError(f"{where}: {cells} for {wanted}")
    values = {
        Key(k, *column.place): number
        for column, cell in zip(columns, value["cells"], strict=True)
        for k, number in _numbers(cell, column.shots, f"{where}, {column.name}").items()
    }
    setting = "" if value.get("setting") is None else str(value["setting"])
    name = ", ".join(filter(None, (value["model"], setting)))
    average = _numbers(value.get("average"), shots, f"{where}, average")
    return PublishedRow(name, values, average, tuple(filter(None, (name, setting))))


def _numbers(cell: Any, shots: Sequence[int], where: str) -> dict[int, float]:
    """`61.4/62.0` by number of shots, without what is not printed."""
    if cell is None:
        return {}
    parts = str(cell).split("/")
    if len(parts) != len(shots):
        raise UserError(f"{where}: {cell!r} has {len(parts)} parts for shots {list(shots)}")
    wrong = [p for p in parts if p != _NOT_PRINTED and not re.fullmatch(r"\d+(\.\d+)?", p)]
    if wrong:
        raise UserError(f"{where}: {wrong[0]!r} in {cell!r} is not a number")
    return {k: float(p) for k, p in zip(shots, parts, strict=True) if p != _NOT_PRINTED}


def _check(value: Any, known: Sequence[str], needed: Sequence[str], where: str) -> None:
    if not isinstance(value, dict):
        raise UserError(f"{where}: a mapping was expected, not {value!r}")
    unknown = [key for key in value if key not in known]
    missing = [key for key in needed if key not in value]
    if unknown or missing:
        what = f"unknown key {unknown[0]!r}" if unknown else f"no {missing[0]!r}"
        raise UserError(f"{where}: {what}; known: {', '.join(known)}")
