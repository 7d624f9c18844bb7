"""The answer in a generated text: what is compared, and what votes in self-consistency.

Metrics of generated texts have a function here that finds the answer, in a form in which equal
answers are equal strings; None means that the text holds no answer.
"""

import decimal
import functools
import math
import re
import string
import unicodedata
from collections.abc import Callable, Sequence

BBH_CUE = "the answer is "  # of the demonstrations that BIG-Bench Hard publishes

# What stands before the answer in the demonstrations of GSM8K (the marks) and of MGSM.
_CUES = {
    "gsm8k": "####",
    "bn": "উত্তর হল",
    "de": "die antwort (?:ist|lautet)",
    "en": "the answer is",
    "es": "la respuesta es",
    "fr": "la réponse est",
    "ja": "答えは",
    "ru": "ответ ?[—–:]",
    "sw": "jibu ni",
    "te": "సమాధానం",
    "th": "คำตอบคือ",
    "zh": "答案是",
}
_COMMA_LANGUAGES = ("de", "es", "fr", "ru")  # here 1.000 is a thousand
_CUE = re.compile("|".join(f"(?P<{name}>{cue})" for name, cue in _CUES.items()), re.IGNORECASE)
_NUMBER = re.compile(
    r"""(?P<sign> (?<![\w)]) [-−] )? [$€£¥]?
    (?P<digits>
        \d{1,3} (?:,\d{2,3})* ,\d{3} (?!\d) (?:\.\d+)?                      # 2,125 or 1,14,200
      | \d{1,3} (?:[ ’'\u00a0\u2009\u202f]\d{3})+ (?!\d) (?:[.,]\d+)?       # 80 000
      | \d{1,3} (?:\.\d{3})+ (?!\d) (?:,\d+)?                               # 1.125
      | \d+ (?:[.,]\d+)?
      | (?<![\w.]) \.\d+
    )""",
    re.VERBOSE,
)
_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_SPACED_PUNCTUATION = str.maketrans(dict.fromkeys(string.punctuation + "‘’´`", " "))


# --- texts ----------------------------------------------------------------------------------------


def _without_articles(text: str) -> str:
    return " ".join(_ARTICLES.sub(" ", text).split())


def normalize_tk_instruct(text: str) -> str:
    """Lower case, no ASCII punctuation, single spaces; articles stay (Tk-Instruct)."""
    return " ".join(text.lower().translate(_NO_PUNCTUATION).split())


def normalize_squad(text: str) -> str:
    """As `normalize_tk_instruct`, and without a/an/the (the official SQuAD 1.1 script)."""
    return _without_articles(text.lower().translate(_NO_PUNCTUATION))


def normalize_unicode(text: str) -> str:
    """As `normalize_squad`, and without the punctuation of all scripts."""
    kept = (c for c in text.lower() if not unicodedata.category(c).startswith("P"))
    return _without_articles("".join(kept).translate(_NO_PUNCTUATION))


def normalize_trivia_qa(text: str) -> str:
    """Lower case, punctuation becomes a space, no a/an/the (the official TriviaQA script)."""
    return _without_articles(text.lower().translate(_SPACED_PUNCTUATION))


def bbh_answer(text: str) -> str | None:
    """What follows the last "the answer is ", to the end of the line, without its full stop."""
    _, cue, answer = text.rpartition(BBH_CUE)
    return answer.partition("\n")[0].strip().removesuffix(".") if cue else None


# --- numbers --------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=8_192)
def number_answer(text: str) -> str | None:
    """The number after the last cue of GSM8K or of a language of MGSM, else the last number.

    It comes in one form: no thousands separators, currencies, signs of percent, and no zeros at the
    end of the decimals; digits may be of any script.
    """
    text = unicodedata.normalize("NFC", text).translate(_FULL_WIDTH)
    for cue in reversed(list(_CUE.finditer(text))):
        line = text[cue.end() :].lstrip().partition("\n")[0]
        if found := _NUMBER.search(line):
            return _plain(found, cue.lastgroup in _COMMA_LANGUAGES)
    numbers = list(_NUMBER.finditer(text))
    return _plain(numbers[-1], False) if numbers else None


def _plain(found: re.Match[str], comma_language: bool) -> str:
    """The number as a decimal; `comma_language` decides on 1.125, which is a thousand there."""
    digits = re.sub(r"[^\d.,]", "", found["digits"])
    groups = re.fullmatch(r"\d{1,3}((?:\.\d{3})+)(,\d+)?", digits)
    if groups and (comma_language or groups[2] or len(groups[1]) > 4):
        digits = digits.replace(".", "").replace(",", ".")
    elif re.search(r",\d{3}(\.|$)", digits):
        digits = digits.replace(",", "")
    value = decimal.Decimal(digits.replace(",", "."))
    value = -value if found["sign"] else value
    return f"{value.normalize() + 0:f}"


# --- votes ----------------------------------------------------------------------------------------


def vote(
    texts: Sequence[str], logprobs: Sequence[float], extract: Callable[[str], str | None]
) -> int:
    """Index of the first of the texts that give the answer of most of them.

    Texts without an answer have no vote. Among answers with as many votes the one with the larger
    summed probability wins, then the earliest; if no text has an answer, the first text stands.

    Args:
      texts: the samples.
      logprobs: the log-probability of each.
      extract: finds the answer in a text, in a form in which equal answers are equal strings.
    """
    groups: dict[str, list[int]] = {}
    for i, text in enumerate(texts):
        if answer := extract(text):
            groups.setdefault(answer, []).append(i)
    if not groups:
        return 0
    top = max(logprobs)  # exp alone would make zeros of the probabilities of long texts
    return max(
        groups.values(), key=lambda g: (len(g), math.fsum(math.exp(logprobs[i] - top) for i in g))
    )[0]
