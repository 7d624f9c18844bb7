"""Reads Hugging Face folders the way `optiml convert` does, without writing a checkpoint."""

import jax
import jax.numpy as jnp

from optiml_jax.checkpoint.huggingface import open_huggingface
from optiml_jax.checkpoint.weights import streamed_params


def read_model(source, dtype="float32"):
    """(config, params) of a folder."""
    with open_huggingface(source) as weights:
        return weights.config, jax.tree.map(
            lambda array: jnp.asarray(array.whole()), streamed_params(weights, dtype)
        )
