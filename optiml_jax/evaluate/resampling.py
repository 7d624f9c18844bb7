"""Replicates of cells over other source examples, and the shares of the tasks in each cell."""

import collections
import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
import scipy.sparse

from optiml_jax.evaluate.leaves import MEAN, Key, Leaf
from optiml_jax.evaluate.new_tasks import Group
from optiml_jax.evaluate.rollup import Rollup

NUM_REPLICATES = 10_000
_CHUNK = 2_000_000  # drawn clusters held at a time
_SPARSE = 0.2  # share of (cluster, column) pairs that are filled, below which zeros are left out

Path = tuple[str, ...]


class _Block:
    """The leaves of tasks that share source examples, ready to be redrawn together."""

    def __init__(self, leaves: Sequence[Leaf], shots: Sequence[int]):
        index: dict[str, int] = {}
        for leaf in leaves:
            for cluster in leaf.clusters:
                index.setdefault(cluster, len(index))
        self.n_clusters = len(index)
        self.leaves = leaves
        columns, self._places, at = [], [], 0
        for leaf in leaves:
            rows = np.array([index[c] for c in leaf.clusters])
            width = sum(part.statistics.shape[1] for part in leaf.parts)
            sums = np.zeros((len(index), 1 + width))
            np.add.at(sums[:, 0], rows, 1.0)
            np.add.at(sums[:, 1:], rows, np.hstack([part.statistics for part in leaf.parts]))
            columns.append(sums)
            self._places.append(at)
            at += 1 + width
        self._sums = np.hstack(columns)
        if np.count_nonzero(self._sums) < _SPARSE * self._sums.size:
            self._sums = scipy.sparse.csr_array(self._sums)
        grouped: dict[Path, list[int]] = collections.defaultdict(list)
        for i, leaf in enumerate(leaves):
            grouped[leaf.key.path[:3]].append(i)
        self.weights = {
            path: (members, _leaf_weights([leaves[i] for i in members], shots))
            for path, members in grouped.items()
        }
        self._whole = np.array([leaf.value for leaf in leaves])

    def _values(self, drawn: np.ndarray) -> np.ndarray:
        """float[n, leaves] from how often each cluster was drawn, [n, clusters]."""
        sums = drawn @ self._sums
        values = np.empty((len(drawn), len(self.leaves)))
        for column, (leaf, at) in enumerate(zip(self.leaves, self._places, strict=True)):
            count, start, total = sums[:, at], at + 1, 0.0
            for part in leaf.parts:
                stop = start + part.statistics.shape[1]
                total = total + part.weight * leaf.measure.value(sums[:, start:stop], count)
                start = stop
            # A leaf of which a replicate drew no instance keeps its own value.
            values[:, column] = np.where(count > 0, total, self._whole[column])
        return values

    def task_values(self, values: np.ndarray) -> dict[Path, np.ndarray]:
        """Task -> float[n, shots] of the leaves' values; NaN where it was not evaluated."""
        return {path: values[:, rows] @ w for path, (rows, w) in self.weights.items()}

    def own(self) -> dict[Path, np.ndarray]:
        """Task -> float[shots], as evaluated."""
        return {path: v[0] for path, v in self.task_values(self._whole[None]).items()}

    def draw(self, rng: np.random.Generator, n: int) -> dict[Path, np.ndarray]:
        """Task -> float[n, shots] in n replicates."""
        c = self.n_clusters
        parts = []
        step = max(1, _CHUNK // c)
        for start in range(0, n, step):
            rows = min(step, n - start)
            picks = rng.integers(c, size=(rows, c), dtype=np.int32)
            picks += np.arange(rows, dtype=np.int32)[:, None] * c
            drawn = np.bincount(picks.ravel(), minlength=rows * c).reshape(rows, c)
            parts.append(self._values(drawn.astype(np.float64)))
        return self.task_values(np.concatenate(parts))


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


def _blocks(leaves: Iterable[Leaf]) -> list[list[Leaf]]:
    """The leaves, those of tasks that share a source example (also through others) together."""
    tasks: dict[Path, list[Leaf]] = collections.defaultdict(list)
    for leaf in leaves:
        tasks[leaf.key.path[:3]].append(leaf)
    paths = list(tasks)
    first: dict[str, int] = {}
    edges = []
    for i, path in enumerate(paths):
        for cluster in {c for leaf in tasks[path] for c in leaf.clusters}:
            edges.append((first.setdefault(cluster, i), i))
    rows, columns = np.array(edges).T
    graph = scipy.sparse.coo_array((np.ones(len(edges)), (rows, columns)), (len(paths), len(paths)))
    number, labels = scipy.sparse.csgraph.connected_components(graph, directed=False)
    found: list[list[Leaf]] = [[] for _ in range(number)]
    for path, label in zip(paths, labels, strict=True):
        found[label] += tasks[path]
    return found


class Resampling:
    """Replicates of every cell from the task upwards, over other instances of the same tasks.

    Args:
      tree: an evaluation, or the `difference` of two.
      n: number of replicates.
      seed: equal seeds give equal replicates.
    """

    def __init__(self, tree: Rollup, n: int = NUM_REPLICATES, seed: int = 0):
        self._shots, self._tree = tree.shots, tree
        rng = np.random.default_rng([seed, 0])
        self.clusters: dict[Path, set[str]] = collections.defaultdict(set)
        for leaf in tree.leaves:
            self.clusters[leaf.key.path[:3]].update(leaf.clusters)
        self.own: dict[Path, np.ndarray] = {}  # task -> float[shots]
        self._tasks: dict[Path, np.ndarray] = {}
        for leaves in _blocks(tree.leaves):
            block = _Block(leaves, tree.shots)
            self.own |= block.own()
            self._tasks |= block.draw(rng, n)
        columns: dict[Path, list[Path]] = collections.defaultdict(list)
        for path in self._tasks:
            columns[path[:2]].append(path)
        self._columns = {
            column: _nanmean(np.stack([self._tasks[p] for p in paths], axis=1), axis=1)
            for column, paths in columns.items()
        }

    def n_clusters(self, tasks: Iterable[Path]) -> int:
        """Different source examples of some tasks."""
        return len(set().union(*(self.clusters[t] for t in tasks)))

    def values(self, key: Key) -> np.ndarray:
        """float64[n]: the replicates of a cell with at most three names."""
        if key.shots == MEAN:
            found = _known_shots(self._tree, key)
            return np.mean([self.values(k) for k in found], axis=0)
        s = self._shots.index(key.shots)
        if len(key.path) == 3:
            return self._tasks[key.path][:, s]
        if len(key.path) == 2:
            return self._columns[key.path][:, s]
        members = [c.path for c in self._tree.cells[key].columns if c.path in self._columns]
        return _nanmean(np.stack([self._columns[m][:, s] for m in members], axis=1), axis=1)

    def shares(self, key: Key) -> dict[Path, tuple[float, float]]:
        """Task -> its weight in a cell, and its value; the cell is the sum of their products."""
        weights: dict[Path, np.ndarray] = {}
        found = _known_shots(self._tree, key)
        for at in found:
            s = self._shots.index(at.shots)
            cell = self._tree.cells[at]
            columns = [c.path for c in cell.columns] or [at.path[:2]]
            columns = [c for c in columns if self._tree.cells[Key(at.shots, *c)].value is not None]
            for column in columns:
                tasks = [
                    t
                    for t in sorted(self._tree.cells[Key(at.shots, *column)].tasks & cell.tasks)
                    if not np.isnan(self.own[t][s])
                ]
                for task in tasks:
                    own = weights.setdefault(task, np.zeros(len(self._shots)))
                    own[s] += 1.0 / (len(found) * len(columns) * len(tasks))
        return {
            task: (float(w.sum()), float(np.nansum(w * self.own[task]) / w.sum()))
            for task, w in weights.items()
        }

    def groups(self, key: Key) -> list[Group]:
        """The tasks of a cell by category; those that show the same examples count as one."""
        shares = self.shares(key)
        columns: dict[Path, list[Path]] = collections.defaultdict(list)
        for task in sorted(shares):
            columns[task[:2]].append(task)
        noise = {t: float(np.var(self.values(Key(key.shots, *t)))) for t in shares}
        groups = []
        for tasks in columns.values():
            rows = []
            for alike in self._alike(tasks):
                weight = sum(shares[t][0] for t in alike)
                value = sum(w * v for w, v in (shares[t] for t in alike)) / weight
                rows.append((weight, value, max(noise[t] for t in alike)))
            groups.append(Group(*map(np.array, zip(*rows, strict=True))))
        return groups

    def _alike(self, tasks: Sequence[Path]) -> list[list[Path]]:
        """Tasks with most of the smaller one's source examples in common are one draw."""
        found: list[list[Path]] = []
        holders: dict[str, list[int]] = collections.defaultdict(list)  # example -> in `found`
        for task in tasks:
            own = self.clusters[task]
            shared = collections.Counter(i for example in own for i in holders.get(example, ()))
            alike = [
                i
                for i, number in shared.items()
                if 2 * number > min(len(own), len(self.clusters[found[i][0]]))
            ]
            if alike:
                found[min(alike)].append(task)
                continue
            for example in own:
                holders[example].append(len(found))
            found.append([task])
        return found


def _known_shots(tree: Rollup, key: Key) -> list[Key]:
    """The cells at one number of shots that a cell is the mean of."""
    if key.shots != MEAN:
        return [key]
    each = [dataclasses.replace(key, shots=k) for k in tree.shots]
    return [k for k in each if k in tree.cells and tree.cells[k].value is not None]


def _nanmean(values: np.ndarray, axis: int) -> np.ndarray:
    """Mean over the entries that are numbers; NaN where there is none."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0.0).sum(axis) / known.sum(axis)
