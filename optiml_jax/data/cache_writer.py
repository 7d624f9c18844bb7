"""Writing one cached task: token-id files, SeqIO's TFRecord files, and the folder as a whole.

The layout is described in `store.py`. No TensorFlow here; what the records hold, and which tasks
are written, is decided in `prepare.py`.
"""

import array
import concurrent.futures
import contextlib
import os
import pathlib
import shutil
import struct
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import google_crc32c
import numpy as np
from array_record.python import array_record_module

from optiml_jax.data.example import seqio_name
from optiml_jax.data.store import (
    COMPLETED_FILE,
    INFO_FILE,
    RECORDS_PER_FILE,
    lengths_name,
    num_shards,
    shard_name,
)
from optiml_jax.files import OF_THE_MACHINE, checksum, disk_errors, write_sealed
from optiml_jax.paths import is_bucket, path_of, remove_folder, upload_folder

_PARTIAL = ".partial"


class SplitWriter:
    """Writes the token ids of one split and its length table into a task's folder."""

    def __init__(self, folder: pathlib.Path, split: str, dtype: np.dtype):
        """Args: `dtype` is uint16 or uint32, the type in which ids are stored."""
        self._folder, self._split, self._dtype = folder, split, np.dtype(dtype)
        self._lengths = array.array("i")
        self._writer: Any = None

    @property
    def num_examples(self) -> int:
        return len(self._lengths) // 2

    def add(self, source: Sequence[int], target: Sequence[int]) -> None:
        """Appends one example: ids without anything in front, the target with its </s>."""
        if self.num_examples % RECORDS_PER_FILE == 0:
            self._open_next()
        ids = np.fromiter((*source, *target), self._dtype, len(source) + len(target))
        with _array_record_errors():
            self._writer.write(ids.tobytes())
        self._lengths.extend((len(source), len(target)))

    def close(self) -> np.ndarray:
        """Finishes the files; returns the length table, int32[n, 2]."""
        if self._writer is None:
            self._open_next()  # an empty split has one empty file
        with _array_record_errors():
            self._writer.close()
        name_shards(self._folder, self._split, "array_record", self.num_examples)
        lengths = np.array(self._lengths, np.int32).reshape(-1, 2)
        np.save(self._folder / lengths_name(self._split), lengths)
        return lengths

    def _open_next(self) -> None:
        if self._writer is not None:
            with _array_record_errors():
                self._writer.close()
        path = open_shard(self._folder, self._split, "array_record", self.num_examples)
        # Uncompressed: ids hardly compress one example at a time, and reading is what must be fast.
        self._writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1,uncompressed")


class TFRecordSplitWriter:
    """Writes serialised records of one split as TFRecord files, without TensorFlow.

    A record is: length uint64, its masked CRC32C, the bytes, their masked CRC32C (little-endian;
    tensorflow/core/lib/io/record_writer.h). Plain files give plain errors when the disk is full.
    """

    def __init__(self, folder: pathlib.Path, split: str):
        self._folder, self._split = folder, split
        self._num_examples = 0
        self._file: BinaryIO | None = None

    def add(self, record: bytes) -> None:
        if self._num_examples % RECORDS_PER_FILE == 0:
            self._open_next()
        length = struct.pack("<Q", len(record))
        self._file.write(length + _masked_crc(length) + record + _masked_crc(record))
        self._num_examples += 1

    def close(self) -> None:
        if self._file is None:
            self._open_next()
        self._file.close()
        name_shards(self._folder, self._split, "tfrecord", self._num_examples)

    def _open_next(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = open_shard(self._folder, self._split, "tfrecord", self._num_examples).open(
            "wb"
        )


def open_shard(folder: pathlib.Path, split: str, kind: str, first: int) -> pathlib.Path:
    """Where the shard from example `first` on is written until the number of shards is known."""
    return folder / f"{split}.{kind}-{first // RECORDS_PER_FILE:05d}{_PARTIAL}"


def name_shards(folder: pathlib.Path, split: str, kind: str, num_examples: int) -> None:
    """Gives the shards of a finished split their final names."""
    total = num_shards(num_examples)
    for shard in range(total):
        written = open_shard(folder, split, kind, shard * RECORDS_PER_FILE)
        written.rename(folder / shard_name(split, kind, shard, total))


@contextlib.contextmanager
def task_folder(cache_dir: str | os.PathLike, task: str) -> Iterator[pathlib.Path]:
    """Yields a new temporary folder that replaces the task's folder when the block succeeds.

    The block writes every file (`SplitWriter`, `write_info`) but COMPLETED. A process killed at any
    moment leaves the old folder, the whole new one, or none, beside hidden temporaries that
    `remove_temporaries` clears away. In a bucket COMPLETED is written last, and removed first.

    Raises:
      UserError: the disk is full or the folder cannot be written.
    """
    cache_dir = path_of(cache_dir)
    folder = cache_dir / seqio_name(task)
    if is_bucket(folder):
        with tempfile.TemporaryDirectory() as name:
            yield pathlib.Path(name)
            remove_task(cache_dir, task)
            upload_folder(pathlib.Path(name), folder)
            (folder / COMPLETED_FILE).touch()
        return
    new, old = _temporary(folder, "new"), _temporary(folder, "old")
    with disk_errors(cache_dir, f"the cache of task {task}"):
        try:
            new.mkdir(parents=True)
            yield new
            (new / COMPLETED_FILE).touch()
            _sync(new)
            if folder.exists():  # a folder that is not empty cannot be renamed onto
                folder.rename(old)
            new.rename(folder)
            _sync_one(cache_dir)
        finally:
            for leftover in (new, old):
                shutil.rmtree(leftover, ignore_errors=True)


def write_info(folder: pathlib.Path, info: dict[str, Any]) -> None:
    """Writes optiml.json; its keys are described at `store.CachedTask`.

    The checksums of the files beside it are added, unless they are there: those of an earlier
    writing, which alone tell whether the files have changed since.
    """
    if "checksums" not in info:
        names = sorted(path.name for path in folder.iterdir() if path.name != INFO_FILE)
        info = info | {"checksums": {name: checksum(folder / name) for name in names}}
    write_sealed(folder / INFO_FILE, info)


def remove_task(cache_dir: str | os.PathLike, task: str) -> None:
    """Deletes a cached task, if there is one; it is never seen half deleted."""
    folder = path_of(cache_dir) / seqio_name(task)
    if is_bucket(folder):
        (folder / COMPLETED_FILE).unlink(missing_ok=True)
        remove_folder(folder)
    elif folder.exists():
        old = _temporary(folder, "old")
        folder.rename(old)
        shutil.rmtree(old)


def remove_temporaries(cache_dir: str | os.PathLike) -> int:
    """Deletes what killed runs left behind; returns how many. No other run may be writing."""
    leftovers = list(path_of(cache_dir).glob(f".*{_PARTIAL}"))
    for leftover in leftovers:
        remove_folder(leftover)
    return len(leftovers)


def _temporary(folder: pathlib.Path, role: str) -> pathlib.Path:
    return folder.with_name(f".{folder.name}.{os.getpid()}.{role}{_PARTIAL}")


def _sync(folder: pathlib.Path) -> None:
    """Puts a folder's files on the disk before its name says that they are there.

    All at once: the file system then commits them together, some eight times as fast as in turn.
    """
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        list(pool.map(_sync_one, folder.iterdir()))
    _sync_one(folder)


def _sync_one(path: pathlib.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _array_record_errors() -> Iterator[None]:
    """ArrayRecord reports a full disk as a RuntimeError, and only when the file is closed."""
    try:
        yield
    except RuntimeError as e:
        for code in sorted(OF_THE_MACHINE):
            if os.strerror(code) in str(e):
                raise OSError(code, os.strerror(code)) from e
        raise


def _masked_crc(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
