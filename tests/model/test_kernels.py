"""Every kernel of attention equals the reference, forward and backward, or says why it cannot.

The reference in turn equals Hugging Face's models (test_huggingface_logits.py).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optiml_jax.ahead.flops import matmul_flops
from optiml_jax.model.attention import SHARED_SEGMENT, DocumentMask
from optiml_jax.model.kernels import choice, chunked, splash, triton
from optiml_jax.model.kernels.chunked import Chunked
from optiml_jax.model.kernels.contract import Case, Keys
from optiml_jax.model.kernels.reference import Reference
from optiml_jax.model.kernels.splash import Splash
from optiml_jax.model.kernels.triton import Triton
from optiml_jax.sharding.mesh import MeshConfig, make_mesh
from optiml_jax.sharding.rules import use_mesh

LENGTH = 256
DOCUMENTS = [[90, 100, 60], [1, 130, 17, 30]]  # the rest of each row is padding
CASE = Case("cpu", None, "float32", 2, LENGTH, 4, 4, 64)


def arrays(head_dim: int, kv_heads: int, heads: int = 4, rows: int = 2, seed: int = 0):
    generator = np.random.default_rng(seed)

    def draw(number: int) -> jax.Array:
        shape = (rows, number, LENGTH, head_dim)
        return jnp.asarray(generator.standard_normal(shape), jnp.float32)

    ids = np.zeros((rows, LENGTH), np.int32)
    for row in range(rows):
        lengths = DOCUMENTS[row % 2]
        ids[row, : sum(lengths)] = np.repeat(np.arange(1, len(lengths) + 1), lengths)
    positions = np.concatenate([np.arange(n) for n in (*DOCUMENTS[0], 6)])
    positions = np.broadcast_to(positions, ids.shape).astype(np.int32)
    mask = DocumentMask(jnp.asarray(ids), positions=jnp.asarray(positions))
    return draw(heads) * head_dim**-0.5, draw(kv_heads), draw(kv_heads), mask


def results(kernel, query, key, value, mask, window=None, earlier=()):
    """The output at the tokens that are not padding, and the gradients of a weighted sum of it."""

    @jax.jit
    def run(query, key, value):
        def loss(query, key, value):
            parts = [*earlier, Keys(key, value, mask, own=True)]
            out = kernel.attend(query, mask, parts, window, 0.0, None)
            out = jnp.where(mask.valid[:, None, :, None], out, 0)
            return jnp.sum(out * jnp.sin(jnp.arange(out.size)).reshape(out.shape)), out

        return jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(query, key, value)

    gradients, out = run(query, key, value)
    return out, *gradients


def assert_equal(found, expected):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=5e-5)


@pytest.mark.parametrize(
    ("head_dim", "kv_heads", "window"), [(64, 4, None), (80, 2, None), (128, 1, None), (16, 2, 40)]
)
def test_kernels_equal_the_reference(head_dim, kv_heads, window):
    query, key, value, mask = arrays(head_dim, kv_heads)
    if window is None:
        mask = mask.replace(positions=None)
    else:  # positions of the second row would be those of the first
        query, key, value, mask = jax.tree.map(lambda x: x[:1], (query, key, value, mask))
    expected = results(Reference(), query, key, value, mask, window)
    for kernel in (Chunked(), Splash(interpret=True), Triton(interpret=True)):
        assert_equal(results(kernel, query, key, value, mask, window), expected)


def test_branches_shared_tokens_and_a_prefix_equal_the_reference(monkeypatch):
    monkeypatch.setattr(chunked, "BLOCK", 64)
    query, key, value, mask = arrays(16, 2)
    branches = np.zeros((2, LENGTH), np.int32)
    branches[:, 30:60], branches[:, 60:88] = 1, 2
    ids = np.asarray(mask.segment_ids).copy()
    ids[1, :20] = SHARED_SEGMENT
    mask = DocumentMask(jnp.asarray(ids), jnp.asarray(branches))
    generator = np.random.default_rng(1)
    before = [jnp.asarray(generator.standard_normal((1, 2, 70, 16)), jnp.float32) for _ in "kv"]
    ids = np.where(np.arange(70) < 66, SHARED_SEGMENT, 0)[None].astype(np.int32)
    prefix = Keys(*before, DocumentMask(jnp.asarray(ids)), own=False)
    for earlier in ([], [prefix]):
        expected = results(Reference(), query, key, value, mask, earlier=earlier)
        found = results(Chunked(), query, key, value, mask, earlier=earlier)
        seen = np.asarray(ids if earlier else mask.segment_ids).any()
        assert seen
        assert_equal(found, expected)


def test_a_mesh_changes_nothing():
    """Rows over fsdp, heads over tensor; two heads of keys on four devices are repeated."""
    query, key, value, mask = arrays(16, 2, rows=4)
    mask = mask.replace(positions=None)
    expected = results(Reference(), query, key, value, mask)
    with use_mesh(make_mesh(MeshConfig(1, 2, 4)), "sequence"):
        for kernel in (Chunked(), Triton(interpret=True)):
            assert_equal(results(kernel, query, key, value, mask), expected)


def test_documents_cost_their_own_triangles():
    """Of the tiles of a row, those between different documents are not turned over."""
    ids = jnp.asarray(np.repeat(np.arange(1, 9), 256)[None], jnp.int32)
    turns = {}
    for name, segments in (("documents", ids), ("one", jnp.ones_like(ids))):
        mask = DocumentMask(segments)
        ranges = chunked.tiles.key_ranges(mask, mask, 128, 128, own=True, window=None)
        turns[name] = int(jnp.sum(ranges[..., 1] - ranges[..., 0]))
    assert turns == {"documents": 8 * 3, "one": 16 * 17 // 2}


def test_temporaries_grow_with_the_length_and_not_with_its_square():
    def temporaries(kernel, length):
        shape = jax.ShapeDtypeStruct((1, 2, length, 16), jnp.float32)
        ids = jax.ShapeDtypeStruct((1, length), jnp.int32)

        def loss(query, ids):
            mask = DocumentMask(ids)
            parts = [Keys(query, query, mask, own=True)]
            return jnp.sum(kernel.attend(query, mask, parts, None, 0.0, None) ** 2)

        compiled = jax.jit(jax.grad(loss)).lower(shape, ids).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries(Chunked(), 4096) < 2.2 * temporaries(Chunked(), 2048)
    assert temporaries(Reference(), 2048) > 3.5 * temporaries(Reference(), 1024)


def test_flops_count_the_turns_of_tiles():
    """Where nothing is skipped: the causal half of the reference's square, one product more."""
    query, key, value, mask = arrays(64, 4)

    def counted(kernel):
        def loss(query):
            parts = [Keys(key, value, mask, own=True)]
            return jnp.sum(kernel.attend(query, mask, parts, None, 0.0, None))

        return matmul_flops(jax.jit(loss).trace(query).jaxpr)

    for kernel, block in (
        (Chunked(), chunked.block_of(LENGTH)),
        (Triton(interpret=True), triton.BLOCK),
    ):
        blocks = LENGTH // block
        assert counted(kernel) == counted(Reference()) * (blocks + 1) / (2 * blocks)


@pytest.mark.parametrize(("length", "window"), [(1024, None), (1280, 300), (2048, 1), (2048, 1500)])
def test_flops_count_the_blocks_that_splash_runs(length, window):
    """The share of its grid is that of the table of blocks which the library makes of the mask."""
    kernel = splash._kernel(1, length, window, True)
    for table in (kernel.fwd_mask_info, kernel.dq_mask_info, kernel.dkv_mask_info):
        ran = float((table.block_mask != 0).mean())
        assert splash.share(length, window) == pytest.approx(ran)

    rows, columns = kernel.fwd_mask_info.block_mask.shape[-2:]  # of blocks
    query = jax.ShapeDtypeStruct((2, 3, length, 128), jnp.float32)
    ids = jax.ShapeDtypeStruct((2, length), jnp.int32)

    def loss(query, ids):
        mask = DocumentMask(ids)
        parts = [Keys(query, query, mask, own=True)]
        return jnp.sum(Splash(interpret=True).attend(query, mask, parts, window, 0.0, None))

    def counted(function):
        return matmul_flops(jax.jit(function).trace(query, ids).jaxpr)

    run = 2 * 2 * 3 * length**2 * 128 * ran * columns / rows  # a product of the blocks that it runs
    assert counted(loss) == pytest.approx(2 * run)
    # Backward: 3 products for the queries, 4 for the keys, and each output by its own gradient.
    assert counted(jax.grad(loss)) == pytest.approx(9 * run + 2 * 2 * 3 * length * 128)


@pytest.mark.parametrize(
    ("changed", "chosen", "refusal"),
    [
        ({}, "chunked", {}),
        ({"length": 1}, "reference", {}),
        ({"dropout": True}, "reference", {"chunked": "drops no"}),
        ({"platform": "tpu"}, "splash", {"triton": "GPUs only"}),
        ({"platform": "tpu", "branches": True}, "chunked", {"splash": "branches"}),
        ({"platform": "tpu", "length": 200}, "chunked", {"splash": "not a multiple of 128"}),
        ({"platform": "gpu", "capability": (8, 0)}, "triton", {"splash": "TPUs only"}),
        ({"platform": "gpu", "capability": (7, 0)}, "chunked", {"triton": "needs compute"}),
        ({"platform": "gpu", "earlier": 99}, "chunked", {"triton": "cache"}),
    ],
)
def test_kernels_are_chosen_by_platform_and_shape(changed, chosen, refusal, caplog):
    case = dataclasses.replace(CASE, **changed)
    assert choice.choose(case).name == chosen
    assert choice.choose(case, "reference").name == "reference"
    said = dict(choice.explain(case))
    for name, reason in refusal.items():
        assert reason in said[name]
        assert choice.choose(case, name).name == chosen  # with a warning that says the reason
        assert reason in caplog.text or case.length == 1
