"""Compiles the paper's runs for the machines they are meant for and prints one table.

python tools/bench/ahead.py [TARGET ...]    (needs libtpu and JAX's CUDA plugin; no device)
"""

import os
import pathlib
import sys

import gin

import optiml_jax.cli.settings  # noqa: F401 - what gin may set
from optiml_jax.ahead.compile import compile_job
from optiml_jax.ahead.hlo import by_kind
from optiml_jax.ahead.targets import parse_target
from optiml_jax.ahead.worker import Job
from optiml_jax.data.plan import PlanConfig
from optiml_jax.errors import UserError
from optiml_jax.model.architectures import model_config
from optiml_jax.sharding.mesh import MeshConfig
from optiml_jax.train.config import TrainConfig
from optiml_jax.train.optimizer import OptimizerConfig

FULL = "model_config.remat = 'full'"
RUNS = [  # gin file, target, further bindings
    ("optiml_30b", "gpu:a100-40g:8x8", ()),
    ("optiml_30b", "gpu:a100-40g:8x8", (FULL,)),
    ("optiml_30b", "tpu:v4:4x4x4", ()),
    ("optiml_175b", "gpu:a100-40g:16x8", ()),
    ("optiml_175b", "gpu:a100-40g:16x8", (FULL,)),
    ("optiml_175b", "tpu:v4:4x4x8", ()),
    ("optiml_175b", "tpu:v5p:4x4x8", ()),
    ("bench_mistral_7b_lora", "gpu:a100-80g:1x1", ()),
]
NAMES = ("run", "target", "mesh", "micro", "remat", "arguments", "temporaries", "peak", "usable")
NAMES += ("host", "gather", "reduce", "all-to-all", "executed/useful", "step s", "limit")
NAMES += ("compile s", "GB")


def row(run: str, target: str, bindings: tuple[str, ...]) -> list[str]:
    """The cells of one compilation."""
    gin.clear_config()
    gin.parse_config_files_and_bindings([f"gin/runs/{run}.gin"], bindings)
    job = Job(
        target=parse_target(target),
        program="train",
        config=TrainConfig(plan_dir="", run_dir=""),
        model=model_config(),
        optimizer=OptimizerConfig(),
        mesh=MeshConfig(),
        length=PlanConfig(num_rows=1).sequence_length,
    )
    found = compile_job(job)
    kinds, bounds = by_kind(list(found.collectives)), found.bounds()
    limit = max(bounds, key=bounds.get)
    reduced = kinds.get("all-reduce", 0) + kinds.get("reduce-scatter", 0)
    numbers = [found.arguments, found.temporaries, found.peak, found.usable, found.host]
    return [
        run,
        target,
        "x".join(str(n) for n in found.mesh.values()),
        str(job.config.num_microbatches),
        job.model.remat,
        *("-" if n is None else f"{n:.2f}" for n in numbers),
        f"{kinds.get('all-gather', 0):.0f}" if kinds else "-",
        f"{reduced:.0f}" if kinds else "-",
        f"{kinds.get('all-to-all', 0):.2f}" if kinds else "-",
        f"{found.executed / found.useful:.3f}",
        f"{bounds[limit]:.2f}",
        limit,
        f"{found.seconds:.0f}",
        f"{found.own_memory:.1f}",
    ]


def main() -> int:
    """Prints a Markdown table, each row as soon as it is ready."""
    os.chdir(pathlib.Path(__file__).resolve().parents[2])
    os.environ.setdefault("OPTIML_DATA", "/data")
    print("| " + " | ".join(NAMES) + " |\n|" + "---|" * len(NAMES), flush=True)
    for run, target, bindings in RUNS:
        if len(sys.argv) > 1 and target not in sys.argv[1:]:
            continue
        try:
            print("| " + " | ".join(row(run, target, bindings)) + " |", flush=True)
        except UserError as e:
            print(f"| {run} | {target} | {e} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
