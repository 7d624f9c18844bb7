"""Compiles one program for one target, in a process of its own: job in, findings out.

python -m optiml_jax.ahead.worker < job.pickle > findings.json. A compiler that runs out of memory
or crashes then takes nothing else along.
"""

import dataclasses
import json
import pickle
import re
import resource
import sys
import time
from typing import Any

import jax

from optiml_jax.ahead import hlo
from optiml_jax.ahead.flops import matmul_flops
from optiml_jax.ahead.targets import Target, describe
from optiml_jax.errors import UserError
from optiml_jax.model.config import DecoderConfig
from optiml_jax.sharding.mesh import MeshConfig, make_mesh
from optiml_jax.train.config import TrainConfig, check_batch
from optiml_jax.train.optimizer import OptimizerConfig
from optiml_jax.train.programs import trace_train_step, trace_validation_step

GIB = 2**30
PROGRAMS = {"train": trace_train_step, "validate": trace_validation_step}


@dataclasses.dataclass(frozen=True)
class Job:
    """What to compile.

    Attributes:
      program: a key of `PROGRAMS`.
      length: slots of a row.
    """

    target: Target
    program: str
    config: TrainConfig
    model: DecoderConfig
    optimizer: OptimizerConfig
    mesh: MeshConfig
    length: int


def findings(job: Job) -> dict[str, Any]:
    """Compiles; sizes are GiB a device, see `ahead.compile.Findings`."""
    mesh = make_mesh(job.mesh, describe(job.target))
    check_batch(job.config, mesh)
    began = time.perf_counter()
    settings = (mesh, job.mesh.preset, job.length)
    middle = (job.optimizer,) if job.program == "train" else ()
    traced = PROGRAMS[job.program](job.config, job.model, *middle, *settings)
    found: dict[str, Any] = {
        "devices": mesh.size,
        "mesh": dict(mesh.shape),
        "executed_flops": matmul_flops(traced.jaxpr),
    }
    try:
        compiled = traced.lower().compile()
    except jax.errors.JaxRuntimeError as e:
        found |= _out_of_memory(str(e))
    else:
        found |= memory(compiled)
        # The text of TPU programs keeps neither the counts of loops nor all exchanges.
        if job.target.accelerator.platform != "tpu":
            found |= _exchange(compiled)
    found["seconds"] = time.perf_counter() - began
    found["own_memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB
    return found


def memory(compiled: Any) -> dict[str, float]:
    analysis = compiled.memory_analysis()
    arguments = analysis.argument_size_in_bytes / GIB
    temporaries = analysis.temp_size_in_bytes / GIB
    kept = (analysis.output_size_in_bytes - analysis.alias_size_in_bytes) / GIB
    return {
        "arguments": arguments,
        "temporaries": temporaries,
        "peak": arguments + temporaries + max(kept, 0.0),
    }


def _out_of_memory(message: str) -> dict[str, Any]:
    """What a compiler says when it runs out of the device's memory; other errors are raised."""
    if "RESOURCE_EXHAUSTED" not in message:
        raise UserError(f"the compiler failed: {message.splitlines()[0][:300]}")
    sizes = re.findall(r"([\d.]+)([GM])\b", message)
    needed = max((float(n) / (1 if unit == "G" else 1024) for n, unit in sizes), default=None)
    return {"peak": needed, "out_of_memory": message.splitlines()[0][:300]}


def _exchange(compiled: Any) -> dict[str, Any]:
    found = hlo.collectives(compiled.as_text())
    return {"collectives": [dataclasses.asdict(c) for c in found]}


def main() -> int:
    """Reads a pickled `Job` from stdin and writes one line of JSON."""
    job = pickle.load(sys.stdin.buffer)
    try:
        answer = findings(job)
    except UserError as e:
        answer = {"error": str(e)}
    print(json.dumps(answer), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
