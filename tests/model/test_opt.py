"""What is OPT's own: where dropout is applied."""

import dataclasses

import decoders
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from optiml_jax.model.attention import DocumentMask
from optiml_jax.model.decoder import abstract_model


@pytest.mark.parametrize("place", ["embeddings", "attention", "feed_forward"])
def test_dropout_is_applied_to_embeddings_and_both_residual_branches(place):
    config = dataclasses.replace(
        decoders.DECODERS["opt"], num_layers=1, dropout=0.3, final_layer_norm=False
    )
    graphdef, params = abstract_model(config)[0], decoders.random_params(config)
    params = jax.tree.map(jnp.zeros_like, params)
    # The place writes ones and everything else zeros, so the output is the place's dropout.
    if place == "embeddings":
        params["position_embedding"] += 1
    elif place == "attention":
        params["blocks"]["attention"]["out"]["bias"] += 1
    else:
        params["blocks"]["wo"]["bias"] += 1
    tokens = jnp.zeros((16, 20), jnp.int32)
    model = nnx.merge(graphdef, params)
    mask = DocumentMask(tokens + 1)
    hidden = model.hidden(tokens, tokens, mask, dropout_key=jax.random.key(0))
    assert set(np.unique(hidden)) == {np.float32(0), np.float32(1) / np.float32(0.7)}
    assert abs(np.mean(hidden == 0) - 0.3) < 0.02
