"""Checksums of a checkpoint's files, and how the processes share the reading."""

import functools
import pathlib
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax

from optiml_jax.paths import is_bucket, path_of


def share(names: list[str], sizes: Mapping[str, int]) -> list[str]:
    """This process's share of the files, balanced by bytes."""
    loads = [[0, process] for process in range(jax.process_count())]
    own = []
    for name in sorted(names, key=lambda n: (-sizes[n], n)):
        load = min(loads)
        load[0] += sizes[name]
        if load[1] == jax.process_index():
            own.append(name)
    return own


def checksums_of(folder: pathlib.Path, names: list[str]) -> dict[str, int]:
    """CRC-32 by file name; an unchanged file is not read again."""
    with ThreadPoolExecutor() as pool:
        values = pool.map(lambda name: _checksum(*_stat(folder / name)), names)
        return dict(zip(names, values, strict=True))


def _stat(path: pathlib.Path) -> tuple[str, Any, int, Any]:
    stat = path.stat()
    if is_bucket(path):
        return str(path), None, stat.st_size, stat.version
    return str(path), stat.st_ino, stat.st_size, stat.st_mtime_ns


@functools.lru_cache(maxsize=100_000)
def _checksum(path: str, inode: Any, size: int, version: Any) -> int:
    """CRC-32 of a file; the other arguments only make the cache notice a changed file."""
    return _read_checksum(path)


def _read_checksum(path: str) -> int:
    checksum = 0
    with path_of(path).open("rb") as f:
        while block := f.read(1 << 22):
            checksum = zlib.crc32(block, checksum)
    return checksum
