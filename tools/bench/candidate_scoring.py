"""Rank classification with shared prompts against the usual one row per candidate.

`python tools/bench/candidate_scoring.py`: random prompts in the shapes of the paper's evaluations,
both ways in turn in one process on one random model. Prints the tokens processed by the model, wall
time after compilation, and the number of equal choices. Options: --size (125m), --layers (cuts the
model; fewer for a quick look), --items, --only (workloads with this in their name). With few layers
the output embedding, on which nothing is saved, weighs more than it should.
"""

import argparse
import dataclasses
import functools
import pathlib
import sys
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from optiml_jax.evaluate import scoring
from optiml_jax.evaluate.batching import Engine, cut, pad_rows, same_shapes
from optiml_jax.evaluate.prefixes import shared_prefixes
from optiml_jax.evaluate.scoring import ScoreItem
from optiml_jax.model.architectures import model_config
from optiml_jax.model.attention import DocumentMask
from optiml_jax.model.decoder import init_params


@dataclasses.dataclass(frozen=True)
class Workload:
    """Items with `block` shared tokens, `query` individual ones, and candidates."""

    name: str
    block: int
    query: int
    candidates: int
    candidate_tokens: int

    def items(self, number: int, vocab_size: int) -> list[ScoreItem]:
        rng = np.random.default_rng(0)

        def ids(n: int) -> list[int]:
            return rng.integers(4, vocab_size, n).tolist()

        block = ids(self.block)
        options = [ids(self.candidate_tokens) for _ in range(self.candidates)]
        if self.candidate_tokens > 1:  # the individual texts of each item
            return [
                ScoreItem(
                    [*block, *ids(self.query)],
                    [ids(self.candidate_tokens) for _ in range(self.candidates)],
                )
                for _ in range(number)
            ]
        return [ScoreItem([*block, *ids(self.query)], options) for _ in range(number)]


WORKLOADS = (
    Workload("5-shot, four letters (MMLU)", 0, 700, 4, 1),
    Workload("32-shot, two endings (StoryCloze), demonstrations per item", 0, 1700, 2, 11),
    Workload("32-shot, two endings (StoryCloze), the same demonstrations", 1650, 45, 2, 11),
    Workload("0-shot, ten options", 0, 150, 10, 5),
)


@functools.partial(jax.jit, static_argnums=0)
def _row_logprobs(graphdef, params, tokens, lengths, starts):
    model = nnx.merge(graphdef, params)
    index = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    hidden = model.hidden(tokens, index, DocumentMask((index < lengths[:, None]).astype(jnp.int32)))
    width = 16
    places = jnp.minimum(starts[:, None] - 1 + jnp.arange(width), tokens.shape[1] - 2)
    targets = jnp.take_along_axis(tokens, places + 1, axis=1)
    logprobs, _ = scoring.target_logprobs(model, hidden, places, targets, width)
    return jnp.sum(jnp.where(places + 1 < lengths[:, None], logprobs, 0), axis=1)


def one_row_per_candidate(engine: Engine, items: Sequence[ScoreItem]) -> list[int]:
    """The choice of each item; every candidate follows a copy of its prompt."""
    rows = [
        (i, [engine.bos_id, *item.prompt, *c], 1 + len(item.prompt))
        for i, item in enumerate(items)
        for c in item.candidates
    ]
    sums: list[list[float]] = [[] for _ in items]
    shapes = [(engine.bucket(len(row)),) for _, row, _ in rows]
    for (length,), chosen in same_shapes(shapes):
        for number, size in cut(len(chosen), engine.num_rows(length)):
            batch = [rows[chosen.pop(0)] for _ in range(number)]
            padded = batch + [batch[-1]] * (size - number)
            tokens = pad_rows([row for _, row, _ in padded], size, length, engine.config.pad_id)
            lengths = np.array([len(row) for _, row, _ in padded], np.int32)
            starts = np.array([start for _, _, start in padded], np.int32)
            found = _row_logprobs(engine.graphdef, engine.params, tokens, lengths, starts)
            for (i, _, _), value in zip(batch, np.asarray(found), strict=False):
                sums[i].append(float(value))
    return [int(np.argmax(s)) for s in sums]


def ours(engine: Engine, items: Sequence[ScoreItem]) -> list[int]:
    results = scoring.score(engine, items)
    return [int(np.argmax([c.sum_logprob for c in scores])) for scores in results]


def tokens_of(items: Sequence[ScoreItem]) -> tuple[int, int]:
    """Tokens through the model: one row per candidate, and ours."""
    usual = sum(1 + len(item.prompt) + len(c) for item in items for c in item.candidates)
    groups = shared_prefixes([[2, *item.prompt] for item in items])
    shared = sum(group.length * (len(group.members) - 1) for group in groups)
    once = sum(1 + len(item.prompt) + sum(map(len, item.candidates)) for item in items)
    return usual, once - shared


def seconds(function, *args) -> tuple[float, list[int]]:
    function(*args)  # compiles
    start = time.perf_counter()
    result = function(*args)
    return time.perf_counter() - start, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="125m")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--items", type=int, default=32)
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    config = model_config(args.size)
    if args.layers:
        config = dataclasses.replace(config, num_layers=args.layers)
    engine = Engine(*init_params(config, seed=0), config)
    print(f"{args.size}, {config.num_layers} layers, {args.items} items, {jax.devices()[0]}")
    for workload in (w for w in WORKLOADS if args.only in w.name):
        items = workload.items(args.items, config.vocab_size)
        usual, shared = tokens_of(items)
        slow, expected = seconds(one_row_per_candidate, engine, items)
        fast, choices = seconds(ours, engine, items)
        equal = sum(a == b for a, b in zip(expected, choices, strict=True))
        print(
            f"{workload.name}: {usual:,} / {shared:,} tokens = {usual / shared:.2f}; "
            f"{slow:.2f} / {fast:.2f} s = {slow / fast:.2f}; {equal} of {len(items)} choices equal"
        )


if __name__ == "__main__":
    main()
