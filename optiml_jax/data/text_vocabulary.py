"""The interface of every vocabulary of the project, without SeqIO and TensorFlow."""

import abc
from collections.abc import Iterable, Sequence


class TextVocabulary(abc.ABC):
    """Texts to ids and back. No special token is added to a text, or read in it."""

    @property
    @abc.abstractmethod
    def fingerprint(self) -> str:
        """Hash of all that decides the ids."""

    @property
    @abc.abstractmethod
    def special_ids(self) -> frozenset[int]:
        """Ids that stand for no text."""

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

    @abc.abstractmethod
    def encode(self, text: str) -> list[int]:
        """Ids of a text."""

    @abc.abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of every text, on all cores."""

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
