"""The strings that cached records have besides their tokens: which example, which prompt.

Tokens are read through `data/store.py`; the strings are only in the TFRecord files beside them,
whose format `data/cache_writer.py` tells. Parsed without a TensorFlow device: it would take a GPU.
"""

import array
import contextlib
import functools
import os
import pathlib
import struct
from collections.abc import Iterator
from typing import BinaryIO

from google.protobuf.message import DecodeError
from tensorflow.train import Example as Record

from optiml_jax.data.example import seqio_name
from optiml_jax.data.store import RECORDS_PER_FILE, CachedTask, num_shards, shard_name
from optiml_jax.errors import UserError
from optiml_jax.paths import local_copy, path_of


class RecordIds:
    """Finds records of cached tasks by their places, in bounded memory."""

    def __init__(self, cache_dir: str | os.PathLike):
        self._cache_dir = cache_dir
        # 40 kB each: where the records of one file begin.
        self._starts = functools.lru_cache(maxsize=4096)(_record_starts)

    def get(self, task: CachedTask, split: str, index: int) -> tuple[str, str]:
        """`example_id` and `prompt_id` of one record."""
        file, place = divmod(index, RECORDS_PER_FILE)
        path = _shards(self._cache_dir, task, split)[file]
        with _damage(path), local_copy(path).open("rb") as f:
            f.seek(self._starts(path)[place])
            return _parse(*_record(f))


def distinct_ids(
    cache_dir: str | os.PathLike, task: CachedTask, split: str
) -> tuple[set[str], set[str]]:
    """The different example ids and prompt ids of a cached split."""
    examples: set[str] = set()
    prompts: set[str] = set()
    for path in _shards(cache_dir, task, split):
        for example, prompt in _ids(path):
            examples.add(example)
            prompts.add(prompt)
    return examples, prompts


def _shards(cache_dir: str | os.PathLike, task: CachedTask, split: str) -> list[pathlib.Path]:
    folder = path_of(cache_dir) / seqio_name(task.name)
    total = num_shards(task.num_examples(split))
    return [folder / shard_name(split, "tfrecord", i, total) for i in range(total)]


def _ids(path: pathlib.Path) -> Iterator[tuple[str, str]]:
    with _damage(path), local_copy(path).open("rb") as f:
        while record := _record(f):
            yield _parse(*record)


def _record(f: BinaryIO) -> tuple[bytes] | None:
    """The next record of a TFRecord file."""
    header = f.read(12)  # the length, and its checksum
    if not header:
        return None
    (length,) = struct.unpack("<Q4x", header)
    record, _ = f.read(length), f.read(4)
    return (record,)


def _parse(record: bytes) -> tuple[str, str]:
    values = Record.FromString(record).features.feature
    example, prompt = (
        values[name].bytes_list.value[0].decode() for name in ("example_id", "prompt_id")
    )
    return example, prompt


def _record_starts(path: pathlib.Path) -> array.array:
    """Where the records of a file begin, in bytes."""
    path = local_copy(path)
    starts, at, size = array.array("I"), 0, path.stat().st_size
    with path.open("rb") as f:
        while at < size:
            starts.append(at)
            f.seek(at)
            (length,) = struct.unpack("<Q4x", f.read(12))
            at += 16 + length
    return starts


@contextlib.contextmanager
def _damage(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except (OSError, struct.error, DecodeError, IndexError, OverflowError, TypeError) as e:
        raise UserError(
            f"a file of the cache is missing or damaged: {path} ({e}); delete its folder and run "
            "`optiml prepare` again"
        ) from e
