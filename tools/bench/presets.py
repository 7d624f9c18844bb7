"""Which mesh and how many microbatches make each size of OPT-IML fit each machine, by compiling.

python tools/bench/presets.py [SIZE ...] [TARGET ...]    compiles what presets.json lacks
python tools/bench/presets.py --again [...]              compiles what it has once more
python tools/bench/presets.py --write                    writes gin/meshes and the tables of
                                                         docs/presets.md from presets.json

Needs libtpu and JAX's CUDA plugin, no device. Of the valid settings, the cheapest that fits by an
estimate of the memory is compiled; one that does not fit corrects the estimate.
"""

import argparse
import itertools
import json
import math
import os
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import gin

import optiml_jax.cli.settings  # noqa: F401 - what gin may set
from optiml_jax.ahead.compile import compile_job
from optiml_jax.ahead.targets import check_installed, parse_target
from optiml_jax.ahead.worker import Job
from optiml_jax.cli.gin_files import read_settings
from optiml_jax.errors import UserError
from optiml_jax.files import write_json
from optiml_jax.model.architectures import model_config
from optiml_jax.sharding.mesh import MeshConfig
from optiml_jax.train.config import TrainConfig
from optiml_jax.train.optimizer import OptimizerConfig

ROOT = pathlib.Path(__file__).resolve().parents[2]
RESULTS = pathlib.Path(__file__).with_name("presets.json")
DOCUMENT = ROOT / "docs" / "presets.md"
SIZES = ("125m", "1.3b", "6.7b", "13b", "30b", "66b", "175b")
TARGETS = {
    "gpu:a100-40g:1x1": "1 GPU, 40 GB",
    "gpu:a100-80g:1x1": "1 GPU, 80 GB",
    "gpu:a100-40g:1x8": "8 GPUs, 40 GB",
    "gpu:a100-80g:1x8": "8 GPUs, 80 GB",
    "gpu:a100-40g:8x8": "64 GPUs, 40 GB",
    "gpu:a100-80g:8x8": "64 GPUs, 80 GB",
    "gpu:a100-40g:16x8": "128 GPUs, 40 GB",
    "gpu:a100-80g:16x8": "128 GPUs, 80 GB",
    "tpu:v4:4x4x8": "v4, 128 chips",
    "tpu:v5e:16x16": "v5e, 256 chips",
    "tpu:v5p:4x4x8": "v5p, 128 chips",
    "tpu:v6e:16x16": "v6e, 256 chips",
}
# What fits there fits here with the same mesh file: no less memory per device, as many devices or
# twice as many.
SMALLER = {
    "gpu:a100-80g:1x1": "gpu:a100-40g:1x1",
    "gpu:a100-80g:1x8": "gpu:a100-40g:1x8",
    "gpu:a100-80g:8x8": "gpu:a100-40g:8x8",
    "gpu:a100-40g:16x8": "gpu:a100-40g:8x8",
    "gpu:a100-80g:16x8": "gpu:a100-40g:16x8",
}
MOST_COMPILATIONS = 4  # of one size on one machine
LENGTH = 2048
MARKS = ("<!-- written by tools/bench/presets.py -->", "<!-- to here -->")
GIB = 2**30


def job(size: str, target: str, tensor: int, micro: int) -> Job:
    """One training step of `gin/runs/optiml_SIZE.gin` with a mesh of these settings."""
    gin.clear_config()
    read_settings([str(ROOT / f"gin/runs/optiml_{size.replace('.', '_')}.gin")], [])
    preset = "sequence" if tensor > 1 else "standard"
    return Job(
        target=parse_target(target),
        program="train",
        config=TrainConfig(plan_dir="", run_dir="", num_microbatches=micro),
        model=model_config(),
        optimizer=OptimizerConfig(),
        mesh=MeshConfig(tensor=tensor, preset=preset),
        length=LENGTH,
    )


def settings(size: str, target: str) -> Iterator[tuple[float, int, int]]:
    """(estimated GiB per device, tensor, microbatches) of valid settings, cheapest first."""
    one = job(size, target, 1, 1)
    devices, batch = one.target.num_devices, one.config.global_batch_size
    model, found = one.model, []
    for tensor in (1, 2, 4, 8):
        fsdp = devices // tensor
        if devices % tensor or batch % fsdp or model.num_heads % tensor or model.d_model % fsdp:
            continue
        for power in range(int(math.log2(batch // fsdp)) + 1):
            micro = 2**power
            if batch % (fsdp * micro) == 0:
                cost = 0.02 * power + 0.03 * math.log2(tensor)
                found.append((cost, estimate(one, tensor, micro), tensor, micro))
    for _, *setting in sorted(found):
        yield tuple(setting)


def estimate(one: Job, tensor: int, micro: int) -> float:
    """GiB per device: state, gradients, weights of some layers, residual streams, token table."""
    model, devices = one.model, one.target.num_devices
    rows = one.config.global_batch_size * tensor // (devices * micro)
    state = 16 * model.num_params / devices
    layers = 3 * 4 * 12 * model.d_model**2 / tensor
    kept = 4 if model.remat == "offload" else model.num_layers
    streams = rows * LENGTH * model.d_model * kept * 2 / tensor
    head = 2 * 4 * model.vocab_size * model.d_model / tensor
    return (state + layers + streams + head) / GIB


def find(size: str, target: str) -> dict[str, Any]:
    """The cheapest settings that fit, or what was found instead."""
    row: dict[str, Any] = {"size": size, "target": target, "fits": False, "tries": 0}
    possible = list(settings(size, target))
    one = job(size, target, 1, 1)
    usable = one.target.accelerator.usable
    row |= {"usable": usable, "state": 12 * one.model.num_params / one.target.num_devices / GIB}
    if row["state"] > usable:
        return row
    limit = usable
    while row["tries"] < MOST_COMPILATIONS and possible:
        passing = [s for s in possible if s[0] <= limit] or [min(possible)]
        guess, tensor, micro = passing[0]
        row["tries"] += 1
        try:
            found = compile_job(job(size, target, tensor, micro))
        except UserError as e:
            row["error"] = str(e)
            possible = [s for s in possible if s[1:] != (tensor, micro)]
            continue
        row.pop("error", None)
        row |= {"tensor": tensor, "micro": micro, "mesh": found.mesh, "fits": found.fits}
        names = ("arguments", "temporaries", "peak")
        row |= {name: round(getattr(found, name) or 0, 2) or None for name in names}
        row["seconds"] = round(found.seconds)
        if found.fits:
            return row
        limit = min(limit, guess) * usable / max(found.peak or 0, usable * 1.05)
        possible = [s for s in possible if s[0] < guess]
    return row


def mesh_file(row: dict[str, Any]) -> str:
    """The name of the file in `gin/meshes` with the settings of a row."""
    return f"tensor{row['tensor']}_micro{row['micro']}"


def write_meshes(rows: list[dict[str, Any]]) -> None:
    """One file for every mesh that fits somewhere, and no other."""
    folder = ROOT / "gin" / "meshes"
    for file in folder.glob("*.gin"):
        file.unlink()
    for row in rows:
        if row["fits"]:
            preset = "sequence" if row["tensor"] > 1 else "standard"
            text = (
                "# Written by tools/bench/presets.py; docs/presets.md says what fits where.\n"
                "MeshConfig.data = 1\nMeshConfig.fsdp = -1\n"
                f"MeshConfig.tensor = {row['tensor']}\nMeshConfig.preset = '{preset}'\n"
                f"TrainConfig.num_microbatches = {row['micro']}\n"
            )
            (folder / f"{mesh_file(row)}.gin").write_text(text, "utf-8")


def tables(rows: list[dict[str, Any]]) -> str:
    """What fits where, as two Markdown tables."""
    found = {(row["size"], row["target"]): row for row in rows}
    lines = []
    for kind in ("gpu", "tpu"):
        lines += ["", "| | " + " | ".join(SIZES) + " |", "|---|" + "---|" * len(SIZES)]
        for target, name in TARGETS.items():
            if target.startswith(kind):
                cells = [cell(found, size, target) for size in SIZES]
                lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def cell(found: dict[tuple[str, str], dict[str, Any]], size: str, target: str) -> str:
    """Mesh file and GiB per device; or why it does not fit, or that it was not compiled."""
    row = found.get((size, target))
    if row is None:
        return follows(found, size, target) or "not compiled"
    if row["fits"]:
        return f"`{mesh_file(row)}` {row['peak']:.1f}"
    if "error" in row:
        return "not compiled"
    if row.get("peak"):
        return f"no: {row['peak']:.1f}"
    return f"no: weights and moments {row['state']:.1f}"


def follows(found: dict[tuple[str, str], dict[str, Any]], size: str, target: str) -> str:
    """The mesh file of a smaller machine or of a larger model, which fits here too; "" for none."""
    smaller = SMALLER.get(target)
    while smaller is not None:
        if found.get((size, smaller), {}).get("fits"):
            return f"`{mesh_file(found[size, smaller])}`, as {TARGETS[smaller]}"
        smaller = SMALLER.get(smaller)
    for larger in SIZES[SIZES.index(size) + 1 :]:
        row = found.get((larger, target), {})
        if not row.get("fits") or (row["tensor"], row["micro"]) not in pairs(size, target):
            continue
        more = 2 if larger == "175b" else 1  # its batch is half as large
        if row["arguments"] + more * row["temporaries"] <= row["usable"]:
            return f"`{mesh_file(row)}`, as {larger}"
    return ""


def pairs(size: str, target: str) -> set[tuple[int, int]]:
    """(tensor, microbatches) that are valid for this model and machine."""
    return {setting[1:] for setting in settings(size, target)}


def write_document(rows: list[dict[str, Any]]) -> None:
    """Puts the tables between the marks of docs/presets.md."""
    text = DOCUMENT.read_text("utf-8")
    before, _, rest = text.partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    DOCUMENT.write_text(f"{before}{MARKS[0]}\n{tables(rows)}\n{MARKS[1]}{after}", "utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", choices=[[], *SIZES, *TARGETS], metavar="SIZE|TARGET")
    parser.add_argument("--again", action="store_true", help="compile what is known")
    parser.add_argument("--write", action="store_true", help="only write files")
    options = parser.parse_args()
    os.chdir(ROOT)
    os.environ.setdefault("OPTIML_DATA", "/data")
    rows = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else []
    if options.write:
        write_meshes(rows)
        write_document(rows)
        return 0
    known = {(row["size"], row["target"]): i for i, row in enumerate(rows)}
    targets = [t for t in TARGETS if t in options.names] or TARGETS
    sizes = [s for s in SIZES if s in options.names] or SIZES
    for size, target in itertools.product(sizes, targets):
        place = known.get((size, target))
        if (place is not None) != options.again:
            continue
        check_installed(parse_target(target))
        row = find(size, target)
        print(json.dumps(row), flush=True)
        if place is None:
            rows.append(row)
        else:
            rows[place] = row
        write_json(RESULTS, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
