"""The device mesh with its three axes data, fsdp and tensor. rules.py says what each shards.

The tensor axis communicates most, so it stays within a GPU node, or along one or two axes of a TPU
torus. The data or fsdp axis spans several TPU slices.
"""

import dataclasses
import logging
import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils

from optiml_jax.errors import UserError
from optiml_jax.settings import configurable

AXES = ("data", "fsdp", "tensor")

logger = logging.getLogger(__name__)


@configurable
@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """The sizes of the mesh axes.

    Attributes:
      data: replicas of the parameters; each sees different rows of the batch.
      fsdp: shards of a replica's parameters; each sees different rows too.
      tensor: devices that split every matrix product.
      preset: the sharding rules, a key of `optiml_jax.sharding.rules.PRESETS`.
      At most one of the three sizes may be -1: the remaining devices.
    """

    data: int = 1
    fsdp: int = -1
    tensor: int = 1
    preset: str = "standard"


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
    """The mesh over `devices` (default: all of them), its axes of type Auto.

    The devices may be described ones (`jax.experimental.topologies`).

    Raises:
      UserError: the sizes do not multiply to the number of devices, or do not fit the machine's
        topology; the message lists the sizes that do.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = mesh_shape(config, len(devices))
    try:
        layout = _layout(sizes, devices)
    except (ValueError, NotImplementedError, AssertionError) as e:
        possible = [sizes for sizes in _factorings(len(devices)) if _fits(sizes, devices)]
        raise UserError(
            f"mesh {_words(sizes)} does not fit these {len(devices)} "
            f"{devices[0].device_kind} devices ({str(e).splitlines()[0][:100]}); {_list(possible)}"
        ) from e
    auto = (jax.sharding.AxisType.Auto,) * len(AXES)
    return jax.sharding.Mesh(layout, AXES, axis_types=auto)


def mesh_shape(config: MeshConfig, num_devices: int) -> tuple[int, int, int]:
    """The sizes of data, fsdp and tensor on `num_devices` devices, the -1 filled in."""
    sizes = [config.data, config.fsdp, config.tensor]
    asked = _words(sizes)
    if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
        raise UserError(
            f"mesh {asked}: sizes must be positive, and at most one of them may be -1 (the rest)"
        )
    if -1 in sizes:
        sizes[sizes.index(-1)] = num_devices // math.prod(s for s in sizes if s != -1)
    if math.prod(sizes) != num_devices:
        raise UserError(
            f"mesh {asked} does not fit {num_devices} device(s): the sizes must multiply to the "
            f"number of devices; {_list(_factorings(num_devices))}"
        )
    return tuple(sizes)


def _layout(sizes: tuple[int, int, int], devices: Sequence[jax.Device]) -> np.ndarray:
    """The devices in the shape of the mesh."""
    if devices[0].platform != "tpu":
        return _node_layout(sizes, devices)
    slices = len({_group(device) for device in devices})
    if slices == 1:
        return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    data, fsdp, tensor = sizes
    across = math.gcd(data, slices)
    outer = (across, slices // across, 1)
    if fsdp % outer[1]:
        raise ValueError(f"{slices} slices divide neither data nor fsdp")
    inner = (data // across, fsdp // outer[1], tensor)
    return mesh_utils.create_hybrid_device_mesh(
        inner, outer, devices, allow_split_physical_axes=True
    )


def _node_layout(sizes: tuple[int, int, int], devices: Sequence[jax.Device]) -> np.ndarray:
    """Devices grouped by node, whatever the order in which processes were numbered."""
    order = sorted(devices, key=lambda d: (_group(d), d.process_index, d.id))
    layout = np.array(order, dtype=object).reshape(sizes)
    rows = layout.reshape(-1, sizes[-1])
    if any(len({_group(device) for device in row}) > 1 for row in rows):
        logger.warning(
            "MeshConfig.tensor = %d puts devices of several nodes into one tensor group, which "
            "communicates in every layer; a size that divides the %d devices of a node is faster",
            sizes[-1],
            sum(_group(device) == _group(order[0]) for device in order),
        )
    return layout


def _group(device: jax.Device) -> int:
    """The group with a fast interconnect: a TPU slice, or a GPU's node (NVLink domain)."""
    number = getattr(device, "slice_index", None)
    return 0 if number is None else number


def _fits(sizes: tuple[int, int, int], devices: Sequence[jax.Device]) -> bool:
    try:
        _layout(sizes, devices)
    except (ValueError, NotImplementedError, AssertionError):
        return False
    return True


def _factorings(number: int) -> list[tuple[int, int, int]]:
    """All (data, fsdp, tensor) that multiply to `number`, replicas and large tensor groups last."""
    divisors = [n for n in range(1, number + 1) if number % n == 0]
    pairs = [(data, tensor) for data in divisors for tensor in divisors]
    return [(d, number // (d * t), t) for d, t in pairs if number % (d * t) == 0]


def _words(sizes: Sequence[int]) -> str:
    return " x ".join(f"{name} {size}" for name, size in zip(AXES, sizes, strict=True))


def _list(possible: Sequence[tuple[int, int, int]]) -> str:
    """What to set, in words, as (fsdp, tensor) for every number of replicas."""
    if not possible:
        return "no other sizes fit them either: are they all of one slice?"
    by_copies: dict[int, list[str]] = {}
    for data, fsdp, tensor in possible:
        by_copies.setdefault(data, []).append(f"{fsdp}x{tensor}")
    listed = "; ".join(f"data {data}: {', '.join(p)}" for data, p in by_copies.items())
    return f"set MeshConfig to one of (fsdp x tensor) {listed}"
