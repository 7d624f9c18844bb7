"""Steps with and without the C library keeping freed memory: `python tools/bench/page_faults.py`.

Each runs in a process of its own, twice, in turn; a step is loss and gradient of one batch of
packed rows on the CPU. Options: --size (d_model,num_layers,num_heads), --rows, --length, --steps.
"""

import argparse
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
VOCABULARY = 1024


def measure(kept: bool, size: list[int], rows: int, length: int, steps: int) -> dict[str, float]:
    """What a step costs in this process, which has not used JAX yet."""
    from optiml_jax.memory import keep_freed_memory

    if kept and not keep_freed_memory():
        sys.exit("nothing to compare: this is not Linux with glibc and a CPU alone")
    import jax
    import numpy as np

    from optiml_jax.model.decoder import init_params
    from optiml_jax.model.opt.config import OPTConfig
    from optiml_jax.train.step import batch_loss

    d_model, num_layers, num_heads = size
    config = OPTConfig(
        vocab_size=VOCABULARY,
        d_model=d_model,
        num_layers=num_layers,
        num_heads=num_heads,
        max_positions=length,
        unroll=num_layers,
    )
    graphdef, params = init_params(config, 0)
    tokens = np.random.default_rng(0).integers(4, VOCABULARY, (rows, length), np.int32)
    batch = {
        "tokens": tokens,
        "targets": np.roll(tokens, -1, axis=1),
        "segment_ids": np.ones_like(tokens),
        "positions": np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
        "loss_weights": np.ones(tokens.shape, np.float32),
    }

    @jax.jit
    @jax.value_and_grad
    def step(params, batch):
        return batch_loss(graphdef, params, batch, None, length)[0]

    for _ in range(5):
        jax.block_until_ready(step(params, batch))
    before, seconds = resource.getrusage(resource.RUSAGE_SELF), []
    for _ in range(steps):
        start = time.perf_counter()
        jax.block_until_ready(step(params, batch))
        seconds.append(time.perf_counter() - start)
    after = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "ms": 1000 * statistics.median(seconds),
        "page faults": (after.ru_minflt - before.ru_minflt) / steps,
        "ms in the system": 1000 * (after.ru_stime - before.ru_stime) / steps,
        "peak MiB": after.ru_maxrss / 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="192,4,4")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--here", choices=["kept", "given back"], help="measure, in this process")
    options = parser.parse_args()
    size = [int(number) for number in options.size.split(",")]
    if options.here:
        kept = options.here == "kept"
        print(json.dumps(measure(kept, size, options.rows, options.length, options.steps)))
        return
    best: dict[str, dict[str, float]] = {}
    for name in ("given back", "kept") * 2:
        command = [sys.executable, __file__, *sys.argv[1:], "--here", name]
        said = subprocess.run(
            command, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True
        )
        if said.returncode:
            sys.exit(said.stderr)
        found = json.loads(said.stdout.splitlines()[-1])
        if name not in best or found["ms"] < best[name]["ms"]:
            best[name] = found
    print("| freed memory | " + " | ".join(best["kept"]) + " |")
    print("|---|" + "---:|" * len(best["kept"]))
    for name, found in best.items():
        print(f"| {name} | " + " | ".join(f"{value:,.0f}" for value in found.values()) + " |")
    print(f"ratio of the times: {best['given back']['ms'] / best['kept']['ms']:.2f}")


if __name__ == "__main__":
    main()
