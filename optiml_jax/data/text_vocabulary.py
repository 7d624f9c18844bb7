"""The interface of every vocabulary of the project, without SeqIO and TensorFlow."""

import abc
import functools
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence

from optiml_jax.data import chat


class TextVocabulary(abc.ABC):
    """Texts to ids and back.

    No special token is added to a text, and none is read in it but in the frame of a chat.
    """

    @property
    @abc.abstractmethod
    def fingerprint(self) -> str:
        """Hash of all that decides the ids."""

    @property
    @abc.abstractmethod
    def special_tokens(self) -> Mapping[str, int]:
        """Name -> id of the tokens that stand for no text."""

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids that stand for no text."""
        return frozenset(self.special_tokens.values())

    @property
    @abc.abstractmethod
    def bos_id(self) -> int | None:
        """The token at the beginning of a text; None: the vocabulary has none."""

    @property
    @abc.abstractmethod
    def pad_id(self) -> int:
        """The padding token."""

    @property
    @abc.abstractmethod
    def eos_id(self) -> int:
        """The token at the end of a text."""

    @property
    @abc.abstractmethod
    def unk_id(self) -> int | None:
        """What stands for a text without a token; None: the vocabulary has none."""

    @property
    @abc.abstractmethod
    def vocab_size(self) -> int:
        """One more than the largest id."""

    def encode(self, text: str) -> list[int]:
        """Ids of a text."""
        return self._encode_framed([text])[0] if chat.is_framed(text) else self._encode(text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of every text, on all cores."""
        framed = any(map(chat.is_framed, texts))
        return self._encode_framed(texts) if framed else self._encode_batch(texts)

    def _encode_framed(self, texts: Sequence[str]) -> list[list[int]]:
        parts = [self._parts(text) if chat.is_framed(text) else [text] for text in texts]
        plain = [part for part in itertools.chain(*parts) if isinstance(part, str)]
        ids = iter(self._encode_batch(plain))
        return [
            [i for part in own for i in (next(ids) if isinstance(part, str) else (part,))]
            for own in parts
        ]

    def _parts(self, text: str) -> list[str | int]:
        """A prompt in a frame: the ids of the frame's special tokens, and the texts between."""
        parts: list[str | int] = [""]
        for place, part in enumerate(text.split(chat.MARK)):
            pieces = self._special_pattern.split(part) if place % 2 else [part]
            parts[-1] += pieces[0]
            for token, rest in zip(pieces[1::2], pieces[2::2], strict=True):
                parts += [self.special_tokens[token], rest]
        return [part for part in parts if part != ""]

    @functools.cached_property
    def _special_pattern(self) -> re.Pattern:
        longest_first = sorted(self.special_tokens, key=len, reverse=True)
        return re.compile(f"({'|'.join(map(re.escape, longest_first))})")

    @abc.abstractmethod
    def _encode(self, text: str) -> list[int]: ...

    @abc.abstractmethod
    def _encode_batch(self, texts: Sequence[str]) -> list[list[int]]: ...

    def spell(self, ids: Iterable[int]) -> str:
        """Text of ids, special tokens by their names; ids beyond the vocabulary are left out."""
        names = {i: name for name, i in self.special_tokens.items()}
        known = (int(i) for i in ids if int(i) < self.vocab_size)
        return "".join(
            "".join(names[i] for i in run) if special else self._decode(run)
            for special, run in itertools.groupby(known, names.__contains__)
        )

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids up to the first end of text; ids beyond the vocabulary are unknown tokens."""
        ids = [int(i) for i in ids]
        if self.unk_id is not None:
            ids = [self.unk_id if i >= self.vocab_size else i for i in ids]
        if self.eos_id in ids:
            ids = ids[: ids.index(self.eos_id) + 1]
        return self._decode(ids)

    @abc.abstractmethod
    def _decode(self, ids: Iterable[int]) -> str: ...
