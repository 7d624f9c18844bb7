"""Target machines that need not be present: TPU slices, GPU clusters, simulated CPU devices.

`tpu:v5p:4x4x8` (topology), `gpu:a100-40g:8x8` (nodes x GPUs per node), `cpu:64` (devices).
"""

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Sequence

import jax

from optiml_jax.errors import UserError
from optiml_jax.sharding.hardware import Accelerator, accelerators, xla_flags

INSTALL = {
    "tpu": ("libtpu", "pip install --no-deps libtpu"),
    "gpu": (
        "jax_plugins.xla_cuda13 or jax_plugins.xla_cuda12",
        f"pip install --no-deps jax-cuda13-plugin=={jax.__version__} "
        f"jax-cuda13-pjrt=={jax.__version__}",
    ),
}
_FORMS = "tpu:v5p:4x4x8 (topology), gpu:a100-40g:8x8 (nodes x GPUs per node) or cpu:64 (devices)"
_GPU = """gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {shared}
  threads_per_core_limit: 2048
  core_count: {cores}
  fpus_per_core: {fpus}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth}
  l2_cache_size: {l2}
  clock_rate_ghz: {clock}
  device_memory_size: {memory}
  shared_memory_per_block_optin: {shared_optin}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  driver_version: "13.0.0"
  runtime_version: "12.8.0"
  compile_time_toolkit_version: "12.8.0"
  dnn_version: "9.10.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{kind}"
"""


@dataclasses.dataclass(frozen=True)
class Target:
    """A described machine.

    Attributes:
      accelerator: its devices.
      shape: of the topology, (nodes, GPUs per node), or (devices,).
    """

    accelerator: Accelerator
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        kind = self.accelerator.platform
        shape = "x".join(map(str, self.shape))
        return f"cpu:{shape}" if kind == "cpu" else f"{kind}:{self.accelerator.name}:{shape}"

    @property
    def num_devices(self) -> int:
        """Number of devices; known only to JAX for a TPU whose chips have two."""
        return math.prod(self.shape)

    @property
    def node_size(self) -> int:
        """Devices with a fast interconnect: the GPUs of a node, a whole TPU slice."""
        return self.shape[1] if self.accelerator.platform == "gpu" else self.num_devices


def parse_target(text: str) -> Target:
    """The target that `text` names.

    Raises:
      UserError: it names none; the message says how to write one.
    """
    kind, *rest = text.lower().split(":")
    known = {k: a for k, a in accelerators().items() if a.platform == kind}
    name, shape = ("cpu", rest) if kind == "cpu" else (rest[0] if rest else "", rest[1:])
    sizes = re.fullmatch(r"\d+(x\d+)*", shape[0]) if len(shape) == 1 else None
    dimensions = tuple(int(n) for n in sizes[0].split("x")) if sizes else ()
    if kind not in ("tpu", "gpu", "cpu") or not dimensions or 0 in dimensions:
        raise UserError(f"Compile.target={text!r}: use {_FORMS}")
    if kind == "cpu" and len(dimensions) == 1:
        return Target(Accelerator(name="cpu", platform="cpu"), dimensions)
    if name not in known:
        raise UserError(
            f"Compile.target={text!r}: no {kind} {name!r} is described; known are "
            f"{', '.join(known) or 'none'}"
        )
    if len(dimensions) not in {"tpu": (2, 3), "gpu": (2,), "cpu": (1,)}[kind]:
        raise UserError(f"Compile.target={text!r}: the shape does not fit; use {_FORMS}")
    return Target(known[name], dimensions)


def check_installed(target: Target) -> None:
    """UserError with the installation command if the target's compiler is missing."""
    platform = target.accelerator.platform
    if platform == "cpu":
        return
    names = {"tpu": ["libtpu"], "gpu": ["jax_cuda13_plugin", "jax_cuda12_plugin"]}[platform]
    if not any(importlib.util.find_spec(name) for name in names):
        module, command = INSTALL[platform]
        raise UserError(f"compiling for {target.name} needs {module}; install it: {command}")


def set_environment(target: Target, environment: dict[str, str]) -> None:
    """The environment that makes JAX compile for `target` on any machine.

    It includes the XLA flags of the launch scripts; flags already set come last and so take
    precedence.
    """
    environment["JAX_PLATFORMS"] = "cpu"
    environment["TF_CPP_MIN_LOG_LEVEL"] = "3"
    platform = target.accelerator.platform
    if platform == "cpu":
        name, flags = "XLA_FLAGS", f"--xla_force_host_platform_device_count={target.num_devices}"
        environment[name] = f"{environment.get(name, '')} {flags}".strip()
        return
    if platform == "tpu":
        environment |= {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_SKIP_MDS_QUERY": "1"}
    name = {"gpu": "XLA_FLAGS", "tpu": "LIBTPU_INIT_ARGS"}[platform]
    environment[name] = f"{xla_flags(platform)} {environment.get(name, '')}".strip()


def describe(target: Target) -> Sequence[jax.Device]:
    """The devices of the target, for a mesh; nothing can be computed on them.

    Raises:
      UserError: the compiler knows no such machine.
    """
    from jax.experimental import topologies

    accelerator = target.accelerator
    if accelerator.platform == "cpu":
        return jax.devices("cpu")
    shape = "x".join(map(str, target.shape))
    try:
        if accelerator.platform == "tpu":
            options = {"chip_config_name": accelerator.chip} if accelerator.chip else {}
            name = f"{accelerator.name}:{shape}"
            topology = topologies.get_topology_desc(name, platform="tpu", **options)
        else:
            os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
            topology = topologies.get_topology_desc(
                platform="cuda",
                topology_name="",
                topology=f"1x{shape}",
                target_config=_gpu_description(accelerator),
            )
    except Exception as e:
        raise UserError(
            f"Compile.target={target.name!r}: the compiler knows no such machine "
            f"({str(e).splitlines()[0][:200]})"
        ) from e
    return topology.devices


def _gpu_description(accelerator: Accelerator) -> str:
    facts = dict(accelerator.xla)
    major, minor = facts.pop("capability").split(".")
    return _GPU.format(
        **facts,
        major=major,
        minor=minor,
        bandwidth=int(accelerator.bandwidth),
        memory=int(accelerator.memory * 2**30),
        kind=accelerator.kinds[0],
    )
