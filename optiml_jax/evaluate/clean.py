"""Scores over the clean subset: the examples that do not overlap with the training data.

The difference to the score over all examples is a measure of its own, so that its interval comes
from the same redrawing of source examples as all others (resampling.py).
"""

import dataclasses

import numpy as np

from optiml_jax.evaluate.leaves import Key, Leaf, Part
from optiml_jax.evaluate.measures import Measure
from optiml_jax.evaluate.resampling import NUM_REPLICATES
from optiml_jax.evaluate.rollup import Rollup, rollup_of_leaves
from optiml_jax.evaluate.statistics import Estimate, estimates


@dataclasses.dataclass(frozen=True)
class _CleanLeaf(Leaf):
    """A leaf whose value is the score of its clean units minus that of all."""

    whole: Measure | None = None

    @property
    def measure(self) -> Measure:
        def value(sums: np.ndarray, n: np.ndarray) -> np.ndarray:
            half = (sums.shape[-1] - 1) // 2
            clean, number = sums[..., :half], sums[..., half]
            both = self.whole.value(clean, np.maximum(number, 1.0)) - self.whole.value(
                sums[..., half + 1 :], n
            )
            # A replicate that drew no clean unit says nothing of a difference.
            return np.where(number > 0, both, 0.0)

        return Measure("clean", lambda units: np.zeros((len(units), 0)), value)


@dataclasses.dataclass(frozen=True)
class Clean:
    """An evaluation over its clean examples.

    Attributes:
      scores: over all examples of the tasks that have clean ones.
      differences: cell -> clean minus all, with intervals, for levels, categories and averages.
      tree: the same differences for every cell from the task upwards.
      units: cell -> (overlapping, all) units, summed over tasks.
      unaudited: tasks whose examples were not audited; they are in no number here.
      unclean: tasks of which no example is clean; they are in no number either.
    """

    scores: Rollup
    differences: dict[Key, Estimate]
    tree: Rollup
    units: dict[Key, tuple[int, int]]
    unaudited: tuple[str, ...]
    unclean: tuple[str, ...]


def clean(tree: Rollup, n: int = NUM_REPLICATES, seed: int = 0) -> Clean | None:
    """The clean subset of an evaluation; None: none of its tasks was audited."""
    leaves, units = [], {}
    unaudited, unclean = set(), set()
    for leaf in tree.leaves:
        if leaf.overlaps is None:
            unaudited.add(leaf.key.subtask)
            continue
        if leaf.overlaps.all():
            unclean.add(leaf.key.subtask)
            continue
        for depth in range(4):
            key = leaf.key.up(depth)
            before = units.get(key, (0, 0))
            units[key] = (before[0] + int(leaf.overlaps.sum()), before[1] + len(leaf.overlaps))
        leaves.append(leaf)
    if not leaves and not unclean:
        return None
    differences = rollup_of_leaves([_difference(leaf) for leaf in leaves])
    return Clean(
        scores=rollup_of_leaves(leaves),
        differences=estimates(differences, n, seed),
        tree=differences,
        units=units,
        unaudited=tuple(sorted(unaudited)),
        unclean=tuple(sorted(unclean)),
    )


def _difference(leaf: Leaf) -> _CleanLeaf:
    kept = ~leaf.overlaps
    parts = [
        Part(
            part.weight,
            np.hstack([part.statistics * kept[:, None], kept[:, None], part.statistics]),
        )
        for part in leaf.parts
    ]
    fields = {f.name: getattr(leaf, f.name) for f in dataclasses.fields(Leaf)}
    fields |= {"parts": tuple(parts), "baselines": {}, "more": {}}
    return _CleanLeaf(**fields, whole=leaf.measure)
