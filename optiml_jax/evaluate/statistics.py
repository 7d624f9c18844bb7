"""Uncertainty of the scores: intervals, paired tests, detectable differences.

Three questions. "Fixed tasks" asks about other instances of the same tasks: source examples are
redrawn, each with all its records - templates, numbers of shots, and the tasks of all collections
that show it - and every aggregate is recomputed in each replicate. "New tasks" asks about other
tasks of the same categories (new_tasks.py). Where a configuration was run with several seeds, the
spread between them is part of both intervals.
"""

import collections
import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.stats

from optiml_jax.evaluate.leaves import MEAN, Key, Leaf
from optiml_jax.evaluate.new_tasks import Error, error_of_mean
from optiml_jax.evaluate.resampling import NUM_REPLICATES, Path, Resampling
from optiml_jax.evaluate.rollup import Rollup, cut_to, difference

_TIED = 1e-9  # percent points: less is rounding
_EXACT_RANKS = 13  # up to here Wilcoxon's test is exact
_EXACT_FLIPS = 20  # up to here all sign patterns are tried


@dataclasses.dataclass(frozen=True)
class Interval:
    """A 95 % interval, in the unit of the cell (percent)."""

    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Spread:
    """Between the seeds of one configuration: their number, and the standard deviation."""

    seeds: int
    deviation: float


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A cell with its intervals.

    Attributes:
      fixed_tasks: for other instances of the same tasks.
      new_tasks: for other tasks of its categories; None: too few tasks to say.
      spread: between seeds; None: there is one.
    """

    value: float
    fixed_tasks: Interval
    new_tasks: Interval | None
    n_tasks: int
    n_clusters: int
    spread: Spread | None = None


@dataclasses.dataclass(frozen=True)
class Difference:
    """One paired comparison, `value - baseline`, in percent points, with its tests.

    Attributes:
      p: two-sided; the exact McNemar test for a single task of right-or-wrong instances at one
        number of shots, the fixed-tasks bootstrap otherwise; with several seeds the t test whose
        interval `fixed_tasks` is.
      p_tasks: two-sided test that `delta` is 0 by flipping the signs of the tasks' shares in it;
        `smallest_p(n_tasks)` at least.
      p_ranks: Wilcoxon's test of what `delta` is the mean of: category means, or the tasks of a
        category.
      detectable, detectable_new: the smallest true difference that a comparison like this one finds
        in 8 of 10 cases at the 5 % level, on these and on new tasks; None: no variance is seen.
      wins, ties, losses: tasks on which `value` is higher, equal, lower.
      effective_shots: demonstrations that the prompts of `value` held, mean over sub-tasks.
      n_prompts: different prompts, task by task.
      rules: metrics, with the score rule where candidates are ranked.
      missing: what is not in the comparison.
      seeds: of `value` and of `baseline`.
    """

    value: float | None
    baseline: float | None
    delta: float
    fixed_tasks: Interval
    new_tasks: Interval | None
    p: float
    p_tasks: float
    p_ranks: float
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
    seeds: tuple[int, int] = (1, 1)


def interval(replicates: np.ndarray) -> Interval:
    """The 2.5 % and 97.5 % percentiles."""
    low, high = np.percentile(replicates, [2.5, 97.5])
    return Interval(float(low), float(high))


def bootstrap_p(replicates: np.ndarray) -> float:
    """Twice the smaller tail beyond 0; at least 1 / (n + 1), the resolution of n replicates."""
    tail = min(np.mean(replicates <= 0), np.mean(replicates >= 0))
    return float(min(1.0, max(2 * tail, 1 / (len(replicates) + 1))))


def mcnemar(wins: int, losses: int) -> float:
    """The exact two-sided McNemar test: `wins` and `losses` are the two discordant counts."""
    n = wins + losses
    return float(scipy.stats.binomtest(min(wins, losses), n, 0.5).pvalue) if n else 1.0


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
    """Wilcoxon's two-sided signed-rank test; zeros are left out. Exact up to 13 deltas."""
    values = np.asarray([d for d in deltas if abs(d) > 1e-12], np.float64)
    if len(values) < 2:
        return 1.0
    if len(values) > _EXACT_RANKS:
        return float(scipy.stats.wilcoxon(values, method="approx").pvalue)
    ranks = scipy.stats.rankdata(abs(values).round(9))
    sums = np.zeros(1)  # of the positive ranks, for all patterns of signs
    for rank in ranks:
        sums = np.concatenate([sums, sums + rank])
    observed = ranks[values > 0].sum()
    return float(min(1.0, 2 * min(np.mean(sums <= observed), np.mean(sums >= observed))))


def smallest_p(n: int) -> float:
    """The smallest p-value of a two-sided sign-flip test of `n` differences."""
    return min(1.0, 2.0 ** (1 - n))


def holm(ps: Sequence[float]) -> list[float]:
    """The p-values of one table adjusted for their number, in the order given."""
    adjusted, running = [0.0] * len(ps), 0.0
    for rank, i in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        running = max(running, min(1.0, (len(ps) - rank) * ps[i]))
        adjusted[i] = running
    return adjusted


def _with_seeds(errors: Error, spread: Error | None) -> Error:
    """Both errors together; Satterthwaite's degrees of freedom."""
    if spread is None:
        return errors
    parts = [(e.value**2, e.df) for e in (errors, spread)]
    total = sum(variance for variance, _ in parts)
    below = sum(variance**2 / df for variance, df in parts)
    return Error(total**0.5, total**2 / below if below > 0 else np.inf)


def _seed_error(key: Key, *trees: Rollup) -> Error | None:
    """Of the mean over the seeds of each of the trees; None where all have one."""
    errors = []
    for tree in trees:
        values = [t.cells[key].value for t in tree.seeds if key in t.cells]
        values = [v for v in values if v is not None]
        if len(values) > 1:
            errors.append(
                Error(float(np.std(values, ddof=1)) / len(values) ** 0.5, len(values) - 1)
            )
    if not errors:
        return None
    found = errors[0]
    for other in errors[1:]:
        found = _with_seeds(found, other)
    return found


def _spread(key: Key, tree: Rollup) -> Spread | None:
    error = _seed_error(key, tree)
    if error is None:
        return None
    number = int(error.df) + 1
    return Spread(number, error.value * number**0.5)


def _around(value: float, error: Error) -> Interval:
    half = error.half_width()
    return Interval(value - half, value + half)


@dataclasses.dataclass(frozen=True)
class _Uncertainty:
    """The intervals of a cell, and the errors behind them; a `new_error` of None: too few tasks."""

    fixed: Interval
    new: Interval | None
    fixed_error: Error
    new_error: Error | None


def _uncertainty(
    key: Key, value: float, resampling: Resampling, seed_error: Error | None
) -> _Uncertainty:
    replicates = resampling.values(key)
    fixed_error = Error(float(np.std(replicates)), np.inf)
    fixed = interval(replicates)
    if seed_error is not None:
        fixed_error = _with_seeds(fixed_error, seed_error)
        fixed = _around(value, fixed_error)
    # One task says nothing about others.
    new_error = error_of_mean(resampling.groups(key)) if len(key.path) < 3 else None
    if new_error is None:
        return _Uncertainty(fixed, None, fixed_error, None)
    new_error = _with_seeds(new_error, seed_error)
    new = _around(value, new_error)
    # Other tasks come with other instances.
    new = Interval(min(new.low, fixed.low), max(new.high, fixed.high))
    return _Uncertainty(fixed, new, fixed_error, new_error)


def estimates(tree: Rollup, n: int = NUM_REPLICATES, seed: int = 0) -> dict[Key, Estimate]:
    """Intervals for every category, level and average that has a value."""
    if not tree.leaves:  # every task failed
        return {}
    resampling = Resampling(tree, n, seed)
    found = {}
    for key, cell in tree.cells.items():
        if len(key.path) <= 2 and cell.value is not None:
            sure = _uncertainty(key, cell.value, resampling, _seed_error(key, tree))
            found[key] = Estimate(
                value=cell.value,
                fixed_tasks=sure.fixed,
                new_tasks=sure.new,
                n_tasks=len(cell.tasks),
                n_clusters=resampling.n_clusters(cell.tasks),
                spread=_spread(key, tree),
            )
    return found


def compare(
    run: Rollup, baseline: Rollup, n: int = NUM_REPLICATES, seed: int = 0
) -> dict[Key, Difference]:
    """Paired comparison of two evaluations for every task, category, level and average.

    Raises:
      UserError: the two have no instance in common.
    """
    tree = difference(run, baseline)
    run, baseline = (
        dataclasses.replace(t, seeds=tuple(cut_to(s, tree) for s in t.seeds))
        for t in (run, baseline)
    )
    resampling = Resampling(tree, n, seed)
    by_task: dict[Path, list[Leaf]] = collections.defaultdict(list)
    for leaf in tree.leaves:
        by_task[leaf.key.path[:3]].append(leaf)
    return {
        key: _difference(key, run, baseline, tree, resampling, by_task)
        for key, cell in tree.cells.items()
        if len(key.path) <= 3 and cell.value is not None
    }


def _difference(
    key: Key,
    run: Rollup,
    baseline: Rollup,
    tree: Rollup,
    resampling: Resampling,
    by_task: Mapping[Path, Sequence[Leaf]],
) -> Difference:
    cell = tree.cells[key]
    seed_error = _seed_error(key, run, baseline)
    sure = _uncertainty(key, cell.value, resampling, seed_error)
    shares = resampling.shares(key)
    deltas = [value for _, value in shares.values()]
    leaves = [
        leaf
        for task in sorted(cell.tasks)
        for leaf in by_task[task]
        if key.shots in (leaf.key.shots, MEAN)
    ]
    n_clusters = resampling.n_clusters(cell.tasks)
    values = [t.cells[key].value if key in t.cells else None for t in (run, baseline)]
    return Difference(
        value=values[0],
        baseline=values[1],
        delta=cell.value,
        fixed_tasks=sure.fixed,
        new_tasks=sure.new,
        p=_p(cell.value, leaves, resampling.values(key), n_clusters, sure, seed_error),
        p_tasks=sign_flip([weight * value for weight, value in shares.values()]),
        p_ranks=wilcoxon(_means(key, shares)),
        detectable=sure.fixed_error.detectable(),
        detectable_new=sure.new_error.detectable() if sure.new_error else None,
        n_tasks=len(deltas),
        n_clusters=n_clusters,
        wins=sum(d > _TIED for d in deltas),
        ties=sum(abs(d) <= _TIED for d in deltas),
        losses=sum(d < -_TIED for d in deltas),
        effective_shots=_effective_shots(tree, leaves),
        n_prompts=len({(leaf.key.subtask, i[1]) for leaf in leaves for i in leaf.ids}),
        rules=tuple(sorted({f"{x.metric} ({x.rule})" if x.rule else x.metric for x in leaves})),
        missing=cell.missing,
        seeds=(max(1, len(run.seeds)), max(1, len(baseline.seeds))),
    )


def _means(key: Key, shares: Mapping[Path, tuple[float, float]]) -> list[float]:
    """What a cell is the mean of: its tasks, or the category means."""
    if len(key.path) >= 2:
        return [value for _, value in shares.values()]
    columns: dict[Path, list[tuple[float, float]]] = collections.defaultdict(list)
    for task, share in shares.items():
        columns[task[:2]].append(share)
    return [sum(w * v for w, v in own) / sum(w for w, _ in own) for own in columns.values()]


def _p(
    delta: float,
    leaves: Sequence[Leaf],
    replicates: np.ndarray,
    n_clusters: int,
    sure: _Uncertainty,
    seed_error: Error | None,
) -> float:
    if seed_error is not None:
        error = sure.fixed_error
        if error.value == 0:
            return float(delta == 0)
        return float(2 * scipy.stats.t.sf(abs(delta) / error.value, error.df))
    p = _mcnemar_of(leaves)
    return max(bootstrap_p(replicates), smallest_p(n_clusters)) if p is None else p


def _effective_shots(tree: Rollup, leaves: Sequence[Leaf]) -> float | None:
    cells = {(leaf.key.subtask, leaf.key.shots) for leaf in leaves}
    shown = [s["mean"] for c in cells if (s := tree.summaries[c].get("effective_shots"))]
    return float(np.mean(shown)) if shown else None


def _mcnemar_of(leaves: Sequence[Leaf]) -> float | None:
    """McNemar's p where there is one leaf of right-or-wrong instances with own clusters."""
    if len(leaves) != 1 or len(set(leaves[0].clusters)) != len(leaves[0].clusters):
        return None
    if not leaves[0].measure.is_mean:
        return None
    scores = leaves[0].scores
    if not np.isin(scores, (-100.0, 0.0, 100.0)).all():
        return None
    return mcnemar(int(np.sum(scores > 0)), int(np.sum(scores < 0)))
