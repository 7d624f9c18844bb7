"""Encoding and decoding of texts inside tf.data, for vocabularies that are written in Python."""

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf


def encode_tf(
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


def decode_tf(decode: Callable[[np.ndarray], str], ids: tf.Tensor) -> tf.Tensor:
    """Text of ids int32[n] (a scalar) or int32[batch, n] (a string[batch])."""

    def decode_rows(rows: np.ndarray) -> np.ndarray:
        texts = [decode(row).encode("utf-8") for row in np.atleast_2d(rows)]
        return np.array(texts if rows.ndim > 1 else texts[0], dtype=object)

    text = tf.numpy_function(decode_rows, [ids], tf.string)
    text.set_shape(ids.shape[:-1])
    return text
