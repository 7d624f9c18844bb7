"""Memory and time of conversion: piece by piece against the whole model at once.

    python tools/bench/convert_memory.py --size=1.3b --folder=/tmp/convert_memory

creates a model of random float16 numbers in 8 shards of Hugging Face's format and in 8 files of
metaseq's (2 model parts of 4 FSDP shards), then converts each into a checkpoint and the checkpoint
back, each in a separate process, whose anonymous memory (RssAnon of /proc) is monitored. The result
of each round trip is compared bit for bit. Needs torch, which writes metaseq's files.
"""

import argparse
import json
import pathlib
import shutil
import subprocess
import sys
import time

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path += [str(ROOT / "tests" / "model"), str(ROOT / "tests" / "checkpoint")]

INTO = """
import pathlib, sys
from optiml_jax.checkpoint.conversion import into_checkpoint, open_weights
with open_weights(sys.argv[1]) as weights:
    into_checkpoint(weights, pathlib.Path(sys.argv[2]), {"model": weights.config.to_dict()})
"""
OUT = """
import pathlib, sys
from optiml_jax.checkpoint.conversion import out_of_checkpoint
from optiml_jax.checkpoint.manager import load_metadata
from optiml_jax.model.architectures import config_from_dict
config = config_from_dict(load_metadata(sys.argv[1])["model"])
shard = 2 * config.num_params // 8 + 1
out_of_checkpoint(sys.argv[1], pathlib.Path(sys.argv[2]), config, max_shard_bytes=shard)
"""
WHOLE = """
import pathlib, sys
import jax
from optiml_jax.checkpoint.conversion import open_weights
from optiml_jax.checkpoint.manager import CheckpointManager
from optiml_jax.checkpoint.weights import streamed_params
with open_weights(sys.argv[1]) as weights:
    params = jax.tree.map(lambda array: array.whole(), streamed_params(weights, "float16"))
manager = CheckpointManager(pathlib.Path(sys.argv[2]) / "checkpoints", async_save=False)
manager.save(0, {"params": params}, {"model": weights.config.to_dict()})
manager.close()
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", default="1.3b")
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("/tmp/convert_memory"))
    options = parser.parse_args()
    shutil.rmtree(options.folder, ignore_errors=True)
    make(options.folder, options.size)
    rows = [
        ("Hugging Face -> checkpoint", INTO, "huggingface", "ours"),
        ("checkpoint -> Hugging Face", OUT, "ours", "back"),
        ("metaseq -> checkpoint", INTO, "metaseq", "ours_of_metaseq"),
        ("Hugging Face -> checkpoint, the whole model at once", WHOLE, "huggingface", "whole"),
    ]
    print("| conversion | peak anonymous memory, GiB | s |\n|---|---|---|")
    for name, code, source, destination in rows:
        peak, seconds = watched(code, options.folder / source, options.folder / destination)
        print(f"| {name} | {peak / 2**30:.2f} | {seconds:.0f} |", flush=True)
        if destination.startswith(("whole", "ours_of")):
            if destination.startswith("ours_of"):
                watched(OUT, options.folder / destination, options.folder / "back_of_metaseq")
                compare(options.folder / "huggingface", options.folder / "back_of_metaseq")
                shutil.rmtree(options.folder / "back_of_metaseq")
            shutil.rmtree(options.folder / destination)
        if destination == "back":
            compare(options.folder / "huggingface", options.folder / "back")
            shutil.rmtree(options.folder / "back")
    shutil.rmtree(options.folder)


def make(folder: pathlib.Path, size: str) -> None:
    """One model of random numbers in both formats."""
    import metaseq_files
    import opt_cases

    from optiml_jax.model.architectures import model_config

    config = model_config(size)
    generator = np.random.default_rng(0)
    tensors = {
        name: (0.02 * generator.standard_normal(shape, np.float32)).astype(np.float16)
        for name, shape in opt_cases.tensor_shapes(config).items()
    }
    (folder / "huggingface").mkdir(parents=True)
    (folder / "huggingface" / "config.json").write_text(json.dumps(opt_cases.config_json(config)))
    names, weight_map = list(tensors), {}
    for number in range(8):
        file = f"model-{number + 1:05d}-of-00008.safetensors"
        part = {name: tensors[name] for name in names[number::8]}
        save_file(part, folder / "huggingface" / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    index = folder / "huggingface" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    metaseq_files.write(folder / "metaseq", config, tensors, parts=2, shards=4)


def watched(code: str, source: pathlib.Path, destination: pathlib.Path) -> tuple[int, float]:
    """Runs the code; the largest RssAnon of its process, in bytes, and its seconds."""
    start, peak = time.perf_counter(), 0
    command = [sys.executable, "-c", code, str(source), str(destination)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        try:
            status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            break
        for line in status.splitlines():
            if line.startswith("RssAnon"):
                peak = max(peak, int(line.split()[1]) * 1024)
        time.sleep(0.02)
    if process.wait():
        raise SystemExit(f"failed: {source} -> {destination}")
    return peak, time.perf_counter() - start


def compare(one: pathlib.Path, other: pathlib.Path) -> None:
    """Every tensor of two folders, bit for bit."""
    places = [
        json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
        for folder in (one, other)
    ]
    if places[0].keys() != places[1].keys():
        raise SystemExit(f"{one} and {other} have different tensors")
    for name in places[0]:
        tensors = []
        for folder, place in zip((one, other), places, strict=True):
            with safe_open(folder / place[name], "numpy") as file:
                tensors.append(file.get_tensor(name))
        if not np.array_equal(*(x.view(np.uint16) for x in tensors)):
            raise SystemExit(f"{name} differs between {one} and {other}")
    print(f"  {len(places[0])} tensors of {other.name} equal, bit for bit", flush=True)


if __name__ == "__main__":
    main()
