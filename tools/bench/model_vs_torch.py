"""Speed of the model against torch: `python tools/bench/model_vs_torch.py`.

Updates on packed rows (against torch_decoder.py), forward and backward, and greedy decoding
(against Hugging Face's OPT). Runs both alternately in one process, so the ratio is valid on a busy
machine too. Options: --size (125m), --layers, --width, --vocab and --unroll (the model), --batch,
--length, --labels (share of the tokens that have one, in updates), --new (tokens to generate),
--repeats (measurements after the first), --only (some of: update, gradient, decode, products: what
the processor can do at these sizes).
"""

import argparse
import dataclasses
import pathlib
import statistics
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch_decoder
import transformers
from flax import nnx
from gpu import packed_rows
from torch.nn import functional

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from optiml_jax.evaluate.batching import Engine
from optiml_jax.evaluate.decoding import Prompt, generate
from optiml_jax.memory import keep_freed_memory
from optiml_jax.model.architectures import model_config
from optiml_jax.model.attention import DocumentMask
from optiml_jax.model.decoder import init_params
from optiml_jax.model.layers import product_of_turned
from optiml_jax.model.opt.config import OPTConfig
from optiml_jax.sharding.mesh import MeshConfig, make_mesh
from optiml_jax.sharding.rules import use_mesh
from optiml_jax.train.config import TrainConfig
from optiml_jax.train.optimizer import OptimizerConfig
from optiml_jax.train.programs import trace_train_step
from optiml_jax.train.state import abstract_state, initial_state


def answers(batch: dict[str, np.ndarray], share: float) -> np.ndarray:
    """Weights of 1 on the last `share` of each document."""
    weights = np.zeros(batch["tokens"].shape, np.float32)
    for row, ids, positions in zip(weights, batch["segment_ids"], batch["positions"], strict=True):
        row[:] = (ids > 0) & (positions >= (1 - share) * np.bincount(ids)[ids])
    return weights


def jax_update(config: OPTConfig, batch: dict[str, np.ndarray]) -> Callable[[], None]:
    """One update on packed rows, as in `optiml train`."""
    rows, length = batch["tokens"].shape
    mesh, optimizer = make_mesh(MeshConfig()), OptimizerConfig(warmup_steps=1)
    run = TrainConfig(plan_dir="", run_dir="", num_steps=1000, global_batch_size=rows)
    step = trace_train_step(run, config, optimizer, mesh, "standard", length).lower().compile()
    with use_mesh(mesh):
        abstract = abstract_state(config, optimizer, mesh, "standard")
        state = initial_state(config, optimizer, 0, abstract)

    def update() -> None:
        nonlocal state
        state, _ = step(state, batch)
        jax.block_until_ready(state)

    return update


def jax_gradient(config: OPTConfig, graphdef, params, tokens: np.ndarray) -> Callable[[], None]:
    """One forward and backward pass of the next-token loss, dropout off."""
    positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)

    @jax.jit
    def gradient(params):
        def loss(params):
            model = nnx.merge(graphdef, params)
            logits = model(tokens, positions, DocumentMask(jnp.ones_like(tokens)))[:, :-1]
            chosen = jnp.take_along_axis(logits, tokens[:, 1:, None], axis=-1)[..., 0]
            return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - chosen)

        return jax.grad(loss)(params)

    return lambda: jax.block_until_ready(gradient(params))


def jax_generate(
    config: OPTConfig, graphdef, params, tokens: np.ndarray, new: int
) -> Callable[[], None]:
    """Greedy decoding of `new` tokens, all rows to the end, as in evaluation."""
    config = dataclasses.replace(config, eos_id=config.vocab_size)  # is never said
    engine = Engine(graphdef, params, config, bos_id=int(tokens[0, 0]))
    prompts = [Prompt(row[1:].tolist(), new) for row in tokens]
    return lambda: generate(engine, prompts)


def torch_model(config: OPTConfig) -> transformers.OPTForCausalLM:
    return transformers.OPTForCausalLM(
        transformers.OPTConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.d_model,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            ffn_dim=config.ffn_dim,
            word_embed_proj_dim=config.embed_dim,
            do_layer_norm_before=config.pre_layer_norm,
            eos_token_id=None,
        )
    ).eval()


def torch_gradient(model: transformers.OPTForCausalLM, tokens: np.ndarray) -> Callable[[], None]:
    ids = torch.asarray(tokens, dtype=torch.int64)

    def run() -> None:
        model.zero_grad()
        model(ids, labels=ids).loss.backward()

    return run


def torch_generate(
    model: transformers.OPTForCausalLM, tokens: np.ndarray, new: int
) -> Callable[[], None]:
    ids = torch.asarray(tokens, dtype=torch.int64)
    return lambda: model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False
    )


def compare(
    what: str,
    amount: float,
    repeats: int,
    ours: Callable[[], object],
    theirs: Callable[[], object],
    unit: str = "tokens/s",
) -> None:
    seconds: dict[str, list[float]] = {"jax": [], "torch": []}
    for repeat in range(1 + repeats):
        for name, run in (("jax", ours), ("torch", theirs)):
            start = time.perf_counter()
            run()
            if repeat:  # the first one compiles
                seconds[name].append(time.perf_counter() - start)
    speed = {name: amount / statistics.median(values) for name, values in seconds.items()}
    print(
        f"{what}: {speed['jax']:,.0f} {unit}, torch {speed['torch']:,.0f}, "
        f"ratio {speed['jax'] / speed['torch']:.2f}"
    )


def compare_products(config: OPTConfig, rows: int, few: int, repeats: int) -> None:
    """A block's largest matrix times all tokens of a batch, and times one token of each row.

    The second is limited by memory: every product reads another matrix, as blocks do.
    """
    width, inner, layers = config.d_model, config.ffn_dim, config.num_layers
    random = np.random.default_rng(0).standard_normal
    x, y = random((rows, width), np.float32), random((few, 1, width), np.float32)
    kernels = [random((inner, width), np.float32) for _ in range(layers)]
    one = np.ascontiguousarray(kernels[0].T)

    @jax.jit
    def few_rows(kernels: list[jax.Array], y: jax.Array) -> list[jax.Array]:
        return [product_of_turned("oi,bli->blo", kernel, y) for kernel in kernels]

    many_rows = jax.jit(jnp.matmul)
    jax_x, jax_y, jax_one, jax_kernels = jax.device_put((x, y, one, kernels))
    torch_x, torch_y, torch_one, *torch_kernels = map(torch.asarray, (x, y, one, *kernels))
    times = range(20)  # at a time: the other's threads still spin for a moment after its turn
    compare(
        f"{rows} x {width} by {width} x {inner}",
        len(times) * 2 * rows * width * inner / 1e9,
        repeats,
        lambda: [jax.block_until_ready(many_rows(jax_x, jax_one)) for _ in times],
        lambda: [torch.matmul(torch_x, torch_one) for _ in times],
        "GFLOP/s",
    )
    compare(
        f"{layers} matrices by {few} rows",
        len(times) * layers * width * inner * 4 / 1e9,
        repeats,
        lambda: [jax.block_until_ready(few_rows(jax_kernels, jax_y)) for _ in times],
        lambda: [functional.linear(torch_y, k) for _ in times for k in torch_kernels],
        "GB/s",
    )
    read = torch.zeros(2**27)
    seconds = []
    for _ in range(1 + repeats):
        start = time.perf_counter()
        read.sum()
        seconds.append(time.perf_counter() - start)
    print(f"reading memory: {read.nbytes / 1e9 / statistics.median(seconds):.1f} GB/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", default="125m")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--width", type=int)
    parser.add_argument("--vocab", type=int)
    parser.add_argument("--unroll", type=int)
    parser.add_argument("--labels", type=float, default=1.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="+", default=["update", "gradient", "decode"])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--new", type=int, default=32)
    options = parser.parse_args()
    keep_freed_memory()  # as every verb does; torch has it too
    # As XLA does. Learning one batch by heart leaves ever smaller numbers behind, and a CPU is up
    # to six times slower with those that are too small for a normal float.
    torch.set_flush_denormal(True)
    cut = {
        "num_layers": options.layers,
        "d_model": options.width,
        "vocab_size": options.vocab,
        "unroll": options.unroll,
    }
    cut = {name: value for name, value in cut.items() if value is not None}
    config = model_config(options.size, **cut)
    graphdef, params = init_params(config, seed=0)
    model = torch_model(config)
    shape = (options.batch, options.length)
    tokens = np.random.default_rng(0).integers(3, config.vocab_size, shape).astype(np.int32)
    print(f"{config.num_params:,} parameters, {shape[0]} x {shape[1]} tokens, float32", flush=True)
    if "products" in options.only:
        compare_products(config, tokens.size, options.batch, options.repeats)
    if "update" in options.only:
        batch = packed_rows(*shape, config.vocab_size)
        batch["loss_weights"] = answers(batch, options.labels)
        theirs = torch_decoder.make_step(config, batch, torch.device("cpu"))
        ours = jax_update(config, batch)
        compare("update on packed rows", tokens.size, options.repeats, ours, theirs)
    if "gradient" in options.only:
        compare(
            "forward and backward",
            tokens.size,
            options.repeats,
            jax_gradient(config, graphdef, params, tokens),
            torch_gradient(model, tokens),
        )
    if "decode" in options.only:
        tokens[:, 0] = config.bos_id
        prompt = tokens[:, :64]
        compare(
            f"greedy decoding of {options.new} tokens after 64",
            options.batch * options.new,
            options.repeats,
            jax_generate(config, graphdef, params, prompt, options.new),
            torch_generate(model, prompt, options.new),
        )


if __name__ == "__main__":
    main()
