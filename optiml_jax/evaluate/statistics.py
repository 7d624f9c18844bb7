"""How far a number of the tables can be trusted: bootstrap intervals and paired tests.

Two questions, two resamplings. "Fixed tasks" asks about other instances of the same tasks:
instances are redrawn within each task. "New tasks" asks about other tasks of the same categories:
tasks are redrawn within each (level, category), and instances within every drawn task. In both, all
records of one source example (templates, benchmark versions, numbers of shots) are drawn together,
and every aggregate is recomputed in each replicate. Examples shared by two different tasks count as
independent. numpy only.
"""

import collections
import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from optiml_jax.evaluate.rollup import MEAN, Key, Leaf, Rollup, difference

NUM_REPLICATES = 10_000
_CHUNK = 2_000_000  # drawn clusters held at a time
_EXACT_FLIPS = 20  # up to here all sign patterns are tried


@dataclasses.dataclass(frozen=True)
class Interval:
    """A 95 % percentile interval, in the unit of the cell (percent)."""

    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A cell with its intervals for the same tasks and for new tasks of its categories."""

    value: float
    fixed_tasks: Interval
    new_tasks: Interval
    n_tasks: int
    n_clusters: int


@dataclasses.dataclass(frozen=True)
class Difference:
    """One paired comparison, `value - baseline`, in percent points.

    Attributes:
      p: two-sided; the exact McNemar test for a single task of right-or-wrong instances at one
        number of shots, the fixed-tasks bootstrap otherwise.
      p_tasks: two-sided sign-flip test over the tasks' differences; its smallest possible value is
        2^(1 - tasks).
      wins, ties, losses: tasks on which `value` is higher, equal, lower.
      missing: what is not in the comparison.
    """

    value: float | None
    baseline: float | None
    delta: float
    fixed_tasks: Interval
    new_tasks: Interval
    p: float
    p_tasks: float
    n_tasks: int
    n_clusters: int
    wins: int
    ties: int
    losses: int
    missing: tuple[str, ...]


class _Task:
    """The leaves of one task at all its numbers of shots, ready to be redrawn."""

    def __init__(self, leaves: Sequence[Leaf], shots: Sequence[int]):
        index: dict[str, int] = {}
        for leaf in leaves:
            for cluster in leaf.clusters:
                index.setdefault(cluster, len(index))
        self.n_clusters = len(index)
        self.sums = np.zeros((len(index), len(leaves)))
        self.counts = np.zeros((len(index), len(leaves)))
        for column, leaf in enumerate(leaves):
            rows = [index[c] for c in leaf.clusters]
            np.add.at(self.sums[:, column], rows, leaf.scores)
            np.add.at(self.counts[:, column], rows, 1.0)
        self.weights = _leaf_weights(leaves, shots)  # [leaves, shots], NaN where not evaluated
        self.value = self._means(np.ones((1, len(index))))[0]

    def _means(self, drawn: np.ndarray) -> np.ndarray:
        """float[n, shots] from how often each cluster was drawn, [n, clusters]."""
        counts = drawn @ self.counts
        with np.errstate(invalid="ignore", divide="ignore"):
            means = (drawn @ self.sums) / counts
        if not counts.all():
            # A leaf of which a replicate drew no instance keeps its own mean.
            whole = self.sums.sum(0) / self.counts.sum(0)
            means = np.where(counts > 0, means, whole)
        return means @ self.weights

    def draw(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """float[n, shots]: the task's value in n replicates."""
        c = self.n_clusters
        parts = [np.empty((0, self.weights.shape[1]))]
        step = max(1, _CHUNK // c)
        for start in range(0, n, step):
            rows = min(step, n - start)
            picks = rng.integers(c, size=(rows, c), dtype=np.int32)
            picks += np.arange(rows, dtype=np.int32)[:, None] * c
            drawn = np.bincount(picks.ravel(), minlength=rows * c).reshape(rows, c)
            parts.append(self._means(drawn.astype(np.float64)))
        return np.concatenate(parts)


def _leaf_weights(leaves: Sequence[Leaf], shots: Sequence[int]) -> np.ndarray:
    """Weights of prompts, sub-tasks and benchmarks in their task's mean, float[leaves, shots]."""
    weights = np.zeros((len(leaves), len(shots)))
    for s, k in enumerate(shots):
        tree: dict = collections.defaultdict(lambda: collections.defaultdict(list))
        for i, leaf in enumerate(leaves):
            if leaf.key.shots == k:
                tree[leaf.key.benchmark][leaf.key.subtask].append(i)
        if not tree:
            weights[:, s] = np.nan
        for subtasks in tree.values():
            for members in subtasks.values():
                weights[members, s] = 1.0 / (len(tree) * len(subtasks) * len(members))
    return weights


class Resampling:
    """Replicates of every cell from the task upwards.

    Args:
      tree: an evaluation, or the `difference` of two.
      new_tasks: redraw the tasks of each category too.
      n: number of replicates.
      seed: equal seeds give equal replicates.
    """

    def __init__(self, tree: Rollup, new_tasks: bool, n: int = NUM_REPLICATES, seed: int = 0):
        self._shots = tree.shots
        self._tree = tree
        rng = np.random.default_rng([seed, int(new_tasks)])
        grouped: dict[tuple[str, ...], list[Leaf]] = collections.defaultdict(list)
        for leaf in tree.leaves:
            grouped[leaf.key.path[:3]].append(leaf)
        self.tasks = {path: _Task(leaves, tree.shots) for path, leaves in grouped.items()}
        self._task_values: dict[tuple[str, ...], np.ndarray] = {}
        columns: dict[tuple[str, ...], list[tuple[str, ...]]] = collections.defaultdict(list)
        for path in self.tasks:
            columns[path[:2]].append(path)
        self._columns = {
            column: self._new(paths, rng, n) if new_tasks else self._fixed(paths, rng, n)
            for column, paths in columns.items()
        }

    def _fixed(self, paths: list, rng: np.random.Generator, n: int) -> np.ndarray:
        for path in paths:
            self._task_values[path] = self.tasks[path].draw(rng, n)
        return _nanmean(np.stack([self._task_values[p] for p in paths], axis=1), axis=1)

    def _new(self, paths: list, rng: np.random.Generator, n: int) -> np.ndarray:
        picks = rng.integers(len(paths), size=(n, len(paths)))
        values = np.empty((n, len(paths), len(self._shots)))
        for t, path in enumerate(paths):
            chosen = picks == t
            # A task drawn twice gets two independent sets of instances.
            values[chosen] = self.tasks[path].draw(rng, int(chosen.sum()))
        mean = _nanmean(values, axis=1)
        whole = _nanmean(np.stack([self.tasks[p].value for p in paths]), axis=0)
        return np.where(np.isnan(mean), whole, mean)  # no drawn task has this number of shots

    def values(self, key: Key) -> np.ndarray:
        """float64[n]: the replicates of a cell with at most three names."""
        if key.shots == MEAN:
            each = [dataclasses.replace(key, shots=k) for k in self._shots]
            cells = self._tree.cells
            found = [k for k in each if k in cells and cells[k].value is not None]
            return np.mean([self.values(k) for k in found], axis=0)
        s = self._shots.index(key.shots)
        if len(key.path) == 3:
            return self._task_values[key.path][:, s]
        if len(key.path) == 2:
            return self._columns[key.path][:, s]
        members = [c.path for c in self._tree.cells[key].columns if c.path in self._columns]
        return _nanmean(np.stack([self._columns[m][:, s] for m in members], axis=1), axis=1)


def _nanmean(values: np.ndarray, axis: int) -> np.ndarray:
    """Mean over the entries that are numbers; NaN where there is none."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0.0).sum(axis) / known.sum(axis)


def interval(replicates: np.ndarray) -> Interval:
    """The 2.5 % and 97.5 % percentiles."""
    low, high = np.percentile(replicates, [2.5, 97.5])
    return Interval(float(low), float(high))


def bootstrap_p(replicates: np.ndarray) -> float:
    """Twice the smaller tail beyond 0; at least 1 / (n + 1), for n replicates cannot say less."""
    tail = min(np.mean(replicates <= 0), np.mean(replicates >= 0))
    return float(min(1.0, max(2 * tail, 1 / (len(replicates) + 1))))


def mcnemar(wins: int, losses: int) -> float:
    """The exact two-sided McNemar test: `wins` and `losses` are the two discordant counts."""
    n = wins + losses
    tail = sum(math.comb(n, k) for k in range(min(wins, losses) + 1))
    return min(1.0, tail / 2 ** (n - 1)) if n else 1.0


def sign_flip(deltas: Sequence[float], seed: int = 0, flips: int = 100_000) -> float:
    """Two-sided test that the mean of `deltas` is 0 by flipping their signs.

    All patterns up to 20 deltas, else `flips` random ones.
    """
    values = np.asarray(deltas, np.float64)
    observed = abs(values.sum()) - 1e-9
    if len(values) <= _EXACT_FLIPS:
        sums = np.zeros(1)
        for value in values:
            sums = np.concatenate([sums + value, sums - value])
        return float(np.mean(np.abs(sums) >= observed))
    rng = np.random.default_rng(seed)
    beyond = 0
    for start in range(0, flips, 1000):
        signs = rng.integers(0, 2, size=(min(1000, flips - start), len(values))) * 2 - 1
        beyond += int(np.sum(np.abs(signs @ values) >= observed))
    return (beyond + 1) / (flips + 1)


def estimates(tree: Rollup, n: int = NUM_REPLICATES, seed: int = 0) -> dict[Key, Estimate]:
    """Intervals for every category, level and average that has a value."""
    fixed, new = (Resampling(tree, new_tasks, n, seed) for new_tasks in (False, True))
    return {
        key: Estimate(
            value=cell.value,
            fixed_tasks=interval(fixed.values(key)),
            new_tasks=interval(new.values(key)),
            n_tasks=len(cell.tasks),
            n_clusters=sum(fixed.tasks[t].n_clusters for t in cell.tasks),
        )
        for key, cell in tree.cells.items()
        if len(key.path) <= 2 and cell.value is not None
    }


def compare(
    run: Rollup, baseline: Rollup, n: int = NUM_REPLICATES, seed: int = 0
) -> dict[Key, Difference]:
    """Paired comparison of two evaluations for every task, category, level and average.

    Raises:
      UserError: the two have no instance in common.
    """
    tree = difference(run, baseline)
    fixed, new = (Resampling(tree, new_tasks, n, seed) for new_tasks in (False, True))
    return {
        key: _difference(key, run, baseline, tree, fixed, new)
        for key, cell in tree.cells.items()
        if len(key.path) <= 3 and cell.value is not None
    }


def _difference(
    key: Key, run: Rollup, baseline: Rollup, tree: Rollup, fixed: Resampling, new: Resampling
) -> Difference:
    cell = tree.cells[key]
    replicates = fixed.values(key)
    is_task = len(key.path) == 3
    deltas = []
    for path in sorted(cell.tasks):
        task = tree.cells.get(Key(key.shots, *path))
        if task is not None and task.value is not None:
            deltas.append(task.value)
    exact = _mcnemar_of(tree, key) if is_task else None
    values = [t.cells[key].value if key in t.cells else None for t in (run, baseline)]
    return Difference(
        value=values[0],
        baseline=values[1],
        delta=cell.value,
        fixed_tasks=interval(replicates),
        # One task says nothing about others.
        new_tasks=interval(replicates if is_task else new.values(key)),
        p=bootstrap_p(replicates) if exact is None else exact,
        p_tasks=sign_flip(deltas),
        n_tasks=len(deltas),
        n_clusters=sum(fixed.tasks[t].n_clusters for t in cell.tasks),
        wins=sum(d > 0 for d in deltas),
        ties=sum(d == 0 for d in deltas),
        losses=sum(d < 0 for d in deltas),
        missing=cell.missing,
    )


def _mcnemar_of(tree: Rollup, key: Key) -> float | None:
    """McNemar's p where the task is one leaf of right-or-wrong instances with own clusters."""
    leaves = [leaf for leaf in tree.leaves if leaf.key.shots == key.shots]
    leaves = [leaf for leaf in leaves if leaf.key.path[:3] == key.path]
    if len(leaves) != 1 or len(set(leaves[0].clusters)) != len(leaves[0].clusters):
        return None
    scores = leaves[0].scores
    if not np.isin(scores, (-100.0, 0.0, 100.0)).all():
        return None
    return mcnemar(int(np.sum(scores > 0)), int(np.sum(scores < 0)))
