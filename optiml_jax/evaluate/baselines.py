"""Scores of answers that ignore the input: what a model has to beat."""

import collections
import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from optiml_jax.evaluate.metrics import Metric
from optiml_jax.evaluate.records import Record

KINDS = ("constant", "position", "chance")
_MOST_CANDIDATES = 100  # constant texts tried; of those whose aggregate is no mean, the first ...
_MOST_CANDIDATES_AGGREGATED = 20


@dataclasses.dataclass(frozen=True)
class Constant:
    """The best constant answer and its score under the task's metric, in percent."""

    answer: str
    value: float


def best_constant(metric: Metric, records: Sequence[Record]) -> Constant:
    """The one text that scores best when given to every instance.

    Tried are the references of the task itself, at most the 100 most frequent ones (earlier first
    among equals).
    """
    counts = collections.Counter(
        r.strip() for record in records for r in dict.fromkeys(record.references)
    )
    most = _MOST_CANDIDATES if metric.main.is_mean else _MOST_CANDIDATES_AGGREGATED
    scores = _Scores(metric)
    best = Constant("", 0.0)
    for answer, _ in counts.most_common(most):
        value = scores.of_one(records, answer)
        if value > best.value:
            best = Constant(answer, value)
    return best


def best_position(metric: Metric, records: Sequence[Record]) -> Constant | None:
    """The option position that is most often right, counted from 1; None without candidates."""
    if not _ranks(metric, records):
        return None
    scores = _Scores(metric)
    best = Constant("", 0.0)
    offered = [[c.text for c in record.offered] for record in records]
    for place in range(max(map(len, offered))):
        shown = [texts[place] if place < len(texts) else "" for texts in offered]
        value = scores.of_answers(records, shown)
        if value > best.value:
            best = Constant(str(place + 1), value)
    return best


def chance(metric: Metric, records: Sequence[Record]) -> float | None:
    """The expected score of a random candidate; None without candidates or an average."""
    if not _ranks(metric, records) or not metric.main.is_mean:
        return None
    units = metric.units(records)
    each = [np.prod([len(r.correct) / len(r.offered) for r in unit]) for unit in units]
    return 100.0 * float(np.mean(each))


def _ranks(metric: Metric, records: Sequence[Record]) -> bool:
    """Whether candidates were ranked and are in the records."""
    return metric.ranked and all(record.candidates for record in records)


def baselines(
    metric: Metric, records: Sequence[Record], constant: float | None = None
) -> dict[str, float | None]:
    """All of them by `KINDS`, in percent; None: there is no such baseline.

    Args:
      constant: what `best_constant` found, where it is known already.
    """
    position = best_position(metric, records)
    return {
        "constant": best_constant(metric, records).value if constant is None else constant,
        "position": None if position is None else position.value,
        "chance": chance(metric, records),
    }


def best(values: Mapping[str, float | None]) -> float | None:
    """The highest of the baselines."""
    known = [v for v in values.values() if v is not None]
    return max(known) if known else None


class _Scores:
    """The metric of given answers; scores of (references, answer) are computed once."""

    def __init__(self, metric: Metric):
        self._metric = metric
        self._averages = metric.main.is_mean and not metric.questions
        self._known: dict[tuple[tuple[str, ...], str], float] = {}

    def of_one(self, records: Sequence[Record], answer: str) -> float:
        """The metric when every instance gets the same answer."""
        if not self._averages:
            return self.of_answers(records, [answer] * len(records))
        alike = collections.Counter(record.references for record in records)
        total = sum(n * self._score(references, answer) for references, n in alike.items())
        return 100.0 * total / len(records)

    def of_answers(self, records: Sequence[Record], given: Sequence[str]) -> float:
        """The metric of one answer for each record."""
        if self._averages:
            pairs = zip(records, given, strict=True)
            return 100.0 * float(np.mean([self._score(r.references, a) for r, a in pairs]))
        answered = [
            dataclasses.replace(
                record, prediction=answer, score=self._score(record.references, answer)
            )
            for record, answer in zip(records, given, strict=True)
        ]
        return self._metric.main.of(self._metric.units(answered))

    def _score(self, references: tuple[str, ...], answer: str) -> float:
        key = (references, answer)
        if key not in self._known:
            self._known[key] = self._metric.score(references, answer)
        return self._known[key]
