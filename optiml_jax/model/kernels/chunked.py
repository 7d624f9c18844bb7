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
    share = len(query) // len(key)

    def row(b: jax.Array) -> tuple[jax.Array, jax.Array]:
        tile = _Tiles(cut, query[b], key[b // share], mask, key_mask, b, b // share, own, window)
        values = tiles.padded(value[b // share], 1, cut.block_k)

        def block(i: jax.Array) -> tuple[jax.Array, jax.Array]:
            query_i = tile.query_block(tile.queries, i)

            def turn(j: jax.Array, carry: Any) -> Any:
                out, top, total = carry
                allowed = tile.allowed(i, j)
                key_j = _slice(tile.keys, j, cut.block_k)
                scores = _product("hqd,hkd->hqk", query_i, key_j)
                scores = jnp.where(allowed, scores, MASKED_SCORE)
                new_top = jnp.maximum(top, scores.max(-1))
                weights = jnp.where(allowed, jnp.exp(scores - new_top[..., None]), 0)
                kept = jnp.exp(top - new_top)
                value_j = _slice(values, j, cut.block_k)
                out = out * kept[..., None] + _product("hqk,hkd->hqd", weights, value_j)
                return out, new_top, total * kept + weights.sum(-1)

            rows = (key.shape[1], tile.group * cut.block_q)
            nothing = jnp.zeros(rows, jnp.float32)
            init = (jnp.zeros((*rows, key.shape[3])), nothing + MASKED_SCORE, nothing)
            out, top, total = tiles.loop(cut.turns, *tile.ranges[i], turn, init)
            out = out / jnp.where(total == 0, 1, total)[..., None]
            total = jnp.where(total == 0, MASKED_SCORE, top + jnp.log(total))
            return out.astype(query.dtype), total

        out, total = jax.lax.map(block, jnp.arange(cut.blocks_q))
        return tile.joined(out), tile.joined(total)

    out, total = jax.lax.map(row, jnp.arange(len(query)))
    out, total = checkpoint_name(out, SAVED), checkpoint_name(total, SAVED)
    return (out, total), (query, key, value, mask, key_mask, out, total)


def _attend_bwd(own, window, saved, cotangents):
    query, key, value, mask, key_mask, out, total = saved
    d_out, d_total = cotangents
    cut = _cut(query, key, mask, key_mask, own, window)
    share = len(query) // len(key)
    inner = sum_of_rows(d_out.astype(jnp.float32) * out.astype(jnp.float32))[..., 0] - d_total

    # Scores are [H, keys, queries] here, and what is multiplied with them from the left is turned
    # once a row: so that no product is over the first dimension of a large factor.
    def row(b: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        tile = _Tiles(cut, query[b], key[b // share], mask, key_mask, b, b // share, own, window)
        values = tiles.padded(value[b // share], 1, cut.block_k)
        turned_keys = jnp.swapaxes(tile.keys, 1, 2)
        d_outs, totals, inners = (tile.by_queries(x[b]) for x in (d_out, total, inner))

        def block(carry: Any, i: jax.Array) -> Any:
            d_out_i, query_i = tile.query_block(d_outs, i), tile.query_block(tile.queries, i)
            total_i = tile.query_block(totals, i)[:, None]
            inner_i = tile.query_block(inners, i)[:, None]

            def turn(j: jax.Array, carry: Any) -> Any:
                d_query, d_key, d_value = carry
                key_j, value_j = (_slice(x, j, cut.block_k) for x in (tile.keys, values))
                scores = _product("hkd,hqd->hkq", key_j, query_i)
                weights = jnp.where(tile.allowed(i, j).mT, jnp.exp(scores - total_i), 0)
                d_value = _add(d_value, j, _product("hkq,hqd->hkd", weights, d_out_i))
                d_scores = weights * (_product("hkd,hqd->hkq", value_j, d_out_i) - inner_i)
                d_key = _add(d_key, j, _product("hkq,hqd->hkd", d_scores, query_i))
                turned_key = _slice(turned_keys, j, cut.block_k, 2)
                return d_query + _product("hdk,hkq->hdq", turned_key, d_scores), d_key, d_value

            init = (jnp.zeros(query_i.mT.shape, jnp.float32), *carry)
            d_query, *carry = tiles.loop(cut.turns, *tile.ranges[i], turn, init)
            return tuple(carry), d_query.mT.astype(query.dtype)

        nothing = jnp.zeros(values.shape, jnp.float32)
        (d_key, d_value), d_query = jax.lax.scan(
            block, (nothing, nothing), jnp.arange(cut.blocks_q)
        )
        size = key.shape[2]
        return tile.joined(d_query), d_key[:, :size], d_value[:, :size]

    d_query, *of_keys = jax.lax.map(row, jnp.arange(len(query)))
    d_key, d_value = (
        x.reshape(len(key), share, *x.shape[1:]).sum(1).astype(key.dtype) for x in of_keys
    )
    return d_query, d_key, d_value, None, None


_attend.defvjp(_attend_fwd, _attend_bwd)


@dataclasses.dataclass(frozen=True)
class _Cut:
    """How queries and keys are cut into blocks.

    Attributes:
      ranges: int32[B, blocks_q, 2], see `tiles.key_ranges`.
      turns: see `tiles.mean_turns`.
    """

    block_q: int
    block_k: int
    blocks_q: int
    ranges: jax.Array
    turns: float


def _cut(query, key, mask, key_mask, own, window) -> _Cut:
    block_q = tiles.block_size(query.shape[2], BLOCK)
    block_k = tiles.block_size(key.shape[2], BLOCK)
    of_queries = jax.tree.map(lambda x: tiles.padded(x, 1, block_q), mask)
    of_keys = jax.tree.map(lambda x: tiles.padded(x, 1, block_k), key_mask)
    of_keys = jax.tree.map(lambda x: jnp.repeat(x, len(query) // len(key), axis=0), of_keys)
    ranges = tiles.key_ranges(of_queries, of_keys, block_q, block_k, own, window)
    blocks_q, blocks_k = -(-query.shape[2] // block_q), -(-key.shape[2] // block_k)
    return _Cut(block_q, block_k, blocks_q, ranges, tiles.mean_turns(blocks_q, blocks_k, own))


class _Tiles:
    """The tiles of one row: queries [Hkv, H // Hkv, L, Dh] and keys [Hkv, S, Dh], padded."""

    def __init__(self, cut, query, key, mask, key_mask, row, key_row, own, window):
        self._cut, self._own, self._window = cut, own, window
        self._length = query.shape[1]
        self.group = len(query) // len(key)
        self.num_kv_heads = len(key)
        self.ranges = cut.ranges[row]
        self.queries = self.by_queries(query)
        self.keys = tiles.padded(key, 1, cut.block_k)
        self._mask = jax.tree.map(lambda x: tiles.padded(x[row], 0, cut.block_q), mask)
        self._key_mask = jax.tree.map(lambda x: tiles.padded(x[key_row], 0, cut.block_k), key_mask)

    def by_queries(self, x: jax.Array) -> jax.Array:
        """[H, L, ...] as [Hkv, H // Hkv, padded L, ...]."""
        x = x.reshape(self.num_kv_heads, self.group, *x.shape[1:])
        return tiles.padded(x, 2, self._cut.block_q)

    def query_block(self, x: jax.Array, i: jax.Array) -> jax.Array:
        """[Hkv, (H // Hkv) * block, ...]: block `i` of what `by_queries` gave."""
        block = jax.lax.dynamic_slice_in_dim(x, i * self._cut.block_q, self._cut.block_q, 2)
        return block.reshape(len(block), -1, *x.shape[3:])

    def joined(self, blocks: jax.Array) -> jax.Array:
        """[blocks, Hkv, (H // Hkv) * block, ...] as [H, L, ...]."""
        x = blocks.reshape(
            len(blocks), self.num_kv_heads, self.group, self._cut.block_q, *blocks.shape[3:]
        )
        x = jnp.moveaxis(x, 0, 2)
        return x.reshape(self.num_kv_heads * self.group, -1, *x.shape[4:])[:, : self._length]

    def allowed(self, i: jax.Array, j: jax.Array) -> jax.Array:
        """bool[1, (H // Hkv) * block_q, block_k]: which scores of a tile the mask allows."""
        block_q, block_k = self._cut.block_q, self._cut.block_k
        of_queries, of_keys = (
            jax.tree.map(lambda x, n=n, b=b: jax.lax.dynamic_slice_in_dim(x, n * b, b)[None], mask)
            for mask, n, b in ((self._mask, i, block_q), (self._key_mask, j, block_k))
        )
        allowed = of_queries.lower_earlier(of_keys, self._window)
        if self._own:
            index = jnp.arange(block_q)[:, None] + i * block_q
            allowed &= index >= jnp.arange(block_k)[None] + j * block_k
        return jnp.tile(allowed, (1, self.group, 1))


def _slice(x: jax.Array, j: jax.Array, block: int, axis: int = 1) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(x, j * block, block, axis)


def _add(total: jax.Array, j: jax.Array, block: jax.Array) -> jax.Array:
    """`total` [H, S, D] with a block added to it in its place."""
    start = j * block.shape[1]
    there = jax.lax.dynamic_slice_in_dim(total, start, block.shape[1], 1)
    return jax.lax.dynamic_update_slice_in_dim(total, there + block, start, 1)


def _product(equation: str, left: jax.Array, right: jax.Array) -> jax.Array:
    """The einsum in the type of the values, added up in float32."""
    return jnp.einsum(equation, left.astype(right.dtype), right, preferred_element_type=jnp.float32)
