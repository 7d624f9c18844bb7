"""The cache of keys and values for decoding, an argument and a result of the model.

A row fills its slots from the left without gaps: the tokens of a call that are not padding go to
the next free slots of their row. So prompts of unequal lengths may be padded on the right, and a
row that has ended is fed padding (segment 0) and stays as it is.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from optiml_jax.model.attention import DocumentMask
from optiml_jax.model.axes import constrain
from optiml_jax.model.config import DecoderConfig

AXES = ("layers", "batch", "kv_heads", None, None)  # of keys and values


@struct.dataclass
class KVCache:
    """Keys and values of the tokens a model has seen.

    Attributes:
      key: [layers, B, Hkv, S, Dh] in the type of the computation; or, for a model whose blocks are
        not stacked (`model.unstacked`), a tuple with [B, Hkv, S, Dh] for each layer.
      value: likewise.
      mask: what the mask said of each slot, fields [B, S]; a free slot is padding (segment 0).
      index: int32[B], the number of slots a row has filled.
      fresh: known to be empty, so that the first call attends to its own tokens only. Part of the
        tree's structure: the cache that a call returns is never fresh.
    """

    key: jax.Array | tuple[jax.Array, ...]
    value: jax.Array | tuple[jax.Array, ...]
    mask: DocumentMask
    index: jax.Array
    fresh: bool = struct.field(pytree_node=False, default=False)

    @classmethod
    def empty(cls, config: DecoderConfig, batch_size: int, capacity: int) -> "KVCache":
        """A cache for `batch_size` rows of `capacity` tokens (prompt and new ones together)."""
        shape = (config.num_layers, batch_size, config.num_kv_heads, capacity, config.head_dim)
        free = constrain(jnp.zeros((batch_size, capacity), jnp.int32), "batch", None)
        # Made where they will lie: a cache of all heads and rows fits on no single device.
        return cls(
            key=constrain(jnp.zeros(shape, config.dtype), *AXES),
            value=constrain(jnp.zeros(shape, config.dtype), *AXES),
            mask=DocumentMask(free, positions=free if config.sliding_window else None),
            index=constrain(jnp.zeros((batch_size,), jnp.int32), "batch"),
            fresh=True,
        )

    @property
    def capacity(self) -> int:
        return jax.tree.leaves(self.key)[0].shape[-2]

    def unstacked(self) -> "KVCache":
        """The same cache with an array of its own for each layer."""
        return self.replace(key=tuple(self.key), value=tuple(self.value))

    def slots(self, mask: DocumentMask) -> jax.Array:
        """int32[B, L]: the slot of each token of a call; `capacity` or more where there is none."""
        valid = mask.valid
        slots = self.index[:, None] + jnp.cumsum(valid, axis=1, dtype=jnp.int32) - 1
        return jnp.where(valid, slots, self.capacity)

    def overflows(self, mask: DocumentMask) -> jax.Array:
        """bool[B, L]: the tokens that are not padding and for which the row has no slot left."""
        return mask.valid & (self.slots(mask) >= self.capacity)

    def append(self, key: jax.Array, value: jax.Array, mask: DocumentMask) -> "KVCache":
        """The cache with the keys and values [layers, B, Hkv, L, Dh] of a call written in."""
        slots = self.slots(mask)
        key, value = write(self.key, key, slots), write(self.value, value, slots)
        return self.counted(mask).replace(key=key, value=value)

    def counted(self, mask: DocumentMask) -> "KVCache":
        """The cache in which the tokens of a call have slots, but no keys and values yet."""

        @jax.vmap
        def write_field(buffer: jax.Array, new: jax.Array, slots: jax.Array) -> jax.Array:
            return buffer.at[slots].set(new, mode="drop")

        slots = self.slots(mask)
        return self.replace(
            mask=jax.tree.map(lambda buffer, new: write_field(buffer, new, slots), self.mask, mask),
            index=self.index + jnp.sum(mask.valid, axis=1, dtype=jnp.int32),
            fresh=False,
        )

    def with_rows(
        self,
        rows: jax.Array,
        new: "KVCache",
        prefix: "KVCache | None" = None,
        parts: int = 1,
    ) -> "KVCache":
        """The cache with whole rows put into the place of others.

        Args:
          rows: int32[R], the places; a number beyond the rows of this cache puts a row nowhere.
          new: the R rows, stacked, at most as long as those of this cache.
          prefix: what stands in front of each of them, the same in all rows of `prefix`.
          parts: number of equal parts of both caches between which no row moves; each may then lie
            on devices of its own.
        """
        start = 0 if prefix is None else prefix.index[0]
        slots = start + jnp.arange(new.capacity)
        part = jnp.arange(len(rows)) * parts // len(rows)
        places = (rows - part * (len(self.index) // parts)).reshape(parts, -1)

        def write(buffer: jax.Array, new: jax.Array, before: jax.Array | None) -> jax.Array:
            # What lies past the end of prefix or row is overwritten, or masked.
            if before is not None:
                size = min(before.shape[3], self.capacity)
                before = before[:, :1, :, :size].astype(buffer.dtype)

            @functools.partial(jax.vmap, in_axes=(1, 1, 0), out_axes=1)
            def write_part(buffer: jax.Array, new: jax.Array, rows: jax.Array) -> jax.Array:
                if before is not None:
                    buffer = buffer.at[:, rows, :, :size].set(before, mode="drop")
                new = jnp.transpose(new, (1, 3, 0, 2, 4)).astype(buffer.dtype)
                return buffer.at[:, rows[:, None], :, slots].set(new, mode="drop")

            def cut(x: jax.Array) -> jax.Array:
                return x.reshape(len(x), parts, -1, *x.shape[2:])

            return constrain(write_part(cut(buffer), cut(new), places).reshape(buffer.shape), *AXES)

        write = _by_layer(write)
        index = self.index.at[rows].set(start + new.index, mode="drop")
        filled = jnp.arange(self.capacity) < (start + new.index)[:, None]
        segments = self.mask.segment_ids.at[rows].set(filled.astype(jnp.int32), mode="drop")
        positions = self.mask.positions  # a row is one document: its slots are its positions
        if positions is not None:
            positions = positions.at[rows].set(jnp.arange(self.capacity), mode="drop")
        return KVCache(
            key=write(self.key, new.key, None if prefix is None else prefix.key),
            value=write(self.value, new.value, None if prefix is None else prefix.value),
            mask=DocumentMask(segments, positions=positions),
            index=index,
        )


def write(buffer: jax.Array, new: jax.Array, slots: jax.Array) -> jax.Array:
    """Keys or values with those of a call written in.

    Args:
      buffer: [layers, B, Hkv, S, Dh], or [B, Hkv, S, Dh] of one layer.
      new: the same with L in the place of S.
      slots: int32[B, L], see `KVCache.slots`.
    """
    axes = AXES[-buffer.ndim :]
    rows = axes.index("batch")

    def write_row(buffer: jax.Array, new: jax.Array, slots: jax.Array) -> jax.Array:
        return buffer.at[..., slots, :].set(new.astype(buffer.dtype), mode="drop")

    # Mapped over the rows, so that a device whose rows these are needs no others.
    write_rows = jax.vmap(write_row, in_axes=(rows, rows, 0), out_axes=rows)
    return constrain(write_rows(buffer, constrain(new, *axes), slots), *axes)


def _by_layer(write: Callable[..., jax.Array]) -> Callable[..., Any]:
    """`write` of stacked buffers, for tuples of buffers too; its other arguments may be stacked."""

    def each(buffers: Any, *others: Any) -> Any:
        if not isinstance(buffers, tuple):
            return write(buffers, *others)
        return tuple(
            write(buffer[None], *(None if x is None else x[i][None] for x in others))[0]
            for i, buffer in enumerate(buffers)
        )

    return each
