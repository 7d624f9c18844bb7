"""The device mesh: three axes, data, fsdp and tensor. What lies on which axis is in rules.py."""

import dataclasses
import math
from collections.abc import Sequence

import gin
import jax

from optiml_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")


@gin.configurable
@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How the devices are arranged.

    Attributes:
      data: copies of the parameters; each copy sees other rows of the batch.
      fsdp: parts into which a copy's parameters are cut; each part sees other rows too.
      tensor: devices that share every matrix product.
      preset: the rule table of `optiml_jax.sharding.rules.PRESETS`.
      At most one of the three sizes may be -1: as many as there are devices left.
    """

    data: int = 1
    fsdp: int = -1
    tensor: int = 1
    preset: str = "standard"


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
    """The mesh over `devices` (default: all of them), its axes of type Auto.

    Raises:
      UserError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = mesh_shape(config, len(devices))
    auto = (jax.sharding.AxisType.Auto,) * len(AXES)
    return jax.make_mesh(sizes, AXES, axis_types=auto, devices=devices)


def mesh_shape(config: MeshConfig, num_devices: int) -> tuple[int, int, int]:
    """The sizes of data, fsdp and tensor on `num_devices` devices, the -1 filled in."""
    sizes = [config.data, config.fsdp, config.tensor]
    asked = " x ".join(f"{name} {size}" for name, size in zip(AXES, sizes, strict=True))
    if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
        raise UserError(
            f"mesh {asked}: sizes must be positive, and one of them at most may be -1 (the rest)"
        )
    if -1 in sizes:
        sizes[sizes.index(-1)] = num_devices // math.prod(s for s in sizes if s != -1)
    if math.prod(sizes) != num_devices:
        raise UserError(
            f"mesh {asked} does not fit {num_devices} device(s): "
            "the sizes must multiply to the number of devices; change MeshConfig"
        )
    return tuple(sizes)
