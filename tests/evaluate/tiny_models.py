"""Small random models for the tests of this folder."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from optiml_jax.evaluate.batching import Engine
from optiml_jax.model.attention import DocumentMask
from optiml_jax.model.config import DecoderConfig
from optiml_jax.model.decoder import init_params
from optiml_jax.model.llama.config import LlamaConfig
from optiml_jax.model.opt.config import OPTConfig

PRE_NORM = OPTConfig(
    vocab_size=96, d_model=32, num_layers=2, num_heads=4, max_positions=128, init_std=0.3
)
POST_NORM = OPTConfig(
    vocab_size=96,
    d_model=32,
    num_layers=2,
    num_heads=4,
    max_positions=128,
    embed_dim=16,
    pre_layer_norm=False,
    init_std=0.3,
)

GROUPED = LlamaConfig(
    vocab_size=96,
    d_model=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    max_positions=128,
    tied=False,
    init_std=0.3,
)
WINDOWED = dataclasses.replace(GROUPED, family="mistral", sliding_window=9)
MODELS = {
    "pre_norm": PRE_NORM,
    "post_norm": POST_NORM,
    "grouped": GROUPED,
    "windowed": WINDOWED,
}


@functools.cache
def weights(config: DecoderConfig):
    return init_params(config, seed=0)


def engine(config: DecoderConfig = PRE_NORM, **more) -> Engine:
    graphdef, params = weights(config)
    return Engine(graphdef, params, config, **({"tokens_per_batch": 512} | more))


@functools.partial(jax.jit, static_argnums=0)
def _all_logits(graphdef, params, tokens, length):
    index = jnp.arange(tokens.shape[1])[None]
    return nnx.merge(graphdef, params)(
        tokens, index, DocumentMask((index < length).astype(jnp.int32))
    )


def logits(config: DecoderConfig, row: list[int]) -> np.ndarray:
    """float32[len(row), V]: the model on one row, no cache; padded so that it compiles once."""
    tokens = np.full((1, config.max_positions), config.pad_id, np.int32)
    tokens[0, : len(row)] = row
    return np.asarray(_all_logits(*weights(config), tokens, len(row)))[0, : len(row)]
