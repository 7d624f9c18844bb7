"""Compares the attention kernels on packed rows: `python tools/bench/attention.py`.

Prints a Markdown table: the compiler's temporaries for forward and backward, and seconds of both
against the reference, in one process. Only kernels that can run on this machine are included.
Options: --lengths, --rows, --heads, --kv_heads, --head_dim, --documents (in a row), --dtype,
--reference_up_to (its scores grow with the square of the length).
"""

import argparse
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from optiml_jax.model.attention import DocumentMask
from optiml_jax.model.kernels import choice
from optiml_jax.model.kernels.contract import Kernel, Keys

MIB = 2**20


def packed_rows(options: argparse.Namespace, length: int) -> tuple[jax.Array, ...]:
    """Query, key, value, segment ids: documents of random lengths, and some padding."""
    generator = np.random.default_rng(0)
    padding = length // 64
    ids = np.zeros((options.rows, length), np.int32)
    for row in ids:
        cuts = generator.choice(np.arange(1, length - padding), options.documents - 1, False)
        row[: length - padding] = 1 + np.searchsorted(
            np.sort(cuts), np.arange(length - padding), "right"
        )

    def draw(heads: int) -> jax.Array:
        shape = (options.rows, heads, length, options.head_dim)
        return jnp.asarray(generator.standard_normal(shape), options.dtype)

    query = draw(options.heads) * options.head_dim**-0.5
    return query, draw(options.kv_heads), draw(options.kv_heads), jnp.asarray(ids)


def gradient_of(kernel: Kernel) -> Callable[..., Any]:
    """Forward and backward of a sum over all tokens except padding."""

    def loss(query, key, value, ids):
        mask = DocumentMask(ids)
        out = kernel.attend(query, mask, [Keys(key, value, mask, own=True)], None, 0.0, None)
        weights = jnp.sin(jnp.arange(out.size)).reshape(out.shape) * mask.valid[:, None, :, None]
        return jnp.sum(out.astype(jnp.float32) * weights)

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))


def seconds_of(function: Callable[..., Any], arrays: tuple[jax.Array, ...], repeats: int) -> float:
    taken = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        jax.block_until_ready(function(*arrays))
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])


def difference(found: Any, expected: Any) -> float:
    """The largest difference of gradients, as a share of the largest gradient."""
    pairs = zip(jax.tree.leaves(found[1]), jax.tree.leaves(expected[1]), strict=True)
    return max(
        float(jnp.abs(a.astype("float32") - b.astype("float32")).max() / jnp.abs(b).max())
        for a, b in pairs
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048, 4096, 8192])
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--kv_heads", type=int, default=12)
    parser.add_argument("--head_dim", type=int, default=64)
    parser.add_argument("--documents", type=int, default=7)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--reference_up_to", type=int, default=2048)
    options = parser.parse_args()
    print(f"{jax.devices()[0].device_kind}: {vars(options)}")
    print("| tokens | kernel | temporaries, MiB | ms | speed-up | difference |")
    print("|---|---|---|---|---|---|", flush=True)
    for length in options.lengths:
        arrays = packed_rows(options, length)
        mask = DocumentMask(arrays[3])
        parts = [Keys(arrays[1], arrays[2], mask, own=True)]
        case = choice.case_of(arrays[0], mask, parts, None, 0.0)
        reference, expected = None, None
        for kernel in reversed(choice.KERNELS.values()):  # the reference first
            if kernel.refuses(case) is not None:
                continue
            function = gradient_of(kernel)
            compiled = function.lower(*arrays).compile()
            cells = [f"{compiled.memory_analysis().temp_size_in_bytes / MIB:.0f}"]
            if kernel.name == "reference" and length > options.reference_up_to:
                cells += ["-", "-", "-"]
            else:
                taken = seconds_of(function, arrays, options.repeats)
                if kernel.name == "reference":
                    reference, expected = taken, function(*arrays)
                cells.append(f"{1000 * taken:.0f}")
                cells += (
                    ["-", "-"]
                    if expected is None
                    else [
                        f"{reference / taken:.1f}",
                        f"{difference(function(*arrays), expected):.1e}",
                    ]
                )
            print(f"| {length} | {kernel.name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
