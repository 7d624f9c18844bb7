"""From texts to normalised words, and from these to 64-bit hashes of n-grams, a batch at a time.

The normal form of a text is its words in UTF-8 with one space between them. Hashes are polynomials
over bytes and over words modulo 2**64, by prefix sums: no word ever becomes a Python object. What
is made of equal hashes is decided elsewhere, by the words themselves.
"""

import dataclasses
import re
import unicodedata
from collections.abc import Sequence
from typing import Literal

import numpy as np

from optiml_jax.settings import NgramWords, configurable

_SPACE = 32
_BASES = (0x9E3779B97F4A7C15, 0xD1342543DE82EF95)  # odd: they have an inverse modulo 2**64
_OPTION_MARK = re.compile(r"\((?:[A-Za-z]|\d{1,2})\)")
_APOSTROPHES = "'`\u2018\u2019\u02bc\u00b4"
# Scripts that put no spaces between words: Thai, Lao, Myanmar, Khmer, kana, Chinese characters.
_UNSPACED = re.compile(
    "([\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff])"
)


@configurable
@dataclasses.dataclass(frozen=True)
class AuditWords:
    """What counts as the same text. The paper does not say; the defaults are made to find copies.

    Attributes:
      n: words of an n-gram (13: paper, section 2.3).
      fold_case: "The" and "the" are one word.
      punctuation: "separates" makes it a space ("well-known" are two words), "removed" deletes it
        as lm-evaluation-harness does, "kept" leaves it in its word. Apostrophes are deleted but in
        the last case.
      unicode: brings letters into Unicode's compatibility form (NFKC), drops invisible characters,
        and makes every character of a script without spaces a word of its own.
      option_marks: deletes "(A)" or "(1)", by which collections list the same options differently.
    """

    n: NgramWords = 13
    fold_case: bool = True
    punctuation: Literal["separates", "removed", "kept"] = "separates"
    unicode: bool = True
    option_marks: bool = True


class Normaliser:
    """Applies the rules of an `AuditWords`."""

    def __init__(self, rules: AuditWords):
        self._rules = rules
        self._table, self._deleted = _byte_table(rules)
        self._characters = _Characters(rules)

    def spaced(self, text: str) -> bytes:
        """The words of a text in UTF-8, with one space or more between them."""
        if self._rules.option_marks and ")" in text:
            text = _OPTION_MARK.sub(" ", text)
        if not text.isascii():
            if self._rules.unicode:
                text = _UNSPACED.sub(r" \1 ", unicodedata.normalize("NFKC", text))
            if self._rules.fold_case:
                text = text.casefold()
            text = text.translate(self._characters)
        return text.encode("utf-8", "replace").translate(self._table, self._deleted)

    def words(self, text: str) -> list[bytes]:
        """The words of a text."""
        return self.spaced(text).split()


def _byte_table(rules: AuditWords) -> tuple[bytes, bytes]:
    """`bytes.translate`'s table and the bytes that it deletes; UTF-8 above 127 stays as it is."""
    table, deleted = bytearray(range(256)), bytearray()
    for code in range(128):
        character = chr(code)
        if character.isspace() or not character.isprintable():
            table[code] = _SPACE
        elif character.isalnum():
            table[code] = ord(character.lower()) if rules.fold_case else code
        elif rules.punctuation == "separates" and character not in _APOSTROPHES:
            table[code] = _SPACE
        elif rules.punctuation != "kept":
            deleted.append(code)
    return bytes(table), bytes(deleted)


class _Characters(dict):
    """`str.translate`'s table for what is not ASCII, filled as characters are met."""

    def __init__(self, rules: AuditWords):
        super().__init__()
        self._rules = rules

    def __missing__(self, code: int) -> str:
        character = chr(code)
        kind = unicodedata.category(character)
        new = character
        if code < 128:
            new = character
        elif kind == "Cf":  # zero-width joiners, soft hyphens, marks of direction
            new = "" if self._rules.unicode else character
        elif kind[0] == "Z" or kind == "Cc":
            new = " "
        elif kind[0] in "PS" and self._rules.punctuation != "kept":
            separates = self._rules.punctuation == "separates"
            new = " " if separates and character not in _APOSTROPHES else ""
        self[code] = new
        return new


class _Powers:
    """Powers of a base and of its inverse modulo 2**64, as many as were ever needed."""

    def __init__(self, base: int):
        self._bases = (base, pow(base, -1, 1 << 64))
        self._tables = self._make(1 << 16)

    def _make(self, length: int) -> tuple[np.ndarray, np.ndarray]:
        factors = [np.full(length, base, np.uint64) for base in self._bases]
        for factor in factors:
            factor[0] = 1
        return tuple(np.multiply.accumulate(factor) for factor in factors)

    def __call__(self, length: int) -> tuple[np.ndarray, np.ndarray]:
        if length > len(self._tables[0]):
            self._tables = self._make(2 * length)
        return self._tables


_BYTE_POWERS, _WORD_POWERS = map(_Powers, _BASES)


def mixed(hashes: np.ndarray) -> np.ndarray:
    """The hashes with every bit depending on every other (the finaliser of SplitMix64)."""
    hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return hashes ^ (hashes >> np.uint64(31))


def _spans(values: np.ndarray, powers: _Powers, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """uint64[N]: the polynomial hash of values[start:end], the same wherever the span lies."""
    forward, backward = powers(len(values) + 1)
    sums = np.zeros(len(values) + 1, np.uint64)
    np.cumsum(values * forward[: len(values)], out=sums[1:])
    return mixed((sums[ends] - sums[starts]) * backward[starts])


@dataclasses.dataclass(frozen=True)
class Words:
    """The words of a batch of texts.

    Attributes:
      buffer: the texts' words, separated by spaces.
      starts, ends: int64[W]: where each word lies in the buffer.
      hashes: uint64[W]: of each word.
      begins: int64[N + 1]: where each text begins in the buffer.
      first: int64[N + 1]: text i has the words first[i] ... first[i + 1] - 1.
    """

    buffer: bytes
    starts: np.ndarray
    ends: np.ndarray
    hashes: np.ndarray
    begins: np.ndarray
    first: np.ndarray

    @classmethod
    def of(cls, texts: Sequence[bytes]) -> "Words":
        """Of texts that `Normaliser.spaced` gave."""
        buffer = b" ".join((*texts, b""))
        values = np.frombuffer(buffer, np.uint8)
        inside = np.zeros(len(values) + 2, bool)
        inside[1:-1] = values != _SPACE
        edges = np.flatnonzero(inside[1:] != inside[:-1])
        starts, ends = edges[::2], edges[1::2]
        lengths = np.fromiter(map(len, texts), np.int64, len(texts))
        begins = np.zeros(len(texts) + 1, np.int64)
        np.cumsum(lengths + 1, out=begins[1:])
        hashes = _spans(values.astype(np.uint64), _BYTE_POWERS, starts, ends)
        return cls(buffer, starts, ends, hashes, begins, np.searchsorted(starts, begins))

    def ngrams(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """All n-grams that lie in one text.

        Returns:
          int64[G], the first word of each, ascending; uint64[G], their hashes.
        """
        if len(self.starts) < n:
            return np.zeros(0, np.int64), np.zeros(0, np.uint64)
        last = np.repeat(self.first[1:], np.diff(self.first))[: len(self.starts) - n + 1]
        begins = np.arange(len(last), dtype=np.int64)
        begins = begins[begins + n <= last]
        return begins, _spans(self.hashes, _WORD_POWERS, begins, begins + n)

    def whole(self, begins: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """uint64[N]: hashes of the words begin ... end - 1, never those of an n-gram."""
        return mixed(_spans(self.hashes, _WORD_POWERS, begins, ends) + np.uint64(1))

    def text(self, begin: int, end: int) -> bytes:
        """The normal form of the words begin ... end - 1."""
        return b" ".join(self.buffer[self.starts[begin] : self.ends[end - 1]].split())

    def places(self) -> np.ndarray:
        """int64[W]: where each word begins in the normal form of its text, in bytes."""
        before = np.zeros(len(self.starts) + 1, np.int64)
        np.cumsum(self.ends - self.starts + 1, out=before[1:])  # one space after each
        return before[:-1] - np.repeat(before[self.first[:-1]], np.diff(self.first))

    def text_of(self, words: np.ndarray) -> np.ndarray:
        """int64[N]: the number of the text that each word belongs to."""
        return np.searchsorted(self.first, words, side="right") - 1

    def word_at(self, offsets: np.ndarray) -> np.ndarray:
        """int64[N]: the first word at or after byte offsets[i] of text i, of which there are N."""
        found = np.searchsorted(self.starts, self.begins[:-1] + offsets)
        return np.minimum(found, self.first[1:])
