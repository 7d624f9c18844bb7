"""Log-probabilities of candidates after prompts: the model side of rank classification.

Token arrays in, numbers out. What a candidate's text is, which rule turns the numbers into a
choice, and what is stored, is decided in instances.py and records.py.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from optiml_jax.evaluate.batching import Engine, cut, round_up_power, same_shapes
from optiml_jax.evaluate.prefixes import pack, run_prefix, shared_prefixes
from optiml_jax.model.attention import DocumentMask
from optiml_jax.model.axes import everywhere
from optiml_jax.model.kv_cache import KVCache

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


@dataclasses.dataclass(frozen=True)
class _Piece:
    """The part of an item in a row: the end of its prompt, and every candidate as a branch."""

    item: int
    start: int  # position of the first token; what comes before is the shared prefix
    prompt: Sequence[int]
    candidates: Sequence[Sequence[int]]

    @property
    def size(self) -> int:
        return len(self.prompt) + sum(map(len, self.candidates))

    @property
    def num_targets(self) -> int:
        return sum(len(c) + 1 for c in self.candidates)


def score(engine: Engine, items: Sequence[ScoreItem]) -> list[list[TokenScore]]:
    """Scores every candidate of every item, with as few tokens through the model as possible.

    The beginning that many prompts share (instruction, fixed demonstrations) is run once for all of
    them, the rest of a prompt once for all of its candidates: each candidate is a branch after the
    prompt that does not see the others, and many items lie in one row. The results are those of
    separate rows, but for rounding.

    Raises:
      UserError: a prompt and its longest candidate are longer than the model's positions.
    """
    prompts = [engine.row(item.prompt) for item in items]
    for i, item in enumerate(items):
        for c, candidate in enumerate(item.candidates):
            if not len(candidate):
                raise ValueError(f"candidate {c} of item {i} has no tokens")
        engine.bucket(len(prompts[i]) + max(map(len, item.candidates)))  # refuses what is too long
    results: list[list[TokenScore]] = [[] for _ in items]
    for group in shared_prefixes(prompts):
        shared = prompts[group.members[0]][: group.length]
        prefix = run_prefix(engine, shared) if shared else None
        pieces = [
            _Piece(i, group.length, prompts[i][group.length :], items[i].candidates)
            for i in group.members
        ]
        for piece, scores in _score_pieces(engine, pieces, prefix):
            results[piece.item] = scores
    return results


def _score_pieces(
    engine: Engine, pieces: Sequence[_Piece], prefix: KVCache | None
) -> Iterator[tuple[_Piece, list[TokenScore]]]:
    rows = [(n, [pieces[i] for i in items]) for n, items in pack([p.size for p in pieces])]
    # Rarely more targets than tokens: one token per candidate, and eos after each.
    shapes = [(n, round_up_power(sum(p.num_targets for p in row), 2, n)) for n, row in rows]
    for (length, width), chosen in same_shapes(shapes):
        for number, num_rows in cut(len(chosen), engine.num_rows(length), engine.row_parts):
            batch = [rows[chosen.pop(0)][1] for _ in range(number)]
            results = _score_batch(engine, batch, prefix, (num_rows, length, width))
            yield from _scores_of_pieces(batch, *results)
            engine.progress(number)


def _scores_of_pieces(
    batch: Sequence[Sequence[_Piece]], logprobs: np.ndarray, greedy: np.ndarray
) -> Iterator[tuple[_Piece, list[TokenScore]]]:
    """The results of `_score_batch` by candidate."""
    for row, row_logprobs, row_greedy in zip(batch, logprobs, greedy, strict=False):
        start = 0
        for piece in row:
            scores = []
            for n in map(len, piece.candidates):
                end = start + n
                scores.append(
                    TokenScore(
                        row_logprobs[start:end],
                        float(row_logprobs[end]),
                        bool(row_greedy[start:end].all()),
                    )
                )
                start = end + 1
            yield piece, scores


def _score_batch(
    engine: Engine,
    batch: Sequence[Sequence[_Piece]],
    prefix: KVCache | None,
    shape: tuple[int, int, int],
) -> tuple[np.ndarray, np.ndarray]:
    """Lays the pieces of each row out and runs them; see `score_places` for the result.

    `shape` is that of the batch: rows, tokens of a row, and places in it that are scored.
    """
    num_rows, length, width = shape
    tokens = np.full((num_rows, length), engine.config.pad_id, np.int32)
    positions, segments, branches = (np.zeros((num_rows, length), np.int32) for _ in range(3))
    # Unused places score token 0 at position 0; the results are not read.
    places, targets = (np.zeros((num_rows, width), np.int32) for _ in range(2))
    most = 0
    for r, row in enumerate(batch):
        at, wanted = 0, 0
        for segment, piece in enumerate(row, 1):
            end_of_prompt = at + len(piece.prompt)
            parts = [piece.prompt, *piece.candidates]
            for branch, part in enumerate(parts):
                here = slice(at, at + len(part))
                first = piece.start + (len(piece.prompt) if branch else 0)
                tokens[r, here] = part
                positions[r, here] = np.arange(first, first + len(part))
                segments[r, here], branches[r, here] = segment, branch
                if branch:  # its first token is predicted by the prompt's last, eos by its own last
                    there = slice(wanted, wanted + len(part) + 1)
                    places[r, there] = [end_of_prompt - 1, *range(at, at + len(part))]
                    targets[r, there] = [*part, engine.config.eos_id]
                    wanted = there.stop
                at = here.stop
        most = max(most, wanted)
    with engine.activations():
        logprobs, greedy = _jit_score_places(
            engine.graphdef,
            engine.params,
            prefix,
            *map(engine.put, (tokens, positions, segments, branches, places, targets)),
            most,
        )
    return np.asarray(logprobs), np.asarray(greedy)


@functools.partial(jax.jit, static_argnums=0)
def _jit_score_places(graphdef, params, prefix, tokens, positions, segments, branches, *wanted):
    mask = DocumentMask(segments, branches)
    model = nnx.merge(graphdef, params)
    results = score_places(model, prefix, tokens, positions, mask, *wanted)
    return tuple(map(everywhere, results))


def score_places(
    model: Any,
    prefix: KVCache | None,
    tokens: jax.Array,
    positions: jax.Array,
    mask: DocumentMask,
    places: jax.Array,
    targets: jax.Array,
    num_places: jax.Array | int,
) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities of tokens that the model predicts at given places.

    Args:
      model: a `optiml_jax.model.decoder.Decoder`.
      prefix: what every row continues, or None.
      tokens, positions: int32[B, L].
      mask: of the tokens.
      places: int32[B, W], indices into the rows.
      targets: int32[B, W], the tokens predicted there.
      num_places: how many columns of them are wanted; it may differ between calls of one program.

    Returns:
      float32[B, W] log-probabilities and bool[B, W]: whether the token is the first maximum of its
      logits; 0 and False in columns that are not wanted.
    """
    hidden = model.hidden(tokens, positions, mask, prefix=prefix)
    return target_logprobs(model, hidden, places, targets, num_places)


def target_logprobs(
    model: Any,
    hidden: jax.Array,
    places: jax.Array,
    targets: jax.Array,
    num_places: jax.Array | int,
) -> tuple[jax.Array, jax.Array]:
    """The last part of `score_places`, from the hidden states [B, L, E].

    Only the places that are wanted are turned into logits, which exist for a few hundred tokens at
    a time; the batch axis stays whole, since it may be cut over devices.
    """
    rows, width = targets.shape
    chunk = max(1, min(width, _LOGIT_ROWS // rows))
    places, targets = (jnp.pad(x, ((0, 0), (0, -width % chunk))) for x in (places, targets))

    def one(i: jax.Array, results: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        start = i * chunk
        at, wanted = (
            jax.lax.dynamic_slice_in_dim(x, start, chunk, axis=1) for x in (places, targets)
        )
        part = jnp.take_along_axis(hidden, at[:, :, None], axis=1)
        logits = model.unembed(part).astype(jnp.float32)
        chosen = jnp.take_along_axis(logits, wanted[..., None], axis=-1)[..., 0]
        logprobs = chosen - jax.nn.logsumexp(logits, axis=-1)
        found = (logprobs, jnp.argmax(logits, axis=-1) == wanted)
        return tuple(
            jax.lax.dynamic_update_slice_in_dim(x, new, start, axis=1)
            for x, new in zip(results, found, strict=True)
        )

    nothing = (jnp.zeros(targets.shape, jnp.float32), jnp.zeros(targets.shape, bool))
    logprobs, greedy = jax.lax.fori_loop(0, (num_places + chunk - 1) // chunk, one, nothing)
    return logprobs[:, :width], greedy[:, :width]
