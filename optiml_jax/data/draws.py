"""The seeded draws of a plan: (task, example) without end, and the stream of each row. No files.

Everything random is drawn from a generator seeded by what it is for (seed, purpose, task, epoch):
no draw depends on how many came before, on the platform or on the number of processes.
"""

import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence

import numpy as np

DRAWS_PER_BLOCK = 16_384
ROWS_PER_BLOCK = 64
_GOLDEN = (5**0.5 - 1) / 2  # its multiples are spread evenly over the unit interval


def draw_examples(
    names: Sequence[str],
    pools: Sequence[np.ndarray],
    rates: Sequence[float],
    seed: int,
    stream: str = "",
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields blocks of draws without end.

    Draws of tasks are independent with probability proportional to `rates`; within a task every
    epoch is a full permutation of its pool.

    Args:
      names: of the tasks; a task's order depends on its name, not on its place in the list.
      pools: per task the examples that may be drawn, int[n_t]; n_t > 0 where the rate is.
      rates: per task a weight of 0 or more, at least one above 0.
      seed: of everything.
      stream: its name; streams of other names are drawn independently.

    Yields:
      (tasks, examples), int32[DRAWS_PER_BLOCK] each: index into `names`, element of its pool.
    """
    cumulative = np.cumsum(np.asarray(rates, np.float64))
    last = np.flatnonzero(rates)[-1]
    orders = [_EpochOrder(name, pool, seed) for name, pool in zip(names, pools, strict=True)]
    for block in itertools.count():
        points = _generator(seed, "tasks", stream, block).random(DRAWS_PER_BLOCK) * cumulative[-1]
        # A point may round up to the total: it belongs to the last task with a rate.
        tasks = np.minimum(np.searchsorted(cumulative, points, side="right"), last).astype(np.int32)
        examples = np.empty(DRAWS_PER_BLOCK, np.int32)
        by_task = np.argsort(tasks, kind="stable")
        starts = np.flatnonzero(np.diff(tasks[by_task]))
        for places in np.split(by_task, starts + 1):
            examples[places] = orders[tasks[places[0]]].take(len(places))
        yield tasks, examples


def draw_streams(shares: Sequence[float], num_rows: int, seed: int) -> np.ndarray:
    """int[num_rows]: the stream of each row; more rows only append.

    Every block of `ROWS_PER_BLOCK` rows has each stream's share of them to within one row, in
    random order, and what is rounded up in one block is rounded down in another. Independent draws
    would miss a share of .05 by more than half a point in a third of all plans of 2,000 rows, and
    would vary from update to update; equal distances would fall into step with the batch.

    Args:
      shares: per stream its share of the rows, above 0.
      num_rows: number of rows.
      seed: of everything.
    """
    ends = np.cumsum(shares) / np.sum(shares)
    start = _generator(seed, "streams").random()
    blocks = []
    for block in range(-(-num_rows // ROWS_PER_BLOCK)):
        order = _generator(seed, "streams", block).permutation(ROWS_PER_BLOCK)
        points = (order + (start + block * _GOLDEN) % 1) / ROWS_PER_BLOCK
        blocks.append(np.searchsorted(ends[:-1], points, side="right"))
    return np.concatenate(blocks)[:num_rows]


def random_subset(size: int, maximum: int | None, seed: int, name: str) -> np.ndarray:
    """At most `maximum` of `range(size)`, sorted int32; that of a smaller maximum is part of it."""
    if maximum is None or size <= maximum:
        return np.arange(size, dtype=np.int32)
    chosen = _generator(seed, "subset", name).permutation(size)[:maximum]
    return np.sort(chosen).astype(np.int32)


class _EpochOrder:
    """The examples of one task, reshuffled in every epoch."""

    def __init__(self, name: str, pool: np.ndarray, seed: int):
        self._name, self._pool, self._seed = name, pool, seed
        self._epoch = 0
        self._rest = pool[:0]

    def take(self, number: int) -> np.ndarray:
        """The next `number` examples of the order."""
        while len(self._rest) < number:
            generator = _generator(self._seed, "order", self._name, self._epoch)
            self._rest = np.concatenate([self._rest, generator.permutation(self._pool)])
            self._epoch += 1
        taken, self._rest = self._rest[:number], self._rest[number:]
        return taken


def _generator(seed: int, *purpose: str | int) -> np.random.Generator:
    digest = hashlib.sha256(json.dumps([seed, *purpose]).encode()).digest()
    return np.random.Generator(np.random.PCG64(np.frombuffer(digest, "<u4")))
