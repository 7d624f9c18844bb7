"""Reads Hugging Face folders the way `optiml convert` does, without writing a checkpoint."""

import jax
import jax.numpy as jnp
import numpy as np

from optiml_jax.checkpoint.huggingface import open_huggingface
from optiml_jax.checkpoint.streaming import StreamedArray
from optiml_jax.checkpoint.weights import streamed_params


def read_model(source, dtype="float32"):
    """(config, params) of a folder."""
    with open_huggingface(source) as weights:
        return weights.config, jax.tree.map(_whole, streamed_params(weights, dtype))


def _whole(array: StreamedArray) -> jax.Array:
    out = np.empty(array.shape, array.dtype)
    for index in array.pieces():
        out[index] = array.read(index)
    return jnp.asarray(out)
