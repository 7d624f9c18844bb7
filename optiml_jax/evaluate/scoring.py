"""Log-probabilities of candidates after prompts: the model side of rank classification.

Token arrays in, numbers out. What a candidate's text is, which rule turns the numbers into a
choice, and what is stored, is decided in instances.py and records.py.
"""

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

_LOGIT_ROWS = 512  # tokens whose logits exist at the same time


@dataclasses.dataclass(frozen=True)
class ScoreItem:
    """A prompt and the candidates to score after it; token ids without specials."""

    prompt: Sequence[int]
    candidates: Sequence[Sequence[int]]


@dataclasses.dataclass(frozen=True)
class TokenScore:
    """What the model says about one candidate, natural logs, computed in float32.

    Attributes:
      logprobs: float32[n], log p of each token of the candidate.
      logprob_eos_after: log p(eos | prompt, candidate).
      is_greedy: every token of the candidate was the first maximum.
    """

    logprobs: np.ndarray
    logprob_eos_after: float
    is_greedy: bool

    @property
    def sum_logprob(self) -> float:
        """Summed in float64, so that it does not depend on how rows were padded."""
        return float(self.logprobs.sum(dtype=np.float64))


def score(engine: Engine, items: Sequence[ScoreItem]) -> list[list[TokenScore]]:
    """Scores every candidate of every item.

    This is the seam for cleverer ways of running the same sums: another function of this signature
    may share the prompt between candidates. This one runs one row per candidate.
    """
    rows = [(i, c) for i, item in enumerate(items) for c in range(len(item.candidates))]
    shapes = []
    for i, c in rows:
        candidate = items[i].candidates[c]
        if not len(candidate):
            raise ValueError(f"candidate {c} of item {i} has no tokens")
        length = engine.bucket(1 + len(items[i].prompt) + len(candidate))
        shapes.append((length, round_up_power(len(candidate) + 1, 4, 4)))
    results: list[list[Any]] = [[None] * len(item.candidates) for item in items]
    for (length, width), chosen in batches(shapes, lambda shape: engine.num_rows(shape[0])):
        batch = [
            (items[rows[r][0]].prompt, items[rows[r][0]].candidates[rows[r][1]]) for r in chosen
        ]
        for r, result in zip(chosen, _score_batch(engine, batch, length, width), strict=True):
            results[rows[r][0]][rows[r][1]] = result
        engine.progress(len(chosen))
    return results


def _score_batch(
    engine: Engine,
    batch: Sequence[tuple[Sequence[int], Sequence[int]]],
    length: int,
    width: int,
) -> list[TokenScore]:
    num_rows, config = engine.num_rows(length), engine.config
    rows = [[engine.bos_id, *prompt, *candidate] for prompt, candidate in batch]
    # Padding rows score one token, and nobody looks.
    lengths = np.full(num_rows, 2, np.int32)
    lengths[: len(rows)] = [len(row) for row in rows]
    starts = np.ones(num_rows, np.int32)
    starts[: len(rows)] = [1 + len(prompt) for prompt, _ in batch]
    tokens = pad_rows(rows, num_rows, length, config.pad_id)
    with engine.activations():
        logprobs, greedy = _jit_score_rows(
            engine.graphdef,
            engine.params,
            *(engine.put(x) for x in (tokens, lengths, starts)),
            config.eos_id,
            width,
        )
    logprobs, greedy = np.asarray(logprobs), np.asarray(greedy)
    return [
        TokenScore(logprobs[r, :n], float(logprobs[r, n]), bool(greedy[r, :n].all()))
        for r, n in enumerate(len(candidate) for _, candidate in batch)
    ]


@functools.partial(jax.jit, static_argnums=(0, 5, 6))
def _jit_score_rows(graphdef, params, tokens, lengths, starts, eos_id, width):
    return score_rows(nnx.merge(graphdef, params), tokens, lengths, starts, eos_id, width)


def score_rows(
    model: Any,
    tokens: jax.Array,
    lengths: jax.Array,
    starts: jax.Array,
    eos_id: int,
    width: int,
) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities of the end of each row, and of eos after it.

    Args:
      model: the contract of `optiml_jax.model.opt.OPT`.
      tokens: int32[B, L], padded on the right.
      lengths: int32[B], tokens of each row.
      starts: int32[B], index of the first scored token, at least 1.
      eos_id: scored after the last token.
      width: W, at least 1 + the largest number of scored tokens.

    Returns:
      float32[B, W] log-probabilities: the scored tokens, then eos, then meaningless numbers; and
      bool[B, W]: whether the token is the first maximum of its logits.
    """
    length = tokens.shape[1]
    index = jnp.broadcast_to(jnp.arange(length), tokens.shape)
    mask = DocumentMask((index < lengths[:, None]).astype(jnp.int32))
    hidden = model.hidden(tokens, index, mask)
    # Token t is predicted at t - 1; only these places are ever turned into logits.
    places = starts[:, None] - 1 + jnp.arange(width)
    hidden = jnp.take_along_axis(hidden, jnp.minimum(places, length - 1)[:, :, None], axis=1)
    targets = jnp.take_along_axis(tokens, jnp.minimum(places + 1, length - 1), axis=1)
    targets = jnp.where(places + 1 >= lengths[:, None], eos_id, targets)
    return target_logprobs(model, hidden, targets)


def target_logprobs(
    model: Any, hidden: jax.Array, targets: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """float32[B, W] log p(targets | hidden) and bool[B, W] whether they are the first maximum.

    `hidden` is [B, W, E], `targets` int32[B, W]. Logits exist for a few hundred tokens at a time;
    the batch axis stays whole, since it may be cut over devices.
    """
    rows, width = targets.shape
    chunk = max(1, min(width, _LOGIT_ROWS // rows))
    chunks = -(-width // chunk)
    padding = chunks * chunk - width

    def split(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, ((0, 0), (0, padding)) + ((0, 0),) * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(rows, chunks, chunk, *x.shape[2:]), 1, 0)

    def one(args: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        part, target = args
        logits = model.unembed(part).astype(jnp.float32)
        chosen = jnp.take_along_axis(logits, target[..., None], axis=-1)[..., 0]
        logprobs = chosen - jax.nn.logsumexp(logits, axis=-1)
        return logprobs, jnp.argmax(logits, axis=-1) == target

    def join(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x, 0, 1).reshape(rows, chunks * chunk)[:, :width]

    logprobs, greedy = jax.lax.map(one, (split(hidden), split(targets)))
    return join(logprobs), join(greedy)
