"""Memory per device of scoring, prefill and decoding, compiled without the devices.

python tools/bench/evaluation_memory.py    (needs JAX's CUDA plugin; no device)

Prints one table. Exit status 1 if arguments and temporaries exceed `LIMIT`, or if an array of a
program is larger than one device's share of all keys or of all values: then a part of the cache is
replicated.
"""

import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterator

os.environ["JAX_PLATFORMS"] = "cpu"

import jax

from optiml_jax.ahead.targets import describe, parse_target
from optiml_jax.evaluate import programs
from optiml_jax.model.architectures import model_config
from optiml_jax.model.config import DecoderConfig
from optiml_jax.sharding.mesh import MeshConfig, make_mesh

LIMIT = 12.0  # GiB
LENGTH, TARGETS = 2048, 256  # tokens of a row or slot, scored tokens of a row
RUNS = [("175b", "gpu:a100-40g:16x8", 16), ("30b", "gpu:a100-40g:1x8", 4)]  # size, target, rows
NAMES = ("size", "target", "program", "rows", "arguments", "temporaries", "largest of the cache")
GIB = 2**30


def lowered(
    config: DecoderConfig, mesh: jax.sharding.Mesh, rows: int
) -> Iterator[tuple[str, Callable[[], jax.stages.Lowered]]]:
    """The programs of an evaluation by name."""
    shared = (config, mesh, "standard", rows, LENGTH)
    yield "scoring", lambda: programs.trace_scoring(*shared, TARGETS, "bfloat16").lower()
    yield "prefill", lambda: programs.trace_prefill(*shared, "bfloat16").lower()
    yield "putting", lambda: programs.trace_putting(*shared, rows, LENGTH).lower()
    yield "decoding", lambda: programs.trace_decoding(*shared, "bfloat16").lower()


def largest_of_cache(text: str, config: DecoderConfig) -> float:
    """The largest array with axes for layers, head dimension and tokens, in GiB."""
    wanted = {config.num_layers, config.head_dim, LENGTH}
    shapes = (
        (kind, [int(n) for n in shape.split(",")])
        for kind, shape in set(re.findall(r"\b(bf16|f32)\[([\d,]+)\]", text))
    )
    sizes = [
        math.prod(shape) * (2 if kind == "bf16" else 4)
        for kind, shape in shapes
        if wanted <= {*shape}
    ]
    return max(sizes, default=0) / GIB


def main() -> int:
    print("| " + " | ".join(NAMES) + " | seconds |\n|" + "---|" * (len(NAMES) + 1))
    status = 0
    for size, target, rows in RUNS:
        config = model_config(size=size, dtype="bfloat16")
        mesh = make_mesh(MeshConfig(tensor=8), describe(parse_target(target)))
        kept = config.num_layers * rows * config.d_model * LENGTH * 2 / mesh.size / GIB
        for name, lower in lowered(config, mesh, rows):
            began = time.perf_counter()
            compiled = lower().compile()
            memory = compiled.memory_analysis()
            needs = [memory.argument_size_in_bytes / GIB, memory.temp_size_in_bytes / GIB]
            largest = largest_of_cache(compiled.as_text(), config)
            if sum(needs) > LIMIT or largest > 1.01 * kept:
                status = 1
            cells = [size, target, name, rows, *(f"{n:.2f}" for n in needs)]
            cells += [f"{largest:.2f} of {kept:.2f}", f"{time.perf_counter() - began:.0f}"]
            print("| " + " | ".join(map(str, cells)) + " |", flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
