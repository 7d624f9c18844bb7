"""Devices of machines that are not here, as JAX describes them: what a mesh is laid over."""

import dataclasses
import itertools
import random


@dataclasses.dataclass(frozen=True)
class Device:
    """The attributes of `jax.Device` that decide where a mesh puts it."""

    id: int
    process_index: int
    platform: str
    device_kind: str
    slice_index: int = 0
    coords: tuple[int, int, int] | None = None
    core_on_chip: int = 0


def tpu_slice(kind, shape, host, slices=1):
    """A torus of `shape` chips whose hosts hold blocks of `host` chips; x runs fastest."""
    devices = []
    hosts = [n // m for n, m in zip(shape, host, strict=True)]
    for number in range(slices):
        for z, y, x in itertools.product(*map(range, reversed(shape))):
            at = [c // m for c, m in zip((x, y, z), host, strict=True)]
            process = at[0] + hosts[0] * (at[1] + hosts[1] * (at[2] + hosts[2] * number))
            devices.append(Device(len(devices), process, "tpu", kind, number, (x, y, z)))
    return devices


def gpu_nodes(nodes, processes_per_node, shuffled=False):
    """Nodes of 8 GPUs, each process with an equal share; shuffled: numbered in no order."""
    numbers = list(range(nodes * processes_per_node))
    if shuffled:
        random.Random(0).shuffle(numbers)
    share = 8 // processes_per_node
    devices = [
        Device(0, numbers[(node * 8 + gpu) // share], "gpu", "NVIDIA A100-SXM4-40GB", node)
        for node in range(nodes)
        for gpu in range(8)
    ]
    devices.sort(key=lambda d: d.process_index)
    return [dataclasses.replace(d, id=i) for i, d in enumerate(devices)]
