"""The mesh: sizes are filled in or refused in one line."""

import jax
import pytest

from optiml_jax.errors import UserError
from optiml_jax.sharding.mesh import MeshConfig, make_mesh, mesh_shape


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [((1, -1, 1), (1, 8, 1)), ((2, 2, -1), (2, 2, 2)), ((-1, 1, 1), (8, 1, 1))],
)
def test_the_rest_of_the_devices_is_filled_in(sizes, shape):
    mesh = make_mesh(MeshConfig(*sizes))
    assert dict(mesh.shape) == dict(zip(("data", "fsdp", "tensor"), shape, strict=True))
    assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}


def test_a_mesh_may_take_some_of_the_devices():
    assert make_mesh(MeshConfig(1, -1, 2), jax.devices()[:4]).devices.shape == (1, 2, 2)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((1, 3, 1), r"mesh data 1 x fsdp 3 x tensor 1 does not fit 8 device\(s\)"),
        ((3, -1, 1), r"mesh data 3 x fsdp -1 x tensor 1 does not fit 8 device\(s\)"),
        ((-1, -1, 1), r"at most one of them may be -1"),
        ((1, 0, 1), r"sizes must be positive"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused(sizes, message):
    with pytest.raises(UserError, match=message):
        mesh_shape(MeshConfig(*sizes), 8)
