"""Draws by hashes: the same on every machine, in any order and by any number of workers.

Python's own hash() and a global random state are not. Keys are texts that name the draw, e.g.
"1234/shots/<task>/<prompt>/<example>" with NUL in the place of the slash.
"""

import hashlib
from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def draw(key: str) -> int:
    """A number in [0, 2**64)."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")


def choice(values: Sequence[T], key: str) -> T:
    """One of the values."""
    return values[draw(key) % len(values)]


def shuffled(values: Sequence[T], key: str) -> Iterator[T]:
    """A permutation of the values, one step of Fisher-Yates per item asked for."""
    moved: dict[int, int] = {}
    for i in range(len(values)):
        j = i + draw(f"{key}\0{i}") % (len(values) - i)
        moved[i], moved[j] = moved.get(j, j), moved.get(i, i)
        yield values[moved[i]]
