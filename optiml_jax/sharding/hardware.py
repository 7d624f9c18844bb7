"""Accelerators: memory, speeds, interconnects. The facts are in accelerators.yaml."""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping

import yaml

_FACTS = pathlib.Path(__file__).with_name("accelerators.yaml")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Accelerator:
    """One kind of device; units and sources are in accelerators.yaml.

    Attributes:
      name: "a100-40g", "v5p", ...; "cpu".
      platform: "gpu", "tpu" or "cpu".
      usable: GiB; None: no limit (CPU devices share the machine's memory).
    """

    name: str
    platform: str
    kinds: tuple[str, ...] = ()
    memory: float | None = None
    usable: float | None = None
    flops: float | None = None
    bandwidth: float | None = None
    fast: float | None = None
    network: float | None = None
    xla: Mapping[str, float | str] | None = None
    chip: str | None = None


@functools.cache
def accelerators() -> dict[str, Accelerator]:
    """All known accelerators by name."""
    facts = yaml.safe_load(_FACTS.read_text("utf-8"))
    return {
        name: Accelerator(name=name, **values | {"kinds": tuple(values["kinds"])})
        for name, values in facts.items()
    }


def accelerator_of(device_kind: str) -> Accelerator | None:
    """The accelerator of a `jax.Device.device_kind`: the longest matching name."""
    fitting = [
        (len(kind), accelerator.name)
        for accelerator in accelerators().values()
        for kind in accelerator.kinds
        if device_kind.startswith(kind)
    ]
    return accelerators()[max(fitting)[1]] if fitting else None


def xla_flags(platform: str) -> str:
    """The flags that the launch scripts put into XLA_FLAGS ("gpu") or LIBTPU_INIT_ARGS ("tpu")."""
    text = _FACTS.with_name("xla_flags").joinpath(f"{platform}.txt").read_text("utf-8")
    return " ".join(line for line in text.splitlines() if line.startswith("--"))
