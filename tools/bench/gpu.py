"""What one accelerator does, in ten minutes, without data or network: `python tools/bench/gpu.py`.

Needs JAX, Flax, Optax and this package (torch is measured too if it is installed). Every part runs
in a separate process, so that one that fails or runs out of memory does not affect the others;
after each, OUT/results.json and OUT/results.md are rewritten, so an interrupted run counts too.

  ceiling   the fastest product of two large matrices
  kernels   every attention kernel of this platform against the reference: error and time
  train     whole updates on packed rows with document masks; memory against the compiler's figure
  score     rank classification, decode: greedy answers, as `optiml evaluate` runs them
  torch     the same rows in PyTorch (torch_decoder.py)

MFU: `DecoderConfig.flops_per_token` (PaLM, appendix B) of all slots over the data sheet's peak.

Options: --out, --minutes, --sizes, --parts; --tiny: small shapes, on any machine; --ahead=TARGET:
only compiles the updates for a machine that need not be present, such as gpu:h200:1x1.
"""

import argparse
import dataclasses
import importlib.util
import json
import math
import os
import pathlib
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

# Modules that the package imports and nothing here calls may be missing on such a machine.
if importlib.util.find_spec("gin") is None:
    sys.modules["gin"] = types.ModuleType("gin")
    sys.modules["gin"].configurable = lambda target: target
if importlib.util.find_spec("array_record") is None:
    for missing in ("array_record", "array_record.python", "grain", "safetensors"):
        sys.modules[missing] = mock.MagicMock()

import jax
import jax.numpy as jnp
import numpy as np

from optiml_jax.ahead.compile import compile_job
from optiml_jax.ahead.targets import parse_target
from optiml_jax.ahead.worker import Job, memory
from optiml_jax.errors import UserError
from optiml_jax.evaluate.batching import Engine
from optiml_jax.evaluate.decoding import Prompt, generate
from optiml_jax.evaluate.scoring import ScoreItem, score
from optiml_jax.model.architectures import model_config
from optiml_jax.model.attention import DocumentMask
from optiml_jax.model.config import DecoderConfig
from optiml_jax.model.decoder import init_params
from optiml_jax.model.kernels import choice
from optiml_jax.model.kernels.contract import Keys
from optiml_jax.sharding.hardware import accelerator_of, xla_flags
from optiml_jax.sharding.mesh import MeshConfig, make_mesh
from optiml_jax.sharding.rules import batch_sharding, use_mesh
from optiml_jax.train.config import TrainConfig
from optiml_jax.train.optimizer import OptimizerConfig
from optiml_jax.train.programs import trace_train_step
from optiml_jax.train.state import abstract_state, initial_state

GIB = 2**30
DOCUMENTS = 7  # in a row, as in the paper's mixture
# Bytes per parameter for weights, gradient and state, the most precise first.
STATES = (
    (16, {"transform": "adam"}),
    (12, {"transform": "adam", "state_dtype": "bfloat16"}),
    (10, {"transform": "lion", "state_dtype": "bfloat16"}),
)
REMAT = ("none", "dots", "full")


@dataclasses.dataclass(frozen=True)
class Shapes:
    """The extent of the measurements; the second instance is for CPUs."""

    matrices: tuple[int, ...] = (4096, 8192, 16384)
    length: int = 2048
    rows: tuple[int, ...] = (32, 16, 8, 4, 2)  # the first that fits is used
    heads: int = 16
    kernel_length: int = 4096
    sizes: tuple[str, ...] = ("125m", "1.3b", "2.7b", "6.7b")
    evaluated: tuple[str, ...] = ("1.3b", "6.7b")
    steps: int = 8
    prompts: int = 128
    prompt: int = 512
    new: int = 128
    dtype: str = "bfloat16"

    def model(self, size: str, **fields: Any) -> DecoderConfig:
        """The model of a size; "tiny" is not a published one."""
        fields = {"dtype": self.dtype, "max_positions": self.length, **fields}
        if size == "tiny":
            small = {"vocab_size": 512, "d_model": 64, "num_layers": 2, "num_heads": 4}
            return model_config(**small, **fields)
        return model_config(size, **fields)


TINY = Shapes((256,), 256, (2,), 1, 256, ("tiny",), ("tiny",), 2, 4, 64, 8, "float32")


def packed_rows(rows: int, length: int, vocabulary: int, seed: int = 0) -> dict[str, np.ndarray]:
    """A batch of packed rows: documents of random lengths, a 64th of each row is padding."""
    rng = np.random.default_rng(seed)
    ids, positions = np.zeros((2, rows, length), np.int32)
    used = length - length // 64
    for r in range(rows):
        cuts = np.sort(rng.choice(np.arange(1, used), DOCUMENTS - 1, replace=False))
        for number, (start, end) in enumerate(zip([0, *cuts], [*cuts, used], strict=True), 1):
            ids[r, start:end], positions[r, start:end] = number, np.arange(end - start)
    tokens = rng.integers(4, vocabulary, ids.shape).astype(np.int32)
    return {
        "tokens": tokens,
        "targets": np.roll(tokens, -1, axis=1),
        "segment_ids": ids,
        "positions": positions,
        "loss_weights": (ids > 0).astype(np.float32),
    }


def seconds(function: Callable[[], Any], least: float = 0.5) -> float:
    """Seconds of one call, averaged over at least `least` seconds, after a first call."""
    jax.block_until_ready(function())
    calls, began = 0, time.perf_counter()
    while time.perf_counter() - began < least:
        result = function()
        calls += 1
        if calls % 4 == 0:
            jax.block_until_ready(result)
    jax.block_until_ready(result)
    return (time.perf_counter() - began) / calls


def peak(kind: str | None = None) -> float | None:
    """FLOP/s of the device from its data sheet; None: unknown."""
    found = accelerator_of(kind or jax.devices()[0].device_kind)
    return found and found.flops


def ceiling(shapes: Shapes) -> Iterator[dict[str, Any]]:
    for n in shapes.matrices:
        a = jax.random.normal(jax.random.key(0), (n, n), shapes.dtype)
        b = jax.random.normal(jax.random.key(1), (n, n), shapes.dtype) / math.sqrt(n)
        product = jax.jit(lambda a, b: a @ b)
        rate = 2 * n**3 / seconds(lambda product=product, a=a, b=b: product(a, b))
        yield {"matrix": n, "TFLOP/s": rate / 1e12, "of the peak": _share(rate, peak())}


def kernels(shapes: Shapes) -> Iterator[dict[str, Any]]:
    """Forward and backward; errors are relative to the largest value of the float32 reference."""
    length, rows = shapes.kernel_length, 2
    batch = packed_rows(rows, length, 512)
    ids = jnp.asarray(batch["segment_ids"])
    for head_dim in (64, 80, 128):
        for kv_heads in {shapes.heads, max(shapes.heads // 4, 1)}:
            key = jax.random.split(jax.random.key(head_dim), 4)
            sizes = [(rows, h, length, head_dim) for h in (shapes.heads, kv_heads, kv_heads)]
            arrays = [
                jax.random.normal(k, s, shapes.dtype) for k, s in zip(key[:3], sizes, strict=True)
            ]
            arrays[0] = arrays[0] * head_dim**-0.5
            mask = DocumentMask(ids)
            weights = jax.random.normal(key[3], sizes[0]) * mask.valid[:, None, :, None]
            parts = [Keys(*arrays[1:], mask, own=True)]
            case = choice.case_of(arrays[0], mask, parts, None, 0.0)
            exact = _with_gradient("reference", ids, weights)(
                *(x.astype("float32") for x in arrays)
            )
            for name, kernel in choice.KERNELS.items():
                if (reason := kernel.refuses(case)) is not None:
                    if jax.devices()[0].platform in kernel.platforms:
                        yield {"kernel": name, "head": head_dim, "said": reason}
                    continue
                function = _with_gradient(name, ids, weights)
                yield {
                    "kernel": name,
                    "head": head_dim,
                    "kv heads": kv_heads,
                    "ms": 1000 * seconds(lambda f=function, a=arrays: f(*a)),
                    "error": _error(function(*arrays), exact),
                    "chosen": choice.choose(case).name == name,
                }


def _with_gradient(name: str, ids: jax.Array, weights: jax.Array) -> Callable[..., Any]:
    def loss(query, key, value):
        mask = DocumentMask(ids)
        parts = [Keys(key, value, mask, own=True)]
        out = choice.KERNELS[name].attend(query, mask, parts, None, 0.0, None)
        return jnp.sum(out.astype("float32") * weights), out

    gradient = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)

    def run(*arrays):
        (_, out), gradients = gradient(*arrays)
        return out * (weights != 0), *gradients

    return jax.jit(run)


def _error(found: Any, exact: Any) -> float:
    return max(
        float(jnp.abs(a.astype("float32") - b).max() / jnp.abs(b).max())
        for a, b in zip(found, exact, strict=True)
    )


def plans(shapes: Shapes, size: str, capacity: float) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """(rows, remat, optimiser) that by a rough estimate fit into `capacity` bytes, best first."""
    for bytes_each, optimizer in STATES:
        model = shapes.model(size)
        state = bytes_each * model.num_params
        token = 2 * model.num_layers * model.d_model
        kept = {"none": 20 * token, "dots": 14 * token, "full": token}
        for rows in shapes.rows:
            for remat in REMAT:
                if state + rows * shapes.length * kept[remat] < 0.85 * capacity:
                    yield rows, remat, optimizer


def train(shapes: Shapes, size: str) -> Iterator[dict[str, Any]]:
    device = jax.devices()[0]
    limit = (device.memory_stats() or {}).get("bytes_limit", 8 * GIB)
    mesh = make_mesh(MeshConfig(), [device])
    for rows, remat, fields in plans(shapes, size, limit):
        model, optimizer, config = _training(shapes, size, rows, remat, fields)
        settings = (model, optimizer, mesh, "standard", shapes.length)
        began = time.perf_counter()
        try:
            step = trace_train_step(config, *settings).lower().compile()
        except jax.errors.JaxRuntimeError as e:
            if "RESOURCE_EXHAUSTED" not in str(e):
                raise
            continue
        planned = memory(step)
        if planned["peak"] * GIB <= limit:
            break
    else:
        yield {"model": size, "said": f"does not fit {limit / GIB:.0f} GiB"}
        return
    compiled = time.perf_counter() - began
    with use_mesh(mesh):
        state = initial_state(
            model, optimizer, 0, abstract_state(model, optimizer, mesh, "standard")
        )
    batch = packed_rows(rows, shapes.length, model.vocab_size)
    batch = jax.device_put(batch, batch_sharding(mesh))
    losses = []
    for number in range(2 + shapes.steps):
        if number == 2:  # the first ones warm up
            jax.block_until_ready(state)
            began = time.perf_counter()
        state, measured = step(state, batch)
        losses.append(measured["loss_sum"] / measured["loss_weight"])
    jax.block_until_ready(state)
    rate = rows * shapes.length * shapes.steps / (time.perf_counter() - began)
    flops = model.flops_per_token(shapes.length) * rate
    used = (device.memory_stats() or {}).get("peak_bytes_in_use")
    yield {
        **_said(size, rows, remat, fields),
        "tokens/s": rate,
        "TFLOP/s": flops / 1e12,
        "MFU": _share(flops, peak()),
        "GiB": used and used / GIB,
        "planned": planned["peak"],
        "loss": f"{float(losses[0]):.3f} to {float(losses[-1]):.3f}",
        "compiled in s": compiled,
    }


def _training(
    shapes: Shapes, size: str, rows: int, remat: str, fields: dict[str, Any]
) -> tuple[DecoderConfig, OptimizerConfig, TrainConfig]:
    config = TrainConfig(plan_dir="", run_dir="", num_steps=1000, global_batch_size=rows)
    optimizer = OptimizerConfig(learning_rate=1e-4, warmup_steps=1, **fields)
    return shapes.model(size, remat=remat), optimizer, config


def _said(size: str, rows: int, remat: str, fields: dict[str, Any]) -> dict[str, Any]:
    return {"model": size, "rows": rows, "remat": remat, "state": " ".join(fields.values())}


def _engine(shapes: Shapes, size: str) -> Engine:
    model = shapes.model(size)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    graphdef, params = init_params(model, 0)
    params = jax.tree.map(lambda x: x.astype(shapes.dtype), params)
    return Engine(graphdef, params, model, tokens_per_batch=32 * shapes.length, mesh=mesh)


def _prompts(shapes: Shapes, model: DecoderConfig, number: int, length: int) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return rng.integers(4, model.vocab_size, (number, length)).tolist()


def scoring(shapes: Shapes, size: str) -> Iterator[dict[str, Any]]:
    engine = _engine(shapes, size)
    rows = _prompts(shapes, engine.config, 4 * shapes.prompts, shapes.prompt)
    items = [ScoreItem(row[:-20], [row[-20 + 5 * i :][:5] for i in range(4)]) for row in rows]
    taken = _second_call(lambda: score(engine, items))
    rate = sum(map(len, rows)) / taken
    flops = engine.config.flops_per_token(shapes.prompt) / 3 * rate
    found = {"model": size, "prompt": shapes.prompt, "candidates": 4}
    yield found | {"tokens/s": rate, "prompts/s": len(rows) / taken, "MFU": _share(flops, peak())}


def decoding(shapes: Shapes, size: str) -> Iterator[dict[str, Any]]:
    engine = _engine(shapes, size)
    config = dataclasses.replace(engine.config, eos_id=engine.config.vocab_size)  # never occurs
    engine = dataclasses.replace(engine, config=config)
    rows = _prompts(shapes, engine.config, shapes.prompts, shapes.prompt)
    prompts = [Prompt(row, shapes.new) for row in rows]
    taken = _second_call(lambda: generate(engine, prompts))
    made = len(prompts) * shapes.new
    found = {"model": size, "prompts": len(prompts), "prompt": shapes.prompt, "new": shapes.new}
    yield found | {"new tokens/s": made / taken}


def _second_call(function: Callable[[], Any]) -> float:
    function()
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def torch_train(shapes: Shapes, size: str) -> Iterator[dict[str, Any]]:
    import torch_decoder

    model = shapes.model(size)
    for rows in shapes.rows:
        batch = packed_rows(rows, shapes.length, model.vocab_size)
        measured = torch_decoder.seconds_of_an_update(model, batch, shapes.steps)
        if measured is not None:
            break
    else:
        yield {"model": size, "said": "does not fit"}
        return
    taken, used, attention = measured
    rate = rows * shapes.length / taken
    flops = model.flops_per_token(shapes.length) * rate
    found = {"model": size, "rows": rows, "attention": attention, "GiB": used and used / GIB}
    share = _share(flops, peak(torch_decoder.device_kind()))
    yield found | {"tokens/s": rate, "TFLOP/s": flops / 1e12, "MFU": share}


def ahead(shapes: Shapes, target: str) -> Iterator[dict[str, Any]]:
    """The updates compiled for a machine that need not be present."""
    described = parse_target(target)
    for size in shapes.sizes:
        capacity = (described.accelerator.usable or 8.0) * GIB
        for rows, remat, fields in plans(shapes, size, capacity):
            model, optimizer, config = _training(shapes, size, rows, remat, fields)
            mesh, length = MeshConfig(), shapes.length
            found = compile_job(Job(described, "train", config, model, optimizer, mesh, length))
            numbers = {"planned": found.peak, "fits": found.fits}
            numbers["executed/useful"] = found.executed / found.useful
            yield _said(size, rows, remat, fields) | numbers
            if found.fits:
                break


PARTS = {
    "ceiling": ceiling,
    "kernels": kernels,
    "train": train,
    "score": scoring,
    "decode": decoding,
    "torch": torch_train,
}


def _share(rate: float, of: float | None) -> float | None:
    return of and rate / of


def names_of(options: argparse.Namespace, shapes: Shapes) -> list[str]:
    """The parts in their order: "ceiling", ..., "train 1.3b", ..."""
    torch = importlib.util.find_spec("torch") is not None
    wanted = [p for p in PARTS if p in options.parts and (torch or p != "torch")]
    sizes = options.sizes or shapes.sizes
    evaluated = [s for s in shapes.evaluated if s in sizes] or list(sizes)
    by_part = {"train": sizes, "score": evaluated, "decode": evaluated, "torch": sizes[:2]}
    return [f"{p} {s}".strip() for p in wanted for s in by_part.get(p, [""])]


def measure(options: argparse.Namespace, shapes: Shapes) -> int:
    """Runs the parts until the time is up."""
    options.out.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + 60 * options.minutes
    results: dict[str, Any] = {"parts": {}}
    for name in names_of(options, shapes):
        left = until - time.monotonic()
        if left < 15:
            results["parts"][name] = [{"said": "no time was left"}]
        else:
            results |= _in_a_process(name, options, left, results)
        _write(options.out, results)
    print((options.out / "results.md").read_text("utf-8"))
    return 0


def _in_a_process(
    name: str, options: argparse.Namespace, left: float, results: dict[str, Any]
) -> dict[str, Any]:
    command = [sys.executable, __file__, "--run", name, *(["--tiny"] if options.tiny else [])]
    environment = {"XLA_PYTHON_CLIENT_MEM_FRACTION": ".92", **os.environ}
    environment["XLA_FLAGS"] = f"{xla_flags('gpu')} {os.environ.get('XLA_FLAGS', '')}".strip()
    if name.startswith("torch"):  # JAX would take the GPU's memory
        environment["JAX_PLATFORMS"] = "cpu"
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=left, check=False
        )
        out, error = done.stdout, done.stderr if done.returncode else ""
    except subprocess.TimeoutExpired as e:
        out, error = (e.stdout or b"").decode(), f"cut after {left:.0f} s"
    rows = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    if error:
        lines = error.strip().splitlines()
        rows.append({"said": next((x for x in lines[::-1] if "Error" in x), lines[-1])[:300]})
    machine = rows.pop(0) if rows and "device" in rows[0] else {}
    return {**results, **machine, "parts": {**results["parts"], name: rows}}


def _run(name: str, shapes: Shapes) -> int:
    """One part in this process: a JSON line about the machine, then one for each row."""
    part, *size = name.split(" ")
    if part != "torch":
        kind = jax.devices()[0].device_kind
        print(json.dumps({"device": kind, "jax": jax.__version__, "peak": peak()}), flush=True)
    for row in PARTS[part](shapes, *size):
        print(json.dumps(row), flush=True)
    return 0


def _write(folder: pathlib.Path, results: dict[str, Any]) -> None:
    texts = {"results.json": json.dumps(results, indent=1), "results.md": _markdown(results)}
    for name, text in texts.items():
        temporary = folder / f"{name}.part"
        temporary.write_text(text, "utf-8")
        temporary.replace(folder / name)


def _markdown(results: dict[str, Any]) -> str:
    best = max((r.get("TFLOP/s", 0) for r in results["parts"].get("ceiling", ())), default=0)
    lines = [f"{results.get('device')}, JAX {results.get('jax')}, {time.strftime('%Y-%m-%d')}"]
    tables: dict[str, list[dict[str, Any]]] = {}
    for name, rows in results["parts"].items():
        for row in rows:
            if best and "MFU" in row and "TFLOP/s" in row:
                row = {**row, "of the ceiling": row["TFLOP/s"] / best}
            tables.setdefault(name.split(" ")[0], []).append({"": name, **row})
    for part, rows in tables.items():
        columns = list(dict.fromkeys(column for row in rows for column in row))
        lines += ["", f"## {part}", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        lines += ["| " + " | ".join(_cell(row.get(c)) for c in columns) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    if not isinstance(value, float):
        return "-" if value is None else str(value)
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("gpu_results"))
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--sizes", nargs="+")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--ahead")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    options = parser.parse_args()
    shapes = TINY if options.tiny else Shapes()
    if options.sizes:
        shapes = dataclasses.replace(shapes, sizes=tuple(options.sizes))
    if options.run:
        return _run(options.run, shapes)
    if not options.ahead:
        return measure(options, shapes)
    try:
        rows = list(ahead(shapes, options.ahead))
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    print(_markdown({"device": options.ahead, "jax": jax.__version__, "parts": {"ahead": rows}}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
