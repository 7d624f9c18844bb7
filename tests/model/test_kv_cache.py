"""Decoding with the cache equals running the whole text, whatever the lengths of the prompts."""

import dataclasses
import functools

import decoders
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from optiml_jax.model.attention import DocumentMask
from optiml_jax.model.decoder import abstract_model
from optiml_jax.model.kv_cache import KVCache
from optiml_jax.model.unstacked import unstacked

LENGTHS = np.array([12, 9, 5])


@functools.cache
def _model(config):
    return abstract_model(config)[0], decoders.random_params(config)


@functools.partial(jax.jit, static_argnums=0)
def _run(graphdef, params, tokens, positions, segment_ids, cache=None):
    return nnx.merge(graphdef, params)(tokens, positions, DocumentMask(segment_ids), cache)


def _texts():
    tokens = np.random.default_rng(0).integers(3, 64, (3, 12)).astype(np.int32)
    positions = np.broadcast_to(np.arange(12, dtype=np.int32), tokens.shape)
    return tokens, positions


def _valid(lengths, width):
    return (np.arange(width) < lengths[:, None]).astype(np.int32)


@pytest.mark.parametrize("form", ["stacked", "unstacked"])
@pytest.mark.parametrize("config", decoders.DECODERS.values(), ids=decoders.DECODERS)
def test_steps_after_unequal_prompts_equal_the_whole_text(config, form):
    graphdef, params = _model(config)
    tokens, positions = _texts()
    whole = _run(graphdef, params, tokens, positions, _valid(LENGTHS, 12))
    index = np.array([6, 3, 2])
    logits, cache = _run(
        graphdef,
        params,
        tokens[:, :6],
        positions[:, :6],
        _valid(index, 6),
        KVCache.empty(config, 3, 12),
    )
    for row in range(3):
        np.testing.assert_allclose(logits[row, : index[row]], whole[row, : index[row]], atol=1e-5)
    if form == "unstacked":
        (graphdef, params), cache = unstacked(graphdef, params), cache.unstacked()
    compared = 0
    for _ in range(7):
        going = index < LENGTHS
        place = np.minimum(index, 11)
        logits, cache = _run(
            graphdef,
            params,
            tokens[np.arange(3), place][:, None],
            place[:, None],
            going[:, None].astype(np.int32),
            cache,
        )
        assert np.isfinite(logits).all()
        for row in np.flatnonzero(going):
            np.testing.assert_allclose(logits[row, 0], whole[row, index[row]], atol=1e-5)
            compared += 1
        index = index + going
    np.testing.assert_array_equal(cache.index, LENGTHS)
    assert compared == 6 + 6 + 3


@pytest.mark.parametrize("config", decoders.DECODERS.values(), ids=decoders.DECODERS)
def test_a_second_chunk_sees_the_first_and_itself(config):
    graphdef, params = _model(config)
    tokens, positions = _texts()
    whole = _run(graphdef, params, tokens, positions, _valid(LENGTHS, 12))
    cache = KVCache.empty(config, 3, 12)
    first = np.array([4, 2, 1])
    _, cache = _run(graphdef, params, tokens[:, :4], positions[:, :4], _valid(first, 4), cache)
    second = first[:, None] + np.arange(5)
    chunk = np.take_along_axis(tokens, second, axis=1)
    logits, _ = _run(graphdef, params, chunk, second, _valid(np.array([5, 5, 4]), 5), cache)
    for row, count in enumerate((5, 5, 4)):
        place = slice(first[row], first[row] + count)
        np.testing.assert_allclose(logits[row, :count], whole[row, place], atol=1e-5)


@pytest.mark.parametrize("config", decoders.DECODERS.values(), ids=decoders.DECODERS)
def test_cached_documents_stay_apart(config):
    graphdef, params = _model(config)
    tokens, _ = _texts()
    documents = np.array([[1, 1, 1, 2, 2, 2]] * 3, np.int32)
    restarting = np.array([[0, 1, 2, 0, 1, 2]] * 3, np.int32)
    cache = KVCache.empty(config, 3, 8)
    _, cache = _run(graphdef, params, tokens[:, :6], restarting, documents, cache)
    three, two = np.full((3, 1), 3, np.int32), np.full((3, 1), 2, np.int32)
    logits, _ = _run(graphdef, params, tokens[:, 6:7], three, two, cache)
    alone = _run(graphdef, params, tokens[:, 3:7], np.arange(4)[None].repeat(3, 0), np.ones((3, 4)))
    np.testing.assert_allclose(logits[:, 0], alone[:, 3], atol=1e-5)


@pytest.mark.parametrize("config", decoders.DECODERS.values(), ids=decoders.DECODERS)
def test_a_row_without_room_gives_nan_and_leaves_the_others_alone(config):
    graphdef, params = _model(config)
    tokens, positions = _texts()
    cache = KVCache.empty(config, 3, 4)
    filled = np.array([4, 3, 1])
    _, cache = _run(graphdef, params, tokens[:, :4], positions[:, :4], _valid(filled, 4), cache)
    one = np.ones((3, 1), np.int32)
    logits, _ = _run(graphdef, params, tokens[:, 4:5], filled[:, None], one, cache)
    np.testing.assert_array_equal(np.isnan(logits).all(axis=(1, 2)), [True, False, False])
    assert np.isfinite(logits[1:]).all()


@pytest.mark.parametrize("name", ["opt", "mistral"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_cache_keeps_its_type_and_shape_through_a_loop(name, dtype):
    config = dataclasses.replace(decoders.DECODERS[name], dtype=dtype)
    graphdef, params = abstract_model(config)[0], decoders.random_params(config)
    tokens, positions = _texts()
    ones = jnp.ones((3, 4), jnp.int32)

    @jax.jit
    def decode(params):
        model = nnx.merge(graphdef, params)
        cache = KVCache.empty(config, 3, 9)
        _, cache = model(tokens[:, :4], positions[:, :4], DocumentMask(ones), cache)

        def step(carry):
            place, token, cache = carry
            at = jnp.broadcast_to(place, (3, 1))
            logits, cache = model(token, at, DocumentMask(ones[:, :1]), cache)
            return place + 1, jnp.argmax(logits, -1).astype(jnp.int32), cache

        return jax.lax.while_loop(lambda c: c[0] < 9, step, (4, jnp.asarray(tokens[:, 4:5]), cache))

    _, token, cache = decode(params)
    assert cache.key.dtype == cache.value.dtype == jnp.dtype(dtype)
    assert token.shape == (3, 1)
    np.testing.assert_array_equal(cache.index, 9)
