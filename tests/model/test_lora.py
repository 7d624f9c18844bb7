"""Adapters beside the matrices of every decoder: what they add, and what remains when merged."""

import dataclasses
import functools

import decoders
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from optiml_jax.errors import UserError
from optiml_jax.model.attention import DocumentMask
from optiml_jax.model.decoder import abstract_model, init_adapters
from optiml_jax.model.lora import join_params, merge_params, split_params

TOKENS = np.random.default_rng(0).integers(3, 64, (2, 12)).astype(np.int32)


def _adapted(config, targets=()):
    return dataclasses.replace(config, lora_rank=4, lora_alpha=8.0, lora_targets=targets)


@functools.partial(jax.jit, static_argnums=0)
def _logits(config, params):
    model = nnx.merge(abstract_model(config)[0], params)
    positions = jnp.broadcast_to(jnp.arange(TOKENS.shape[1]), TOKENS.shape)
    return model(jnp.asarray(TOKENS), positions, DocumentMask(jnp.ones_like(TOKENS)))


@pytest.mark.parametrize("kind", ["opt", "opt_350m", "llama_3", "qwen_2"])
def test_merged_adapters_give_the_logits_of_separate_ones(kind):
    config = decoders.DECODERS[kind]
    adapted = _adapted(config)
    params = decoders.random_params(adapted)
    adapters, base = split_params(params)
    assert jax.tree.structure(base) == jax.tree.structure(decoders.random_params(config))
    merged = merge_params(params, adapted.lora_scale)
    separate = _logits(adapted, params)
    scale = np.abs(separate).max()
    np.testing.assert_allclose(_logits(config, merged), separate, atol=1e-5 * scale)
    assert np.abs(_logits(config, base) - separate).max() > 0.1 * scale
    # By hand, for one matrix of one layer: W + alpha / rank * a b.
    a, b = (adapters["blocks"]["attention"]["query"]["adapter"][part][1] for part in "ab")
    expected = base["blocks"]["attention"]["query"]["kernel"][1] + 2 * np.tensordot(a, b, 1)
    np.testing.assert_allclose(
        merged["blocks"]["attention"]["query"]["kernel"][1], expected, atol=1e-5
    )


@pytest.mark.parametrize("config", decoders.TWO.values(), ids=decoders.TWO)
def test_new_adapters_change_nothing(config):
    adapted = _adapted(config, targets=("query", "wo"))
    base = decoders.random_params(config)
    shardings = jax.tree.map(
        lambda _: jax.sharding.SingleDeviceSharding(jax.devices()[0]),
        split_params(nnx.to_pure_dict(abstract_model(adapted)[1]))[0],
    )
    adapters = init_adapters(adapted, 3, shardings)
    assert {path[-3].key for path, _ in jax.tree.leaves_with_path(adapters)} == {"query", "wo"}
    whole = join_params(adapters, base)
    np.testing.assert_array_equal(_logits(adapted, whole), _logits(config, base))
    # PEFT's start: uniform within 1 / sqrt(inputs), another one for every layer.
    a = adapters["blocks"]["attention"]["query"]["adapter"]["a"]
    assert 0.8 / np.sqrt(32) < np.abs(a).max() <= 1 / np.sqrt(32)
    assert np.abs(a[0] - a[1]).max() > 0


def test_an_unknown_matrix_is_refused():
    with pytest.raises(UserError, match="opt has no matrix 'gate'; choose from key, "):
        abstract_model(_adapted(decoders.DECODERS["opt"], targets=("gate",)))
