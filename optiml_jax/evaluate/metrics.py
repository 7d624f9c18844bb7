"""Scores of one answer, and the SeqIO metric functions that average them over a task.

SeqIO finds out what a metric wants from its argument names: `(targets, predictions)` is called
after generation, `(targets, scores)` after rank classification. The functions here follow that and
return percentages. They need no TensorFlow; models, records and tables live elsewhere.
"""

import collections
import functools
import re
import string
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from rouge_score import scoring as rouge_scoring
from rouge_score import tokenizers as rouge_tokenizers

# One row of a rank-classification task: (item, candidate, whether the candidate is a right answer).
CandidateRow = tuple[int, int, bool]
# A metric of one answer: (references, prediction) -> a number in [0, 1].
AnswerScore = Callable[[Sequence[str], str], float]

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_MAX_CONSTANT_CANDIDATES = 100


# --- one answer -----------------------------------------------------------------------------------


def normalize_tk_instruct(text: str) -> str:
    """Lower case, no ASCII punctuation, single spaces; articles stay (Tk-Instruct)."""
    return " ".join(text.lower().translate(_NO_PUNCTUATION).split())


def normalize_squad(text: str) -> str:
    """As `normalize_tk_instruct`, and without a/an/the (the official SQuAD 1.1 script)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def exact(references: Sequence[str], prediction: str) -> float:
    """1 if the prediction is one of the references, both stripped and otherwise raw."""
    return float(prediction.strip() in {r.strip() for r in references})


def exact_tk_instruct(references: Sequence[str], prediction: str) -> float:
    """`exact` after `normalize_tk_instruct`. Never for tasks whose answers are punctuation."""
    return exact([normalize_tk_instruct(r) for r in references], normalize_tk_instruct(prediction))


def exact_squad(references: Sequence[str], prediction: str) -> float:
    """`exact` after `normalize_squad`."""
    return exact([normalize_squad(r) for r in references], normalize_squad(prediction))


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


# --- SeqIO metric functions -----------------------------------------------------------------------


def _references(target: str | Sequence[str]) -> list[str]:
    return [target] if isinstance(target, str) else list(target)


def _percent(score: AnswerScore, targets: Sequence, predictions: Sequence[str]) -> float:
    if len(targets) != len(predictions) or not len(targets):
        raise ValueError(f"{len(targets)} targets for {len(predictions)} predictions")
    values = [score(_references(t), p.strip()) for t, p in zip(targets, predictions, strict=True)]
    return 100.0 * float(np.mean(values))


def exact_match(
    targets: Sequence[str | Sequence[str]], predictions: Sequence[str]
) -> Mapping[str, float]:
    """Percentage of predictions that are one of their references, raw."""
    return {"exact_match": _percent(exact, targets, predictions)}


def exact_match_tk_instruct(
    targets: Sequence[str | Sequence[str]], predictions: Sequence[str]
) -> Mapping[str, float]:
    """Exact match after Tk-Instruct's normalisation."""
    return {"exact_match_tk_instruct": _percent(exact_tk_instruct, targets, predictions)}


def exact_match_squad(
    targets: Sequence[str | Sequence[str]], predictions: Sequence[str]
) -> Mapping[str, float]:
    """Exact match after SQuAD's normalisation."""
    return {"exact_match_squad": _percent(exact_squad, targets, predictions)}


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


def rank_accuracy(targets: Sequence[CandidateRow], scores: Sequence[float]) -> Mapping[str, float]:
    """Percentage of items whose highest-scored candidate is right; ties go to the first candidate.

    Args:
      targets: one `(item, candidate, is_right)` per scored row, in any order.
      scores: float[len(targets)], the score of each row, higher is better.
    """
    items: dict[int, list[tuple[int, float, bool]]] = collections.defaultdict(list)
    for (item, candidate, right), score in zip(targets, scores, strict=True):
        items[int(item)].append((int(candidate), float(score), bool(right)))
    if not items:
        raise ValueError("rank_accuracy got no rows")
    correct = ties = 0
    for item, rows in items.items():
        rows.sort()
        if len({candidate for candidate, _, _ in rows}) != len(rows):
            raise ValueError(f"item {item} has the same candidate twice")
        best, tied = first_maximum([score for _, score, _ in rows])
        correct += rows[best][2]
        ties += tied
    return {"accuracy": 100.0 * correct / len(items), "num_ties": float(ties)}


def first_maximum(scores: Sequence[float]) -> tuple[int, bool]:
    """Index of the first maximum, and whether another entry equals it."""
    best = int(np.argmax(scores))
    return best, sum(s == scores[best] for s in scores) > 1


# Names of the split manifest -> the SeqIO metric functions of a task.
METRIC_FNS: dict[str, tuple[Callable[..., Mapping[str, float]], ...]] = {
    "acc_rank": (rank_accuracy,),
    "em": (exact_match,),
    "em_tk_instruct": (exact_match_tk_instruct,),
    "em_squad": (exact_match_squad,),
    "rougeL": (rouge_l,),
}

# Names of the split manifest -> the score of one generated (or constant) answer.
ANSWER_SCORES: dict[str, AnswerScore] = {
    "acc_rank": exact,
    "em": exact,
    "em_tk_instruct": exact_tk_instruct,
    "em_squad": exact_squad,
    "rougeL": rouge_l_max,
}


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
    best, best_score = "", -1.0
    for answer, _ in counts.most_common(_MAX_CONSTANT_CANDIDATES):
        total = sum(n * score(refs, answer) for refs, n in groups.items())
        if total > best_score:
            best, best_score = answer, total
    return best, best_score / len(references)
