"""The results of a study: its variants' scores with intervals, the paper's, and the fit.

Everything is computed from the evaluation records; a variant's score is the mean of its seeds.
"""

import csv
import dataclasses
import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from optiml_jax.evaluate.leaves import MEAN, Key
from optiml_jax.evaluate.records import TaskInfo
from optiml_jax.evaluate.rollup import Rollup, level_order, mean_of_seeds, rollup, weighted_sum
from optiml_jax.evaluate.statistics import Estimate, Interval, estimates
from optiml_jax.report.published import PublishedRow, PublishedTable
from optiml_jax.report.run_tables import AVERAGE, Evidence, evidence, level_name
from optiml_jax.study.runs import Plan
from optiml_jax.study.spec import Study
from optiml_jax.study.state import OTHER_DATA, describe, run_state

SOURCE = "source"


@dataclasses.dataclass(frozen=True)
class Point:
    """One number of the figure.

    Attributes:
      who: "ours" or the source of a published number.
      level, category: of the cell; "" for averages over it.
      shots: a number, or "mean".
      position: on the axis; None if variants are side by side.
      interval: for other instances of the same tasks and, if there are several seeds, other seeds.
      new_tasks: interval for other tasks of the categories; None: too few tasks.
      missing: tasks left out of the number.
    """

    who: str
    variant: str
    series: str
    position: float | None
    level: str
    category: str
    shots: int | str
    value: float
    interval: Interval | None = None
    new_tasks: Interval | None = None
    tasks: int | None = None
    seeds: int = 1
    missing: int = 0


@dataclasses.dataclass(frozen=True)
class Fit:
    """A straight line through the scores of a cell over the (base-2 logarithm of the) position.

    Attributes:
      slope: points per doubling (or per unit of a linear axis).
      interval: of the slope, for other instances of the same tasks and other seeds.
      new_tasks: interval of the slope for other tasks.
      intercept: value at position 1 (or 0).
      residual: the largest distance of a variant from the line, in points.
    """

    level: str
    category: str
    shots: int | str
    slope: float
    interval: Interval
    new_tasks: Interval | None
    intercept: float
    residual: float


@dataclasses.dataclass(frozen=True)
class Results:
    """The results of a study.

    Attributes:
      trees: variant -> evaluation, the mean of its seeds; only variants with an evaluation.
      found: their intervals, and gains over the first.
      lacking: runs without an evaluation, in words, and why.
      outdated: runs whose training data has changed since, in words; they are among the others.
      remark: what else the paper says of the study, with its source; "": nothing.
    """

    study: Study
    trees: Mapping[str, Rollup]
    found: Evidence
    points: tuple[Point, ...]
    fits: tuple[Fit, ...]
    lacking: tuple[str, ...]
    remark: str = ""
    outdated: tuple[str, ...] = ()


def results_of(
    plan: Plan,
    published: Sequence[PublishedTable] = (),
    revise: Callable[[TaskInfo], TaskInfo] | None = None,
) -> Results:
    """Collects what is evaluated, and computes the figure's numbers.

    Args:
      published: printed tables, including that of the study.
      revise: see `rollup`.
    """
    study = plan.study
    trees, lacking, outdated, seeds = {}, [], [], {}
    for variant in study.variants:
        of_seeds = []
        for seed, run in plan.of_variant(variant).items():
            state = run_state(run)
            done = not state.stage
            tree = rollup(run.evaluation, by=study.by, revise=revise) if done else None
            if state.status == OTHER_DATA:
                outdated.append(f"{variant}, seed {seed} ({state.reason})")
            if tree is not None and tree.leaves:
                of_seeds.append(tree)
            else:  # not evaluated, or every task failed
                lacking.append(f"{variant}, seed {seed} ({describe(state, run.num_steps)})")
        if of_seeds:
            trees[variant] = mean_of_seeds(of_seeds) if len(of_seeds) > 1 else of_seeds[0]
            seeds[variant] = len(of_seeds)
    found = evidence(trees, study.replicates) if trees else Evidence({}, {})
    points = [
        point
        for variant, tree in trees.items()
        for point in _points(study, variant, tree, found.estimates[variant], seeds)
    ]
    points += _of_the_paper(study, published)
    fits = _fits(study, trees) if study.fit else ()
    table = _table_of(study, published)
    remark = f"{table.source}, {table.name}: {table.note}" if table and table.note else ""
    others = tuple(lacking), remark, tuple(outdated)
    return Results(study, trees, found, tuple(points), tuple(fits), *others)


def _points(
    study: Study,
    variant: str,
    tree: Rollup,
    found: Mapping[Key, Estimate],
    seeds: Mapping[str, int],
) -> list[Point]:
    points = []
    for key in sorted(found, key=lambda k: (level_order(k.level), k.path, str(k.shots))):
        if key.shots == MEAN and len(tree.shots) == 1:
            continue  # the same number twice
        e = found[key]
        points.append(
            Point(
                who="ours",
                **_place(study, variant),
                level=key.level,
                category=key.category,
                shots=key.shots,
                value=e.value,
                interval=e.fixed_tasks,
                new_tasks=e.new_tasks,
                tasks=e.n_tasks,
                seeds=seeds[variant],
                missing=len(tree.cells[key].missing),
            )
        )
    return points


def _place(study: Study, variant: str) -> dict[str, Any]:
    return {
        "variant": variant,
        "series": study.series.get(variant, ""),
        "position": study.positions.get(variant),
    }


def _table_of(study: Study, published: Sequence[PublishedTable]) -> PublishedTable | None:
    return next((t for t in published if t.number == study.published), None)


def _of_the_paper(study: Study, published: Sequence[PublishedTable]) -> list[Point]:
    """The printed numbers of the study's table, and the averages over them."""
    table = _table_of(study, published)
    if table is None:
        return []
    points = []
    for variant in study.variants:
        if (row := table.row(study.rows.get(variant, variant))) is not None:
            points += _printed(study, variant, table, row)
    return points


def _printed(study: Study, variant: str, table: PublishedTable, row: PublishedRow) -> list[Point]:
    columns = {column.place: column for column in table.columns}
    points = []
    for key, cell in row.rolled_up().cells.items():
        if cell.value is None or len(key.path) > 2:
            continue
        column = columns.get((key.level, key.category))
        name = column and (column.category or column.benchmark or column.name)
        points.append(
            Point(
                who=f"{table.source}, {table.name}",
                **_place(study, variant),
                level=key.level,
                category=name or "",
                shots=key.shots,
                value=cell.value,
            )
        )
    return points


def unknown_rows(study: Study, published: Sequence[PublishedTable]) -> list[str]:
    """Variants of the study whose row the paper's table does not have."""
    if study.published is None:
        return []
    table = _table_of(study, published)
    listed = [v for v in study.variants if v not in study.unpublished]
    return [v for v in listed if table is None or table.row(study.rows.get(v, v)) is None]


# --- the fit --------------------------------------------------------------------------------------


def _fits(study: Study, trees: Mapping[str, Rollup]) -> list[Fit]:
    """The slope is a weighted sum of evaluations, so its intervals are those of an evaluation.

    Source examples are resampled jointly for all variants, which a fit to final means ignores.
    """
    there = [v for v in study.variants if v in trees]
    x = np.array([_abscissa(study, study.positions[v]) for v in there])
    if len({*x}) < 3:
        return []
    weights = (x - x.mean()) / np.sum((x - x.mean()) ** 2)
    slope = _slope_tree([trees[v] for v in there], weights)
    fits = []
    for key, e in estimates(slope, study.replicates).items():
        values = [trees[v].cells[key].value if key in trees[v].cells else None for v in there]
        if None in values:
            continue
        line = np.mean(values) + e.value * (x - x.mean())
        fits.append(
            Fit(
                level=key.level,
                category=key.category,
                shots=key.shots,
                slope=e.value,
                interval=e.fixed_tasks,
                new_tasks=e.new_tasks,
                intercept=float(np.mean(values) - e.value * x.mean()),
                residual=float(np.max(np.abs(values - line))),
            )
        )
    return sorted(fits, key=lambda f: (level_order(f.level), f.category, str(f.shots)))


def _slope_tree(trees: Sequence[Rollup], weights: np.ndarray) -> Rollup:
    """The slope as an evaluation: per seed, then their mean, if no seed is missing."""
    numbers = {len(tree.seeds) for tree in trees}
    if numbers == {0} or len(numbers) > 1:
        return weighted_sum(trees, weights)
    (number,) = numbers
    return mean_of_seeds(
        [weighted_sum([tree.seeds[i] for tree in trees], weights) for i in range(number)]
    )


def _abscissa(study: Study, position: float) -> float:
    return math.log2(position) if study.logarithmic else position


def on_line(study: Study, fit: Fit, position: float) -> float:
    """The value of the line at a position."""
    return fit.intercept + fit.slope * _abscissa(study, position)


# --- as data --------------------------------------------------------------------------------------


def rows_of(results: Results) -> list[dict[str, Any]]:
    """The points as rows of a table for other programs."""
    rows = []
    for p in results.points:
        ends = {"low": p.interval and p.interval.low, "high": p.interval and p.interval.high}
        new = {
            "new_tasks_low": p.new_tasks and p.new_tasks.low,
            "new_tasks_high": p.new_tasks and p.new_tasks.high,
        }
        kind = "category" if p.category else "level" if p.level else "average"
        rows.append(
            {
                SOURCE: p.who,
                "variant": p.variant,
                "series": p.series,
                "position": p.position,
                "kind": kind,
                "level": p.level,
                "category": p.category,
                "shots": p.shots,
                "score": round(p.value, 4),
                **{k: v if v is None else round(v, 4) for k, v in (ends | new).items()},
                "tasks": p.tasks,
                "seeds": p.seeds if p.who == "ours" else None,
                "missing": p.missing,
            }
        )
    return rows


def as_json(results: Results) -> dict[str, Any]:
    """All numbers of the figures, with their descriptions."""
    study = results.study
    return {
        "study": study.name,
        "title": study.title,
        "factor": study.factor,
        "logarithmic": study.logarithmic,
        "variants": list(study.variants),
        "seeds": list(study.seeds),
        "lacking": list(results.lacking),
        "paper": results.remark,
        "interval": "95 %, other instances of the same tasks and other seeds",
        "points": rows_of(results),
        "fits": [dataclasses.asdict(fit) for fit in results.fits],
    }


def as_csv(results: Results) -> str:
    """The points as a long-format table."""
    rows = rows_of(results)
    out = io.StringIO()
    writer = csv.DictWriter(out, rows[0] if rows else [SOURCE], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def name_of(level: str, category: str) -> str:
    """The name of a cell in headings."""
    return category or level_name(level) or AVERAGE
