"""Collectives and FLOPs are those of programs whose exchanges and products are known."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from optiml_jax.ahead import hlo
from optiml_jax.ahead.flops import matmul_flops
from optiml_jax.sharding.mesh import MeshConfig, make_mesh

TEXT = """HloModule step

%body.1 (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %gather = (bf16[8,4]{1,0}, bf16[64,4]{1,0}) all-gather-start(%x), replica_groups=[2,8]<=[16], \
dimensions={0}, metadata={op_name="layer/wi"}
  %done = bf16[64,4]{1,0} all-gather-done(%gather)
  ROOT %scatter = f32[2]{0} reduce-scatter(%y), replica_groups={{0,8},{1,9}}, to_apply=%add
}

ENTRY %main (p: f32[4]) -> f32[4] {
  %loop = (s32[], f32[4]) while(%t), condition=%c, body=%body.1, \
backend_config={"known_trip_count":{"n":"5"}}
  ROOT %sum = f32[4]{0} all-reduce(%z), replica_groups=[1,16]<=[16], to_apply=%add
}
"""


def test_loops_count_as_often_as_they_run():
    gather, scatter, reduce = hlo.collectives(TEXT)
    assert (gather.kind, gather.runs, gather.result) == ("all-gather", 5, 64 * 4 * 2)
    assert (gather.group, gather.spread, gather.place) == (8, 7, "layer/wi")
    assert gather.sent == 5 * 64 * 4 * 2 * 7 / 8
    assert (scatter.runs, scatter.result, scatter.group, scatter.spread) == (5, 8, 2, 8)
    assert scatter.sent == 5 * 8 * 2 / 2
    assert (reduce.runs, reduce.total, reduce.sent) == (1, 16, 2 * 16 * 15 / 16)


def test_the_exchanges_of_a_compiled_loop_are_found():
    mesh = make_mesh(MeshConfig(1, 8, 1))
    sharded = NamedSharding(mesh, PartitionSpec("fsdp"))

    def run(weights, x):
        def layer(x, w):
            return jax.nn.relu(x @ w), None

        return jax.lax.scan(layer, x, weights)[0]

    weights = jax.ShapeDtypeStruct(
        (3, 64, 64), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(None, "fsdp"))
    )
    x = jax.ShapeDtypeStruct((512, 64), jnp.float32, sharding=sharded)
    traced = jax.jit(run, out_shardings=sharded).trace(weights, x)
    assert matmul_flops(traced.jaxpr) == 3 * 2 * 512 * 64 * 64
    found = hlo.collectives(traced.lower().compile().as_text())
    assert hlo.by_kind(found) == {"all-gather": pytest.approx(3 * 64 * 64 * 4 / 2**30)}
