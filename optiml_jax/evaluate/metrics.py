"""Scores of one answer, and the SeqIO metric functions that average them over a task.

SeqIO finds out what a metric wants from its argument names: `(targets, predictions)` is called
after generation, `(targets, scores)` after rank classification. The functions here follow that and
return percentages. They need no TensorFlow; models, records and tables live elsewhere, and what
counts as the answer in a text is said in answers.py.
"""

import collections
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import sacrebleu
from rouge_score import scoring as rouge_scoring
from rouge_score import tokenizers as rouge_tokenizers

from optiml_jax.evaluate import answers

# A metric of one answer: (references, prediction) -> a number in [0, 1].
AnswerScore = Callable[[Sequence[str], str], float]

_MAX_CONSTANT_CANDIDATES = 100
_BLEU = {"tokenize": "intl"}  # as T5
_POSITIVE = ("true", "yes")  # MultiRC: what says that an answer is right


class CandidateRow(NamedTuple):
    """A scored candidate of a rank-classification task.

    Attributes:
      item: the instance.
      candidate: number of the candidate.
      is_right: whether it is a right answer.
      text: the candidate.
      group: items of one group count together where a metric says so.
    """

    item: int
    candidate: int
    is_right: bool
    text: str = ""
    group: str = ""


# --- one answer -----------------------------------------------------------------------------------


def exact(references: Sequence[str], prediction: str) -> float:
    """1 if the prediction is one of the references, both stripped and otherwise raw."""
    return float(prediction.strip() in {r.strip() for r in references})


def exact_tk_instruct(references: Sequence[str], prediction: str) -> float:
    """`exact` after `normalize_tk_instruct`. Never for tasks whose answers are punctuation."""
    return _equal(answers.normalize_tk_instruct, references, prediction)


def exact_squad(references: Sequence[str], prediction: str) -> float:
    """`exact` after `normalize_squad`."""
    return _equal(answers.normalize_squad, references, prediction)


def exact_unicode(references: Sequence[str], prediction: str) -> float:
    """`exact` after `normalize_unicode`."""
    return _equal(answers.normalize_unicode, references, prediction)


def exact_trivia_qa(references: Sequence[str], prediction: str) -> float:
    """`exact` after `normalize_trivia_qa`."""
    return _equal(answers.normalize_trivia_qa, references, prediction)


def exact_bbh(references: Sequence[str], prediction: str) -> float:
    """`exact` of the answer after BIG-Bench Hard's cue, or of the text where there is none.

    Raw: all answers of dyck_languages are punctuation.
    """
    answer = answers.bbh_answer(prediction)
    return exact(references, prediction if answer is None else answer)


def exact_number(references: Sequence[str], prediction: str) -> float:
    """1 if the number found in the prediction is one of those found in the references."""
    answer = answers.number_answer(prediction)
    return float(answer is not None and answer in map(answers.number_answer, references))


def _equal(normalize: Callable[[str], str], references: Sequence[str], prediction: str) -> float:
    return exact([normalize(r) for r in references], normalize(prediction))


def f1_squad(references: Sequence[str], prediction: str) -> float:
    """The best F1 of the words over the references, after `normalize_squad`."""
    return _words_f1(answers.normalize_squad, references, prediction)


def f1_unicode(references: Sequence[str], prediction: str) -> float:
    """The best F1 of the words over the references, after `normalize_unicode`."""
    return _words_f1(answers.normalize_unicode, references, prediction)


@functools.lru_cache(maxsize=8_192)
def _words(normalize: Callable[[str], str], text: str) -> collections.Counter[str]:
    return collections.Counter(normalize(text).split())


def _words_f1(normalize: Callable[[str], str], references: Sequence[str], prediction: str) -> float:
    answer, targets = _words(normalize, prediction), [_words(normalize, r) for r in references]
    # The F1 of two bags is twice what they share over what both hold; empty ones share nothing.
    return max(2 * (t & answer).total() / max(1, (t + answer).total()) for t in targets)


def sentence_bleu(references: Sequence[str], prediction: str) -> float:
    """BLEU of one answer. What tables print is the mean of these, not `bleu` of the whole task."""
    return sacrebleu.sentence_bleu(prediction, list(references), **_BLEU).score / 100


@functools.cache
def _tokenizer() -> rouge_tokenizers.DefaultTokenizer:
    return rouge_tokenizers.DefaultTokenizer(use_stemmer=True)


@functools.lru_cache(maxsize=65_536)
def rouge_tokens(text: str) -> tuple[str, ...]:
    """The stemmed tokens on which Rouge-L is computed (rouge-score's own tokeniser)."""
    return tuple(_tokenizer().tokenize(text))


def _common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence, bit-parallel: one big-integer step per token of b.

    The table of the `rouge_score` package holds len(a) * len(b) Python integers; with 256-token
    answers that is most of the time of an evaluation on a small model.
    """
    places: dict[str, int] = collections.defaultdict(int)
    for i, token in enumerate(a):
        places[token] |= 1 << i
    full = (1 << len(a)) - 1
    row = full
    for token in b:
        hits = row & places.get(token, 0)
        row = ((row + hits) | (row - hits)) & full
    return len(a) - row.bit_count()


def rouge_l_f1(reference: str, prediction: str) -> float:
    """Rouge-L F1 with stemming, equal to `RougeScorer(["rougeL"], use_stemmer=True)`."""
    target, answer = rouge_tokens(reference), rouge_tokens(prediction)
    if not target or not answer:
        return 0.0
    common = _common_subsequence(target, answer)
    return rouge_scoring.fmeasure(common / len(answer), common / len(target))


def rouge_l_max(references: Sequence[str], prediction: str) -> float:
    """The best Rouge-L F1 over the references (Tk-Instruct, src/compute_metrics.py)."""
    return max(rouge_l_f1(r, prediction) for r in references)


# --- SeqIO metric functions, texts ----------------------------------------------------------------


def _references(target: str | Sequence[str]) -> list[str]:
    return [target] if isinstance(target, str) else list(target)


def _percent(score: AnswerScore, targets: Sequence, predictions: Sequence[str]) -> float:
    if len(targets) != len(predictions) or not len(targets):
        raise ValueError(f"{len(targets)} targets for {len(predictions)} predictions")
    values = [score(_references(t), p.strip()) for t, p in zip(targets, predictions, strict=True)]
    return 100.0 * float(np.mean(values))


def mean_of(name: str, score: AnswerScore) -> Callable[..., Mapping[str, float]]:
    """The SeqIO metric function `name`: the mean of `score` over the predictions, in percent."""

    def metric(
        targets: Sequence[str | Sequence[str]], predictions: Sequence[str]
    ) -> Mapping[str, float]:
        return {name: _percent(score, targets, predictions)}

    metric.__name__ = name
    return metric


def rouge_l(
    targets: Sequence[str | Sequence[str]], predictions: Sequence[str]
) -> Mapping[str, float]:
    """Mean Rouge-L F1 (percent, stemmed, max over references), and the references it cannot see.

    References without a Latin letter or digit have no Rouge tokens and always score 0;
    `num_empty_references` counts them.
    """
    empty = sum(not rouge_tokens(r) for t in targets for r in _references(t))
    return {
        "rougeL": _percent(rouge_l_max, targets, predictions),
        "num_empty_references": float(empty),
    }


def bleu(targets: Sequence[str | Sequence[str]], predictions: Sequence[str]) -> Mapping[str, float]:
    """BLEU of all predictions together; they may have different numbers of references."""
    references = [_references(t) for t in targets]
    streams = [
        [r[i] if i < len(r) else None for r in references] for i in range(max(map(len, references)))
    ]
    texts = [p.strip() for p in predictions]
    return {"bleu": sacrebleu.corpus_bleu(texts, streams, **_BLEU).score}


# --- SeqIO metric functions, ranked candidates ----------------------------------------------------


class _Ranked(NamedTuple):
    """An item with all its rows, in the order of the candidates, and the chosen one."""

    rows: list[CandidateRow]
    chosen: CandidateRow
    tied: bool


def _ranked(targets: Sequence[CandidateRow], scores: Sequence[float]) -> list[_Ranked]:
    items: dict[int, list[tuple[CandidateRow, float]]] = collections.defaultdict(list)
    for target, score in zip(targets, scores, strict=True):
        row = CandidateRow(*target)
        items[int(row.item)].append((row, float(score)))
    if not items:
        raise ValueError("a ranking metric got no rows")
    ranked = []
    for item, pairs in items.items():
        pairs.sort(key=lambda pair: pair[0].candidate)
        rows = [row for row, _ in pairs]
        if len({row.candidate for row in rows}) != len(rows):
            raise ValueError(f"item {item} has the same candidate twice")
        best, tied = first_maximum([score for _, score in pairs])
        ranked.append(_Ranked(rows, rows[best], tied))
    return ranked


def rank_accuracy(targets: Sequence[CandidateRow], scores: Sequence[float]) -> Mapping[str, float]:
    """Percentage of items whose highest-scored candidate is right; ties go to the first candidate.

    Args:
      targets: one `CandidateRow`, or the tuple of its first three, per scored row, in any order.
      scores: float[len(targets)], the score of each row, higher is better.
    """
    items = _ranked(targets, scores)
    return {
        "accuracy": 100.0 * sum(bool(i.chosen.is_right) for i in items) / len(items),
        "num_ties": float(sum(i.tied for i in items)),
    }


def macro_f1(targets: Sequence[CandidateRow], scores: Sequence[float]) -> Mapping[str, float]:
    """Mean of the F1 of every label, for items with the same labels (CommitmentBank)."""
    items = _ranked(targets, scores)
    right = [{row.text for row in item.rows if row.is_right} for item in items]
    chosen = [item.chosen.text for item in items]
    values = [
        _f1([label in texts for texts in right], [label == text for text in chosen])
        for label in set(chosen).union(*right)
    ]
    return {"macro_f1": 100.0 * float(np.mean(values))}


def multirc(targets: Sequence[CandidateRow], scores: Sequence[float]) -> Mapping[str, float]:
    """MultiRC: items are answers to judge, those of one (paragraph, question) form a group.

    Returned are the percentage of questions whose answers are all judged well, and the F1 of the
    answers judged to be right: over all answers (`f1a`) and per question, averaged (`f1m`).
    """
    questions = collections.defaultdict(list)
    for item in _ranked(targets, scores):
        yes = [r for r in item.rows if r.text.lower().lstrip("[").startswith(_POSITIVE)]
        if len(yes) != 1:
            texts = [row.text for row in item.rows]
            raise ValueError(
                f"one candidate of MultiRC must begin with one of {_POSITIVE}, got {texts}"
            )
        judged = (bool(yes[0].is_right), item.chosen is yes[0])
        questions[item.chosen.group].append(judged)
    groups = questions.values()
    return {
        "all_right": 100.0 * float(np.mean([all(r == c for r, c in g) for g in groups])),
        "f1a": 100.0 * _f1(*zip(*(pair for g in groups for pair in g), strict=True)),
        "f1m": 100.0 * float(np.mean([_f1(*zip(*g, strict=True)) for g in groups])),
    }


def _f1(right: Sequence[bool], chosen: Sequence[bool]) -> float:
    """F1 of a binary decision; 1 where nothing is right and nothing chosen."""
    both = sum(r and c for r, c in zip(right, chosen, strict=True))
    either = sum(right) + sum(chosen)
    return 2 * both / either if either else 1.0


def first_maximum(scores: Sequence[float]) -> tuple[int, bool]:
    """Index of the first maximum, and whether another entry equals it."""
    best = int(np.argmax(scores))
    return best, sum(s == scores[best] for s in scores) > 1


# --- names of the split manifest ------------------------------------------------------------------

exact_match = mean_of("exact_match", exact)
exact_match_tk_instruct = mean_of("exact_match_tk_instruct", exact_tk_instruct)
exact_match_squad = mean_of("exact_match_squad", exact_squad)
_SQUAD = (exact_match_squad, mean_of("f1_squad", f1_squad))
_UNICODE = (mean_of("exact_match_unicode", exact_unicode), mean_of("f1_unicode", f1_unicode))


class Metric(NamedTuple):
    """A metric of the split manifest: the score of one answer, and the SeqIO functions of a task.

    The score of an instance is what tables average; the functions may tell more.
    """

    score: AnswerScore
    fns: tuple[Callable[..., Mapping[str, float]], ...]


_METRICS = {
    "acc_rank": Metric(exact, (rank_accuracy,)),
    "macro_f1": Metric(exact, (rank_accuracy, macro_f1)),
    "multirc": Metric(exact, (rank_accuracy, multirc)),
    "em": Metric(exact, (exact_match,)),
    "em_tk_instruct": Metric(exact_tk_instruct, (exact_match_tk_instruct,)),
    "em_squad": Metric(exact_squad, _SQUAD[:1]),
    "f1_squad": Metric(f1_squad, _SQUAD),
    "tydiqa": Metric(exact_squad, _SQUAD + _UNICODE),
    "em_triviaqa": Metric(exact_trivia_qa, (mean_of("exact_match_trivia_qa", exact_trivia_qa),)),
    "em_bbh": Metric(exact_bbh, (mean_of("exact_match_bbh", exact_bbh),)),
    "em_number": Metric(exact_number, (mean_of("exact_match_number", exact_number),)),
    "rougeL": Metric(rouge_l_max, (rouge_l,)),
    "bleu": Metric(sentence_bleu, (bleu,)),
}
METRIC_FNS = {name: metric.fns for name, metric in _METRICS.items()}
ANSWER_SCORES = {name: metric.score for name, metric in _METRICS.items()}
RANKED = ("acc_rank", "macro_f1", "multirc")  # the metrics for which candidates are ranked


# --- the baseline that reads no input -------------------------------------------------------------


def best_constant(metric: str, references: Sequence[Sequence[str]]) -> tuple[str, float]:
    """The one answer that scores best when given to every instance, and its score in [0, 1].

    Tried are the references of the task itself, at most the 100 most frequent ones (earlier first
    among equals); a score that a model has to beat before it can be said to read its input.

    Args:
      metric: a name of `ANSWER_SCORES`.
      references: the accepted answers of each instance.
    """
    score = ANSWER_SCORES[metric]
    counts = collections.Counter(r.strip() for refs in references for r in dict.fromkeys(refs))
    groups = collections.Counter(tuple(refs) for refs in references)
    best, best_score = "", 0.0
    for answer, _ in counts.most_common(_MAX_CONSTANT_CANDIDATES):
        total = sum(n * score(refs, answer) for refs, n in groups.items())
        if total > best_score:
            best, best_score = answer, total
    return best, best_score / len(references)
