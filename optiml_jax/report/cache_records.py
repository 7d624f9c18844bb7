"""The strings that cached records carry beside their tokens: which example, which prompt.

Tokens are read through `data/store.py`; the strings are only in the TFRecord files beside them,
whose format `data/cache_writer.py` tells. Parsed without a TensorFlow device: it would take a GPU.
"""

import itertools
import os
import pathlib
import struct
from collections.abc import Iterator

from google.protobuf.message import DecodeError
from tensorflow.train import Example as Record

from optiml_jax.data.example import seqio_name
from optiml_jax.data.store import RECORDS_PER_FILE, CachedTask, num_shards, shard_name
from optiml_jax.errors import UserError


def record_ids(
    cache_dir: str | os.PathLike, task: CachedTask, split: str, index: int
) -> tuple[str, str]:
    """`example_id` and `prompt_id` of one record of a cached task."""
    file, place = divmod(index, RECORDS_PER_FILE)
    path = _shards(cache_dir, task, split)[file]
    return next(itertools.islice(_ids(path), place, None))


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
    folder = pathlib.Path(cache_dir) / seqio_name(task.name)
    total = num_shards(task.num_examples(split))
    return [folder / shard_name(split, "tfrecord", i, total) for i in range(total)]


def _ids(path: pathlib.Path) -> Iterator[tuple[str, str]]:
    try:
        with path.open("rb") as f:
            while header := f.read(12):  # the length, and its checksum
                (length,) = struct.unpack("<Q4x", header)
                record, _ = f.read(length), f.read(4)
                values = Record.FromString(record).features.feature
                example, prompt = (
                    values[name].bytes_list.value[0].decode()
                    for name in ("example_id", "prompt_id")
                )
                yield example, prompt
    except (OSError, struct.error, DecodeError, IndexError) as e:
        raise UserError(
            f"a file of the cache is missing or damaged: {path} ({e}); delete its folder and run "
            "`optiml prepare` again"
        ) from e
