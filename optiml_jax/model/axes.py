"""The hook through which the model names the axes of its activations.

The model says what the axes of an array mean; `optiml_jax.sharding.rules.use_mesh` says, for the
time of a `with` block, which mesh axes they lie on. Outside such a block nothing happens.
"""

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

Axes = tuple[str | None, ...]


@dataclasses.dataclass(frozen=True)
class Layout:
    """A mesh, and where it takes an array.

    Attributes:
      sharding: (shape, one logical name per dimension) -> sharding over the mesh.
    """

    mesh: jax.sharding.Mesh
    sharding: Callable[[tuple[int, ...], Axes], jax.sharding.NamedSharding]


_layout: contextvars.ContextVar[Layout | None] = contextvars.ContextVar("layout", default=None)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """`x` itself, laid out over the mesh as its logical `axes` ask for, one name per dimension."""
    layout = _layout.get()
    if layout is None:
        return x
    return jax.lax.with_sharding_constraint(x, layout.sharding(x.shape, axes))


def everywhere(x: jax.Array) -> jax.Array:
    """`x` itself, whole on every device: what every process reads."""
    return constrain(x, *(None,) * x.ndim)


def parts(size: int, axis: str) -> int:
    """Into how many pieces the mesh cuts a dimension of this size and name; 1 where it does not."""
    layout = _layout.get()
    if layout is None:
        return 1
    return size // layout.sharding((size,), (axis,)).shard_shape((size,))[0]


def device() -> jax.Device:
    """One of the devices that what is traced now will run on; it may be a described one."""
    layout = _layout.get()
    return jax.devices()[0] if layout is None else layout.mesh.devices.flat[0]


def is_one_cpu() -> bool:
    """What is traced now will run on a single CPU device."""
    layout = _layout.get()
    return device().platform == "cpu" and (layout is None or layout.mesh.size == 1)


def per_device(
    function: Callable[..., Any], arguments: Sequence[Any], axes: Sequence[Any], out: Sequence[Axes]
) -> Any:
    """function(*arguments), run by every device on its own pieces without any exchange.

    Args:
      function: takes the pieces, returns a tuple of arrays.
      arguments: pytrees of arrays.
      axes: for each of them a tree of the same form with the logical names of the dimensions
        (tuples) in the place of arrays.
      out: logical names of the results, which are as large as the function makes them of whole
        arguments.
    """
    layout = _layout.get()
    if layout is None:
        return function(*arguments)

    def spec(x: Any, names: Axes) -> jax.sharding.PartitionSpec:
        return layout.sharding(x.shape, names).spec

    in_specs = tuple(jax.tree.map(spec, a, n) for a, n in zip(arguments, axes, strict=True))
    results = jax.eval_shape(function, *arguments)
    out_specs = tuple(spec(x, names) for x, names in zip(results, out, strict=True))
    mapped = jax.shard_map(
        function, mesh=layout.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )
    return mapped(*arguments)


@contextlib.contextmanager
def use_layout(layout: Layout) -> Iterator[None]:
    """Applies `layout` to every activation that is named inside the block."""
    token = _layout.set(layout)
    try:
        yield
    finally:
        _layout.reset(token)
