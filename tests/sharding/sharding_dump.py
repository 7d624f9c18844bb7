"""The sharding of every parameter of every published size, as text; shared with make_golden."""

import jax

from optiml_jax.model.architectures import model_config
from optiml_jax.model.decoder import abstract_model
from optiml_jax.model.opt.config import SIZES
from optiml_jax.sharding.mesh import AXES
from optiml_jax.sharding.rules import param_shardings

MESHES = {"125m": (2, 8, 2), "350m": (2, 8, 2), "30b": (1, 64, 8), "66b": (1, 64, 8)}
DEFAULT_MESH = (1, 16, 4)
LARGEST_MESH = (1, 64, 16)


def dump() -> str:
    """One line a parameter: name, shape, PartitionSpec, shape on one device."""
    lines = []
    for size in SIZES:
        sizes = LARGEST_MESH if size == "175b" else MESHES.get(size, DEFAULT_MESH)
        mesh = jax.sharding.AbstractMesh(sizes, AXES)
        _, abstract = abstract_model(model_config(size))
        shardings = jax.tree.leaves_with_path(param_shardings(abstract, mesh))
        lines.append(f"# {size} on {' x '.join(map(str, sizes))} ({' x '.join(AXES)})")
        for (path, sharding), value in zip(shardings, jax.tree.leaves(abstract), strict=True):
            name = ".".join(key.key for key in path)
            spec = ", ".join("-" if axis is None else str(axis) for axis in sharding.spec)
            local = list(sharding.shard_shape(value.shape))
            lines.append(f"{name} {list(value.shape)} ({spec}) {local}")
    return "\n".join(lines) + "\n"
