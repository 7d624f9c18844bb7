"""What holds for every decoder: packing, padding, dropout, types, rematerialisation, ranges."""

import dataclasses
import functools

import decoders
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from optiml_jax.ahead.flops import matmul_flops
from optiml_jax.model.attention import DocumentMask
from optiml_jax.model.config import REMAT_POLICIES
from optiml_jax.model.decoder import abstract_model, init_params

LENGTHS = (5, 9, 4)


@functools.cache
def _model(config):
    return abstract_model(config)[0], decoders.random_params(config)


@functools.partial(jax.jit, static_argnums=0)
def _logits(graphdef, params, tokens, positions, segment_ids, dropout_key=None):
    model = nnx.merge(graphdef, params)
    return model(tokens, positions, DocumentMask(segment_ids), dropout_key=dropout_key)


def _packed():
    """A row of three documents and padding, and the documents in rows of their own.

    Both are [3, 20] (the packed row comes with two rows of padding), so one program serves both.
    """
    tokens = np.random.default_rng(0).integers(3, 64, 20).astype(np.int32)
    packed = [np.zeros((3, 20), np.int32) for _ in range(3)]
    packed[0][0] = tokens
    separate = [
        np.ones((3, 20), np.int32),
        np.zeros((3, 20), np.int32),
        np.zeros((3, 20), np.int32),
    ]
    places, start = [], 0
    for i, length in enumerate(LENGTHS):
        place = slice(start, start + length)
        packed[1][0, place], packed[2][0, place] = np.arange(length), i + 1
        separate[0][i, :length] = tokens[place]
        separate[1][i, :length] = np.arange(length)
        separate[2][i, :length] = 1
        places.append(place)
        start += length
    return tuple(packed), tuple(separate), places


@pytest.mark.parametrize("config", decoders.DECODERS.values(), ids=decoders.DECODERS)
def test_packed_documents_equal_separate_ones(config):
    graphdef, params = _model(config)
    packed, separate, places = _packed()
    together = _logits(graphdef, params, *packed)[0]
    alone = _logits(graphdef, params, *separate)
    for i, place in enumerate(places):
        np.testing.assert_allclose(together[place], alone[i, : LENGTHS[i]], atol=1e-5)


@pytest.mark.parametrize("config", decoders.DECODERS.values(), ids=decoders.DECODERS)
def test_packed_documents_give_the_gradient_of_separate_ones(config):
    graphdef, params = _model(config)
    packed, separate, _ = _packed()

    def loss(params, tokens, positions, segment_ids):
        logits = _logits(graphdef, params, tokens, positions, segment_ids)
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], -1)[..., 0]
        return -jnp.sum(jnp.where(segment_ids != 0, chosen, 0)) / sum(LENGTHS)

    gradient = jax.jit(jax.grad(loss))
    together, alone = gradient(params, *packed), gradient(params, *separate)
    for (path, a), b in zip(
        jax.tree.leaves_with_path(together), jax.tree.leaves(alone), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=1e-5, err_msg=jax.tree_util.keystr(path))
        opts = config.architecture == "opt"
        if opts and "['key']['bias']" in jax.tree_util.keystr(path):  # the softmax ignores it
            assert not np.any(a)
        else:
            assert np.abs(a).max() > 1e-4


@pytest.mark.parametrize("config", decoders.TWO.values(), ids=decoders.TWO)
def test_padding_is_finite_and_changes_nothing(config):
    graphdef, params = _model(config)
    (tokens, positions, segment_ids), _, places = _packed()
    before = _logits(graphdef, params, tokens, positions, segment_ids)
    end = places[-1].stop
    other_tokens, other_positions = tokens.copy(), positions.copy()
    other_tokens[:, end:], other_positions[:, end:] = 9, 99
    after = _logits(graphdef, params, other_tokens, other_positions, segment_ids)
    np.testing.assert_array_equal(before[0, :end], after[0, :end])
    assert np.isfinite(before).all()
    assert np.isfinite(after).all()
    nothing = _logits(graphdef, params, tokens, positions, np.zeros_like(segment_ids))
    assert np.isfinite(nothing).all()


@pytest.mark.parametrize("config", decoders.TWO.values(), ids=decoders.TWO)
def test_a_token_or_position_outside_its_table_gives_nan(config):
    graphdef, params = _model(config)
    tokens, ones = np.full((1, 3), 5, np.int32), np.ones((1, 3), np.int32)
    last = config.max_positions - 1
    good = _logits(graphdef, params, tokens, np.array([[last - 2, last - 1, last]]), ones)
    assert np.isfinite(good).all()
    far = _logits(graphdef, params, tokens, np.array([[last - 1, last, last + 1]]), ones)
    assert np.isnan(far[0, 2]).all()
    unknown = _logits(graphdef, params, np.array([[5, 5, 64]]), np.array([[0, 1, 2]]), ones)
    assert np.isnan(unknown[0, 2]).all()


@pytest.mark.parametrize("config", decoders.TWO.values(), ids=decoders.TWO)
def test_dropout_depends_on_its_key_alone(config):
    graphdef, params = _model(dataclasses.replace(config, dropout=0.3, attention_dropout=0.2))
    run = functools.partial(_logits, graphdef, params, *_packed()[0])
    first = run(jax.random.key(1))
    np.testing.assert_array_equal(first, run(jax.random.key(1)))
    assert np.abs(first - run(jax.random.key(2))).max() > 0.01
    assert np.abs(first - run()).max() > 0.01


@pytest.mark.parametrize("config", decoders.TWO.values(), ids=decoders.TWO)
def test_bfloat16_computes_in_bfloat16_and_gives_float32_logits(config):
    graphdef, params = _model(config)
    half = abstract_model(dataclasses.replace(config, dtype="bfloat16"))[0]
    packed, _, _ = _packed()
    exact, rounded = _logits(graphdef, params, *packed), _logits(half, params, *packed)
    assert rounded.dtype == jnp.float32
    assert 1e-4 < np.abs(exact - rounded).max() < 0.2
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(params))


@pytest.mark.parametrize("config", decoders.TWO.values(), ids=decoders.TWO)
def test_rematerialisation_and_unrolling_change_no_gradient(config):
    packed, _, _ = _packed()
    _, params = _model(config)

    def gradient(**changed):
        graphdef = abstract_model(dataclasses.replace(config, **changed))[0]
        key = jax.random.key(3)
        loss = jax.grad(lambda p: jnp.sum(jnp.sin(_logits(graphdef, p, *packed, key))))
        return jax.tree.leaves(jax.jit(loss)(params))

    plain = gradient(remat="none")
    for changed in [*({"remat": remat} for remat in REMAT_POLICIES[1:]), {"unroll": 3}]:
        for a, b in zip(plain, gradient(**changed), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", decoders.TWO.values(), ids=decoders.TWO)
def test_policies_compute_again_what_they_say(config):
    """Matrix products of the traced gradient, the kernel of attention and its loops included."""
    params, tokens = _model(config)[1], jnp.ones((2, 256), jnp.int32)

    def counted(remat):
        chosen = dataclasses.replace(config, remat=remat, attention="chunked", max_positions=256)
        graphdef = abstract_model(chosen)[0]

        def loss(params):
            return jnp.sum(nnx.merge(graphdef, params).hidden(tokens, tokens, DocumentMask(tokens)))

        return matmul_flops(jax.jit(jax.grad(loss)).trace(params).jaxpr)

    none, dots, attention, full, offload = map(counted, REMAT_POLICIES)
    assert none == dots < attention < full == offload


@pytest.mark.parametrize("config", decoders.DECODERS.values(), ids=decoders.DECODERS)
def test_logits_can_be_computed_in_chunks_of_tokens(config):
    graphdef, params = _model(config)
    (tokens, positions, segment_ids), _, _ = _packed()
    model = nnx.merge(graphdef, params)
    hidden = model.hidden(tokens, positions, DocumentMask(jnp.asarray(segment_ids)))
    assert hidden.shape == (
        3,
        20,
        (config.embed_dim if config.architecture == "opt" else config.d_model),
    )
    chunks = [model.unembed(hidden[0, i : i + 5]) for i in range(0, 20, 5)]
    whole = _logits(graphdef, params, tokens, positions, segment_ids)
    np.testing.assert_allclose(jnp.concatenate(chunks), whole[0], atol=1e-5)


@pytest.mark.parametrize("config", decoders.TWO.values(), ids=decoders.TWO)
def test_weights_follow_the_seed_and_are_each_layers_own(config):
    graphdef, params = init_params(config, seed=3)
    again, other = init_params(config, seed=3)[1], init_params(config, seed=4)[1]
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.allclose(params["token_embedding"], other["token_embedding"])
    kernel = params["blocks"]["wi"]["kernel"]
    assert not np.allclose(kernel[0], kernel[1])  # each layer has its own weights
    np.testing.assert_allclose(np.std(kernel), config.init_std, rtol=0.05)
    np.testing.assert_allclose(
        np.std(params["blocks"]["wo"]["kernel"]), config.init_std / 2, rtol=0.05
    )
    assert graphdef == abstract_model(config)[0]
