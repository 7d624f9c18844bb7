"""Batches on the devices: every process reads the rows of the plan that its own devices need.

The sharding alone determines which device holds which rows. So processes may be numbered in any
order, and those of one tensor group read the same rows.
"""

import contextlib
from collections.abc import Iterator

import jax
import numpy as np

from optiml_jax.data.loader import PlanLoader
from optiml_jax.data.plan import Plan
from optiml_jax.sharding.rules import batch_sharding, held_rows

Batch = dict[str, jax.Array]
_DTYPES = {
    "tokens": np.int32,
    "targets": np.int32,
    "segment_ids": np.int32,
    "positions": np.int32,
    "loss_weights": np.float32,
}


def abstract_batch(
    mesh: jax.sharding.Mesh, num_rows: int, sequence_length: int
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes, types and shardings of a batch of `num_rows` rows; nothing is allocated."""
    shape, sharding = (num_rows, sequence_length), batch_sharding(mesh)
    return {k: jax.ShapeDtypeStruct(shape, v, sharding=sharding) for k, v in _DTYPES.items()}


@contextlib.contextmanager
def open_batches(
    plan: Plan, mesh: jax.sharding.Mesh, num_rows: int, start: int, end: int
) -> Iterator[Iterator[Batch]]:
    """The batches of `num_rows` rows from number `start` up to `end`, prefetched in the background.

    Raises:
      UserError: see `PlanLoader`.
    """
    sharding = batch_sharding(mesh)
    held = held_rows(sharding, num_rows)
    with PlanLoader(plan, num_rows, start_step=start, num_steps=end, rows=held) as loader:
        yield (_place(batch, held, num_rows, sharding) for batch in loader)


def _place(
    batch: dict[str, np.ndarray], held: np.ndarray, num_rows: int, sharding: jax.sharding.Sharding
) -> Batch:
    """The global arrays [num_rows, L]; `batch` has this process's rows, `held`."""

    def place(array: np.ndarray) -> jax.Array:
        def part(index: tuple[slice, ...]) -> np.ndarray:
            start, end, _ = index[0].indices(num_rows)
            first = np.searchsorted(held, start)
            return array[first : first + end - start]

        return jax.make_array_from_callback((num_rows, array.shape[1]), sharding, part)

    return {name: place(array) for name, array in batch.items()}
