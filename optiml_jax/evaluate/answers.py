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
_COMMA_LANGUAGES = ("de", "es", "fr", "ru")  # here 1.000 is a thousand, and so is 1 000
_HAN_LANGUAGES = ("ja", "zh")
_CUE = re.compile("|".join(f"(?P<{name}>{cue})" for name, cue in _CUES.items()), re.IGNORECASE)
_CURRENCY = "[$€£¥₹৳₽฿₩]"


def _number_pattern(spaces: str) -> re.Pattern[str]:
    """Numbers in digits of any script; `spaces` are those that divide thousands."""
    return re.compile(
        rf"""(?P<sign> (?<![\w)]) [-−] )? {_CURRENCY}? (?P<sign_within> (?<={_CURRENCY}) [-−] )?
        (?P<digits>
            (?!0)\d{{1,3}} (?:,\d{{2,3}})* ,\d{{3}} (?!\d) (?:\.\d+)?     # 2,125 or 1,14,200
          | (?!0)\d{{1,3}} (?:[{spaces}]\d{{3}})+ (?![\d-]) (?:[.,]\d+)?  # 80 000
          | (?!0)\d{{1,3}} (?:\.\d{{3}})+ (?!\d) (?:,\d+)?               # 1.125
          | (?!0)\d{{1,3}} (?:٬\d{{3}})+ (?!\d) (?:٫\d+)?                # of Arabic script
          | \d+ (?:[.,٫]\d+)?
          | (?<![\w.]) \.\d+
        ) (?:\s?(?P<unit>[万萬亿億]))?""",
        re.VERBOSE,
    )


# Thin spaces and Swiss apostrophes divide thousands alone; plain spaces also stand between numbers:
# "20 100-gram bars".
_NUMBER = _number_pattern("’'\u2009\u202f")
_NUMBER_WITH_SPACES = _number_pattern(" ’'\u00a0\u2009\u202f")
_HAN_DIGITS = {c: i for i, c in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2, "兩": 2}
_HAN_UNITS = {"十": 10, "百": 100, "千": 1000}
_HAN_MYRIADS = {"万": 10**4, "萬": 10**4, "亿": 10**8, "億": 10**8}
_HAN_NUMBER = re.compile(f"[{''.join((*_HAN_DIGITS, *_HAN_UNITS, *_HAN_MYRIADS))}]+")
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


# A bare small letter only at the end of a line, for "a" is a word, and so is "I" before others.
_LETTER = re.compile(
    r"\b(?i:answer is):? *(?:\(?([A-HJ-Z])\b|\(?(I)\b(?!['’]| [a-z])|\(([a-z])\)|([a-z])(?=\W*$))",
    re.MULTILINE,
)


def letter_answer(text: str) -> str | None:
    """The letter of an option after the last "answer is", with or without brackets."""
    letters = _LETTER.findall(text)
    return "".join(letters[-1]).upper() if letters else None


# --- numbers --------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=8_192)
def number_answer(text: str) -> str | None:
    """The number after the last cue of GSM8K or of a language of MGSM, else the last number.

    It comes in one form: no thousands separators, currencies, signs of percent, and no zeros at the
    end of the decimals. Digits may be of any script; after a Chinese or Japanese cue a number may
    be written in characters. Groups of digits are one number where the language of the cue, or of
    Cyrillic text, writes thousands so; a comma before three digits is a thousand in all of them,
    for answers mix the English form in.
    """
    text = unicodedata.normalize("NFC", text).translate(_FULL_WIDTH)
    for cue in reversed(list(_CUE.finditer(text))):
        line = text[cue.end() :].lstrip().partition("\n")[0]
        language = cue.lastgroup
        if language == "gsm8k":
            language = _language_of_script(text)
        if found := _pattern(language).search(line):
            return _plain(found, language in _COMMA_LANGUAGES)
        if language in _HAN_LANGUAGES and (han := _HAN_NUMBER.search(line)):
            return str(_han_value(han[0]))
    language = _language_of_script(text)
    numbers = list(_pattern(language).finditer(text))
    return _plain(numbers[-1], language in _COMMA_LANGUAGES) if numbers else None


def _pattern(language: str | None) -> re.Pattern[str]:
    return _NUMBER_WITH_SPACES if language in _COMMA_LANGUAGES else _NUMBER


def _language_of_script(text: str) -> str | None:
    """A language that writes numbers as all of a script do; None: not known."""
    return "ru" if re.search("[а-яё]{3}", text, re.IGNORECASE) else None


def _plain(found: re.Match[str], comma_language: bool) -> str:
    """The number as a decimal; `comma_language` decides on 1.125, which is a thousand there."""
    digits = re.sub(r"[^\d.,٫]", "", found["digits"]).replace("٫", ".")
    groups = re.fullmatch(r"(?!0)\d{1,3}((?:\.\d{3})+)(,\d+)?", digits)
    if groups and (comma_language or groups[2] or len(groups[1]) > 4):
        digits = digits.replace(".", "").replace(",", ".")
    elif re.match(r"(?!0)\d{1,3}(,\d{2,3})*,\d{3}(\.|$)", digits):
        digits = digits.replace(",", "")
    value = decimal.Decimal(digits.replace(",", ".")) * _HAN_MYRIADS.get(found["unit"], 1)
    value = -value if found["sign"] or found["sign_within"] else value
    return f"{value.normalize() + 0:f}"


def _han_value(text: str) -> int:
    """三百二十 -> 320, 一万二千 -> 12000; digits alone are read one by one: 二〇二 -> 202."""
    if all(c in _HAN_DIGITS for c in text):
        return int("".join(str(_HAN_DIGITS[c]) for c in text))
    total = section = digit = 0
    for c in text:
        if c in _HAN_DIGITS:
            digit = _HAN_DIGITS[c]
        elif c in _HAN_UNITS:
            section += (digit or 1) * _HAN_UNITS[c]
            digit = 0
        else:
            total = (total + (section + digit or 1)) * _HAN_MYRIADS[c]
            section = digit = 0
    return total + section + digit


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
