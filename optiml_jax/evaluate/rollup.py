"""From a folder of records to the numbers of the tables: a pure function, no model, no SeqIO.

The order is that of the paper's section 4.1, with unweighted means throughout:

    instance -> (sub-task, shots) -> task within a benchmark -> task -> category within a level
    -> level;  and, over all (level, category) columns at once, the average per number of shots.

The numbers of shots are combined last. Evaluations that differ in their seed alone become one by
`mean_of_seeds`. Intervals and tests live in statistics.py, layout in optiml_jax/report.
"""

import collections
import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from optiml_jax.errors import UserError
from optiml_jax.evaluate.baselines import KINDS, best
from optiml_jax.evaluate.leaves import MEAN, Key, Leaf, joined, leaf_key, leaves_of
from optiml_jax.evaluate.metrics import METRICS
from optiml_jax.evaluate.records import Record, RunFolder, TaskInfo, rescore

LEVELS = ("fully_held_out", "partially_held_out", "fully_supervised")


@dataclasses.dataclass(frozen=True)
class Cell:
    """One number of a table.

    Attributes:
      value: in percent; None when nothing below it was evaluated.
      baseline: the same aggregate of every task's best baseline.
      columns: for cells above the category: the (level, category, shots) cells it is a mean of.
      tasks: the tasks (step 3) below it.
      missing: what should be in it and is not: `<task> at <k> shots: <reason>`.
      baselines: the same aggregate of each kind of baseline, over the tasks that have it.
    """

    value: float | None
    baseline: float | None
    columns: tuple[Key, ...] = ()
    tasks: frozenset[tuple[str, ...]] = frozenset()
    missing: tuple[str, ...] = ()
    baselines: Mapping[str, float | None] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Rollup:
    """All cells of one evaluation.

    Attributes:
      run: settings of the evaluation.
      shots: the numbers of shots that occur, ascending.
      cells: every cell above the leaves.
      by_metric: the same for the tasks of one metric alone, for each metric.
      selection: the ways to combine everything into one number: "A" mean of the averages over
        shots, "B" mean over all category x shots cells, "levels" mean of the level means.
      summaries: (task, shots) -> summary of its records.
      failures: (task, shots) -> reason, for what has no records.
      seeds: the evaluations of which this one is the mean; empty for a single one.
    """

    run: dict[str, Any]
    shots: tuple[int, ...]
    leaves: tuple[Leaf, ...]
    cells: dict[Key, Cell]
    by_metric: dict[str, dict[Key, Cell]]
    selection: dict[str, Cell]
    summaries: dict[tuple[str, int], dict[str, Any]]
    failures: dict[tuple[str, int], str]
    seeds: tuple["Rollup", ...] = ()

    def keys(self, depth: int, shots: int | str) -> list[Key]:
        """Cells with `depth` names (1 level, 2 category, 3 task, 5 sub-task), in table order."""
        found = [k for k in self.cells if k.shots == shots and len(k.path) == depth]
        return sorted(found, key=lambda k: (level_order(k.level), k.path))

    def scalars(self, prefix: str = "eval") -> dict[str, float]:
        """Levels, categories and the average per number of shots, named for TensorBoard.

        And, task by task, the measures of metrics that have several.
        """
        scalars = {}
        for key, cell in self.cells.items():
            if cell.value is None or len(key.path) > 2:
                continue
            kind = ("average", "level", "category")[len(key.path)]
            shots = "all_shots" if key.shots == MEAN else f"{key.shots}shot"
            name = "/".join((prefix, kind, *key.path, shots))
            scalars[name.replace(" ", "_")] = cell.value
        for (task, shots), values in self.further_measures().items():
            for measure, value in values.items():
                name = f"{prefix}/measure/{task}/{measure}/{shots}shot"
                scalars[name.replace(" ", "_")] = value
        return scalars

    def further_measures(self) -> dict[tuple[str, int], dict[str, float]]:
        """(task, shots) -> measures besides the one that tables average, means over prompts."""
        found: dict[tuple[str, int], dict[str, list[float]]] = collections.defaultdict(dict)
        for leaf in self.leaves:
            for name, value in leaf.more.items():
                found[leaf.key.subtask, leaf.key.shots].setdefault(name, []).append(value)
        return {
            task: {name: float(np.mean(values)) for name, values in measures.items()}
            for task, measures in found.items()
        }


def level_order(level: str) -> tuple[int, str]:
    """Sort key: the paper's three levels first, in its order."""
    return (LEVELS.index(level) if level in LEVELS else len(LEVELS), level)


def rollup(
    out_dir: str | os.PathLike | Sequence[str | os.PathLike],
    by: Literal["category", "benchmark"] = "category",
    rule: str | None = None,
    metric: str | None = None,
    revise: Callable[[TaskInfo], TaskInfo] | None = None,
) -> Rollup:
    """Aggregates the records of a folder, or of several that are one evaluation.

    Args:
      out_dir: the folder or folders.
      by: what the columns are within a level. By benchmark, the versions that a task has in several
        benchmarks are not averaged (paper, table 5).
      rule: scores candidates by this rule instead of each task's own.
      metric: scores the tasks of its kind (candidates ranked, or answers generated) by this one.
      revise: says otherwise where a task belongs (its level, category, `aggregate_as`).

    Raises:
      UserError: a folder is no evaluation, a record file is damaged, or two folders have the same
        task at the same number of shots.
    """
    paths = [out_dir] if isinstance(out_dir, str | os.PathLike) else list(out_dir)
    loaded = [(RunFolder(path), *RunFolder(path).load()) for path in paths]
    leaves: list[Leaf] = []
    holes: dict[Key, str] = {}
    metrics: dict[Key, str] = {}
    summaries, failures = {}, {}
    cells = [(f, info, shots) for f, _, infos in loaded for info in infos for shots in info.shots]
    for folder, info, shots in cells:
        if revise is not None:
            info = revise(info)
        key = leaf_key(info, shots, by)
        if key in metrics:
            raise UserError(
                f"{info.task} at {shots} shots is in two of {', '.join(map(str, paths))}"
            )
        metrics[key] = metric_of(info, metric)
        status, reason = folder.status(info, shots)
        if status != "done":
            holes[key] = f"{info.task} at {shots} shots: {reason}"
            failures[info.task, shots] = reason
            continue
        records, summary = folder.read(info.task, shots)
        records = rescored(records, info, rule, metric)
        constant = 100.0 * summary["best_constant"]["score"]
        if metrics[key] != info.metric:
            constant = None
            summary |= {"metric": metrics[key], "best_constant": {"answer": "", "score": None}}
        if rule is not None:
            summary |= {"num_ties": sum(r.tied for r in records)}
        summaries[info.task, shots] = summary
        by_rule = rule or info.protocol.rule
        leaves += leaves_of(info, key, metrics[key], records, constant, by_rule)
    return _assemble(
        _common(run for _, run, _ in loaded), leaves, holes, metrics, summaries, failures
    )


def metric_of(info: TaskInfo, metric: str | None) -> str:
    """The metric that scores a task: `metric` if it is of the task's kind, else the task's own."""
    if metric is not None and METRICS[metric].ranked == METRICS[info.metric].ranked:
        return metric
    return info.metric


def rescored(
    records: Iterable[Record], info: TaskInfo, rule: str | None, metric: str | None
) -> list[Record]:
    """The records of a task as `rule` and `metric` score them; None: as the task's own do."""
    found = [rescore(record, rule or info.protocol.rule) for record in records]
    name = metric_of(info, metric)
    if name == info.metric or METRICS[name].ranked:
        return found
    return [METRICS[name].rescored(record) for record in found]


def _common(runs: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The settings of several folders; where they differ, all values."""
    values: dict[str, list] = collections.defaultdict(list)
    for run in runs:
        for name, value in run.items():
            if value not in values[name]:
                values[name].append(value)
    return {name: v[0] if len(v) == 1 else v for name, v in values.items()}


def difference(a: Rollup, b: Rollup) -> Rollup:
    """The tree of `a - b`, instance by instance, over what both evaluated.

    Instances are paired by task, shots, example and prompt. What only one of them holds is named in
    `failures` and marks the cells it is missing from.

    Raises:
      UserError: the two have no instance in common.
    """
    return _weighted((a, b), (1.0, -1.0), "one evaluation only")


def mean_of_seeds(trees: Sequence[Rollup]) -> Rollup:
    """The mean of evaluations that differ in their seed alone, over what all of them have.

    Raises:
      UserError: they have no instance in common.
    """
    weights = [1.0 / len(trees)] * len(trees)
    mean = _weighted(trees, weights, "some of the seeds only")
    seeds = tuple(cut_to(tree, mean) for tree in trees)
    return dataclasses.replace(mean, run=_common(t.run for t in trees), seeds=seeds)


def cut_to(tree: Rollup, other: Rollup) -> Rollup:
    """An evaluation over what another one has too, and its seeds likewise.

    Raises:
      UserError: they have no instance in common.
    """
    cut = weighted_sum((tree, other), (1.0, 0.0))
    return dataclasses.replace(cut, seeds=tuple(cut_to(seed, other) for seed in tree.seeds))


def weighted_sum(trees: Sequence[Rollup], weights: Sequence[float]) -> Rollup:
    """The weighted sum of evaluations, instance by instance, over what all of them have.

    Raises:
      UserError: they have no instance in common.
    """
    return _weighted(trees, weights, "some of the evaluations only")


def _weighted(trees: Sequence[Rollup], weights: Sequence[float], where: str) -> Rollup:
    """The weighted sum of evaluations, unit by unit, over what all of them have."""
    others = [{(leaf.key, leaf.prompt): leaf for leaf in tree.leaves} for tree in trees]
    leaves = []
    for leaf in trees[0].leaves:
        same = [own.get((leaf.key, leaf.prompt)) for own in others]
        if None not in same and (leaf_of_all := joined(same, weights)) is not None:
            leaves.append(leaf_of_all)
    if not leaves:
        raise UserError("the evaluations have no instance in common, so nothing to compare")
    sizes, *own = [_instances(part) for part in (leaves, *(tree.leaves for tree in trees))]
    failures = {key: why for tree in reversed(trees) for key, why in tree.failures.items()}
    holes = {}
    for key in sorted(set().union(*own), key=lambda k: (k.path, k.shots)):
        lost = max(size[key] for size in own) - sizes[key]
        if lost:
            reason = failures.setdefault(
                (key.subtask, key.shots), f"{lost} instances are in {where}"
            )
            holes[key] = f"{key.subtask} at {key.shots} shots: {reason}"
    metrics = {leaf.key: leaf.metric for tree in trees for leaf in tree.leaves}
    first = trees[0]
    return _assemble(first.run, leaves, holes, metrics, first.summaries, failures)


def regroup(
    tree: Rollup,
    place: Callable[[Key], tuple[str, ...] | None],
    holes: Mapping[Key, str] | None = None,
) -> Rollup:
    """The same instances under other columns.

    Args:
      place: cell of a sub-task -> its (level, column), and its task where that is another; None
        leaves it out.
      holes: more that is missing: sub-task in its new place -> reason.
    """

    def moved(key: Key) -> Key | None:
        names = ("level", "category", "task")
        return (to := place(key)) and dataclasses.replace(key, **dict(zip(names, to, strict=False)))

    leaves = [dataclasses.replace(leaf, key=k) for leaf in tree.leaves if (k := moved(leaf.key))]
    missing = {
        k: "; ".join(cell.missing)
        for key, cell in tree.cells.items()
        if len(key.path) == 5 and key.shots != MEAN and cell.missing and (k := moved(key))
    }
    missing |= holes or {}
    moved_tree = _assemble(tree.run, leaves, missing, {}, tree.summaries, tree.failures)
    seeds = tree.seeds if leaves else ()
    return dataclasses.replace(moved_tree, seeds=tuple(regroup(seed, place) for seed in seeds))


def rollup_of_leaves(leaves: Sequence[Leaf]) -> Rollup:
    """What the rule makes of leaves that come from elsewhere."""
    return _assemble({}, leaves, {}, {leaf.key: leaf.metric for leaf in leaves}, {}, {})


def from_columns(values: Mapping[Key, float]) -> Rollup:
    """What the rule makes of the numbers of (level, category, shots) cells, printed ones say."""
    columns = {key: Cell(value, None) for key, value in values.items()}
    cells = columns | _upwards(columns, 1)
    _combine(cells)
    shots = tuple(sorted({key.shots for key in values}))
    return Rollup({}, shots, (), cells, {}, _selection(cells), {}, {})


def _instances(leaves: Iterable[Leaf]) -> collections.Counter:
    counts: collections.Counter = collections.Counter()
    for leaf in leaves:
        counts[leaf.key] += len(leaf.ids)
    return counts


def _assemble(
    run: dict[str, Any],
    leaves: Sequence[Leaf],
    holes: Mapping[Key, str],
    metrics: Mapping[Key, str],
    summaries: dict,
    failures: dict,
) -> Rollup:
    cells = _tree(leaves, holes)
    kinds = sorted(set(metrics.values()))
    by_metric = {
        m: _tree(
            [leaf for leaf in leaves if leaf.metric == m],
            {k: reason for k, reason in holes.items() if metrics[k] == m},
        )
        for m in kinds
    }
    return Rollup(
        run=run,
        shots=tuple(sorted({k.shots for k in cells if k.shots != MEAN})),
        leaves=tuple(leaves),
        cells=cells,
        by_metric=by_metric,
        selection=_selection(cells),
        summaries=summaries,
        failures=failures,
    )


def _mean(cells: Sequence[Cell], columns: tuple[Key, ...] = ()) -> Cell:
    """The unweighted mean of the cells that have a value; what is missing below stays named."""

    def mean(field: Callable[[Cell], float | None]) -> float | None:
        values = [v for c in cells if (v := field(c)) is not None]
        return float(np.mean(values)) if values else None

    return Cell(
        value=mean(lambda c: c.value),
        baseline=mean(lambda c: c.baseline),
        baselines={kind: mean(lambda c, kind=kind: c.baselines.get(kind)) for kind in KINDS},
        columns=columns,
        tasks=frozenset().union(*(c.tasks for c in cells)),
        missing=tuple(dict.fromkeys(m for c in cells for m in c.missing)),
    )


def _tree(leaves: Sequence[Leaf], holes: Mapping[Key, str]) -> dict[Key, Cell]:
    cells: dict[Key, Cell] = {}
    prompts: dict[Key, list[Cell]] = collections.defaultdict(list)
    for leaf in leaves:
        prompts[leaf.key].append(
            Cell(
                value=leaf.value,
                baseline=best(leaf.baselines),
                baselines=leaf.baselines,
                tasks=frozenset({leaf.key.path[:3]}),
            )
        )
    for key, reason in holes.items():
        prompts[key].append(Cell(None, None, missing=(reason,)))
    step = {key: _mean(members) for key, members in prompts.items()}
    cells |= step
    for depth in (4, 3, 2, 1):
        step = _upwards(step, depth)
        cells |= step
    _combine(cells)
    return cells


def _upwards(cells: Mapping[Key, Cell], depth: int) -> dict[Key, Cell]:
    """The means of the cells that share their first `depth` names."""
    groups: dict[Key, list[Key]] = collections.defaultdict(list)
    for key in cells:
        groups[key.up(depth)].append(key)
    return {
        key: _mean([cells[m] for m in members], tuple(members) if depth == 1 else ())
        for key, members in groups.items()
    }


def _combine(cells: dict[Key, Cell]) -> None:
    """Adds the averages over the columns, and the cells that combine the numbers of shots."""
    columns: dict[Any, list[Key]] = collections.defaultdict(list)
    for key in cells:
        if len(key.path) == 2:
            columns[key.shots].append(key)
    for shots, members in columns.items():
        cells[Key(shots)] = _mean([cells[m] for m in members], tuple(members))
    over_shots: dict[Key, list[Key]] = collections.defaultdict(list)
    for key in cells:
        over_shots[dataclasses.replace(key, shots=MEAN)].append(key)
    for key, members in over_shots.items():
        cells[key] = _mean([cells[m] for m in members])


def _selection(cells: Mapping[Key, Cell]) -> dict[str, Cell]:
    if Key(MEAN) not in cells:
        raise UserError("the evaluation has no task: its tasks.json lists none")
    columns = [c for k, c in cells.items() if len(k.path) == 2 and k.shots != MEAN]
    levels = [c for k, c in cells.items() if len(k.path) == 1 and k.shots == MEAN]
    return {"A": cells[Key(MEAN)], "B": _mean(columns), "levels": _mean(levels)}
