"""Shardings: what each parameter becomes, what is refused, and that a mesh changes no result."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sharding_dump
from flax import nnx
from jax.sharding import PartitionSpec as P

from optiml_jax.errors import UserError
from optiml_jax.model.architectures import model_config
from optiml_jax.model.attention import DocumentMask
from optiml_jax.model.decoder import abstract_model, init_params
from optiml_jax.model.kv_cache import KVCache
from optiml_jax.model.llama.config import LlamaConfig
from optiml_jax.model.opt.config import OPTConfig
from optiml_jax.sharding import rules
from optiml_jax.sharding.mesh import AXES, MeshConfig, make_mesh

GOLDEN = pathlib.Path(__file__).parents[1] / "goldens" / "shardings.txt"
SMALL = OPTConfig(
    vocab_size=64,
    d_model=64,
    num_layers=2,
    num_heads=4,
    max_positions=16,
    embed_dim=32,
    remat="dots",
    init_std=0.1,
)

LLAMA = LlamaConfig(
    vocab_size=64,
    d_model=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    max_positions=16,
    tied=False,
    sliding_window=6,
    dropout=0.1,
    remat="dots",
    init_std=0.1,
)


def test_shardings_of_every_size_are_the_stored_ones():
    assert sharding_dump.dump() == GOLDEN.read_text(), (
        "shardings changed; if that is meant, run tools/make_golden.py and look at the difference"
    )


def test_a_dimension_that_cannot_be_cut_is_named():
    _, abstract = abstract_model(model_config("125m"))
    mesh = jax.sharding.AbstractMesh((1, 1, 8), AXES)
    message = (
        r"parameter blocks\.attention\.key\.bias \[12, 12, 64\]: axis 'heads' of size 12 cannot be "
        r"cut into 8 parts by mesh axis tensor"
    )
    with pytest.raises(UserError, match=message):
        rules.param_shardings(abstract, mesh)


def test_axes_that_collide_are_named(monkeypatch):
    colliding = {**rules.PRESETS["standard"], "mlp": ("fsdp",)}
    monkeypatch.setattr(rules, "PRESETS", {"standard": colliding})
    _, abstract = abstract_model(model_config("125m"))
    message = (
        r"parameter blocks\.wi\.kernel \[12, 768, 3072\]: mesh axis 'fsdp' \(size 4\) would shard "
        r"the axes 'embed' and 'mlp'"
    )
    with pytest.raises(UserError, match=message):
        rules.param_shardings(abstract, jax.sharding.AbstractMesh((1, 4, 1), AXES))


def test_an_unknown_preset_is_refused():
    with pytest.raises(UserError, match="unknown sharding preset 'tpu'; choose one of standard"):
        rules.param_shardings(abstract_model(SMALL)[1], make_mesh(MeshConfig()), "tpu")


def _gradient_step(graphdef):
    """A step function of its own for every call: a trace knows one mesh and one preset."""

    def loss(params, tokens, positions, segment_ids, key):
        model = nnx.merge(graphdef, params)
        logits = model(tokens, positions, DocumentMask(segment_ids), dropout_key=key)
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], -1)
        return -chosen.mean()

    return jax.jit(jax.value_and_grad(loss))


def _batch():
    tokens = np.random.default_rng(0).integers(3, 64, (8, 16)).astype(np.int32)
    segment_ids = np.repeat(np.array([[1, 2]], np.int32), [9, 7], axis=1).repeat(8, 0)
    positions = np.concatenate([np.arange(9), np.arange(7)])[None].repeat(8, 0).astype(np.int32)
    return tokens, positions, segment_ids


@functools.cache
def _alone(config):
    """Weights, loss and gradient on one device."""
    graphdef, params = init_params(config, seed=0)
    step = _gradient_step(graphdef)
    return params, *step(params, *_batch(), jax.random.key(1))


@pytest.mark.parametrize("config", [SMALL, LLAMA], ids=["opt", "llama"])
@pytest.mark.parametrize(("sizes", "preset"), [((2, 2, 2), "standard"), ((1, 2, 4), "sequence")])
def test_a_mesh_changes_neither_loss_nor_gradient(sizes, preset, config):
    params, loss, gradient = _alone(config)
    mesh = make_mesh(MeshConfig(*sizes))
    graphdef, abstract = abstract_model(config)
    shardings = rules.param_shardings(abstract, mesh, preset)
    with rules.use_mesh(mesh, preset):
        batch = jax.device_put(_batch(), rules.batch_sharding(mesh))
        step = _gradient_step(graphdef)
        sharded_loss, sharded_gradient = step(
            jax.device_put(params, shardings), *batch, jax.random.key(1)
        )
    np.testing.assert_allclose(sharded_loss, loss, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(sharded_gradient), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize(
    ("preset", "residual"),
    [("standard", P(("data", "fsdp"))), ("sequence", P(("data", "fsdp"), "tensor"))],
)
def test_activations_lie_where_the_preset_says(preset, residual):
    mesh = make_mesh(MeshConfig(2, 2, 2))
    config = dataclasses.replace(SMALL, embed_dim=64, remat="none")
    graphdef, _ = abstract_model(config)
    batch = jax.ShapeDtypeStruct((8, 16), jnp.int32, sharding=rules.batch_sharding(mesh))

    @jax.jit
    def run(params, tokens):
        mask, cache = DocumentMask(tokens), KVCache.empty(config, 8, 16)
        return nnx.merge(graphdef, params).hidden(tokens, tokens, mask, cache)

    with rules.use_mesh(mesh, preset):
        compiled = run.lower(rules.abstract_params(config, mesh, preset), batch).compile()
    hidden, cache = compiled.output_shardings
    heads = jax.sharding.NamedSharding(mesh, P(None, ("data", "fsdp"), "tensor"))
    assert hidden.is_equivalent_to(jax.sharding.NamedSharding(mesh, residual), 3)
    assert cache.key.is_equivalent_to(heads, 5)
    assert cache.value.is_equivalent_to(heads, 5)


def test_initial_weights_lie_where_they_belong_and_do_not_depend_on_the_mesh():
    mesh = make_mesh(MeshConfig(1, 4, 2))
    abstract = rules.abstract_params(SMALL, mesh)
    _, params = init_params(SMALL, 0, rules.param_shardings(abstract_model(SMALL)[1], mesh))

    def check(expected, sharded, whole):
        assert (expected.shape, expected.dtype) == (sharded.shape, sharded.dtype)
        assert expected.sharding.is_equivalent_to(sharded.sharding, sharded.ndim)
        np.testing.assert_allclose(sharded, whole, atol=1e-7)

    jax.tree.map(check, abstract, params, _alone(SMALL)[0])
    kernel = params["blocks"]["wi"]["kernel"]
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(2, 64 // 4, 256 // 2)}


@pytest.mark.parametrize("config", [SMALL, LLAMA], ids=["opt", "llama"])
def test_decoding_on_a_mesh_equals_decoding_alone(config):
    """Batches and lengths that the mesh does not divide are left whole, and few heads of keys."""
    config = dataclasses.replace(config, remat="none")
    graphdef, abstract = abstract_model(config)
    tokens, positions, _ = (x[:3] for x in _batch())
    positions = np.arange(16, dtype=np.int32)[None].repeat(3, 0)
    ones = np.ones((3, 16), np.int32)

    def decode():
        @jax.jit
        def run(params):
            model = nnx.merge(graphdef, params)
            mask, one = (
                DocumentMask(jnp.asarray(ones[:, :7])),
                DocumentMask(jnp.asarray(ones[:, :1])),
            )
            cache = KVCache.empty(config, 3, 9)
            _, cache = model(tokens[:, :7], positions[:, :7], mask, cache)
            return model(tokens[:, 7:8], positions[:, 7:8], one, cache)[0]

        return run

    _, params = init_params(config, seed=0)
    expected = decode()(params)
    mesh = make_mesh(MeshConfig(1, 2, 4))
    with rules.use_mesh(mesh, "sequence"):
        sharded = jax.device_put(params, rules.param_shardings(abstract, mesh, "sequence"))
        np.testing.assert_allclose(decode()(sharded), expected, atol=1e-5)
