"""Rows of unequal length in few shapes: length buckets, a constant number of tokens per batch.

Every shape is compiled once, and compiling takes longer than a few rows of padding; so lengths and
numbers of rows are few. Scoring and decoding build on this; text and tasks are unknown here.
"""

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from optiml_jax.errors import UserError
from optiml_jax.model import axes
from optiml_jax.model.config import DecoderConfig
from optiml_jax.model.unstacked import can_be_unstacked, unstacked
from optiml_jax.sharding.rules import batch_sharding, use_mesh

_SMALLEST_BUCKET = 64
_SMALLEST_CACHE = 128


@dataclasses.dataclass(frozen=True)
class Engine:
    """A model with its weights on the devices, and the settings of its batches.

    Attributes:
      graphdef, params: the model, `nnx.merge(graphdef, params)`.
      config: of the model.
      bos_id: token in front of every row, the same as in training; None: none.
      tokens_per_batch: rows x length of a batch; the longest rows may make it larger.
      mesh: devices over which parameters and rows are laid; None is one device.
      preset: the sharding rules.
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
        """`tokens` after the begin-of-text token; never empty, so that something can follow."""
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

    def capacity(self, length: int, base: int = 2, smallest: int = _SMALLEST_CACHE) -> int:
        """The slots of a cache for `length` tokens: `smallest` * base**i, at most max_positions."""
        slots = max(self.bucket(length), round_up_power(length, base, smallest))
        return min(slots, self.config.max_positions)

    @property
    def row_parts(self) -> int:
        """The number of parts that the mesh cuts the rows of a batch into."""
        return 1 if self.mesh is None else self.mesh.shape["data"] * self.mesh.shape["fsdp"]

    def num_rows(self, length: int) -> int:
        """Rows of a batch of `length` tokens each, divisible by `row_parts`."""
        return max(1, self.tokens_per_batch // (length * self.row_parts)) * self.row_parts

    def num_answers(self, capacity: int) -> int:
        """Answers that are generated at a time, with a cache of so many tokens each.

        With the smallest cache they are as many as with the next one, so that prompts are read in
        the same numbers: in the same programs.
        """
        return self.num_rows(max(capacity, min(2 * _SMALLEST_CACHE, self.config.max_positions)))

    @functools.cached_property
    def model_of_steps(self) -> tuple[Any, Any]:
        """(graphdef, params) that say one token after the other: on one CPU unstacked."""
        with self.activations():
            if axes.is_one_cpu() and can_be_unstacked(self.config):
                return unstacked(self.graphdef, self.params)
        return self.graphdef, self.params

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


def batch_sizes(most: int, parts: int = 1) -> list[int]:
    """The numbers of rows that a batch may have: `most`, then ..., 64, 8, 1 for each of `parts`."""
    smaller = itertools.takewhile(lambda n: n < most, (8**i * parts for i in itertools.count()))
    return [most, *reversed(list(smaller))]


def cut(number: int, most: int, parts: int = 1) -> Iterator[tuple[int, int]]:
    """Divides `number` rows into batches: (rows, rows with padding) of each.

    A batch is padded only where it is more than half full, or is the smallest.
    """
    sizes = batch_sizes(most, parts)
    for size in sizes:
        while 2 * number > size or (number and size == sizes[-1]):
            rows = min(number, size)
            yield rows, size
            number -= rows


def same_shapes(shapes: Sequence[tuple[int, ...]]) -> list[tuple[tuple[int, ...], list[int]]]:
    """(padded shape, indices of its rows), largest first: what does not fit fails at once.

    Args:
      shapes: of each row, padded.
    """
    order = sorted(range(len(shapes)), key=lambda i: shapes[i], reverse=True)
    return [
        (shape, list(rows)) for shape, rows in itertools.groupby(order, key=lambda i: shapes[i])
    ]


def pad_rows(rows: Sequence[Sequence[int]], num_rows: int, length: int, pad: int) -> np.ndarray:
    """int32[num_rows, length]: the rows padded on the right, then rows of padding."""
    out = np.full((num_rows, length), pad, np.int32)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out
