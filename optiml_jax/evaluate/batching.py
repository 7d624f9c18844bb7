"""Rows of unequal length in few shapes: length buckets, a constant number of tokens per batch.

Every bucket is compiled once. Scoring and decoding build on this; text and tasks are unknown here.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from optiml_jax.errors import UserError
from optiml_jax.model.config import DecoderConfig
from optiml_jax.sharding.rules import batch_sharding, use_mesh

_SMALLEST_BUCKET = 64


@dataclasses.dataclass(frozen=True)
class Engine:
    """A model with its weights on the devices, and how to feed it.

    Attributes:
      graphdef, params: the model, `nnx.merge(graphdef, params)`.
      config: of the model.
      bos_id: token in front of every row, the same as in training; None: none.
      tokens_per_batch: rows x length of a batch; the longest rows may make it larger.
      mesh: devices over which parameters and rows are laid; None is one device.
      preset: rule table of the sharding.
      progress: called with the number of rows done.
    """

    graphdef: Any
    params: Any
    config: DecoderConfig
    bos_id: int | None = 2
    tokens_per_batch: int = 8192
    mesh: jax.sharding.Mesh | None = None
    preset: str = "standard"
    progress: Callable[[int], None] = lambda rows: None

    def row(self, tokens: Sequence[int]) -> list[int]:
        """`tokens` with what stands in front of them; never empty, or nothing could follow."""
        if self.bos_id is None:
            return [*tokens] or [self.config.eos_id]
        return [self.bos_id, *tokens]

    def bucket(self, length: int) -> int:
        """The length that rows of `length` tokens are padded to: 64, 128, ..., max_positions."""
        limit = self.config.max_positions
        if length > limit:
            raise UserError(
                f"a row of {length} tokens is longer than the model's {limit} positions"
            )
        return min(round_up_power(length, 2, _SMALLEST_BUCKET), limit)

    @property
    def row_parts(self) -> int:
        """The number of parts that the mesh cuts the rows of a batch into."""
        return 1 if self.mesh is None else self.mesh.shape["data"] * self.mesh.shape["fsdp"]

    def num_rows(self, length: int) -> int:
        """Rows of a batch of `length` tokens each, divisible by `row_parts`."""
        return max(1, self.tokens_per_batch // (length * self.row_parts)) * self.row_parts

    def put(self, array: np.ndarray) -> jax.Array:
        """A host array, the same in all processes, with its rows laid over the devices."""
        if self.mesh is None:
            return jax.device_put(array)
        sharding = batch_sharding(self.mesh)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    def activations(self) -> contextlib.AbstractContextManager:
        """The context in which the model is called."""
        if self.mesh is None:
            return contextlib.nullcontext()
        return use_mesh(self.mesh, self.preset)


def round_up_power(n: int, base: int, smallest: int) -> int:
    """The smallest `smallest * base**i` that is at least n."""
    size = smallest
    while size < n:
        size *= base
    return size


def batches(
    shapes: Sequence[tuple[int, ...]], num_rows: Callable[[tuple[int, ...]], int]
) -> Iterator[tuple[tuple[int, ...], list[int]]]:
    """Groups rows of the same padded shape.

    Args:
      shapes: the padded shape of each row; its batch is compiled for it.
      num_rows: rows that a batch of this shape has.

    Yields:
      (shape, indices of at most `num_rows(shape)` rows), every row once; the largest shapes first,
      so that a model that does not fit fails at once.
    """
    order = sorted(range(len(shapes)), key=lambda i: shapes[i], reverse=True)
    start = 0
    while start < len(order):
        shape = shapes[order[start]]
        end = start
        while end < len(order) and shapes[order[end]] == shape and end - start < num_rows(shape):
            end += 1
        yield shape, order[start:end]
        start = end


def pad_rows(rows: Sequence[Sequence[int]], num_rows: int, length: int, pad: int) -> np.ndarray:
    """int32[num_rows, length]: the rows padded on the right, then rows of padding."""
    out = np.full((num_rows, length), pad, np.int32)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out
