"""Aggregates of a task's answers, each defined once and cheap to bootstrap.

A unit is what an aggregate counts: one record, or the records of one question (MultiRC). Every
aggregate is a function of sums: `statistics` gives some numbers per unit, `value` makes the result
of their sums. A table's number, a bootstrap replicate and SeqIO's number are that same function of
the sums over other sets of units. Results are percentages.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import sacrebleu

from optiml_jax.evaluate import answers
from optiml_jax.evaluate.answer_scores import BLEU
from optiml_jax.evaluate.records import Record

Unit = Sequence[Record]
# What says that an answer is right (MultiRC), that two sentences mean the same (paraphrases).
_POSITIVE = ("true", "yes", "equivalent", "paraphrase", "duplicate")
_NO_NUMBER = -1.0  # an answer without one, as T5 reads it
_ORDERS = 4  # BLEU's n-grams


@dataclasses.dataclass(frozen=True)
class Measure:
    """One aggregate.

    Attributes:
      name: as SeqIO, records and tables call it.
      statistics: units -> float64[n, d].
      value: (sums float64[..., d], numbers of units float64[...]) -> float64[...], percent; NaN
        where it is not defined.
      is_mean: it is the mean of the units' own values (d = 1, percent).
    """

    name: str
    statistics: Callable[[Sequence[Unit]], np.ndarray]
    value: Callable[[np.ndarray, np.ndarray], np.ndarray]
    is_mean: bool = False

    def of(self, units: Sequence[Unit]) -> float:
        """The aggregate of all units."""
        return float(self.value(self.statistics(units).sum(0), np.asarray(float(len(units)))))


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(above, np.float64) / below


def mean_of(name: str, score: Callable[[Unit], float]) -> Measure:
    """The mean of `score`, a number in [0, 1], over the units."""

    def statistics(units: Sequence[Unit]) -> np.ndarray:
        return 100.0 * np.array([[score(unit)] for unit in units], np.float64)

    return Measure(name, statistics, lambda sums, n: _ratio(sums[..., 0], n), is_mean=True)


def unit_score(unit: Unit) -> float:
    """The score of a unit; of a question with several answers that of the worst."""
    return min(record.score for record in unit)


# --- labels ---------------------------------------------------------------------------------------


def right_texts(record: Record) -> set[str]:
    """The right answers among the candidates."""
    return {record.candidates[i].text for i in record.correct}


def _label_statistics(units: Sequence[Unit]) -> np.ndarray:
    """Of every label whether it is right, chosen, and both: float64[n, 3 * (labels + 1)].

    The last stands for answers that name none of the candidates.
    """
    records = [record for unit in units for record in unit]
    chosen = {r.prediction for r in records if not r.names_none}
    labels = sorted(chosen.union(*map(right_texts, records)))
    place = {label: i for i, label in enumerate(labels)}
    found = np.zeros((len(records), 3, len(labels) + 1))
    for row, record in zip(found, records, strict=True):
        right = [place[text] for text in right_texts(record)]
        row[0, right] = 1
        row[1, -1 if record.names_none else place[record.prediction]] = 1
    found[:, 2] = found[:, 0] * found[:, 1]
    return found.reshape(len(records), -1)


def _labels(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    right, chosen, both = np.moveaxis(sums.reshape(*sums.shape[:-1], 3, -1), -2, 0)
    return right, chosen, both


def _macro_f1(sums: np.ndarray, n: np.ndarray) -> np.ndarray:
    right, chosen, both = (x[..., :-1] for x in _labels(sums))
    seen = right + chosen > 0
    each = np.where(seen, 2 * both / np.maximum(right + chosen, 1e-300), 0.0)
    return 100.0 * _ratio(each.sum(-1), seen.sum(-1))


def _matthews(sums: np.ndarray, n: np.ndarray) -> np.ndarray:
    """0 where there is only one label, as in scikit-learn."""
    right, chosen, both = _labels(sums)
    above = both.sum(-1) * n - (right * chosen).sum(-1)
    below = (n**2 - (right**2).sum(-1)) * (n**2 - (chosen**2).sum(-1))
    return 100.0 * np.where(below > 0, above / np.sqrt(np.maximum(below, 1e-300)), 0.0)


macro_f1 = Measure("macro_f1", _label_statistics, _macro_f1)
matthews = Measure("matthews", _label_statistics, _matthews)


# --- yes or no ------------------------------------------------------------------------------------


def _judgement(record: Record) -> tuple[bool, bool]:
    """Whether the positive candidate is right, and whether it was chosen."""
    texts = [c.text for c in record.offered]
    yes = [i for i, text in enumerate(texts) if text.lower().lstrip("[").startswith(_POSITIVE)]
    if len(yes) != 1:
        raise ValueError(f"one candidate must begin with one of {_POSITIVE}, got {texts}")
    return yes[0] in record.correct, record.prediction == texts[yes[0]]


def _positive_statistics(units: Sequence[Unit]) -> np.ndarray:
    rows = []
    for unit in units:
        right, chosen = np.array([_judgement(record) for record in unit], np.float64).T
        rows.append((right.sum(), chosen.sum(), (right * chosen).sum()))
    return np.array(rows)


def _positive_f1(sums: np.ndarray, n: np.ndarray) -> np.ndarray:
    """1 where nothing is right and nothing chosen."""
    either = sums[..., 0] + sums[..., 1]
    return 100.0 * np.where(either > 0, 2 * sums[..., 2] / np.maximum(either, 1e-300), 1.0)


def f1_of_positive(name: str) -> Measure:
    """F1 of the positive candidates, over all records of all units."""
    return Measure(name, _positive_statistics, _positive_f1)


def unit_positive_f1(unit: Unit) -> float:
    """The same within one unit, in [0, 1]."""
    return float(_positive_f1(_positive_statistics([unit])[0], np.ones(()))) / 100.0


def _accuracy_statistics(units: Sequence[Unit]) -> np.ndarray:
    return np.array([[sum(r.score for r in unit), len(unit)] for unit in units], np.float64)


# Of the single answers where a unit is a question with several.
answer_accuracy = Measure(
    "accuracy", _accuracy_statistics, lambda sums, n: 100.0 * _ratio(sums[..., 0], sums[..., 1])
)


# --- texts ----------------------------------------------------------------------------------------


def _bleu_statistics(units: Sequence[Unit]) -> np.ndarray:
    bleu = sacrebleu.BLEU(**BLEU, effective_order=True)  # changes nothing in what is counted
    rows = []
    for (record,) in units:
        found = bleu.sentence_score(record.prediction.strip(), list(record.references))
        rows.append((*found.counts, *found.totals, found.sys_len, found.ref_len))
    return np.array(rows, np.float64)


def _bleu(sums: np.ndarray, n: np.ndarray) -> np.ndarray:
    rows = np.rint(sums.reshape(-1, sums.shape[-1])).astype(int)
    scores = [
        sacrebleu.BLEU.compute_bleu(
            correct=row[:_ORDERS].tolist(),
            total=row[_ORDERS : 2 * _ORDERS].tolist(),
            sys_len=int(row[-2]),
            ref_len=int(row[-1]),
        ).score
        for row in rows
    ]
    return np.array(scores).reshape(sums.shape[:-1])


bleu = Measure("bleu", _bleu_statistics, _bleu)


def _numbers(units: Sequence[Unit]) -> np.ndarray:
    """Right number and given number of every unit, float64[n, 2]."""
    rows = []
    for (record,) in units:
        pair = map(answers.number_answer, (record.references[0], record.prediction))
        rows.append([_NO_NUMBER if number is None else float(number) for number in pair])
    return np.array(rows, np.float64)


def _ranks(values: np.ndarray) -> np.ndarray:
    """Of each column; equal values share the mean of their ranks."""
    import scipy.stats  # here, since every verb reads the names of the metrics and starts later

    return scipy.stats.rankdata(values, axis=0)


def _correlation_statistics(values: np.ndarray) -> np.ndarray:
    x, y = (values - values.mean(0)).T  # centred, so that squares lose no digits
    return np.stack([x, y, x * y, x * x, y * y], axis=1)


def _correlation(sums: np.ndarray, n: np.ndarray) -> np.ndarray:
    """0 where all numbers of a side are the same, which says nothing about the other side."""
    x, y, xy, xx, yy = np.moveaxis(sums, -1, 0)
    spread = np.maximum(n * xx - x * x, 0) * np.maximum(n * yy - y * y, 0)
    above = n * xy - x * y
    return 100.0 * np.where(spread > 1e-12, above / np.sqrt(np.maximum(spread, 1e-300)), 0.0)


pearson = Measure("pearson", lambda units: _correlation_statistics(_numbers(units)), _correlation)
# In replicates the ranks are those among all units, not among the drawn ones.
spearman = Measure(
    "spearman",
    lambda units: _correlation_statistics(_ranks(_numbers(units))),
    _correlation,
)
