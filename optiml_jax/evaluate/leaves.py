"""The lowest cells of an evaluation: the units of one sub-task at one number of shots.

What is above them is made in rollup.py.
"""

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from optiml_jax.errors import UserError
from optiml_jax.evaluate.baselines import baselines
from optiml_jax.evaluate.measures import Measure, unit_score
from optiml_jax.evaluate.metrics import METRICS
from optiml_jax.evaluate.records import Record, TaskInfo

MEAN = "mean"  # the "number of shots" of a cell that combines all of them


@dataclasses.dataclass(frozen=True)
class Key:
    """Names a cell; the fields that are filled say how far it is aggregated.

    `Key(0, level, category)` is a category's cell at 0 shots, `Key(0, level)` the level's, `Key(0)`
    the printed average over all columns; `shots == "mean"` combines the numbers of shots.
    """

    shots: int | Literal["mean"]
    level: str = ""
    category: str = ""
    task: str = ""
    benchmark: str = ""
    subtask: str = ""

    @property
    def path(self) -> tuple[str, ...]:
        """The filled names from level downwards."""
        names = (self.level, self.category, self.task, self.benchmark, self.subtask)
        return tuple(n for n in names if n)

    def up(self, depth: int) -> "Key":
        """The cell that this one is averaged into, cut to its first `depth` names."""
        return Key(self.shots, *self.path[:depth])


class Part(NamedTuple):
    """One evaluation's share in a leaf: `weight` times the measure of `statistics`, [n, d]."""

    weight: float
    statistics: np.ndarray


@dataclasses.dataclass(frozen=True)
class Leaf:
    """The units of one sub-task at one number of shots, under one prompt or all pooled.

    Attributes:
      key: the sub-task's cell.
      metric: a name of `METRICS`.
      ids: one (example id, prompt id, occurrence) per unit, unique within the leaf.
      clusters: the source example of each unit.
      scores: float64[n] in percent, of each unit alone.
      parts: what `value` is the sum of: one evaluation, or several (seeds), minus others.
      baselines: answers that read no input, by `baselines.KINDS`, in percent.
      rule: by which the candidates were ranked; "" for generated answers.
      more: the metric's further measures, in percent.
      overlaps: bool[n], the units that overlap with the training data; None: not audited.
    """

    key: Key
    metric: str
    prompt: str
    ids: tuple[tuple[str, str, int], ...]
    clusters: tuple[str, ...]
    scores: np.ndarray
    parts: tuple[Part, ...]
    baselines: Mapping[str, float | None]
    rule: str
    more: Mapping[str, float] = dataclasses.field(default_factory=dict)
    overlaps: np.ndarray | None = None

    @property
    def measure(self) -> Measure:
        """What the leaf's value is."""
        return METRICS[self.metric].main

    @property
    def value(self) -> float:
        """In percent."""
        n = np.asarray(float(len(self.ids)))
        return float(sum(p.weight * self.measure.value(p.statistics.sum(0), n) for p in self.parts))


def leaf_key(info: TaskInfo, shots: int, by: str) -> Key:
    column = info.category if by == "category" else info.benchmark
    if not (info.level and column and info.benchmark):
        raise UserError(
            f"task {info.task} has no level, category or benchmark; add them to the split manifest"
        )
    return Key(shots, info.level, column, info.aggregate_as or info.task, info.benchmark, info.task)


def leaves_of(
    info: TaskInfo,
    key: Key,
    metric_name: str,
    records: Sequence[Record],
    constant: float | None,
    rule: str,
) -> Iterable[Leaf]:
    """The leaves of a task's records: one for each prompt where prompts are crossed.

    Args:
      constant: the metric of the best constant answer, percent; None: it is looked for.
      rule: by which the records' candidates were ranked.
    """
    metric = METRICS[metric_name]
    values = baselines(metric, records, constant)
    groups: dict[str, list[Record]] = collections.defaultdict(list)
    for record in records:
        groups[record.prompt_id if info.prompts == "crossed" else ""].append(record)
    for prompt, members in groups.items():
        units = metric.units(members)
        seen: collections.Counter = collections.Counter()
        ids = []
        for record, *_ in units:
            name = (record.example_id, record.prompt_id)
            ids.append((*name, seen[name]))
            seen[name] += 1
        scores = 100.0 * np.array([unit_score(unit) for unit in units])
        own = scores[:, None] if metric.main.is_mean else metric.main.statistics(units)
        yield Leaf(
            key=key,
            metric=metric_name,
            prompt=prompt,
            ids=tuple(ids),
            clusters=tuple(unit[0].cluster for unit in units),
            scores=scores,
            parts=(Part(1.0, own),),
            baselines=values,
            rule=rule if metric.ranked else "",
            more={measure.name: measure.of(units) for measure in metric.measures[1:]},
            overlaps=_overlaps(units),
        )


def _overlaps(units: Sequence[Sequence[Record]]) -> np.ndarray | None:
    """Of each unit whether one of its records overlaps; None where one was not audited."""
    flags = [[record.overlap for record in unit] for unit in units]
    if any(flag is None for unit in flags for flag in unit):
        return None
    return np.array([any(unit) for unit in flags], bool)


def joined(leaves: Sequence[Leaf], weights: Sequence[float]) -> Leaf | None:
    """The weighted sum of the same leaf of several evaluations; None: they share no unit."""
    first = leaves[0]
    places = [{key: i for i, key in enumerate(leaf.ids)} for leaf in leaves]
    kept = [key for key in first.ids if all(key in own for own in places)]
    if not kept or len({leaf.metric for leaf in leaves}) > 1:
        return None
    rows = [[own[key] for key in kept] for own in places]
    scores = sum(w * leaf.scores[r] for leaf, w, r in zip(leaves, weights, rows, strict=True))
    parts = [
        Part(w * part.weight, part.statistics[r])
        for leaf, w, r in zip(leaves, weights, rows, strict=True)
        if w
        for part in leaf.parts
    ]
    if first.measure.is_mean:  # then the parts are the mean of the sums
        parts = [Part(1.0, scores[:, None])]
    total = sum(weights)  # 1 for a mean, 0 for a difference, which has no baseline
    return dataclasses.replace(
        first,
        ids=tuple(kept),
        clusters=tuple(first.clusters[i] for i in rows[0]),
        overlaps=None if first.overlaps is None else first.overlaps[rows[0]],
        scores=scores,
        parts=tuple(parts),
        baselines=first.baselines if total else {},
        more={
            name: sum(w * leaf.more[name] for leaf, w in zip(leaves, weights, strict=True))
            for name in first.more
        },
    )
