"""The metrics that the split manifest names: each defined once, in `METRICS`.

A metric says whether candidates are ranked or answers generated, what one answer scores, what makes
up a unit, and which aggregates (`measures.py`) a task gets. Records, tables, intervals, TensorBoard
and SeqIO all take it from here. Needs no TensorFlow.

SeqIO finds out what a metric function wants from its argument names: `(targets, predictions)` is
called after generation, `(targets, scores)` after rank classification. The functions here follow
that and return percentages.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from optiml_jax.evaluate import answer_scores, answers, measures
from optiml_jax.evaluate.answer_scores import AnswerScore
from optiml_jax.evaluate.measures import Measure, Unit
from optiml_jax.evaluate.records import Candidate, Record

MetricFn = Callable[..., Mapping[str, float]]


@dataclasses.dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
      name: in the manifest.
      ranked: candidates are ranked; else answers are generated.
      score: of one answer; of a ranked one whether it is right.
      measures: aggregates of a task; the first is what tables average, the others stand beside it.
      extract: the answer in a text, for votes; None: the text holds none.
      questions: the records of one group and prompt are one unit.
      counts: what else is worth knowing of a task's records.
    """

    name: str
    ranked: bool
    score: AnswerScore
    measures: tuple[Measure, ...]
    extract: Callable[[str], str | None] = str.strip
    questions: bool = False
    counts: Mapping[str, Callable[[Sequence[Record]], int]] = dataclasses.field(
        default_factory=dict
    )

    @property
    def main(self) -> Measure:
        """The aggregate that tables average."""
        return self.measures[0]

    def units(self, records: Sequence[Record]) -> list[Unit]:
        """What the aggregates count."""
        if not self.questions:
            return [(record,) for record in records]
        groups: dict[tuple[str, str], list[Record]] = collections.defaultdict(list)
        for record in records:
            groups[record.prompt_id, record.group or record.cluster].append(record)
        return list(groups.values())

    def of(self, records: Sequence[Record]) -> dict[str, float]:
        """All aggregates and counts of a task's records, by name."""
        units = self.units(records)
        found = {measure.name: measure.of(units) for measure in self.measures}
        return found | {name: float(count(records)) for name, count in self.counts.items()}

    def rescored(self, record: Record) -> Record:
        """The record of a generated answer as this metric scores it; samples vote again.

        Votes of the samples count alike, for their probabilities are not stored.
        """
        if record.samples:
            texts = record.samples
            best = answers.vote(texts, [0.0] * len(texts), self.extract)
            record = dataclasses.replace(record, prediction=texts[best])
        return dataclasses.replace(record, score=self.score(record.references, record.prediction))

    @property
    def fn(self) -> MetricFn:
        """The SeqIO metric function."""
        return _rank_fn(self) if self.ranked else _text_fn(self)


# --- SeqIO ----------------------------------------------------------------------------------------


class CandidateRow(NamedTuple):
    """A scored candidate of a rank-classification task.

    Attributes:
      item: the instance.
      candidate: number of the candidate.
      is_right: whether it is a right answer.
      text: the candidate.
      group: items of one group count together where a metric says so.
      offered: False for the last one where it is an answer that names none of the others.
    """

    item: int
    candidate: int
    is_right: bool
    text: str = ""
    group: str = ""
    offered: bool = True


def _text_fn(metric: Metric) -> MetricFn:
    def fn(
        targets: Sequence[str | Sequence[str]], predictions: Sequence[str]
    ) -> Mapping[str, float]:
        if len(targets) != len(predictions) or not len(targets):
            raise ValueError(f"{len(targets)} targets for {len(predictions)} predictions")
        records = []
        for i, (target, prediction) in enumerate(zip(targets, predictions, strict=True)):
            references = (target,) if isinstance(target, str) else tuple(target)
            score = metric.score(references, prediction.strip())
            records.append(Record(str(i), "", str(i), references, prediction.strip(), score))
        return metric.of(records)

    fn.__name__ = metric.name
    return fn


def _rank_fn(metric: Metric) -> MetricFn:
    def fn(targets: Sequence[CandidateRow], scores: Sequence[float]) -> Mapping[str, float]:
        """`targets`: one `CandidateRow`, or its first three fields, per row, in any order."""
        return metric.of(_ranked_records(targets, scores))

    fn.__name__ = metric.name
    return fn


def _ranked_records(targets: Sequence[CandidateRow], scores: Sequence[float]) -> list[Record]:
    """Items with their candidates in order; the highest score wins, then the first."""
    items: dict[int, list[tuple[CandidateRow, float]]] = collections.defaultdict(list)
    for target, score in zip(targets, scores, strict=True):
        row = CandidateRow(*target)
        items[int(row.item)].append((row, float(score)))
    if not items:
        raise ValueError("a ranking metric got no rows")
    records = []
    for item, pairs in items.items():
        pairs.sort(key=lambda pair: int(pair[0].candidate))
        rows = [row for row, _ in pairs]
        if len({int(row.candidate) for row in rows}) != len(rows):
            raise ValueError(f"item {item} has the same candidate twice")
        texts = [row.text or str(row.candidate) for row in rows]
        values = [score for _, score in pairs]
        best = int(np.argmax(values))
        right = tuple(i for i, row in enumerate(rows) if row.is_right)
        records.append(
            Record(
                example_id=str(item),
                prompt_id="",
                cluster=rows[0].group or str(item),
                references=tuple(texts[i] for i in right),
                prediction=texts[best],
                score=float(best in right),
                candidates=tuple(unscored(text) for text in texts),
                correct=right,
                tied=values.count(values[best]) > 1,
                unlisted=not rows[-1].offered,
            )
        )
    return records


def unscored(text: str) -> Candidate:
    """A candidate of which only the text is known, for metrics that ask for no more."""
    return Candidate(text, 0.0, 1, max(1, len(text)), max(1, len(text)), 0.0, 0.0, False)


# --- the metrics ----------------------------------------------------------------------------------


def _mean(name: str, score: AnswerScore) -> Measure:
    """The mean over units of a score that is not the metric's own."""
    return measures.mean_of(name, lambda unit: score(unit[0].references, unit[0].prediction))


def _text(
    name: str, measure: str, score: AnswerScore, extract: Callable, *more: Measure, **fields
) -> Metric:
    own = measures.mean_of(measure, measures.unit_score)
    return Metric(name, False, score, (own, *more), extract, **fields)


def _blank(records: Sequence[Record], tokens: Callable[[str], Sequence[str]]) -> int:
    return sum(not tokens(r) for record in records for r in record.references)


_ACCURACY = measures.mean_of("accuracy", measures.unit_score)
_TIES = {"num_ties": lambda records: sum(record.tied for record in records)}
_ranked = functools.partial(Metric, ranked=True, score=answer_scores.exact, counts=_TIES)
_S = answer_scores
_EM_UNICODE = _mean("exact_match_unicode", _S.exact_unicode)
_F1_UNICODE = _mean("f1_unicode", _S.f1_unicode)

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        _ranked("acc_rank", measures=(_ACCURACY,)),
        _ranked("macro_f1", measures=(_ACCURACY, measures.macro_f1)),
        _ranked("matthews", measures=(measures.matthews, _ACCURACY)),
        _ranked("f1_positive", measures=(measures.f1_of_positive("f1_positive"), _ACCURACY)),
        _ranked(
            "multirc",
            measures=(
                measures.mean_of("all_right", measures.unit_score),
                measures.answer_accuracy,
                measures.f1_of_positive("f1a"),
                measures.mean_of("f1m", measures.unit_positive_f1),
            ),
            questions=True,
        ),
        _text("em", "exact_match", _S.exact, str.strip),
        _text(
            *("em_tk_instruct", "exact_match_tk_instruct", _S.exact_tk_instruct),
            answers.normalize_tk_instruct,
        ),
        _text("em_squad", "exact_match_squad", _S.exact_squad, answers.normalize_squad),
        _text(
            *("f1_squad", "f1_squad", _S.f1_squad, answers.normalize_squad),
            _mean("exact_match_squad", _S.exact_squad),
        ),
        _text(
            *("tydiqa", "exact_match_squad", _S.exact_squad, answers.normalize_squad),
            *(_mean("f1_squad", _S.f1_squad), _EM_UNICODE, _F1_UNICODE),
        ),
        _text(
            *("em_triviaqa", "exact_match_trivia_qa", _S.exact_trivia_qa),
            answers.normalize_trivia_qa,
        ),
        _text("em_bbh", "exact_match_bbh", _S.exact_bbh, answers.bbh_answer),
        _text("em_letter", "exact_match_letter", _S.exact_letter, answers.letter_answer),
        _text("em_number", "exact_match_number", _S.exact_number, answers.number_answer),
        _text(
            *("rougeL", "rougeL", _S.rouge_l_max, str.strip),
            counts={"num_empty_references": lambda r: _blank(r, _S.rouge_tokens)},
        ),
        _text(
            *("rougeL_scripts", "rougeL_scripts", _S.rouge_l_scripts_max, str.strip),
            _mean("rougeL", _S.rouge_l_max),
            counts={"num_empty_references": lambda r: _blank(r, _S.script_tokens)},
        ),
        Metric("bleu", False, _S.sentence_bleu, (measures.bleu,)),
        Metric(
            *("correlation", False, _S.exact_number, (measures.pearson, measures.spearman)),
            answers.number_answer,
        ),
    )
}
