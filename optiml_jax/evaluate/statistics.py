"""How far a number of the tables can be trusted: intervals, paired tests, detectable differences.

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
import statistics
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
    """One paired comparison, `value - baseline`, in percent points, with all that judges it.

    Attributes:
      p: two-sided; the exact McNemar test for a single task of right-or-wrong instances at one
        number of shots, the fixed-tasks bootstrap otherwise.
      p_tasks: two-sided sign-flip test over the tasks' differences; `smallest_p(n_tasks)` at least.
      p_wilcoxon: the same over their signed ranks (Wilcoxon).
      detectable, detectable_new: the smallest true difference that a comparison like this one finds
        in 8 of 10 cases at the 5 % level, on these and on new tasks; None: no variance is seen.
      wins, ties, losses: tasks on which `value` is higher, equal, lower.
      effective_shots: demonstrations that the prompts of `value` held, mean over sub-tasks.
      n_prompts: different prompts, task by task.
      rules: metrics, with the score rule where candidates are ranked.
      missing: what is not in the comparison.
    """

    value: float | None
    baseline: float | None
    delta: float
    fixed_tasks: Interval
    new_tasks: Interval
    p: float
    p_tasks: float
    p_wilcoxon: float
    detectable: float | None
    detectable_new: float | None
    n_tasks: int
    n_clusters: int
    wins: int
    ties: int
    losses: int
    effective_shots: float | None
    n_prompts: int
    rules: tuple[str, ...]
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


def wilcoxon(deltas: Sequence[float]) -> float:
    """Wilcoxon's two-sided signed-rank test: sign flips of the ranks; zeros are left out."""
    values = np.asarray([d for d in deltas if d], np.float64)
    _, places, counts = np.unique(abs(values), return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2  # equal ones share their mean rank
    return sign_flip(np.sign(values) * ranks[places])


def smallest_p(n: int) -> float:
    """What a two-sided sign-flip test of `n` differences cannot go below."""
    return min(1.0, 2.0 ** (1 - n))


def holm(ps: Sequence[float]) -> list[float]:
    """The p-values of one table adjusted for their number, in the order given."""
    adjusted, running = [0.0] * len(ps), 0.0
    for rank, i in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        running = max(running, min(1.0, (len(ps) - rank) * ps[i]))
        adjusted[i] = running
    return adjusted


def detectable(replicates: np.ndarray, alpha: float = 0.05, power: float = 0.8) -> float | None:
    """The minimum detectable difference of a two-sided test at `alpha`, found with `power`.

    Normal approximation with the standard error of the replicates; None where that is 0, for then
    nothing is known about the variance.
    """
    error = float(np.std(replicates))
    normal = statistics.NormalDist().inv_cdf
    return (normal(1 - alpha / 2) + normal(power)) * error if error > 1e-9 else None


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
    # One task says nothing about others.
    new_replicates = replicates if len(key.path) == 3 else new.values(key)
    deltas = []
    for path in sorted(cell.tasks):
        task = tree.cells.get(Key(key.shots, *path))
        if task is not None and task.value is not None:
            deltas.append(task.value)
    leaves = [
        leaf
        for leaf in tree.leaves
        if leaf.key.path[:3] in cell.tasks and key.shots in (leaf.key.shots, MEAN)
    ]
    n_clusters = sum(fixed.tasks[t].n_clusters for t in cell.tasks)
    p = _mcnemar_of(leaves)
    if p is None:
        p = max(bootstrap_p(replicates), smallest_p(n_clusters))
    values = [t.cells[key].value if key in t.cells else None for t in (run, baseline)]
    return Difference(
        value=values[0],
        baseline=values[1],
        delta=cell.value,
        fixed_tasks=interval(replicates),
        new_tasks=interval(new_replicates),
        p=p,
        p_tasks=sign_flip(deltas),
        p_wilcoxon=wilcoxon(deltas),
        detectable=detectable(replicates),
        detectable_new=detectable(new_replicates),
        n_tasks=len(deltas),
        n_clusters=n_clusters,
        wins=sum(d > 0 for d in deltas),
        ties=sum(d == 0 for d in deltas),
        losses=sum(d < 0 for d in deltas),
        effective_shots=_effective_shots(tree, leaves),
        n_prompts=len({(leaf.key.subtask, i[1]) for leaf in leaves for i in leaf.ids}),
        rules=tuple(sorted({f"{x.metric} ({x.rule})" if x.rule else x.metric for x in leaves})),
        missing=cell.missing,
    )


def _effective_shots(tree: Rollup, leaves: Sequence[Leaf]) -> float | None:
    cells = {(leaf.key.subtask, leaf.key.shots) for leaf in leaves}
    shown = [s["mean"] for c in cells if (s := tree.summaries[c].get("effective_shots"))]
    return float(np.mean(shown)) if shown else None


def _mcnemar_of(leaves: Sequence[Leaf]) -> float | None:
    """McNemar's p where there is one leaf of right-or-wrong instances with own clusters."""
    if len(leaves) != 1 or len(set(leaves[0].clusters)) != len(leaves[0].clusters):
        return None
    scores = leaves[0].scores
    if not np.isin(scores, (-100.0, 0.0, 100.0)).all():
        return None
    return mcnemar(int(np.sum(scores > 0)), int(np.sum(scores < 0)))
