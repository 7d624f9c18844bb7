"""Greedy generation with a cache of keys and values: token arrays in, token lists out."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from optiml_jax.evaluate.batching import Engine, batches, pad_rows, round_up_power
from optiml_jax.model.attention import DocumentMask
from optiml_jax.model.config import OPTConfig
from optiml_jax.model.kv_cache import KVCache


@dataclasses.dataclass(frozen=True)
class Prompt:
    """Token ids without specials, and how many new tokens may follow (eos included)."""

    tokens: Sequence[int]
    max_new_tokens: int


@dataclasses.dataclass(frozen=True)
class Generated:
    """The new tokens without eos, and whether eos ended them."""

    tokens: list[int]
    finished: bool


def generate(engine: Engine, prompts: Sequence[Prompt]) -> list[Generated]:
    """The greedy continuation of every prompt, in the order of the prompts.

    Each prompt stops at eos or after its own number of new tokens, whatever its batch does.

    Raises:
      UserError: a prompt and its new tokens are longer than the model's positions.
    """
    shapes = []
    for prompt in prompts:
        if prompt.max_new_tokens < 1:
            raise ValueError(f"a prompt asks for {prompt.max_new_tokens} new tokens")
        total = 1 + len(prompt.tokens) + prompt.max_new_tokens
        engine.bucket(total - 1)  # the last new token is never fed
        new = round_up_power(prompt.max_new_tokens, 4, 4)
        shapes.append((engine.bucket(1 + len(prompt.tokens)), new))
    results: list[Any] = [None] * len(prompts)
    for shape, chosen in batches(shapes, lambda shape: engine.num_rows(sum(shape))):
        batch = [prompts[i] for i in chosen]
        for i, result in zip(chosen, _generate_batch(engine, batch, *shape), strict=True):
            results[i] = result
        engine.progress(len(chosen))
    return results


def _generate_batch(
    engine: Engine, batch: Sequence[Prompt], length: int, max_new: int
) -> list[Generated]:
    num_rows, config = engine.num_rows(length + max_new), engine.config
    rows = [[engine.bos_id, *prompt.tokens] for prompt in batch]
    lengths = np.ones(num_rows, np.int32)
    lengths[: len(rows)] = [len(row) for row in rows]
    budgets = np.zeros(num_rows, np.int32)  # padding rows generate nothing
    budgets[: len(rows)] = [prompt.max_new_tokens for prompt in batch]
    tokens = pad_rows(rows, num_rows, length, config.pad_id)
    with engine.activations():
        new, counts = _jit_greedy(
            engine.graphdef,
            engine.params,
            config,
            *(engine.put(x) for x in (tokens, lengths, budgets)),
            max_new,
        )
    results = []
    for row, count in zip(np.asarray(new)[: len(batch)], np.asarray(counts), strict=False):
        ids = row[:count].tolist()
        finished = bool(ids) and ids[-1] == config.eos_id
        results.append(Generated(ids[:-1] if finished else ids, finished))
    return results


@functools.partial(jax.jit, static_argnums=(0, 2, 6))
def _jit_greedy(graphdef, params, config, tokens, lengths, budgets, max_new):
    return greedy(nnx.merge(graphdef, params), config, tokens, lengths, budgets, max_new)


def greedy(
    model: Any,
    config: OPTConfig,
    tokens: jax.Array,
    lengths: jax.Array,
    budgets: jax.Array,
    max_new: int,
) -> tuple[jax.Array, jax.Array]:
    """Greedy decoding of a batch; the token of the largest float32 logit, the lowest id of equals.

    Args:
      model: the contract of `optiml_jax.model.opt.OPT`.
      tokens: int32[B, L], prompts with their leading token, padded on the right.
      lengths: int32[B], tokens of each prompt, at least 1.
      budgets: int32[B], the most new tokens of each row, eos included.
      max_new: N, at least the largest budget.

    Returns:
      int32[B, N] new tokens (eos included, padding after them) and int32[B] how many they are.
    """
    rows, length = tokens.shape
    index = jnp.broadcast_to(jnp.arange(length), tokens.shape)
    mask = DocumentMask((index < lengths[:, None]).astype(jnp.int32))
    cache = KVCache.empty(config, rows, length + max_new)
    hidden, cache = model.hidden(tokens, index, mask, cache)
    last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)

    def choose(hidden: jax.Array) -> jax.Array:
        logits = model.unembed(hidden)[:, 0].astype(jnp.float32)
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)

    def record(active: jax.Array, token: jax.Array, new: jax.Array, counts: jax.Array) -> tuple:
        """Appends a token to the rows that are still active, and ends rows."""
        token = jnp.where(active, token, config.pad_id)
        new = new.at[jnp.arange(rows), counts].set(token, mode="drop")
        counts = counts + active
        return active & (token != config.eos_id) & (counts < budgets), token, new, counts

    def step(state: tuple) -> tuple:
        active, token, new, counts, cache = state
        # Rows that have ended are fed padding, which leaves their cache as it is.
        mask = DocumentMask(active.astype(jnp.int32)[:, None])
        positions = (lengths + counts - 1)[:, None]
        hidden, cache = model.hidden(token[:, None], positions, mask, cache)
        return *record(active, choose(hidden), new, counts), cache

    new = jnp.full((rows, max_new), config.pad_id, jnp.int32)
    first = record(budgets > 0, choose(last), new, jnp.zeros((rows,), jnp.int32))
    _, _, new, counts, _ = jax.lax.while_loop(lambda s: jnp.any(s[0]), step, (*first, cache))
    return new, counts
