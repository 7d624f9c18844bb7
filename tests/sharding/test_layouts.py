"""Meshes over machines that are not here: who holds which rows, and what lies close together.

Checked against the definition of the mesh itself: the device at (d, f, t) holds block d * fsdp + f
of the batch.
"""

import collections

import described_devices as described
import numpy as np
import pytest

from optiml_jax.errors import UserError
from optiml_jax.sharding.mesh import MeshConfig, make_mesh
from optiml_jax.sharding.rules import batch_sharding, held_rows

TPUS = {
    "v5p 4x4x4": described.tpu_slice("TPU v5p", (4, 4, 4), (2, 2, 1)),
    "v5p 4x4x8": described.tpu_slice("TPU v5p", (4, 4, 8), (2, 2, 1)),
    "v5e 8x8": described.tpu_slice("TPU v5 lite", (8, 8, 1), (4, 2, 1)),
    "v5e 8x8, hosts of 4": described.tpu_slice("TPU v5 lite", (8, 8, 1), (2, 2, 1)),
    "two v5p 4x4x4": described.tpu_slice("TPU v5p", (4, 4, 4), (2, 2, 1), slices=2),
}
GPUS = {
    f"{nodes} nodes, {processes} processes a node{', shuffled' * shuffled}": described.gpu_nodes(
        nodes, processes, shuffled
    )
    for nodes in (8, 16)
    for processes in (1, 4, 8)
    for shuffled in (False, True)
}
MACHINES = TPUS | GPUS


@pytest.mark.parametrize("tensor", [1, 2, 4, 8])
@pytest.mark.parametrize("name", MACHINES)
def test_the_rows_of_a_process_are_those_of_its_devices(name, tensor):
    devices = MACHINES[name]
    for data in (1, 2):
        mesh = make_mesh(MeshConfig(data=data, fsdp=-1, tensor=tensor), devices)
        assert sorted(d.id for d in mesh.devices.flat) == list(range(len(devices)))
        parts = data * mesh.shape["fsdp"]
        num_rows = 3 * parts
        expected = collections.defaultdict(set)
        for (d, f, _), device in np.ndenumerate(mesh.devices):
            block = d * mesh.shape["fsdp"] + f
            expected[device.process_index] |= {*range(3 * block, 3 * block + 3)}
        sharding = batch_sharding(mesh)
        for process, rows in expected.items():
            np.testing.assert_array_equal(held_rows(sharding, num_rows, process), sorted(rows))
        assert set.union(*expected.values()) == {*range(num_rows)}


@pytest.mark.parametrize("name", GPUS)
def test_tensor_groups_lie_on_one_node_of_gpus(name):
    for tensor in (2, 4, 8):
        mesh = make_mesh(MeshConfig(tensor=tensor), GPUS[name])
        for group in mesh.devices.reshape(-1, tensor):
            assert len({device.slice_index for device in group}) == 1


def test_a_tensor_group_of_several_nodes_is_warned_of(caplog):
    make_mesh(MeshConfig(tensor=16), GPUS["8 nodes, 8 processes a node"])
    assert "MeshConfig.tensor = 16 puts devices of several nodes into one" in caplog.text


@pytest.mark.parametrize("name", TPUS)
def test_tensor_groups_are_boxes_on_a_tpu_torus(name):
    """A box of n chips: every chip has a neighbour of its group beside it."""
    for tensor in (2, 4, 8):
        mesh = make_mesh(MeshConfig(tensor=tensor), TPUS[name])
        for group in mesh.devices.reshape(-1, tensor):
            assert len({device.slice_index for device in group}) == 1
            places = np.array([device.coords for device in group])
            assert np.prod(np.ptp(places, axis=0) + 1) == tensor


def test_sizes_that_cannot_be_laid_out_are_refused_with_those_that_can():
    with pytest.raises(UserError) as e:
        make_mesh(MeshConfig(tensor=3), TPUS["v5p 4x4x4"])
    (line,) = str(e.value).splitlines()
    assert "does not fit 64 device(s)" in line
    assert "data 1: 64x1, 32x2, 16x4, 8x8, 4x16, 2x32, 1x64; data 2: 32x1, 16x2" in line
    hole = TPUS["v5e 8x8"][:60]
    with pytest.raises(UserError, match=r"fit these 60 TPU v5 lite devices .*no other sizes fit"):
        make_mesh(MeshConfig(tensor=4), hole)
