"""The compared parts of an example in normal form, as batches of words.

An instantiated sequence is instruction, input and target; the delimiter, which is sampled for every
example, is left out, so that a copy across the border of input and target is one. The content is
what stands after the instruction.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator

import numpy as np

from optiml_jax.audit.words import AuditWords, Normaliser, Words
from optiml_jax.data.example import Example

_BATCH_BYTES = 1 << 18  # the arrays of a batch, eight bytes for each of these, stay in the cache


@dataclasses.dataclass(frozen=True)
class Batch:
    """A batch of examples and their words.

    Attributes:
      examples: in their order.
      words: of the instantiated sequences.
      content: int64[N]: the first word of each example's content.
    """

    examples: list[Example]
    words: Words
    content: np.ndarray

    def short(self, n: int) -> np.ndarray:
        """int64[S]: the examples whose content has fewer than `n` words, but has some."""
        lengths = self.words.first[1:] - self.content
        return np.flatnonzero((lengths > 0) & (lengths < n))

    def whole(self, examples: np.ndarray) -> np.ndarray:
        """uint64[S]: hashes of the whole contents of these examples."""
        return self.words.whole(self.content[examples], self.words.first[examples + 1])


def content_text(example: Example) -> str:
    return f"{example.input}\n{example.target}"


def batches(examples: Iterable[Example], rules: AuditWords) -> Iterator[Batch]:
    """The examples in batches of a few hundred."""
    normaliser = Normaliser(rules)
    instructions: dict[str, bytes] = {"": b""}  # one task has few
    kept: list[Example] = []
    texts: list[bytes] = []
    offsets: list[int] = []
    size = 0
    for example in itertools.chain(examples, (None,)):
        if kept and (example is None or size > _BATCH_BYTES):
            words = Words.of(texts)
            yield Batch(kept, words, words.word_at(np.array(offsets, np.int64)))
            kept, texts, offsets, size = [], [], [], 0
        if example is None:
            return
        head = instructions.get(example.instruction)
        if head is None:
            head = normaliser.spaced(example.instruction) + b" "
            if len(instructions) > 1000:
                instructions.clear()
            instructions[example.instruction] = head
        text = head + normaliser.spaced(content_text(example))
        kept.append(example)
        texts.append(text)
        offsets.append(len(head))
        size += len(text)
