"""Attention by tiles with a running softmax, in plain array operations: memory grows with L.

What the mask forbids is not computed: a block of queries turns only over the blocks of keys that
hold tokens of its documents. The running softmax and its derivative are those of FlashAttention-2
(Dao 2023, arXiv 2307.08691).
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from optiml_jax.model import axes
from optiml_jax.model.attention import MASKED_SCORE, DocumentMask
from optiml_jax.model.kernels import tiles
from optiml_jax.model.kernels.contract import SAVED, Case, Keys, cut_alike
from optiml_jax.model.sums import sum_of_rows

BLOCK = 128  # tokens of a block: large enough for fast products, small enough to skip documents
SHORT = 1024  # rows up to this length hold short documents: half a block is faster


class Chunked:
    """Any platform; rows and blocks one after another, heads together."""

    name = "chunked"
    platforms = ("cpu", "gpu", "tpu")

    def refuses(self, case: Case) -> str | None:
        return "it drops no attention weights" if case.dropout else None

    def pays(self, case: Case) -> bool:
        return case.length >= BLOCK

    def attend(
        self,
        query: jax.Array,
        mask: DocumentMask,
        parts: list[Keys],
        window: int | None,
        dropout: float,
        dropout_key: jax.Array | None,
    ) -> jax.Array:
        """See `Kernel`."""
        results = [_part(query, mask, part, window) for part in parts]
        if len(results) == 1:
            return results[0][0]
        total = functools.reduce(jnp.logaddexp, [of_part for _, of_part in results])
        out = sum(out * jnp.exp(of_part - total)[..., None] for out, of_part in results)
        return out.astype(query.dtype)


def _part(
    query: jax.Array, mask: DocumentMask, part: Keys, window: int | None
) -> tuple[jax.Array, jax.Array]:
    """Attention over one part [B, H, L, Dh], and the log of the sum of its weights [B, H, L]."""
    key, value = cut_alike(query, part)
    key_mask = part.mask
    if len(key) != len(part.key):
        key_mask = jax.tree.map(lambda x: jnp.repeat(x, len(key) // len(x), axis=0), key_mask)
    rows, heads = ("batch", "heads", None, None), ("batch", "kv_heads", None, None)
    of_mask = jax.tree.map(lambda _: ("batch", None), mask)
    of_keys = jax.tree.map(lambda _: ("batch", None), key_mask)

    def pieces(*arguments: Any) -> tuple[jax.Array, jax.Array]:
        return _attend(*arguments, part.own, window)

    arguments = (query, key, value, mask, key_mask)
    return axes.per_device(
        pieces, arguments, (rows, heads, heads, of_mask, of_keys), (rows, rows[:3])
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _attend(query, key, value, mask, key_mask, own, window):
    return _attend_fwd(query, key, value, mask, key_mask, own, window)[0]


def _attend_fwd(query, key, value, mask, key_mask, own, window):
    cut = _cut(query, key, mask, key_mask, own, window)
    share, group = len(query) // len(key), query.shape[1] // key.shape[1]

    def row(b: jax.Array) -> tuple[jax.Array, jax.Array]:
        tiles_of = _Tiles(cut, group, mask, key_mask, b, b // share, own, window)
        queries, keys = cut.of_queries(query[b], key), cut.of_keys(key[b // share])
        values = cut.of_keys(value[b // share])
        # Tiles on the diagonal are computed at once, all others one after another.
        if own:
            sums = _forward(queries, keys, values, tiles_of.diagonal())
        else:
            rows = jnp.zeros(queries.shape[:3], jnp.float32)
            sums = jnp.zeros(queries.shape, jnp.float32), rows + MASKED_SCORE, rows

        def block(i: jax.Array) -> tuple[jax.Array, jax.Array]:
            query_i = _at(queries, i)

            def turn(j: jax.Array, sums: Any) -> Any:
                allowed = tiles_of.allowed(i, j)
                return _joined(sums, _forward(query_i, _at(keys, j), _at(values, j), allowed))

            init = [_at(x, i) for x in sums]
            out, top, total = tiles.loop(cut.turns, *tiles_of.range(i), turn, tuple(init))
            out = out / jnp.where(total == 0, 1, total)[..., None]
            total = jnp.where(total == 0, MASKED_SCORE, top + jnp.log(total))
            return out.astype(query.dtype), total

        out, total = jax.lax.map(block, jnp.arange(cut.blocks_q))
        return cut.whole(out, query[b]), cut.whole(total, query[b])

    out, total = jax.lax.map(row, jnp.arange(len(query)))
    out, total = checkpoint_name(out, SAVED), checkpoint_name(total, SAVED)
    return (out, total), (query, key, value, mask, key_mask, out, total)


def _attend_bwd(own, window, saved, cotangents):
    query, key, value, mask, key_mask, out, total = saved
    d_out, d_total = cotangents
    cut = _cut(query, key, mask, key_mask, own, window)
    share, group = len(query) // len(key), query.shape[1] // key.shape[1]
    inner = sum_of_rows(d_out.astype(jnp.float32) * out.astype(jnp.float32))[..., 0] - d_total

    def row(b: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        tiles_of = _Tiles(cut, group, mask, key_mask, b, b // share, own, window)
        of_queries = [cut.of_queries(x[b], key) for x in (query, d_out, total, inner)]
        keys, values = (cut.of_keys(x[b // share]) for x in (key, value))
        of_keys = keys, keys.mT, values
        if own:
            d_query, *d_keys = _backward(*of_queries, *of_keys, tiles_of.diagonal())
        else:
            d_query = jnp.zeros(of_queries[0].mT.shape, jnp.float32)
            d_keys = [jnp.zeros(keys.shape, jnp.float32)] * 2

        def block(d_keys: Any, i: jax.Array) -> Any:
            of_i = [_at(x, i) for x in of_queries]

            def turn(j: jax.Array, carry: Any) -> Any:
                d_query, d_keys = carry
                of_j = [_at(x, j) for x in of_keys]
                d_query_j, *d_keys_j = _backward(*of_i, *of_j, tiles_of.allowed(i, j))
                more = zip(d_keys, d_keys_j, strict=True)
                return d_query + d_query_j, tuple(_add_at(x, j, d_x) for x, d_x in more)

            init = (_at(d_query, i), d_keys)
            d_query_i, d_keys = tiles.loop(cut.turns, *tiles_of.range(i), turn, init)
            return d_keys, d_query_i.mT.astype(query.dtype)

        d_keys, d_query = jax.lax.scan(block, tuple(d_keys), jnp.arange(cut.blocks_q))
        d_keys = (x.reshape(len(x), -1, x.shape[-1])[:, : key.shape[2]] for x in d_keys)
        return cut.whole(d_query, query[b]), *d_keys

    d_query, *of_keys = jax.lax.map(row, jnp.arange(len(query)))
    d_key, d_value = (
        x.reshape(len(key), share, *x.shape[1:]).sum(1).astype(key.dtype) for x in of_keys
    )
    return d_query, d_key, d_value, None, None


_attend.defvjp(_attend_fwd, _attend_bwd)


def _forward(query, key, value, allowed):
    """One tile, or several: (weighted values, largest score, sum of weights) of its queries.

    Args:
      query: [..., q, Dh].
      key, value: [..., k, Dh].
      allowed: bool[..., q, k].
    """
    scores = jnp.where(allowed, _product("...qd,...kd->...qk", query, key), MASKED_SCORE)
    top = scores.max(-1)
    weights = jnp.where(allowed, jnp.exp(scores - top[..., None]), 0)
    return _product("...qk,...kd->...qd", weights, value), top, weights.sum(-1)


def _joined(left: Any, right: Any) -> Any:
    """What `_forward` says of the same queries and the keys of both."""
    top = jnp.maximum(left[1], right[1])
    of_left, of_right = jnp.exp(left[1] - top), jnp.exp(right[1] - top)
    out = left[0] * of_left[..., None] + right[0] * of_right[..., None]
    return out, top, left[2] * of_left + right[2] * of_right


def _backward(query, d_out, total, inner, key, turned_key, value, allowed):
    """Derivatives of a tile, or several: of the queries [..., Dh, q], the keys, and the values.

    Scores are [..., k, q] here, and keys come turned too: no product is over the first dimension of
    a large factor.
    """
    scores = _product("...kd,...qd->...kq", key, query)
    weights = jnp.where(allowed.mT, jnp.exp(scores - total[..., None, :]), 0)
    d_weights = _product("...kd,...qd->...kq", value, d_out)
    d_scores = weights * (d_weights - inner[..., None, :])
    d_query = _product("...dk,...kq->...dq", turned_key, d_scores)
    d_key = _product("...kq,...qd->...kd", d_scores, query)
    return d_query, d_key, _product("...kq,...qd->...kd", weights, d_out)


@dataclasses.dataclass(frozen=True)
class _Cut:
    """How queries and keys are cut into blocks.

    Attributes:
      ranges: int32[B, blocks_q, 2], see `tiles.key_ranges`; without the tiles on the diagonal if
        queries and keys are the same tokens.
      turns: see `tiles.mean_turns`.
    """

    block_q: int
    block_k: int
    blocks_q: int
    ranges: jax.Array
    turns: float

    def of_queries(self, x: jax.Array, key: jax.Array) -> jax.Array:
        """[H, L, ...] as [Hkv, blocks, (H // Hkv) * block, ...], padded, for keys [A, Hkv, ...]."""
        heads = key.shape[1]
        x = tiles.padded(x, 1, self.block_q)
        x = x.reshape(heads, len(x) // heads, self.blocks_q, self.block_q, *x.shape[2:])
        return jnp.moveaxis(x, 1, 2).reshape(heads, self.blocks_q, -1, *x.shape[4:])

    def of_keys(self, x: jax.Array) -> jax.Array:
        """[Hkv, S, Dh] as [Hkv, blocks, block, Dh], padded."""
        x = tiles.padded(x, 1, self.block_k)
        return x.reshape(len(x), -1, self.block_k, x.shape[-1])

    def whole(self, blocks: jax.Array, query: jax.Array) -> jax.Array:
        """[blocks, Hkv, (H // Hkv) * block, ...] as [H, L, ...], for a query [H, L, Dh]."""
        heads = blocks.shape[1]
        x = blocks.reshape(len(blocks), heads, -1, self.block_q, *blocks.shape[3:])
        x = jnp.moveaxis(x, 0, 2)
        return x.reshape(len(query), -1, *x.shape[4:])[:, : query.shape[1]]


def _cut(query, key, mask, key_mask, own, window) -> _Cut:
    block_q, block_k = (block_of(x.shape[2]) for x in (query, key))
    of_queries = jax.tree.map(lambda x: tiles.padded(x, 1, block_q), mask)
    of_keys = jax.tree.map(lambda x: tiles.padded(x, 1, block_k), key_mask)
    of_keys = jax.tree.map(lambda x: jnp.repeat(x, len(query) // len(key), axis=0), of_keys)
    ranges = tiles.key_ranges(of_queries, of_keys, block_q, block_k, own, window)
    blocks_q, blocks_k = -(-query.shape[2] // block_q), -(-key.shape[2] // block_k)
    turns = tiles.mean_turns(blocks_q, blocks_k, own)
    if own:
        ranges = jnp.minimum(ranges, jnp.arange(blocks_q)[:, None])
        turns -= 1
    return _Cut(block_q, block_k, blocks_q, ranges, turns)


def block_of(length: int) -> int:
    """Tokens of a block of a row of `length` tokens."""
    return tiles.block_size(length, BLOCK if length > SHORT else BLOCK // 2)


class _Tiles:
    """Which scores of the tiles of one row the mask allows, and which tiles it needs."""

    def __init__(self, cut, group, mask, key_mask, row, key_row, own, window):
        self._cut, self._own, self._window, self._ranges = cut, own, window, cut.ranges[row]
        self._group = group
        self._mask = jax.tree.map(lambda x: tiles.padded(x[row], 0, cut.block_q), mask)
        self._key_mask = jax.tree.map(lambda x: tiles.padded(x[key_row], 0, cut.block_k), key_mask)

    def range(self, i: jax.Array) -> tuple[jax.Array, jax.Array]:
        """First block of keys that block `i` of queries needs, and end."""
        return self._ranges[i, 0], self._ranges[i, 1]

    def diagonal(self) -> jax.Array:
        """bool[blocks, (H // Hkv) * block, block]: the tiles of the same tokens."""
        each = jnp.arange(self._cut.blocks_q)
        return jax.vmap(self.allowed)(each, each)

    def allowed(self, i: jax.Array, j: jax.Array) -> jax.Array:
        """bool[(H // Hkv) * block_q, block_k]: of one tile."""
        block_q, block_k = self._cut.block_q, self._cut.block_k
        of_queries, of_keys = (
            jax.tree.map(lambda x, n=n, b=b: jax.lax.dynamic_slice_in_dim(x, n * b, b)[None], mask)
            for mask, n, b in ((self._mask, i, block_q), (self._key_mask, j, block_k))
        )
        (allowed,) = of_queries.lower_earlier(of_keys, self._window)
        if self._own:
            index = jnp.arange(block_q)[:, None] + i * block_q
            allowed &= index >= jnp.arange(block_k)[None] + j * block_k
        return jnp.tile(allowed, (self._group, 1))


def _at(x: jax.Array, i: jax.Array) -> jax.Array:
    """Block `i` of [H, blocks, ...]."""
    return jax.lax.dynamic_index_in_dim(x, i, 1, keepdims=False)


def _add_at(total: jax.Array, j: jax.Array, block: jax.Array) -> jax.Array:
    """`total` [H, blocks, ...] with a block added to it in its place."""
    return jax.lax.dynamic_update_index_in_dim(total, _at(total, j) + block, j, 1)


def _product(equation: str, left: jax.Array, right: jax.Array) -> jax.Array:
    """The einsum in the type of the values, added up in float32."""
    return jnp.einsum(equation, left.astype(right.dtype), right, preferred_element_type=jnp.float32)
