"""The sharding rules: logical axes of the model to mesh axes, and the resulting shardings.

A preset is one table for parameters and activations. The logical names are given where the arrays
are created, in `optiml_jax/model`.
"""

import collections
import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from optiml_jax.errors import UserError
from optiml_jax.model.axes import Layout, use_layout
from optiml_jax.model.config import DecoderConfig
from optiml_jax.model.decoder import abstract_model

Rules = Mapping[str, tuple[str, ...]]

_STANDARD: Rules = {
    # parameters
    "layers": (),
    "vocab": ("tensor",),
    "embed": ("fsdp",),
    "projection": (),
    "positions": (),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "head_dim": (),
    "mlp": ("tensor",),
    "norm": (),
    "rank": (),
    # activations; "vocab", "heads" and "mlp" as above
    "batch": ("data", "fsdp"),
    "length": (),
}
# Axes left unsharded if the mesh does not divide them: with grouped queries there are few KV heads.
_WHOLE_IF_UNEVEN = ("kv_heads",)
PRESETS: Mapping[str, Rules] = {
    "standard": _STANDARD,
    # The residual stream is also sharded along the sequence: less memory where tensor > 1.
    "sequence": {**_STANDARD, "length": ("tensor",)},
}


def param_shardings(
    abstract: nnx.State, mesh: jax.sharding.Mesh, preset: str = "standard"
) -> dict[str, Any]:
    """The sharding of every parameter.

    Args:
      abstract: parameters with logical axis names, from `abstract_model`.
      mesh: a mesh with the axes data, fsdp and tensor; an AbstractMesh will do.
      preset: a key of `PRESETS`.

    Returns:
      A pure nested dict of NamedSharding, like the parameters of `init_params`.

    Raises:
      UserError: a mesh axis does not divide the dimension it should shard, or would shard two
        dimensions of one parameter; the message names the parameter.
    """
    rules = _rules(preset)
    shardings: dict[str, Any] = {}
    for path, variable in nnx.to_flat_state(abstract):
        axes = variable.get_metadata()["logical_axes"]
        spec = _param_spec(".".join(map(str, path)), variable.shape, axes, rules, mesh)
        folder = shardings
        for name in path[:-1]:
            folder = folder.setdefault(name, {})
        folder[path[-1]] = NamedSharding(mesh, spec)
    return shardings


def abstract_params(
    config: DecoderConfig,
    mesh: jax.sharding.Mesh | None = None,
    preset: str = "standard",
    dtype: str = "float32",
) -> dict[str, Any]:
    """Shapes, types and (with a mesh) shardings of the parameters, a pure nested dict.

    `checkpoint` uses them to restore parameters directly onto their devices.
    """
    _, abstract = abstract_model(config)
    shapes = nnx.to_pure_dict(abstract)
    if mesh is None:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), shapes)
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, dtype, sharding=sharding),
        shapes,
        param_shardings(abstract, mesh, preset),
    )


def logical_axes(config: DecoderConfig) -> dict[str, Any]:
    """The logical names of the dimensions of every parameter, nested as the parameters are."""
    names: dict[str, Any] = {}
    for path, variable in nnx.to_flat_state(abstract_model(config)[1]):
        folder = names
        for name in path[:-1]:
            folder = folder.setdefault(name, {})
        folder[path[-1]] = variable.get_metadata()["logical_axes"]
    return names


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
    """The sharding of a batch [B, ...]: its rows over data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def held_rows(
    sharding: NamedSharding, num_rows: int, process_index: int | None = None
) -> np.ndarray:
    """The row numbers of a batch that the devices of a process hold.

    Args:
      sharding: of the batch.
      num_rows: of the whole batch.
      process_index: of the devices; None: this process.

    Returns:
      int64[n], ascending, without duplicates: devices of one tensor group hold the same rows.
    """
    process = jax.process_index() if process_index is None else process_index
    held = {
        row
        for device, (rows,) in sharding.devices_indices_map((num_rows,)).items()
        if device.process_index == process
        for row in range(*rows.indices(num_rows))
    }
    return np.array(sorted(held), np.int64)


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    """The sharding of replicated values: keys, steps, metrics."""
    return NamedSharding(mesh, PartitionSpec())


def activation_sharding(
    shape: tuple[int, ...],
    axes: tuple[str | None, ...],
    mesh: jax.sharding.Mesh,
    preset: str = "standard",
) -> NamedSharding:
    """The sharding of an activation whose dimensions have these logical names."""
    rules, spec = _rules(preset), []
    for size, name in zip(shape, axes, strict=True):
        mesh_axes = () if name is None else rules[name]
        spec.append(mesh_axes if size % _size(mesh, mesh_axes) == 0 else ())
    return NamedSharding(mesh, _spec(spec))


@contextlib.contextmanager
def use_mesh(mesh: jax.sharding.Mesh, preset: str = "standard") -> Iterator[None]:
    """Shards the activations of models traced inside the block over `mesh`.

    The mesh also becomes JAX's current one, so that a function traced for another mesh is traced
    again. A dimension of an activation that its axis does not divide (a length of 1, a last batch)
    is not sharded.
    """
    _rules(preset)

    def sharding(shape: tuple[int, ...], axes: tuple[str | None, ...]) -> NamedSharding:
        return activation_sharding(shape, axes, mesh, preset)

    with jax.set_mesh(mesh), use_layout(Layout(mesh, sharding)):
        yield


def _rules(preset: str) -> Rules:
    if preset not in PRESETS:
        raise UserError(f"unknown sharding preset {preset!r}; choose one of {', '.join(PRESETS)}")
    return PRESETS[preset]


def _param_spec(
    name: str,
    shape: tuple[int, ...],
    axes: tuple[str, ...],
    rules: Rules,
    mesh: jax.sharding.Mesh,
) -> PartitionSpec:
    spec = [
        () if axis in _WHOLE_IF_UNEVEN and size % _size(mesh, rules[axis]) else rules[axis]
        for axis, size in zip(axes, shape, strict=True)
    ]
    for axis, size, mesh_axes in zip(axes, shape, spec, strict=True):
        if size % _size(mesh, mesh_axes):
            raise UserError(
                f"parameter {name} {list(shape)}: axis {axis!r} of size {size} cannot be cut into "
                f"{_size(mesh, mesh_axes)} parts by mesh axis {'x'.join(mesh_axes)}; "
                f"{' x '.join(mesh_axes)} can be {_divisors(size, mesh.size)}; change MeshConfig"
            )
    for mesh_axis, uses in collections.Counter(a for dim in spec for a in dim).items():
        if uses > 1:
            both = [axis for axis, dim in zip(axes, spec, strict=True) if mesh_axis in dim]
            raise UserError(
                f"parameter {name} {list(shape)}: mesh axis {mesh_axis!r} (size "
                f"{mesh.shape[mesh_axis]}) would shard the axes {' and '.join(map(repr, both))}; "
                "change the sharding rules"
            )
    return _spec(spec)


def _divisors(size: int, limit: int) -> str:
    return ", ".join(str(n) for n in range(1, min(size, limit) + 1) if size % n == 0)


def _size(mesh: jax.sharding.Mesh, mesh_axes: tuple[str, ...]) -> int:
    return math.prod(mesh.shape[axis] for axis in mesh_axes)


def _spec(dims: list[tuple[str, ...]]) -> PartitionSpec:
    """A PartitionSpec in canonical form: a name instead of a tuple of one, None for none."""
    return PartitionSpec(*(d[0] if len(d) == 1 else d or None for d in dims))
