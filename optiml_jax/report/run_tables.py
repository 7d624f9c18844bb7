"""The tables of one or several evaluations side by side: the rows of each.

Numbers are made in `optiml_jax/evaluate/{rollup,statistics}.py`; here they are only laid out. A
cell from which something is missing is marked, and a note says what.
"""

import collections
import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, TypeVar

import numpy as np

from optiml_jax.errors import UserError
from optiml_jax.evaluate.baselines import KINDS
from optiml_jax.evaluate.leaves import MEAN, Key, Leaf
from optiml_jax.evaluate.resampling import NUM_REPLICATES
from optiml_jax.evaluate.rollup import Cell, Rollup, level_order
from optiml_jax.evaluate.statistics import (
    Difference,
    Estimate,
    Interval,
    compare,
    estimates,
    holm,
)
from optiml_jax.report.tables import MARK, Table

AVERAGE = "all categories"
_MAX_NOTES = 20
_MAX_NAMED = 6  # tasks in a note
_Thing = TypeVar("_Thing")
_LEVEL_NAMES = {
    "fully_held_out": "fully held-out",
    "partially_held_out": "partially held-out",
    "fully_supervised": "fully supervised",
    "held_out_unspecified": "held-out, level not said",
}


@dataclasses.dataclass(frozen=True)
class Evidence:
    """The intervals of each run, and the gains of all others over the first.

    Attributes:
      estimates: run -> cell -> score with intervals.
      gains: run -> cell -> paired comparison with the first run, which has none.
    """

    estimates: Mapping[str, Mapping[Key, Estimate]]
    gains: Mapping[str, Mapping[Key, Difference]]


def evidence(runs: Mapping[str, Rollup], replicates: int = NUM_REPLICATES) -> Evidence:
    """Bootstraps every run, and every other one against the first."""
    first, *others = runs
    gains = {}
    for name in others:
        with contextlib.suppress(UserError):  # no example in common: the table says so
            gains[name] = compare(runs[name], runs[first], replicates)
    return Evidence({n: estimates(tree, replicates) for n, tree in runs.items()}, gains)


def report(runs: Mapping[str, Rollup], found: Evidence) -> list[Table]:
    """All tables of one or several evaluations side by side.

    Args:
      runs: name -> evaluation; each is compared with the first one.
      found: from `evidence`.
    """
    tables = [column_table(runs, depth=1), column_table(runs, depth=2), task_table(runs)]
    if any(tree.failures for tree in runs.values()):
        tables.insert(0, failure_table(runs))
    if any(len(tree.by_metric) > 1 for tree in runs.values()):
        tables.append(metric_table(runs))
    first, *others = runs
    if not others:
        tables.append(interval_table(runs[first], found.estimates[first]))
    for name in others:
        title = f"Gain of {name} over {first}"
        if name not in found.gains:
            tables.append(Table(title, ("level",), (), 1, ("they have no example in common",)))
            continue
        for depth in (1, 2):
            table = gain_table(runs[first], found.gains[name], first, name, depth)
            notes = (*precision_notes(runs, first, name), *table.notes)
            tables.append(dataclasses.replace(table, notes=notes))
    return [*tables, details_table(runs)]


# --- what was evaluated, run by run ---------------------------------------------------------------


def failure_table(runs: Mapping[str, Rollup]) -> Table:
    """Every (task, shots) that is in no average, and why."""
    rows = [
        (name, task, str(shots), reason)
        for name, tree in runs.items()
        for (task, shots), reason in sorted(tree.failures.items())
    ]
    notes = (f"averages that they belong to are marked {MARK}",)
    return Table("Failed or missing", ("run", "task", "shots", "why"), tuple(rows), 4, notes)


def task_table(runs: Mapping[str, Rollup]) -> Table:
    """One row per task, and below it one per sub-task or benchmark version where it has several.

    Sub-tasks weigh the same (MMLU's subjects, whatever their size). Other harnesses print the mean
    over all instances, so it stands there too where it differs.
    """
    metrics = {leaf.key.subtask: leaf.metric for tree in runs.values() for leaf in tree.leaves}
    subtasks = _by_task(cell_keys(runs, 5), lambda key: key)
    leaves = {name: _by_task(tree.leaves, lambda leaf: leaf.key) for name, tree in runs.items()}
    rows = []
    for key in cell_keys(runs, 3):
        below = subtasks[key.path]
        metric = "/".join(dict.fromkeys(metrics.get(k.subtask, "") for k in below))
        first = (level_name(key.level), key.category, key.task, metric)
        rows.append(first + _values(runs, key))
        if len(below) < 2:
            continue
        for k in below:
            name = f"  {k.subtask}"
            rows.append(("", "", name, metrics.get(k.subtask, ""), *_values(runs, k)))
        own = [by_task[key.path] for by_task in leaves.values()]
        sizes = {len(leaf.ids) for members in own for leaf in members}
        if len({k.benchmark for k in below}) == 1 and len(sizes) > 1:
            pooled = _pooled(own, all_shots(runs))
            rows.append(("", "", "  (mean over instances)", metric, "-", *pooled))
    columns = ("level", "category", "task", "metric", *_value_columns(runs))
    return Table("Tasks", columns, tuple(rows), 4, _notes(runs, Key(MEAN)))


def _by_task(
    things: Iterable[_Thing], key: Callable[[_Thing], Key]
) -> Mapping[tuple[str, ...], list[_Thing]]:
    """Names of a task -> what is below it, in the order given."""
    found: dict[tuple[str, ...], list[_Thing]] = collections.defaultdict(list)
    for thing in things:
        found[key(thing).path[:3]].append(thing)
    return found


def _pooled(runs: Iterable[Sequence[Leaf]], shots: Sequence[int | str]) -> Iterable[str]:
    """The mean over the instances of a task's leaves, for every run and number of shots."""
    for leaves in runs:
        for k in shots:
            scores = [leaf.scores for leaf in leaves if k in (leaf.key.shots, MEAN)]
            yield number(float(np.concatenate(scores).mean()) if scores else None)


def details_table(runs: Mapping[str, Rollup]) -> Table:
    """One row per evaluated task and number of shots: notes on its score."""
    columns = (
        *("run", "task", "metric", "best constant answer", "shots", "instances"),
        *("demonstrations", "truncated", "ties", "without end", "blank references"),
    )
    rows, notes = [], []
    for name, tree in runs.items():
        for (task, shots), s in sorted(tree.summaries.items()):
            shown = s["effective_shots"]
            answer = " ".join(s["best_constant"]["answer"].split())
            numbers = (s["num_truncated"], s["num_ties"], s["num_unfinished"])
            rows.append(
                (
                    *(name, task, s["metric"]),
                    answer if len(answer) <= 24 else f"{answer[:23]}…",
                    *(str(shots), str(s["num_instances"])),
                    f"{shown['mean']:.1f} (least {shown['min']})",
                    *map(str, numbers),
                    f"{s['metrics'].get('num_empty_references', 0):.0f}",
                )
            )
        settings = ("delimiter", "separator", "demonstrations", "prompt_seed", "max_new_tokens")
        settings += ("dtype", "params_dtype")
        notes.append(f"{name}: {', '.join(f'{k} {tree.run.get(k)!r}' for k in settings)}")
    notes += [
        "truncated: prompts that lost demonstrations or their left end; without end: generated "
        "answers cut at max_new_tokens; blank: references that Rouge-L cannot see",
    ]
    if other := _with_other_examples(runs):
        shown = ", ".join(other[:_MAX_NAMED]) + ", ..." * (len(other) > _MAX_NAMED)
        notes.append(
            f"not the same data: {len(other)} task x shots had other examples or demonstrations in "
            f"one run than in another, so that their difference is not that of the models: {shown}"
        )
    return Table("What was run", columns, tuple(rows), 4, tuple(notes))


def _with_other_examples(runs: Mapping[str, Rollup]) -> list[str]:
    """What the runs did not evaluate on the same examples, as far as their records tell."""
    found: dict[tuple[str, int], set[str]] = collections.defaultdict(set)
    for tree in runs.values():
        for key, summary in tree.summaries.items():
            if source := summary.get("source"):
                found[key].add(source["examples"])
    return [
        f"{task} at {shots}" for (task, shots), kinds in sorted(found.items()) if len(kinds) > 1
    ]


def column_table(runs: Mapping[str, Rollup], depth: Literal[1, 2]) -> Table:
    """One row per category (depth 2) or level (depth 1), and the averages over all categories."""
    rows = []
    for key in cell_keys(runs, depth):
        names = (level_name(key.level), key.category)[:depth]
        rows.append((*names, str(_num_tasks(runs, key)), *_values(runs, key)))
    average = (AVERAGE, "")[:depth]
    rows.append((*average, str(_num_tasks(runs, Key(MEAN))), *_values(runs, Key(MEAN))))
    columns = (*("level", "category")[:depth], "tasks", *_value_columns(runs))
    notes = _notes(runs, Key(MEAN))
    if depth == 1:
        notes = _selection(runs) + notes
    return Table(("Levels", "Categories")[depth - 1], columns, tuple(rows), depth, notes)


def metric_table(runs: Mapping[str, Rollup]) -> Table:
    """The level rows for the tasks of each metric alone: accuracy and Rouge-L are not alike."""
    rows = []
    for metric in sorted({m for tree in runs.values() for m in tree.by_metric}):
        # An evaluation without this metric has no cells here.
        parts = {
            name: dataclasses.replace(tree, cells=tree.by_metric.get(metric, {}))
            for name, tree in runs.items()
        }
        for key in [*cell_keys(parts, 1), Key(MEAN)]:
            first = (metric, level_name(key.level) or AVERAGE)
            count = str(_num_tasks(parts, key))
            rows.append((*first, count, *_values(parts, key, all_shots(runs))))
    columns = ("metric", "level", "tasks", *_value_columns(runs))
    return Table("Levels by metric", columns, tuple(rows), 2, _notes(runs, Key(MEAN)))


def cells_table(runs: Mapping[str, Rollup]) -> Table:
    """Every cell of every run in long form, for other programs (CSV)."""
    columns = (
        *("run", "level", "category", "task", "benchmark", "subtask", "shots"),
        *("score", "baseline", *KINDS, "num_tasks", "missing"),
    )
    rows = []
    for name, tree in runs.items():
        for key in sorted(tree.cells, key=lambda k: (*_order(k), *_shots_order(k))):
            cell = tree.cells[key]
            values = (cell.value, cell.baseline, *(cell.baselines.get(kind) for kind in KINDS))
            numbers = ("" if v is None else f"{v:.4f}" for v in values)
            names = (key.level, key.category, key.task, key.benchmark, key.subtask)
            missing = "; ".join(cell.missing)
            rows.append((name, *names, str(key.shots), *numbers, str(len(cell.tasks)), missing))
    return Table("Cells", columns, tuple(rows), len(columns))


# --- how sure it is -------------------------------------------------------------------------------


def interval_table(tree: Rollup, values: Mapping[Key, Estimate]) -> Table:
    """Levels and the average of one run with their intervals."""
    rows = []
    for key in level_keys(tree):
        if key in values:
            e = values[key]
            rows.append(
                (
                    level_name(key.level) or AVERAGE,
                    shots_name(key.shots),
                    str(e.n_tasks),
                    str(e.n_clusters),
                    number(tree.cells[key].baseline),
                    marked(tree.cells[key]),
                    interval_text(e.fixed_tasks, sign=False),
                    new_tasks_text(e.new_tasks, sign=False),
                )
            )
    columns = (
        *("level", "shots", "tasks", "examples", "baseline", "score", "95 % CI", "new tasks"),
    )
    return Table("Levels with intervals", columns, tuple(rows), 2, _interval_notes())


def gain_table(
    baseline: Rollup,
    differences: Mapping[Key, Difference],
    before: str,
    after: str,
    depth: Literal[1, 2] = 1,
) -> Table:
    """A run against a baseline, paired by example.

    Levels and the average for each number of shots (depth 1), or categories over all (depth 2).
    """
    keys = sorted(
        (k for k in differences if len(k.path) <= 1 or k.shots == MEAN),
        key=lambda k: (*_order(k), *_shots_order(k)),
    )
    keys = [k for k in keys if (len(k.path) <= 1 if depth == 1 else len(k.path) == 2)]
    adjusted = holm([differences[key].p for key in keys])
    rows, missing = [], []
    for key, p_holm in zip(keys, adjusted, strict=True):
        d = differences[key]
        missing += d.missing
        lowest = baseline.cells[key].baseline if key in baseline.cells else None
        second = shots_name(key.shots) if depth == 1 else key.category
        rows.append(
            (
                *(level_name(key.level) or AVERAGE, second, str(d.n_tasks), str(d.n_clusters)),
                *(number(lowest), number(d.baseline), number(d.value)),
                f"{d.delta:+.1f}{MARK if d.missing else ''}",
                *(interval_text(d.fixed_tasks), new_tasks_text(d.new_tasks)),
                *(number(d.detectable), number(d.detectable_new)),
                *(p_text(d.p), p_text(p_holm), p_text(d.p_tasks), p_text(d.p_ranks)),
                f"{d.wins}/{d.ties}/{d.losses}",
            )
        )
    columns = (
        *("level", "shots" if depth == 1 else "category", "tasks", "examples", "baseline"),
        *(before, after, "gain", "95 % CI", "new tasks", "detectable", "on new"),
        *("p", "p Holm", "p tasks", "p ranks", "w/t/l"),
    )
    notes = (
        *_interval_notes(),
        "detectable: the smallest true difference that is found in 8 of 10 such comparisons, on "
        "these and on new tasks",
        "p: over examples (McNemar for one task of right-or-wrong answers, else the paired "
        "bootstrap, with several seeds a t test); p Holm: adjusted for the rows of this table; "
        "p tasks: sign flips of the tasks' shares in the gain, never below 2^(1 - tasks); p ranks: "
        "Wilcoxon over the category means, or over the tasks of one category; w/t/l: tasks won, "
        "tied, lost",
        *_measured_with(differences),
        *missing_notes(missing),
    )
    what = "" if depth == 1 else " by category"
    return Table(f"Gain of {after} over {before}{what}", columns, tuple(rows), 2, notes)


def _measured_with(differences: Mapping[Key, Difference]) -> tuple[str, ...]:
    whole = differences.get(Key(MEAN))
    if whole is None:
        return ()
    return (
        f"measured with {whole.n_prompts} prompts of {whole.n_tasks} tasks, "
        f"{whole.effective_shots:.1f} demonstrations in them on average, {', '.join(whole.rules)}",
    )


def _interval_notes() -> tuple[str, ...]:
    return (
        "95 % CI: bootstrap over source examples of these tasks, each with all tasks that show it; "
        "new tasks: for other tasks of the same categories (t interval from the spread of tasks)",
        "baseline: the best, task by task, of one constant answer, one constant position among the "
        "options, and chance",
    )


# --- pieces ---------------------------------------------------------------------------------------


def cell_keys(runs: Mapping[str, Rollup], depth: int) -> list[Key]:
    """The cells of all runs with `depth` names, shots combined, in table order."""
    found = {k for tree in runs.values() for k in tree.keys(depth, MEAN)}
    return sorted(found, key=_order)


def _order(key: Key) -> tuple:
    return (not key.path, level_order(key.level), key.path)


def _shots_order(key: Key) -> tuple:
    return (key.shots == MEAN, key.shots)


def level_keys(tree: Rollup) -> list[Key]:
    keys = [k for k in tree.cells if len(k.path) <= 1]
    return sorted(keys, key=lambda k: (*_order(k), *_shots_order(k)))


def all_shots(runs: Mapping[str, Rollup]) -> list[int | str]:
    """The numbers of shots of all runs, then their mean where there are several."""
    shots: list[int | str] = sorted({k for tree in runs.values() for k in tree.shots})
    return [*shots, MEAN] if len(shots) > 1 else shots


def shots_name(shots: int | str) -> str:
    return "mean" if shots == MEAN else f"{shots}-shot"


def _value_columns(runs: Mapping[str, Rollup]) -> tuple[str, ...]:
    shots = all_shots(runs)
    names = [f"{name} " if len(runs) > 1 else "" for name in runs]
    return ("baseline", *(f"{name}{shots_name(k)}" for name in names for k in shots))


def _values(
    runs: Mapping[str, Rollup], key: Key, shots: Sequence[int | str] | None = None
) -> tuple[str, ...]:
    """The best baseline, then the cell of every run and number of shots."""
    shots = all_shots(runs) if shots is None else shots
    cells = [
        tree.cells.get(dataclasses.replace(key, shots=k)) for tree in runs.values() for k in shots
    ]
    lowest = [c.baseline for c in cells if c is not None and c.baseline is not None]
    return (
        number(lowest[0] if lowest else None),
        *("-" if c is None else marked(c) for c in cells),
    )


def _num_tasks(runs: Mapping[str, Rollup], key: Key) -> int:
    return max(len(tree.cells[key].tasks) for tree in runs.values() if key in tree.cells)


def marked(cell: Cell) -> str:
    if cell.value is None:
        return "missing" if all("not evaluated yet" in m for m in cell.missing) else "failed"
    return number(cell.value) + (MARK if cell.missing else "")


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def interval_text(interval: Interval, sign: bool = True) -> str:
    form = "+.1f" if sign else ".1f"
    return f"[{interval.low:{form}}, {interval.high:{form}}]"


def new_tasks_text(interval: Interval | None, sign: bool = True) -> str:
    return "too few tasks" if interval is None else interval_text(interval, sign)


def p_text(p: float) -> str:
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def level_name(level: str) -> str:
    return _LEVEL_NAMES.get(level, level.replace("_", " "))


def _notes(runs: Mapping[str, Rollup], key: Key) -> tuple[str, ...]:
    """What is missing from the cells below `key`, run by run."""
    missing = [
        f"{name}: {m}" if len(runs) > 1 else m
        for name, tree in runs.items()
        if key in tree.cells
        for m in tree.cells[key].missing
    ]
    return missing_notes(missing)


def precision_notes(runs: Mapping[str, Rollup], first: str, other: str) -> tuple[str, ...]:
    """Marks a comparison of models that were computed, or whose weights were, in other types."""
    kinds = [tuple(runs[n].run.get(k) for k in ("dtype", "params_dtype")) for n in (first, other)]
    if kinds[0] == kinds[1]:
        return ()
    said = [
        f"{name} computed in {dtype or 'no type said'} with weights in {weights or 'no type said'}"
        for name, (dtype, weights) in zip((first, other), kinds, strict=True)
    ]
    return (f"{MARK} two precisions: {', '.join(said)}; part of the gain may be rounding",)


def missing_notes(missing: Iterable[str]) -> tuple[str, ...]:
    lines = [f"{MARK} without {m}" for m in dict.fromkeys(missing)]
    more = len(lines) - _MAX_NOTES
    if more > 0:
        lines = [
            *lines[:_MAX_NOTES],
            f"{MARK} and without {more} more; see the cells in report.csv",
        ]
    return tuple(lines)


def _selection(runs: Mapping[str, Rollup]) -> tuple[str, ...]:
    """The ways to combine all shots and levels into one number."""
    notes = []
    for name, tree in runs.items():
        values = {k: number(cell.value) for k, cell in tree.selection.items()}
        notes.append(
            f"{name}: all in one number: {values['A']} (A: mean of the averages over shots), "
            f"{values['B']} (B: mean of all category x shots cells), "
            f"{values['levels']} (mean of the level means)"
        )
    return tuple(notes)
