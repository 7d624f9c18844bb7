"""Seeded random subsets of a task's examples, in bounded memory, before anything is tokenised.

A reader that can leave rows out unread is told which ones (`RowSample`); what comes out of a reader
is cut down to the cap (`keep_random`). Both depend on seed and task alone, not on workers.
"""

import dataclasses
import hashlib
import heapq
import random
from collections.abc import Iterable
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")


@dataclasses.dataclass
class RowSample:
    """Which rows of a split are read: `limit` random ones, those of a smaller limit among them.

    Attributes:
      key: seed and task, of the draws.
      limit: rows of each set of files.
      cut: whether some row was left out so far.
    """

    key: str
    limit: int
    cut: bool = False

    def positions(self, total: int) -> np.ndarray | None:
        """The sorted positions of the rows to read among `total`; None: all of them."""
        if total <= self.limit:
            return None
        self.cut = True
        digest = hashlib.sha256(self.key.encode()).digest()
        generator = np.random.default_rng(int.from_bytes(digest[:8], "big"))
        return np.sort(generator.permutation(np.int64(total))[: self.limit])


def keep_random(items: Iterable[T], limit: int, key: str) -> tuple[list[T], int]:
    """At most `limit` random items in their order, and how many there were.

    In memory are these alone. Items of a smaller limit are among those of a larger one.
    """
    draws = random.Random(key)
    kept: list[tuple[float, int, Any]] = []  # the smallest draws; the largest of them on top
    number = 0
    for number, item in enumerate(items, 1):
        entry = (-draws.random(), -number, item)
        if len(kept) < limit:
            heapq.heappush(kept, entry)
        elif entry[0] > kept[0][0]:
            heapq.heapreplace(kept, entry)
    return [item for _, _, item in sorted(kept, key=lambda entry: -entry[1])], number
