"""A vocabulary in SeqIO's form: texts are encoded and decoded inside tf.data, too."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import seqio
import tensorflow as tf

from optiml_jax.data.text_vocabulary import TextVocabulary


def as_seqio(vocabulary: TextVocabulary | seqio.Vocabulary) -> seqio.Vocabulary:
    """The vocabulary for SeqIO's features; one that is SeqIO's already is returned as it is."""
    if isinstance(vocabulary, seqio.Vocabulary):
        return vocabulary
    return SeqioVocabulary(vocabulary)


class SeqioVocabulary(seqio.Vocabulary):
    """One of the project's vocabularies behind SeqIO's interface. Picklable."""

    def __init__(self, vocabulary: TextVocabulary):
        super().__init__()
        self.vocabulary = vocabulary

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SeqioVocabulary) and self.vocabulary == other.vocabulary

    def __hash__(self) -> int:
        return hash(self.vocabulary)

    def __repr__(self) -> str:
        return repr(self.vocabulary)

    @property
    def bos_id(self) -> int | None:
        return self.vocabulary.bos_id

    @property
    def pad_id(self) -> int:
        return self.vocabulary.pad_id

    @property
    def eos_id(self) -> int:
        return self.vocabulary.eos_id

    @property
    def unk_id(self) -> int | None:
        return self.vocabulary.unk_id

    @property
    def _base_vocab_size(self) -> int:
        return self.vocabulary.vocab_size

    def _encode(self, s: str) -> list[int]:
        return self.vocabulary.encode(s)

    def _decode(self, ids: Iterable[int]) -> str:
        return self.vocabulary.decode(ids)

    def _encode_tf(self, s: tf.Tensor) -> tf.Tensor | tf.RaggedTensor:
        return _encode_tf(self.vocabulary.encode_batch, s)

    def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
        return _decode_tf(self.vocabulary.decode, ids)


def _encode_tf(
    encode_batch: Callable[[Sequence[str]], list[list[int]]], s: tf.Tensor
) -> tf.Tensor | tf.RaggedTensor:
    """Ids of a string tensor of rank 0 (int32[n]) or rank 1 (ragged int32[batch, None])."""

    def encode(texts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows = encode_batch([text.decode("utf-8") for text in texts])
        flat = np.fromiter((i for row in rows for i in row), np.int32)
        return flat, np.array([len(row) for row in rows], np.int64)

    s = tf.convert_to_tensor(s)
    flat, lengths = tf.numpy_function(encode, [tf.reshape(s, [-1])], [tf.int32, tf.int64])
    flat.set_shape([None])
    lengths.set_shape([None])
    if s.shape.rank == 0:
        return flat
    return tf.RaggedTensor.from_row_lengths(flat, lengths)


def _decode_tf(decode: Callable[[np.ndarray], str], ids: tf.Tensor) -> tf.Tensor:
    """Text of ids int32[n] (a scalar) or int32[batch, n] (a string[batch])."""

    def decode_rows(rows: np.ndarray) -> np.ndarray:
        texts = [decode(row).encode("utf-8") for row in np.atleast_2d(rows)]
        return np.array(texts if rows.ndim > 1 else texts[0], dtype=object)

    text = tf.numpy_function(decode_rows, [ids], tf.string)
    text.set_shape(ids.shape[:-1])
    return text
