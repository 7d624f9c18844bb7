"""Reading the cache of prepared tasks: counts, lengths and token ids by random access.

The layout of the cache is defined here and written by `cache_writer.py` and `prepare.py`; no
TensorFlow and no SeqIO, so that training runs without them. Which examples are read, and in what
order, is the plan's business (`plan.py`).

    <cache_dir>/<seqio_name(task)>/
      optiml.json                                 what the folder holds (`CachedTask.info`)
      <split>.lengths.npy                         int32[n, 2]: source, target with its </s>
      <split>.array_record-00000-of-0000N         token ids, source + target, one example a record
      <split>.tfrecord-00000-of-0000N             the same examples for SeqIO, beside
      info.<split>.json, stats.<split>.json       SeqIO's descriptions of them
      COMPLETED                                   written last
"""

import collections
import contextlib
import os
import pathlib
import resource
import threading
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from array_record.python import array_record_module

from optiml_jax.data.example import seqio_name
from optiml_jax.errors import UserError
from optiml_jax.files import opened_seal, read_json, regular_file
from optiml_jax.paths import local_copy, path_of

FORMAT_VERSION = 3  # of the files and of what they hold; another one is prepared again
RECORDS_PER_FILE = 10_000  # a read costs about 2 us per 1,000 records of its file
INFO_FILE = "optiml.json"
COMPLETED_FILE = "COMPLETED"  # SeqIO's own marker

_WANTED_OPEN_FILES = 8192
_NPY_HEADER = 10  # bytes of a .npy file before its description, whose length is the last two
_PREPARE = "run `optiml prepare` (again)"


def shard_name(split: str, kind: str, index: int, num_shards: int) -> str:
    """The file name of one shard; `kind` is "array_record" or "tfrecord"."""
    return f"{split}.{kind}-{index:05d}-of-{num_shards:05d}"


def num_shards(num_examples: int) -> int:
    """How many files hold `num_examples`; an empty split still has one."""
    return max(1, -(-num_examples // RECORDS_PER_FILE))


def lengths_name(split: str) -> str:
    return f"{split}.lengths.npy"


class Store:
    """The prepared tasks under one folder. Safe to use from several threads."""

    def __init__(self, cache_dir: str | os.PathLike):
        """Opens the cache; files are opened when they are first read.

        Raises:
          UserError: the folder does not exist.
        """
        self.cache_dir = path_of(cache_dir)
        if not self.cache_dir.is_dir():
            raise UserError(f"no cache of prepared tasks at {self.cache_dir}; run `optiml prepare`")
        self._readers = _Readers(_open_file_limit())
        self._tasks: dict[str, CachedTask] = {}

    def tasks(self) -> list[str]:
        """The names of all prepared tasks, sorted.

        Folders that hold nothing of a cached task are passed over.

        Raises:
          UserError: a folder looks like a cached task but is incomplete or was written by others.
        """
        marks = (INFO_FILE, COMPLETED_FILE)
        folders = (
            folder
            for folder in self.cache_dir.iterdir()
            if not folder.name.startswith(".") and any((folder / mark).exists() for mark in marks)
        )
        return sorted(_read_info(folder, folder.name)["task"] for folder in folders)

    def tasks_of(self, benchmark: str) -> list["CachedTask"]:
        """The whole cached tasks of a benchmark, sorted; what else is in the way is passed over."""
        found = []
        for folder in sorted(self.cache_dir.glob(f"{seqio_name(benchmark)}.*")):
            with contextlib.suppress(UserError):
                found.append(self.task(_read_info(folder, folder.name)["task"]))
        return found

    def task(self, name: str) -> "CachedTask":
        """The cached task of that name.

        Raises:
          UserError: it is not in the cache, incomplete, or not written by `optiml prepare`.
        """
        if name not in self._tasks:
            folder = self.cache_dir / seqio_name(name)
            if not folder.is_dir():
                raise UserError(f"task {name!r} is not in the cache {self.cache_dir}; {_PREPARE}")
            info = _read_info(folder, name)
            if info["task"] != name:
                raise UserError(
                    f"{folder} holds task {info['task']!r}, not {name!r}; rename one of the two"
                )
            self._tasks[name] = CachedTask(folder, info, self._readers)
        return self._tasks[name]


class CachedTask:
    """One prepared task.

    Attributes:
      name: `<benchmark>/<upstream id>`.
      info: the contents of optiml.json: `task`, `benchmark`, `category`, `splits` (split ->
        {"examples", "source_tokens", "target_tokens", "drops"}), `dtype`, `vocabulary` ({"spec",
        "fingerprint", "padded_size"}), `sequence_length`, `prompts` (PromptConfig), `reader` (how
        the task was read), `fingerprint` (of everything that decides what the cache holds),
        `checksums` (file -> size and CRC-32).
    """

    def __init__(self, folder: pathlib.Path, info: dict[str, Any], readers: "_Readers"):
        self.info = info
        self.name: str = info["task"]
        self._folder = folder
        self._readers = readers
        self._dtype = np.dtype(info["dtype"])
        self._lengths: dict[str, np.ndarray] = {}

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that all tasks of a cache share, by their names in gin."""
        prompts = self.info.get("prompts", {})
        return {f"PromptConfig.{name}": value for name, value in prompts.items()} | {
            "PlanConfig.sequence_length": self.info.get("sequence_length")
        }

    def num_examples(self, split: str) -> int:
        """The number of examples of a split; a UserError if the task has no such split."""
        try:
            return self.info["splits"][split]["examples"]
        except KeyError:
            raise UserError(
                f"task {self.name!r} has no split {split!r} in the cache; "
                f"it has {', '.join(self.info['splits'])}"
            ) from None

    def lengths(self, split: str) -> np.ndarray:
        """Token counts, int32[n, 2]: source, and target including its final </s>. Read-only."""
        if split not in self._lengths:
            self._lengths[split] = self._load_lengths(split)
        return self._lengths[split]

    def read(self, split: str, indices: Sequence[int]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Reads examples in the order of `indices` (repeats are allowed).

        Returns:
          One (source, target) pair per index: 1-D arrays of the stored id type (uint16 or uint32),
          read-only; the target ends with </s>, the source has nothing in front.

        Raises:
          IndexError: an index is outside of [0, n).
          UserError: a file of the cache is missing or damaged.
        """
        lengths = self.lengths(split)
        by_file: dict[int, list[int]] = {}  # file -> positions in `indices`
        for position, index in enumerate(indices):
            if not 0 <= index < len(lengths):
                raise IndexError(f"example {index} of {self.name!r} {split}: 0..{len(lengths) - 1}")
            by_file.setdefault(int(index) // RECORDS_PER_FILE, []).append(position)
        examples: list[Any] = [None] * len(indices)
        for file, positions in by_file.items():
            records = self._records(
                split, file, [int(indices[p]) % RECORDS_PER_FILE for p in positions]
            )
            for position, record in zip(positions, records, strict=True):
                source, target = lengths[indices[position]].tolist()
                if len(record) != (source + target) * self._dtype.itemsize:
                    raise self._damaged(split, file, "lengths and records do not agree")
                ids = np.frombuffer(record, self._dtype)
                examples[position] = (ids[:source], ids[source:])
        return examples

    def _load_lengths(self, split: str) -> np.ndarray:
        num_examples = self.num_examples(split)
        path = self._folder / lengths_name(split)
        if num_examples == 0:
            return np.zeros((0, 2), np.int32)
        try:
            # Not mapped: Python keeps a descriptor for every mapping. 8 bytes an example.
            content = regular_file(path).read_bytes()
        except OSError as e:
            raise UserError(f"task {self.name!r}: cannot read {path} ({e}); {_PREPARE}") from e
        if [len(content), zlib.crc32(content)] != self.info["checksums"][path.name]:
            raise UserError(f"task {self.name!r}: {path} is damaged; {_PREPARE}")
        # Not np.load: it parses the header with `ast`, which until Python 3.11.8 fails now and then
        # in two threads at once (CPython issue 106905). The content is known, but for its length.
        header_end = _NPY_HEADER + int.from_bytes(content[_NPY_HEADER - 2 : _NPY_HEADER], "little")
        if len(content) != header_end + num_examples * 2 * np.dtype(np.int32).itemsize:
            raise UserError(f"task {self.name!r}: {path} is damaged; {_PREPARE}")
        return np.frombuffer(content, "<i4", offset=header_end).reshape(num_examples, 2)

    def _records(self, split: str, file: int, positions: list[int]) -> list[bytes]:
        num_examples = self.num_examples(split)
        path = self._folder / shard_name(split, "array_record", file, num_shards(num_examples))
        expected = min(RECORDS_PER_FILE, num_examples - file * RECORDS_PER_FILE)
        try:
            size = self.info["checksums"][path.name][0]
            # What the records hold, the library verifies as it reads them.
            reader = self._readers.get(path, expected, size)
            # One by one: for several at once the library starts threads, which costs more CPU than
            # the reading.
            return [reader.read([position])[0] for position in positions]
        except (OSError, RuntimeError, ValueError) as e:
            raise self._damaged(split, file, str(e)) from e

    def _damaged(self, split: str, file: int, why: str) -> UserError:
        return UserError(
            f"task {self.name!r}: file {file} of split {split} in {self._folder} is missing or "
            f"damaged ({why}); {_PREPARE}"
        )


class _Readers:
    """ArrayRecord readers by path, the least recently used closed beyond `limit`."""

    def __init__(self, limit: int):
        self._limit = limit
        self._lock = threading.Lock()
        self._open: collections.OrderedDict[str, Any] = collections.OrderedDict()

    def get(self, file: pathlib.Path, num_records: int, size: int) -> Any:
        """A reader of `file`; ValueError if it does not hold `num_records` in `size` bytes.

        The reader of a file that is missing or cut short opens all the same and has 0 records.
        """
        path = str(file)
        with self._lock:
            if (reader := self._open.get(path)) is not None:
                self._open.move_to_end(path)
                return reader
            local = str(local_copy(file))
            if (found := os.path.getsize(local)) != size:
                raise ValueError(f"{found} bytes instead of {size}")
            reader = array_record_module.ArrayRecordReader(local, "readahead_buffer_size:0")
            if reader.num_records() != num_records:
                raise ValueError(f"{reader.num_records()} records instead of {num_records}")
            self._open[path] = reader
            if len(self._open) > self._limit:
                # Dropped, not closed: another thread may be reading; the last reference closes.
                self._open.popitem(last=False)
            return reader


def _open_file_limit() -> int:
    """The number of files a store keeps open: a quarter of the raised process limit.

    A run has two stores, of its plan and of its validation plan.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < _WANTED_OPEN_FILES:
        wanted = _WANTED_OPEN_FILES
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return _WANTED_OPEN_FILES // 4 if soft == resource.RLIM_INFINITY else max(8, soft // 4)


def _read_info(folder: pathlib.Path, task: str) -> dict[str, Any]:
    """optiml.json of a complete folder, else a UserError that names `task`."""
    if not (folder / COMPLETED_FILE).exists():
        raise UserError(f"the cache of task {task!r} in {folder} is incomplete; {_PREPARE}")
    if not (folder / INFO_FILE).exists():
        raise UserError(
            f"task {task!r}: {folder} was not written by `optiml prepare` (no {INFO_FILE}); "
            "delete it or choose another cache folder"
        )
    what = f"the description of cached task {task!r}"
    try:
        info = read_json(folder / INFO_FILE, what, dict)
    except UserError as e:
        raise UserError(f"{e}; {_PREPARE}") from e
    if info.get("format_version") != FORMAT_VERSION:
        raise UserError(f"task {task!r}: {folder} has another cache format; {_PREPARE}")
    return opened_seal(info, folder / INFO_FILE, what, _PREPARE)
