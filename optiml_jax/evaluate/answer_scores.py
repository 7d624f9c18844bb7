"""The score of one answer in [0, 1], given its references.

What counts as the answer in a text is said in answers.py; metrics.py says which task is scored how.
"""

import collections
import functools
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

import regex
import sacrebleu

from optiml_jax.evaluate import answers

# (references, prediction) -> a number in [0, 1].
AnswerScore = Callable[[Sequence[str], str], float]

BLEU = {"tokenize": "intl"}  # as T5
# Scripts without spaces between words: every character is a token, with the marks that follow it.
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_TOKEN = regex.compile(rf"[{_UNSPACED}]\p{{M}}*|(?:(?![{_UNSPACED}])[\p{{L}}\p{{N}}]\p{{M}}*)+")


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


def exact_letter(references: Sequence[str], prediction: str) -> float:
    """1 if the letter that the prediction ends up with is one of the references."""
    return float(answers.letter_answer(prediction) in references)


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
    return sacrebleu.sentence_bleu(prediction, list(references), **BLEU).score / 100


@functools.cache
def _tokenizer() -> Any:
    from rouge_score import tokenizers  # here, since it brings nltk, and every verb starts later

    return tokenizers.DefaultTokenizer(use_stemmer=True)


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


@functools.lru_cache(maxsize=65_536)
def script_tokens(text: str) -> tuple[str, ...]:
    """Words of any script in lower case, not stemmed; where a script has no spaces, characters.

    What Super-NaturalInstructions' cross-lingual track has a sub-word tokeniser for: rouge-score's
    own knows Latin letters and digits alone.
    """
    return tuple(_TOKEN.findall(unicodedata.normalize("NFKC", text).casefold()))


def rouge_l_f1(
    reference: str, prediction: str, tokens: Callable[[str], Sequence[str]] = rouge_tokens
) -> float:
    """Rouge-L F1; with `rouge_tokens` that of `RougeScorer(["rougeL"], use_stemmer=True)`."""
    target, answer = tokens(reference), tokens(prediction)
    if not target or not answer:
        return 0.0
    common = _common_subsequence(target, answer)
    if not common:
        return 0.0
    precision, recall = common / len(answer), common / len(target)
    return 2 * precision * recall / (precision + recall)


def rouge_l_max(references: Sequence[str], prediction: str) -> float:
    """The best Rouge-L F1 over the references (Tk-Instruct, src/compute_metrics.py)."""
    return max(rouge_l_f1(r, prediction) for r in references)


def rouge_l_scripts_max(references: Sequence[str], prediction: str) -> float:
    """The same on the tokens of all scripts."""
    return max(rouge_l_f1(r, prediction, script_tokens) for r in references)
