"""Which prompts share a beginning, running it once, and which items lie in which row.

Prompts of one task share their instruction, and with fixed demonstrations nearly all of themselves.
"""

import bisect
import dataclasses
import functools
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from optiml_jax.evaluate.batching import Engine, pad_rows, round_up_power
from optiml_jax.model.attention import SHARED_SEGMENT, DocumentMask
from optiml_jax.model.axes import everywhere
from optiml_jax.model.kv_cache import KVCache

# Prefixes have a multiple of so many tokens: fewer different ones, and little is lost.
_STEP = 16
# Fewer saved tokens are not worth a call of the model of their own.
_WORTH = 512
_SMALLEST_ROW = 256


@dataclasses.dataclass(frozen=True)
class Group:
    """Prompts with the same first `length` tokens; 0: they share nothing."""

    length: int
    members: list[int]


def shared_prefixes(prompts: Sequence[Sequence[int]]) -> list[Group]:
    """The division of the prompts into groups that saves most tokens; every prompt is in one.

    Each prompt keeps at least one token of its own. Prompts that share too little come as one
    group of length 0, the last one.
    """
    order = sorted(range(len(prompts)), key=lambda i: prompts[i])
    common = [
        _common_length(prompts[a], prompts[b]) // _STEP * _STEP
        for a, b in itertools.pairwise(order)
    ]
    groups, alone = [], []
    for length, (start, end) in _best_groups(common, 0, len(order))[1]:
        worth = length * (end - start - 1) >= _WORTH
        if worth:
            groups.append(Group(length, order[start:end]))
        else:
            alone += order[start:end]
    return [*groups, Group(0, alone)] if alone else groups


def _common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Number of tokens that both begin with, less than the length of either."""
    limit = min(len(a), len(b)) - 1
    return next((i for i in range(limit) if a[i] != b[i]), max(limit, 0))


def _best_groups(
    common: Sequence[int], start: int, end: int
) -> tuple[int, list[tuple[int, tuple[int, int]]]]:
    """(saved tokens, (prefix length, (start, end)) of each group) of the sorted prompts.

    `common[i]` is what the prompts i and i + 1 share. Either all of them are one group, or they
    are cut where they share least; as lengths are multiples of `_STEP`, it is not deep.
    """
    if end - start == 1:
        return 0, [(0, (start, end))]
    least = min(common[start : end - 1], default=0)
    cuts = [i + 1 for i in range(start, end - 1) if common[i] == least]
    parts = [
        _best_groups(common, a, b)
        for a, b in zip([start, *cuts], [*cuts, end], strict=True)
        if a < b
    ]
    saved, whole = sum(part[0] for part in parts), least * (end - start - 1)
    if whole and whole >= saved:
        return whole, [(least, (start, end))]
    return saved, [group for part in parts for group in part[1]]


def run_prefix(engine: Engine, tokens: Sequence[int]) -> KVCache:
    """The cache of one document that every row of later calls continues (`prefix` of the model).

    It has the same row once for each part that the mesh cuts rows into. Its capacity is one of few
    (256, 1024, ..., max_positions), since whatever continues it is compiled for that.
    """
    length = engine.bucket(len(tokens))
    capacity = engine.capacity(len(tokens), base=4, smallest=256)
    batch = np.repeat(pad_rows([tokens], 1, length, engine.config.pad_id), engine.row_parts, axis=0)
    with engine.activations():
        return _jit_run_prefix(
            engine.graphdef, engine.params, engine.config, capacity, engine.put(batch), len(tokens)
        )


@functools.partial(jax.jit, static_argnums=(0, 2, 3))
def _jit_run_prefix(graphdef, params, config, capacity, tokens, length):
    index = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    mask = DocumentMask(jnp.where(index < length, SHARED_SEGMENT, 0))
    cache = KVCache.empty(config, len(tokens), capacity)
    _, cache = nnx.merge(graphdef, params).hidden(tokens, index, mask, cache)
    return cache.replace(index=everywhere(cache.index))


def pack(sizes: Sequence[int]) -> list[tuple[int, list[int]]]:
    """Items of the given sizes laid into rows: (length of the row, its items), long rows first.

    A row is as long as its largest item asks for and is filled with the largest that still fit, so
    that few slots are empty and short items do not pay for the attention of long rows.
    """
    left = sorted(range(len(sizes)), key=lambda i: sizes[i])  # smallest first
    keys = [sizes[i] for i in left]
    smallest = min(_SMALLEST_ROW, round_up_power(max(sum(sizes), 1), 2, 64))
    rows = []
    while left:
        length = row_length(keys[-1], smallest)
        items, free = [], length
        while left and (fits := bisect.bisect_right(keys, free)):
            free -= keys.pop(fits - 1)
            items.append(left.pop(fits - 1))
        rows.append((length, items))
    return rows


def row_length(size: int, smallest: int) -> int:
    """A power of two, above 2,048 a multiple of 512 (rows may be longer than any document)."""
    return round_up_power(size, 2, smallest) if size <= 2048 else -(-size // 512) * 512
