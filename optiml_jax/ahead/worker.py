"""Compiles one program for one target, in a process of its own: job in, findings out.

python -m optiml_jax.ahead.worker < job.pickle > findings.json. A compiler that runs out of memory
or crashes then ends this process alone.
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
from optiml_jax.evaluate.batching import Engine
from optiml_jax.evaluate.programs import trace_decoding, trace_prefill, trace_scoring
from optiml_jax.model.config import DecoderConfig
from optiml_jax.sharding.mesh import MeshConfig, make_mesh
from optiml_jax.train.config import TrainConfig, check_batch
from optiml_jax.train.optimizer import OptimizerConfig
from optiml_jax.train.programs import trace_train_step, trace_validation_step

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Job:
    """What to compile.

    Attributes:
      program: a key of `PROGRAMS`.
      length: slots of a row.
      tokens_per_batch, params_dtype: for evaluation.
    """

    target: Target
    program: str
    config: TrainConfig
    model: DecoderConfig
    optimizer: OptimizerConfig
    mesh: MeshConfig
    length: int
    tokens_per_batch: int = 8192
    params_dtype: str = "float32"


@dataclasses.dataclass(frozen=True)
class Call:
    """A program and the size of one call.

    Attributes:
      rows, length: of the batch; in decoding, the answers and the cache slots of each.
      tokens: processed by the model; in decoding, one new token per answer.
    """

    traced: jax.stages.Traced
    rows: int
    length: int
    tokens: int


def _train(job: Job, mesh: jax.sharding.Mesh) -> Call:
    check_batch(job.config, mesh)
    rows, where = job.config.global_batch_size, (mesh, job.mesh.preset, job.length)
    traced = trace_train_step(job.config, job.model, job.optimizer, *where)
    return Call(traced, rows, job.length, rows * job.length)


def _validate(job: Job, mesh: jax.sharding.Mesh) -> Call:
    check_batch(job.config, mesh)
    rows = job.config.global_batch_size // job.config.num_microbatches
    traced = trace_validation_step(job.config, job.model, mesh, job.mesh.preset, job.length)
    return Call(traced, rows, job.length, rows * job.length)


def _score(job: Job, mesh: jax.sharding.Mesh) -> Call:
    model, rows, length = _batch(job, mesh)
    where = (model, mesh, job.mesh.preset, rows, length)
    return Call(trace_scoring(*where, length, job.params_dtype), rows, length, rows * length)


def _prefill(job: Job, mesh: jax.sharding.Mesh) -> Call:
    model, rows, length = _batch(job, mesh)
    where = (model, mesh, job.mesh.preset, rows, length)
    return Call(trace_prefill(*where, job.params_dtype), rows, length, rows * length)


def _decode(job: Job, mesh: jax.sharding.Mesh) -> Call:
    model, rows, length = _batch(job, mesh, cached=True)
    where = (model, mesh, job.mesh.preset, rows, length)
    return Call(trace_decoding(*where, job.params_dtype), rows, length, rows)


def _batch(
    job: Job, mesh: jax.sharding.Mesh, cached: bool = False
) -> tuple[DecoderConfig, int, int]:
    """(model, rows, length) of the largest batch that evaluation makes of rows of `job.length`."""
    model = job.model.as_evaluated()
    engine = Engine(None, None, model, tokens_per_batch=job.tokens_per_batch, mesh=mesh)
    if cached:
        length = engine.capacity(job.length)
        return model, engine.num_answers(length), length
    length = engine.bucket(job.length)
    return model, engine.num_rows(length), length


PROGRAMS = {
    "train": _train,
    "validate": _validate,
    "score": _score,
    "prefill": _prefill,
    "decode": _decode,
}


def findings(job: Job) -> dict[str, Any]:
    """Compiles; sizes are GiB per device, see `ahead.compile.Findings`."""
    mesh = make_mesh(job.mesh, describe(job.target))
    began = time.perf_counter()
    call = PROGRAMS[job.program](job, mesh)
    found: dict[str, Any] = {
        "devices": mesh.size,
        "mesh": dict(mesh.shape),
        "executed_flops": matmul_flops(call.traced.jaxpr),
        "rows": call.rows,
        "length": call.length,
        "tokens": call.tokens,
    }
    try:
        compiled = call.traced.lower().compile()
    except jax.errors.JaxRuntimeError as e:
        found |= _out_of_memory(str(e))
    else:
        found |= memory(compiled)
        # The text of TPU programs lacks loop counts and some collectives.
        if job.target.accelerator.platform != "tpu":
            found |= _collectives(compiled)
    found["seconds"] = time.perf_counter() - began
    found["own_memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB
    return found


def memory(compiled: Any) -> dict[str, float]:
    """GiB per device that a compiled program needs: see `ahead.compile.Findings`."""
    analysis = compiled.memory_analysis()
    arguments = analysis.argument_size_in_bytes / GIB
    temporaries = analysis.temp_size_in_bytes / GIB
    kept = (analysis.output_size_in_bytes - analysis.alias_size_in_bytes) / GIB
    return {
        "arguments": arguments,
        "temporaries": temporaries,
        "peak": arguments + temporaries + max(kept, 0.0),
        "host": analysis.host_temp_size_in_bytes / GIB,
    }


def _out_of_memory(message: str) -> dict[str, Any]:
    """The findings when a program does not fit the device's memory; other errors are raised."""
    if "RESOURCE_EXHAUSTED" not in message:
        raise UserError(f"the compiler failed: {message.splitlines()[0][:300]}")
    sizes = re.findall(r"([\d.]+)([GM])\b", message)
    needed = max((float(n) / (1 if unit == "G" else 1024) for n, unit in sizes), default=None)
    return {"peak": needed, "out_of_memory": message.splitlines()[0][:300]}


def _collectives(compiled: Any) -> dict[str, Any]:
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
