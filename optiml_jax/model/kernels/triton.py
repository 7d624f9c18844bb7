"""GPU: attention over documents as a Pallas kernel that Triton compiles, documents skipped.

A block of queries turns only over the blocks of keys that hold tokens of its documents, and a block
of keys, on the way back, only over the queries that see it: seven documents in a row cost seven
small triangles. Running softmax and derivative: FlashAttention-2 (Dao 2023, arXiv 2307.08691).
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton

from optiml_jax.model import axes
from optiml_jax.model.attention import MASKED_SCORE, SHARED_SEGMENT, DocumentMask
from optiml_jax.model.kernels import tiles
from optiml_jax.model.kernels.contract import SAVED, Case, Keys, cut_alike, declaring

BLOCK = 64


@dataclasses.dataclass(frozen=True)
class Triton:
    """NVIDIA GPUs from Ampere on.

    Attributes:
      interpret: compute in plain operations on any platform, for tests.
    """

    interpret: bool = False
    name: str = dataclasses.field(default="triton", init=False)
    platforms: tuple[str, ...] = dataclasses.field(default=("gpu",), init=False)

    def refuses(self, case: Case) -> str | None:
        if case.platform != "gpu" and not self.interpret:
            return "it runs on GPUs only"
        if case.capability is not None and case.capability < (8, 0):
            return f"it needs compute capability 8.0, this GPU has {case.capability}"
        if case.dropout:
            return "it drops no attention weights"
        if case.branches:
            return "its segments know no branches"
        if case.earlier:
            return "it does not support a cache besides the row's own keys"
        if case.head_dim > 128:
            return f"a head of {case.head_dim} is wider than 128"
        return None

    def pays(self, case: Case) -> bool:
        return case.length > BLOCK

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
        key, value = cut_alike(query, parts[-1])
        rows, heads = ("batch", "heads", None, None), ("batch", "kv_heads", None, None)
        arguments = (query, key, value, mask.segment_ids)

        def pieces(query, key, value, segment_ids):
            length, width = query.shape[2:]
            query, key, value = (_whole_blocks(x) for x in (query, key, value))
            segment_ids = tiles.padded(segment_ids, 1, BLOCK)
            out = _attend(query, key, value, segment_ids, window, self.interpret)
            return (out[:, :, :length, :width],)

        where = (rows, heads, heads, ("batch", None))
        return axes.per_device(pieces, arguments, where, (rows,))[0]


def _whole_blocks(x: jax.Array) -> jax.Array:
    """[B, H, L, Dh] padded with zeros: L in whole blocks, Dh a power of two as Triton asks."""
    width = max(16, pl.next_power_of_2(x.shape[3]))
    x = tiles.padded(x, 2, BLOCK)
    missing = width - x.shape[3]
    return jnp.pad(x, [(0, 0)] * 3 + [(0, missing)]) if missing else x


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _attend(query, key, value, segment_ids, window, interpret):
    return _attend_fwd(query, key, value, segment_ids, window, interpret)[0]


def _attend_fwd(query, key, value, segment_ids, window, interpret):
    call = _Call(query, key, segment_ids, window, interpret)
    out, total = call(
        _forward_kernel,
        (query, key, value, segment_ids, segment_ids, call.ranges),
        (call.block, call.keys, call.keys, call.ids, call.all_ids, call.range),
        (query, jax.ShapeDtypeStruct(query.shape[:3], jnp.float32)),
        (call.block, call.numbers),
    )
    out, total = checkpoint_name(out, SAVED), checkpoint_name(total, SAVED)
    return out, (query, key, value, segment_ids, out, total)


def _attend_bwd(window, interpret, saved, d_out):
    query, key, value, segment_ids, out, total = saved
    call = _Call(query, key, segment_ids, window, interpret)
    inner = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), -1)
    (d_query,) = call(
        _query_kernel,
        (query, key, value, d_out, total, inner, segment_ids, segment_ids, call.ranges),
        (
            *(call.block, call.keys, call.keys, call.block, call.numbers, call.numbers),
            *(call.ids, call.all_ids, call.range),
        ),
        (query,),
        (call.block,),
    )
    # Every head of queries gets the gradient of its keys apart; their sum follows.
    each = jax.ShapeDtypeStruct((*query.shape[:2], *key.shape[2:]), jnp.float32)
    ranges = tiles.transposed_ranges(call.ranges, key.shape[2] // BLOCK)
    d_key, d_value = call(
        _key_kernel,
        (query, key, value, d_out, total, inner, segment_ids, segment_ids, ranges),
        (
            *(call.row, call.block_of_keys, call.block_of_keys, call.row),
            *(call.all_numbers, call.all_numbers, call.ids, call.all_ids, call.range),
        ),
        (each, each),
        (call.block, call.block),
    )
    d_key, d_value = (
        x.reshape(*key.shape[:2], -1, *key.shape[2:]).sum(2).astype(key.dtype)
        for x in (d_key, d_value)
    )
    return d_query, d_key, d_value, None


_attend.defvjp(_attend_fwd, _attend_bwd)


class _Call:
    """How a kernel's arguments are cut; one program of the grid has a block, a row and a head."""

    def __init__(self, query, key, segment_ids, window, interpret):
        rows, heads, length, width = query.shape
        group, size = heads // key.shape[1], key.shape[2]
        mask = DocumentMask(segment_ids)
        self.ranges = tiles.key_ranges(mask, mask, BLOCK, BLOCK, own=True, window=None)
        self._window, self._interpret = window, interpret
        self._grid = (length // BLOCK, rows, heads)
        self._turns = tiles.mean_turns(length // BLOCK, size // BLOCK, own=True)
        self.block = pl.BlockSpec((None, None, BLOCK, width), lambda i, b, h: (b, h, i, 0))
        self.row = pl.BlockSpec((None, None, length, width), lambda i, b, h: (b, h, 0, 0))
        self.keys = pl.BlockSpec((None, None, size, width), lambda i, b, h: (b, h // group, 0, 0))
        self.block_of_keys = pl.BlockSpec(
            (None, None, BLOCK, width), lambda i, b, h: (b, h // group, i, 0)
        )
        self.numbers = pl.BlockSpec((None, None, BLOCK), lambda i, b, h: (b, h, i))
        self.all_numbers = pl.BlockSpec((None, None, length), lambda i, b, h: (b, h, 0))
        self.ids = pl.BlockSpec((None, BLOCK), lambda i, b, h: (b, i))
        self.all_ids = pl.BlockSpec((None, length), lambda i, b, h: (b, 0))
        self.range = pl.BlockSpec((None, None, 2), lambda i, b, h: (b, i, 0))

    def __call__(self, kernel, arguments, specs, out, out_specs) -> Any:
        def call(*arguments: jax.Array) -> Any:
            return pl.pallas_call(
                functools.partial(kernel, window=self._window),
                grid=self._grid,
                in_specs=list(specs),
                out_specs=list(out_specs),
                out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in out],
                compiler_params=pltriton.CompilerParams(num_warps=4, num_stages=2),
                interpret=self._interpret,
                name=kernel.__name__.strip("_"),
            )(*arguments)

        return declaring("turns", self._turns, call)(*arguments)


def _forward_kernel(
    query_ref, key_ref, value_ref, ids_ref, all_ids_ref, range_ref, out_ref, total_ref, *, window
):
    i, query, ids = pl.program_id(0), query_ref[...], ids_ref[...]

    def turn(j: jax.Array, carry: Any) -> Any:
        out, top, total = carry
        at = pl.ds(j * BLOCK, BLOCK)
        allowed = _allowed(i, j, ids, all_ids_ref[at], window)
        scores = jnp.where(allowed, _dot(query, key_ref[at, :].T), MASKED_SCORE)
        new_top = jnp.maximum(top, jnp.max(scores, axis=1))
        weights = jnp.where(allowed, jnp.exp(scores - new_top[:, None]), 0.0)
        kept, value = jnp.exp(top - new_top), value_ref[at, :]
        out = out * kept[:, None] + _dot(weights.astype(value.dtype), value)
        return out, new_top, total * kept + jnp.sum(weights, axis=1)

    nothing = jnp.zeros((BLOCK,), jnp.float32)
    init = (jnp.zeros(query.shape, jnp.float32), nothing + MASKED_SCORE, nothing)
    out, top, total = jax.lax.fori_loop(range_ref[0], range_ref[1], turn, init)
    seen = jnp.where(total == 0, 1.0, total)
    out_ref[...] = (out / seen[:, None]).astype(out_ref.dtype)
    total_ref[...] = jnp.where(total == 0, MASKED_SCORE, top + jnp.log(seen))


def _query_kernel(
    query_ref,
    key_ref,
    value_ref,
    d_out_ref,
    total_ref,
    inner_ref,
    ids_ref,
    all_ids_ref,
    range_ref,
    d_query_ref,
    *,
    window,
):
    i, query, ids, d_out = pl.program_id(0), query_ref[...], ids_ref[...], d_out_ref[...]
    total, inner = total_ref[...], inner_ref[...]

    def turn(j: jax.Array, d_query: jax.Array) -> jax.Array:
        at = pl.ds(j * BLOCK, BLOCK)
        key = key_ref[at, :]
        allowed = _allowed(i, j, ids, all_ids_ref[at], window)
        weights = jnp.where(allowed, jnp.exp(_dot(query, key.T) - total[:, None]), 0.0)
        d_scores = weights * (_dot(d_out, value_ref[at, :].T) - inner[:, None])
        return d_query + _dot(d_scores.astype(key.dtype), key)

    nothing = jnp.zeros(query.shape, jnp.float32)
    d_query = jax.lax.fori_loop(range_ref[0], range_ref[1], turn, nothing)
    d_query_ref[...] = d_query.astype(d_query_ref.dtype)


def _key_kernel(
    query_ref,
    key_ref,
    value_ref,
    d_out_ref,
    total_ref,
    inner_ref,
    ids_ref,
    all_ids_ref,
    range_ref,
    d_key_ref,
    d_value_ref,
    *,
    window,
):
    j, key, value, ids = pl.program_id(0), key_ref[...], value_ref[...], ids_ref[...]

    def turn(i: jax.Array, carry: Any) -> Any:
        d_key, d_value = carry
        at = pl.ds(i * BLOCK, BLOCK)
        query, d_out = query_ref[at, :], d_out_ref[at, :]
        allowed = _allowed(i, j, all_ids_ref[at], ids, window)
        weights = jnp.where(allowed, jnp.exp(_dot(query, key.T) - total_ref[at][:, None]), 0.0)
        d_value += _dot(weights.T.astype(d_out.dtype), d_out)
        d_scores = weights * (_dot(d_out, value.T) - inner_ref[at][:, None])
        return d_key + _dot(d_scores.T.astype(query.dtype), query), d_value

    nothing = jnp.zeros(key.shape, jnp.float32)
    d_key, d_value = jax.lax.fori_loop(range_ref[0], range_ref[1], turn, (nothing, nothing))
    d_key_ref[...], d_value_ref[...] = d_key, d_value


def _allowed(i, j, ids_q: jax.Array, ids_k: jax.Array, window: int | None) -> jax.Array:
    """bool[BLOCK, BLOCK]: `DocumentMask.lower` for a tile of rows without branches.

    Positions of one document follow each other, so a window is one of places in the row too.
    """
    at_q = i * BLOCK + jnp.arange(BLOCK)[:, None]
    at_k = j * BLOCK + jnp.arange(BLOCK)[None, :]
    of_k = ids_k[None, :]
    allowed = ((ids_q[:, None] == of_k) | (of_k == SHARED_SEGMENT)) & (of_k != 0) & (at_q >= at_k)
    return allowed if window is None else allowed & (at_q - at_k < window)


def _dot(left: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.dot(left, right, preferred_element_type=jnp.float32)
