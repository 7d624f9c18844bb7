"""Compiles a job: what the program needs on the target, a lower bound of its time, and why."""

import dataclasses
import json
import os
import pickle
import subprocess
import sys
from typing import Any

from optiml_jax.ahead.hlo import Collective, by_kind
from optiml_jax.ahead.targets import check_installed, set_environment
from optiml_jax.ahead.worker import Job
from optiml_jax.errors import UserError

TIME_LIMIT = 900.0  # seconds for one compilation
TRAINING = ("train", "validate")
# One call of each program, in words.
_CALLS = {
    "train": "a step",
    "validate": "a validation batch",
    "score": "a batch of candidates",
    "prefill": "prefill of a batch of prompts",
    "decode": "one new token for every answer",
}


@dataclasses.dataclass(frozen=True)
class Findings:
    """What one program needs on one target; sizes in GiB per device.

    Attributes:
      arguments: state and batch; None if the compiler reports that they do not fit.
      temporaries: intermediate results; None likewise.
      peak: arguments and temporaries together, or what the compiler asked for when it gave up.
      host: host memory per device ("offload").
      rows, length: of the batch of one call.
      usable: what the device offers a program; None: no limit.
      collectives: of one call.
      executed, useful: FLOPs of one call over all devices; useful as MFU counts them.
      out_of_memory: the compiler's message.
      seconds, own_memory: the compilation's time, and memory of its process in GiB.
    """

    job: Job
    devices: int
    mesh: dict[str, int]
    arguments: float | None
    temporaries: float | None
    peak: float | None
    host: float
    rows: int
    length: int
    usable: float | None
    collectives: tuple[Collective, ...]
    executed: float
    useful: float
    out_of_memory: str | None
    seconds: float
    own_memory: float

    @property
    def fits(self) -> bool:
        return self.out_of_memory is None and (self.usable is None or self.peak <= self.usable)

    def bounds(self) -> dict[str, float]:
        """Lower bounds of the seconds of one call: compute, memory traffic, communication.

        Memory: the arguments are read once, and the training state is written once. Communication:
          at the full bandwidth of the interconnect inside a node or torus, of a device's network
          between nodes. Empty for a target without published figures; without communication for
          TPUs, whose programs do not list all collectives.
        """
        device = self.job.target.accelerator
        if device.flops is None:
            return {}
        rate = device.flops
        if self.job.model.dtype == "float32" and device.platform == "gpu":
            rate /= 2  # TF32; TPUs multiply float32 as bfloat16 unless they are told otherwise
        if getattr(self.job.model, "matmul", "dtype") == "float8" and self.job.program == "train":
            rate *= 2
        times = 2 if self.job.program == "train" else 1
        network = 0.0
        for collective in self.collectives:
            inside = collective.spread < self.job.target.node_size
            network += collective.sent / (device.fast if inside else device.network)
        bounds = {
            "compute": self.executed / self.devices / rate,
            "memory": times * (self.arguments or 0.0) * 2**30 / device.bandwidth,
        }
        return bounds if device.platform == "tpu" else bounds | {"network": network}

    def lines(self) -> list[str]:
        """For the terminal."""
        mesh = " x ".join(f"{name} {size}" for name, size in self.mesh.items())
        said = [f"{self.job.target.name}: {self.devices} devices, mesh {mesh}"]
        said.append(f"  settings      {settings(self.job)}")
        said.append(f"  {self.job.program:13} {self.rows} rows of {self.length} tokens")
        if self.out_of_memory:
            said.append(f"  does not fit  {self.out_of_memory}")
        else:
            capacity = "not limited" if self.usable is None else f"of {self.usable:.2f} usable"
            verdict = "fits" if self.fits else "does NOT fit"
            said += [
                f"  arguments     {self.arguments:.2f} GiB per device",
                f"  temporaries   {self.temporaries:.2f} GiB",
                f"  peak          {self.peak:.2f} GiB {capacity}: {verdict}",
            ]
        if self.host:
            said.append(f"  host          {self.host:.2f} GiB of host memory per device")
        kinds = by_kind(list(self.collectives))
        for kind, size in sorted(kinds.items(), key=lambda item: -item[1]):
            said.append(f"  {kind:19} {size:9.2f} GiB of results per device and call")
        if self.job.target.accelerator.platform == "tpu":
            said.append("  collectives are not counted: TPU programs do not list all of them")
        said.append(f"  executed over useful FLOPs {self.executed / self.useful:.3f}")
        said += self._bound_lines()
        said.append(f"  compiled in {self.seconds:.0f} s with {self.own_memory:.1f} GiB")
        return said

    def _bound_lines(self) -> list[str]:
        if not (bounds := self.bounds()) or self.out_of_memory:
            return []
        limit = max(bounds, key=bounds.get)
        parts = ", ".join(f"{name} {seconds:.3g} s" for name, seconds in bounds.items())
        call = _CALLS[self.job.program]
        line = f"  {call} takes at least {bounds[limit]:.3g} s, limited by {limit} ({parts})"
        if self.job.program != "train":
            return [line]
        hours = bounds[limit] * self.job.config.num_steps / 3600
        steps = self.job.config.num_steps
        return [line, f"  the run of {steps:,} steps takes at least {hours:.1f} hours"]


def settings(job: Job) -> str:
    """The settings that determine memory and speed, as gin bindings."""
    mesh = f"MeshConfig.preset={job.mesh.preset} MeshConfig.tensor={job.mesh.tensor}"
    if job.program not in TRAINING:
        batch = f"EvalConfig.tokens_per_batch={job.tokens_per_batch}"
        return f"{mesh} {batch} Evaluate.params_dtype={job.params_dtype}"
    batch = f"TrainConfig.num_microbatches={job.config.num_microbatches}"
    return f"{mesh} {batch} model_config.remat={job.model.remat}"


def compile_job(job: Job) -> Findings:
    """Compiles in a process of its own.

    Raises:
      UserError: settings that are invalid together, or a compiler that is missing or fails.
    """
    check_installed(job.target)
    # glibc gives each of the compiler's threads a heap of its own; fewer need a fifth less memory.
    environment = {"MALLOC_ARENA_MAX": "2", **os.environ}
    set_environment(job.target, environment)
    command = [sys.executable, "-m", "optiml_jax.ahead.worker"]
    try:
        done = subprocess.run(
            command,
            input=pickle.dumps(job),
            env=environment,
            capture_output=True,
            timeout=TIME_LIMIT,
            check=False,
        )
    except subprocess.TimeoutExpired as e:
        raise UserError(f"the compiler took more than {TIME_LIMIT:.0f} s; try fewer devices") from e
    lines = done.stdout.decode().strip().splitlines()
    if done.returncode or not lines:
        last = (done.stderr.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
        raise UserError(f"the compiler ended with status {done.returncode}: {last[:300]}")
    return _findings(job, json.loads(lines[-1]))


def _findings(job: Job, answer: dict[str, Any]) -> Findings:
    if "error" in answer:
        raise UserError(answer["error"])
    model = job.model if job.program in TRAINING else job.model.as_evaluated()
    useful = model.flops_per_token(answer["length"]) * answer["tokens"]
    return Findings(
        job=job,
        devices=answer["devices"],
        mesh=answer["mesh"],
        arguments=answer.get("arguments"),
        temporaries=answer.get("temporaries"),
        peak=answer.get("peak"),
        host=answer.get("host", 0.0),
        rows=answer["rows"],
        length=answer["length"],
        usable=job.target.accelerator.usable,
        collectives=tuple(Collective(**c) for c in answer.get("collectives", ())),
        executed=answer["executed_flops"],
        useful=useful if job.program == "train" else useful / 3,
        out_of_memory=answer.get("out_of_memory"),
        seconds=answer["seconds"],
        own_memory=answer["own_memory"],
    )
