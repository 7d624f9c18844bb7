"""The cache of keys and values on a mesh: no device ever holds all of it.

Checked against what XLA compiled: where results lie, and the shapes in the text of the program.
"""

import math
import re

import jax
import pytest

from optiml_jax.evaluate import decoding
from optiml_jax.evaluate.programs import (
    trace_decoding,
    trace_prefill,
    trace_putting,
    trace_scoring,
)
from optiml_jax.model.llama.config import LlamaConfig
from optiml_jax.model.opt.config import OPTConfig
from optiml_jax.sharding.mesh import MeshConfig, make_mesh
from optiml_jax.sharding.rules import use_mesh

# Sizes that occur nowhere else, so that shapes in a program can be told apart.
SIZE = {"vocab_size": 96, "d_model": 44, "num_layers": 3, "max_positions": 128}
CONFIG = OPTConfig(**SIZE, num_heads=4)
GROUPED = LlamaConfig(**SIZE, num_heads=8, num_kv_heads=4, head_dim=22)
DECODERS = {"opt": (CONFIG, 11), "llama": (GROUPED, 22)}  # with the width of a head
ROWS, CAPACITY = 8, 112
PART = [3, ROWS // 4, 2, CAPACITY]  # of keys or values, on each device, and the width of a head


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))


@pytest.mark.parametrize(("config", "width"), DECODERS.values(), ids=DECODERS)
def test_an_empty_cache_is_cut_over_rows_and_heads(mesh, config, width):
    with use_mesh(mesh):
        slots = decoding._jit_empty(config, ROWS, CAPACITY, True)
    for array in (slots.cache.key, slots.cache.value):
        assert {shard.data.shape for shard in array.addressable_shards} == {(*PART, width)}
    for leaf in jax.tree.leaves(slots):
        assert not leaf.sharding.is_fully_replicated


@pytest.mark.parametrize(("config", "width"), DECODERS.values(), ids=DECODERS)
def test_programs_lowered_from_shapes_hold_no_whole_cache(mesh, config, width):
    decode = trace_decoding(config, mesh, "standard", ROWS, CAPACITY, "bfloat16").lower().compile()
    read = trace_prefill(config, mesh, "standard", ROWS, CAPACITY, "bfloat16").lower().compile()
    put = trace_putting(config, mesh, "standard", ROWS, CAPACITY, ROWS, CAPACITY).lower().compile()
    for program in (decode, read, put):
        found = re.findall(r"f32\[([\d,]+)\]", program.as_text())
        shapes = [[int(n) for n in shape.split(",")] for shape in found]
        assert [*PART, width] in shapes
        # In whatever order of axes: nothing with such heads is larger than a device's part.
        assert max(math.prod(s) for s in shapes if width in s) == math.prod(PART) * width
    arguments = decode.memory_analysis().argument_size_in_bytes
    weights = 2 * config.num_params
    cache = 2 * 4 * 3 * ROWS * 4 * CAPACITY * width
    assert arguments < weights + cache / 8 + 10_000


def test_scoring_is_lowered_from_shapes(mesh):
    program = trace_scoring(CONFIG, mesh, "sequence", ROWS, 64, 16, "bfloat16").lower().compile()
    assert [o.is_fully_replicated for o in program.output_shardings] == [True, True]
