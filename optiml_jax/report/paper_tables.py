"""Tables of a paper with evaluations next to the published numbers.

The columns of a printed table are put together from the evaluation's tasks by the split manifest
(`published.Wanted`). What a column should have and the evaluation has not - tasks, numbers of
demonstrations, prompts - marks every cell and average above it, and is named below the table.
"""

import collections
import dataclasses
import fnmatch
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from optiml_jax.evaluate.rollup import MEAN, Cell, Key, Rollup, regroup
from optiml_jax.report.published import Column, PublishedTable, Wanted
from optiml_jax.report.run_tables import level_name, number
from optiml_jax.report.tables import MARK, Table

ABSENT = "not in this evaluation"
_NONE = "–"
_MAX_NAMES = 4
_WAYS = {"A": "A: mean of the averages", "B": "B: mean of all cells", "levels": "mean of levels"}


Views = Mapping[int | str, Mapping[str, Rollup]]  # number of a printed table -> run -> its columns


def views_of(
    published: Iterable[PublishedTable], runs: Mapping[str, Rollup], wanted: Sequence[Wanted]
) -> Views:
    """The runs under the columns of every printed table.

    Args:
      published: the printed tables.
      runs: name -> evaluation.
      wanted: the evaluation tasks of the split manifest.
    """
    return {
        table.number: {name: view(table, tree, wanted) for name, tree in runs.items()}
        for table in published
    }


def paper_tables(published: Sequence[PublishedTable], views: Views) -> list[Table]:
    """How far the runs cover each table, then every table of which they have a number."""
    shown = [t for t in published if any(v.leaves for v in views[t.number].values())]
    return [
        coverage_table(published, views),
        *(paper_table(table, views[table.number]) for table in shown),
    ]


def view(table: PublishedTable, tree: Rollup, wanted: Sequence[Wanted]) -> Rollup:
    """The evaluation under the columns of a printed table, with what it lacks of them."""
    columns = {
        column: [w for w in wanted if column.chooses(w) and not {*table.roles}.isdisjoint(w.role)]
        for column in table.columns
    }
    places: dict[tuple[str, int], Column] = {}

    def place(key: Key) -> tuple[str, str, str] | None:
        if (key.subtask, key.shots) not in places:
            places[key.subtask, key.shots] = next(
                (
                    column
                    for column, members in columns.items()
                    if key.shots in column.shots and any(_is(key.subtask, w) for w in members)
                ),
                None,
            )
        column = places[key.subtask, key.shots]
        if column is None:
            return None
        aggregate = key.task if key.task != key.subtask else None
        return (*column.place, column.merged(key.subtask, aggregate))

    known = [key for key in tree.cells if len(key.path) == 5 and key.shots != MEAN and place(key)]
    prompts = collections.defaultdict(set)
    for leaf in tree.leaves:
        prompts[leaf.key.subtask, leaf.key.shots].update(prompt for _, prompt, _ in leaf.ids)
    holes = {
        hole: f"{hole.subtask} at {k} shots: {reason}"
        for column, members in columns.items()
        for k in column.shots
        for hole, reason in _holes(column, members, k, known, prompts)
    }
    return regroup(tree, place, holes)


def _is(task: str, wanted: Wanted) -> bool:
    return fnmatch.fnmatchcase(task, wanted.task)


def _holes(
    column: Column,
    members: Sequence[Wanted],
    shots: int,
    known: Sequence[Key],
    prompts: Mapping[tuple[str, int], set[str]],
) -> Iterator[tuple[Key, str]]:
    """What the column lacks at `shots`: its sub-tasks, and why."""

    def cell(task: str, aggregate: str | None) -> Key:
        place = (*column.place, column.merged(task, aggregate))
        return Key(shots, *place, task.split("/", 1)[0], task)

    members = [w for w in members if shots in w.shots]
    for w in members:
        own = [key for key in known if key.shots == shots and _is(key.subtask, w)]
        if not own:
            yield cell(w.task, w.aggregate_as), ABSENT
        for key in own:
            seen = len(prompts[key.subtask, shots])
            if w.prompts is not None and 0 < seen < w.prompts:
                yield cell(key.subtask, key.task), f"{seen} of {w.prompts} prompts"
    if not members:
        yield cell(column.name, None), "the split manifest has no such task"


def coverage_table(published: Sequence[PublishedTable], views: Views) -> Table:
    """How many numbers of each table every run has, and how many of them lack nothing."""
    rows = []
    for table in published:
        cells = [Key(k, *column.place) for column in table.columns for k in column.shots]
        found = []
        for tree in views[table.number].values():
            known = [c for key in cells if (c := tree.cells.get(key)) and c.value is not None]
            whole = sum(not cell.missing for cell in known)
            found.append(f"{len(known)} of {len(cells)}, {whole} whole" if known else _NONE)
        rows.append((table.name.replace("Table", "table"), table.title, *found))
    columns = ("paper", "what", *(next(iter(views.values())) if views else ()))
    notes = (
        "how many numbers of each table a run has; whole: none of its data or prompts is missing",
        *dict.fromkeys(f"printed numbers: {table.source}" for table in published),
    )
    return Table("The paper's tables", columns, tuple(rows), 2, notes)


def paper_table(table: PublishedTable, views: Mapping[str, Rollup]) -> Table:
    """The printed rows, then the runs; the longer side of the printed table runs downwards."""
    models = _models(table, views)
    names = [name for _, name, _ in models]
    # The paper's cells are 0-shot/5-shot where nothing else is said.
    alike = all(c.shots == table.shots[: len(c.shots)] for c in table.columns)
    cells: dict[tuple[str, str], Callable[[Rollup], list[Cell | None]]] = {}
    for column in table.columns:
        level = level_name(column.level) if column.level else ""
        shots = "" if alike else f" ({'/'.join(map(str, column.shots))}-shot)"
        keys = [Key(k, *column.place) for k in column.shots]
        cells[level, column.name + shots] = lambda tree, keys=keys: [*map(tree.cells.get, keys)]
    if table.averaged:
        cells["", "average"] = lambda tree: [tree.cells.get(Key(k)) for k in table.shots]
    for way, label in _WAYS.items() if table.selection else ():
        cells["", label] = lambda tree, way=way: [tree.selection[way]]
    lines = {place: [_pair(of(tree)) for _, _, tree in models] for place, of in cells.items()}
    form = "/".join(f"{k}-shot" for k in table.shots)
    title = f"{table.name}: {table.title}" + (f" ({form})" if alike else "")
    notes = _notes(table, views)
    if len(lines) <= len(names):
        columns = ("model", *(name for _, name in lines))
        rows = tuple((n, *(v[i] for v in lines.values())) for i, n in enumerate(names))
        return Table(title, columns, rows, 1, notes)
    first = ("level", "column") if any(level for level, _ in lines) else ("column",)
    rows = tuple((*place[-len(first) :], *values) for place, values in lines.items())
    return Table(title, (*first, *names), rows, len(first), notes)


def numbers_table(published: Sequence[PublishedTable], views: Views) -> Table:
    """Every number of every table and run in long form, for other programs (CSV)."""
    rows = []
    for table in published:
        for kind, name, tree in _models(table, views[table.number]):
            for column in table.columns:
                for k in column.shots:
                    if cell := tree.cells.get(Key(k, *column.place)):
                        value = "" if cell.value is None else f"{cell.value:.4f}"
                        place = (column.level or "", column.name, str(k))
                        missing = "; ".join(cell.missing)
                        rows.append((str(table.number), kind, name, *place, value, missing))
    columns = ("table", "kind", "name", "level", "column", "shots", "score", "missing")
    return Table("Numbers of the paper's tables", columns, tuple(rows), len(columns))


def _models(table: PublishedTable, views: Mapping[str, Rollup]) -> list[tuple[str, str, Rollup]]:
    """(kind, name, numbers): the printed rows, the runs, and the best baselines."""
    printed = {}
    for row in table.rows:
        tree = row.rolled_up()
        averages = {Key(k): Cell(value, None) for k, value in row.average.items()}
        printed[row.name] = dataclasses.replace(tree, cells=tree.cells | averages)
    models = [("printed", name, tree) for name, tree in printed.items()]
    for name, tree in views.items():
        models.append(("evaluation", f"{name} (evaluated)" if name in printed else name, tree))
    evaluated = next((tree for tree in views.values() if tree.leaves), None)
    if evaluated:
        models.append(("baseline", "best baseline", _baselines(evaluated)))
    return models


def _baselines(tree: Rollup) -> Rollup:
    """The scores of constant answers and chance in the place of the model's."""

    def swapped(cells: Mapping) -> dict:
        return {k: dataclasses.replace(c, value=c.baseline) for k, c in cells.items()}

    return dataclasses.replace(tree, cells=swapped(tree.cells), selection=swapped(tree.selection))


def _pair(cells: Iterable[Cell | None]) -> str:
    return "/".join(
        _NONE
        if c is None
        else (_NONE if c.value is None else number(c.value)) + MARK * bool(c.missing)
        for c in cells
    )


def _notes(table: PublishedTable, views: Mapping[str, Rollup]) -> tuple[str, ...]:
    """What each run lacks, by column; tasks with the same reason are listed together."""
    notes = [table.note] if table.note else []
    for name, tree in views.items():
        empty = [k for k in table.shots if tree.cells[Key(k)].value is None]
        if empty:
            notes.append(f"{MARK} {name}: nothing at {_listed(empty)} shots")
        lacking: dict[tuple, list[int]] = collections.defaultdict(list)  # at which shots
        for key, cell in tree.cells.items():
            if len(key.path) == 5 and key.shots not in (MEAN, *empty):
                for reason in cell.missing:
                    place = (key.level, key.category, key.subtask, _reason(reason, key))
                    lacking[place].append(key.shots)
        alike: dict[tuple, dict[str, None]] = collections.defaultdict(dict)
        for (level, column, task, reason), shots in lacking.items():
            place = column if level.startswith("table ") else f"{level_name(level)} {column}"
            empty_column = all(tree.cells[Key(k, level, column)].value is None for k in shots)
            where, what = ("nothing of", place) if empty_column else (f"{place} without", task)
            alike[where, tuple(sorted(shots)), reason][what] = None
        for (where, shots, reason), names in alike.items():
            more = len(names) - _MAX_NAMES
            named = ", ".join([*names][:_MAX_NAMES]) + (f" and {more} more" if more > 0 else "")
            notes.append(f"{MARK} {name}: {where} {named} at {_listed(shots)} shots: {reason}")
    return tuple(notes)


def _listed(shots: Iterable[int]) -> str:
    return " and ".join(map(str, shots))


def _reason(missing: str, key: Key) -> str:
    return missing.removeprefix(f"{key.subtask} at {key.shots} shots: ")
