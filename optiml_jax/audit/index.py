"""The index of the evaluation examples: a sorted table of n-gram hashes on disk, and their texts.

A folder with files that every scanning process maps into its memory:

    hashes.bin    uint64[G], ascending: one for each (n-gram, evaluation example)
    examples.bin  uint32[G]: the example
    places.bin    uint32[G]: where the n-gram begins in the example's normal form, in bytes; the
                  highest bit says that it is content, not prompt text that examples share
    filter.bin    a bit for each possible beginning of a hash
    texts.bin     the examples' normal forms, one a line, with starts.bin uint64[N + 1]
    examples.parquet, index.json

The content of an example that is shorter than an n-gram is in the table as a whole.
"""

import contextlib
import dataclasses
import mmap
import os
import pathlib
import shutil
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from optiml_jax.audit.prompt_words import PromptWords
from optiml_jax.audit.tables import MEND
from optiml_jax.audit.texts import Batch, batches
from optiml_jax.audit.words import AuditWords
from optiml_jax.data.example import Example
from optiml_jax.errors import UserError
from optiml_jax.files import checksum, damage, disk_errors, read_sealed, write_sealed

FORMAT = 2  # raise it when the same texts give another index
_DESCRIPTION = "index.json"
CONTENT = np.uint32(1 << 31)
_PLACE = np.uint32((1 << 31) - 1)
_BUCKETS = 64  # the table is sorted in so many parts, one in memory at a time
_ROW = np.dtype([("hash", "<u8"), ("example", "<u4"), ("place", "<u4")])
_SCHEMA = pa.schema(
    [
        ("task", pa.string()),
        ("example_id", pa.string()),
        ("prompt_id", pa.string()),
        ("source_dataset", pa.string()),
        ("words", pa.int32()),
        ("content_words", pa.int32()),
        ("instruction", pa.string()),
        ("input", pa.string()),
        ("target", pa.string()),
    ]
)


class IndexWriter:
    """Writes an index, task after task; `close` sorts the table.

    Args:
      folder: replaced.
      rules: what counts as the same text.
      hash_bits: fewer than 64 make collisions, to see that they do no harm.
    """

    def __init__(self, folder: str | os.PathLike, rules: AuditWords, hash_bits: int = 64):
        self._folder, self._rules = pathlib.Path(folder), rules
        self._mask = np.uint64((1 << 64) - (1 << (64 - hash_bits)))
        self._hash_bits = hash_bits
        self._tasks: dict[str, list[int]] = {}
        self._count = self._rows = self._bytes = 0
        self._stack = contextlib.ExitStack()
        shutil.rmtree(self._folder, ignore_errors=True)
        with disk_errors(self._folder, "the index of the audit"):
            self._folder.mkdir(parents=True)
            self._buckets = [self._open(f"bucket{i:02}.tmp") for i in range(_BUCKETS)]
            self._texts, self._starts = self._open("texts.bin"), self._open("starts.bin")
            self._table = self._stack.enter_context(
                pq.ParquetWriter(self._folder / "examples.parquet", _SCHEMA, compression="zstd")
            )

    def _open(self, name: str) -> Any:
        return self._stack.enter_context(open(self._folder / name, "wb"))

    def add(self, task: str, examples: Iterable[Example]) -> int:
        """Adds the examples of one task; returns how many there were."""
        first = self._count
        grams, wholes, prompts = [], [], []
        words = PromptWords(self._rules.n)
        numbers: dict[str, int] = {}
        with disk_errors(self._folder, "the index of the audit"):
            for batch in batches(examples, self._rules):
                grams.append(self._grams(batch, words, len(prompts)))
                wholes.append(self._wholes(batch, len(prompts)))
                prompts += [numbers.setdefault(e.prompt_id, len(numbers)) for e in batch.examples]
                self._write_examples(batch)
            if grams:
                rows = np.concatenate(grams)
                rows["place"][words.of_prompts(np.array(prompts, np.int64))] &= _PLACE
                self._write_rows(_once(np.concatenate([rows, *wholes])), first)
        self._tasks[task] = [first, self._count - first]
        return self._count - first

    def _grams(self, batch: Batch, prompt_words: PromptWords, before: int) -> np.ndarray:
        """The rows of a batch's n-grams, their examples numbered within the task."""
        words = batch.words
        begins, hashes = words.ngrams(self._rules.n)
        prompt_words.add(words, begins, before)
        owners = words.text_of(begins)
        rows = np.zeros(len(begins), _ROW)
        rows["hash"], rows["example"] = hashes, owners + before
        mark = np.where(begins >= batch.content[owners], CONTENT, 0).astype(np.uint32)
        rows["place"] = words.places()[begins].astype(np.uint32) | mark
        return rows

    def _wholes(self, batch: Batch, before: int) -> np.ndarray:
        """The rows of short contents."""
        short = batch.short(self._rules.n)
        rows = np.zeros(len(short), _ROW)
        rows["hash"], rows["example"] = batch.whole(short), short + before
        place = batch.words.places()[batch.content[short]]
        rows["place"] = place.astype(np.uint32) | CONTENT
        return rows

    def _write_examples(self, batch: Batch) -> None:
        words = batch.words
        columns: dict[str, list] = {field.name: [] for field in _SCHEMA}
        starts = np.zeros(len(batch.examples), np.uint64)
        for i, example in enumerate(batch.examples):
            text = words.text(words.first[i], words.first[i + 1]) + b"\n"
            starts[i] = self._bytes
            self._bytes += len(text)
            self._texts.write(text)
            for name in columns.keys() - {"words", "content_words"}:
                columns[name].append(getattr(example, name))
        columns["words"] = list(np.diff(words.first))
        columns["content_words"] = list(words.first[1:] - batch.content)
        self._starts.write(starts.tobytes())
        self._table.write_batch(pa.record_batch(columns, schema=_SCHEMA))
        self._count += len(batch.examples)

    def _write_rows(self, rows: np.ndarray, first: int) -> None:
        rows["hash"] &= self._mask
        rows["example"] += np.uint32(first)
        bucket = (rows["hash"] >> np.uint64(58)).astype(np.int64)
        order = np.argsort(bucket, kind="stable")
        ends = np.searchsorted(bucket[order], np.arange(_BUCKETS), side="right")
        for i, part in enumerate(np.split(rows[order], ends[:-1])):
            self._buckets[i].write(part.tobytes())
        self._rows += len(rows)

    def close(self, about: Mapping[str, Any]) -> None:
        """Sorts the table and writes index.json with `about` in it, last."""
        with disk_errors(self._folder, "the index of the audit"):
            self._starts.write(np.uint64(self._bytes).tobytes())
            self._stack.close()
            bits = min(30, max(16, int(16 * self._rows).bit_length()))
            with contextlib.ExitStack() as stack:
                files = {
                    name: stack.enter_context(open(self._folder / f"{name}.bin", "wb"))
                    for name in ("hashes", "examples", "places")
                }
                table = np.zeros(1 << (bits - 3), np.uint8)
                for i in range(_BUCKETS):
                    path = self._folder / f"bucket{i:02}.tmp"
                    rows = np.fromfile(path, _ROW)
                    rows = rows[np.lexsort((rows["place"] & _PLACE, rows["example"], rows["hash"]))]
                    files["hashes"].write(rows["hash"].tobytes())
                    files["examples"].write(rows["example"].tobytes())
                    files["places"].write(rows["place"].tobytes())
                    slots = rows["hash"] >> np.uint64(64 - bits)
                    np.bitwise_or.at(
                        table,
                        slots >> np.uint64(3),
                        np.uint8(1) << (slots & np.uint64(7)).astype(np.uint8),
                    )
                    path.unlink()
            table.tofile(self._folder / "filter.bin")
            meta = {
                "rules": dataclasses.asdict(self._rules),
                "hash_bits": self._hash_bits,
                "filter_bits": bits,
                "examples": self._count,
                "rows": self._rows,
                "tasks": self._tasks,
            }
            names = sorted(p.name for p in self._folder.iterdir() if p.name != _DESCRIPTION)
            meta["files"] = {name: checksum(self._folder / name) for name in names}
            write_sealed(self._folder / _DESCRIPTION, meta | dict(about))


def _once(rows: np.ndarray) -> np.ndarray:
    """One row for each (n-gram, example), the first in the example."""
    rows = rows[np.lexsort((rows["place"] & _PLACE, rows["example"], rows["hash"]))]
    new = np.ones(len(rows), bool)
    new[1:] = (rows["hash"][1:] != rows["hash"][:-1]) | (
        rows["example"][1:] != rows["example"][:-1]
    )
    return rows[new]


class Index:
    """An index that was written, mapped into memory; see the top of this file."""

    def __init__(self, folder: str | os.PathLike):
        self.folder = pathlib.Path(folder)
        self.meta = read_sealed(self.folder / _DESCRIPTION, "the index of an audit", MEND)
        self.rules = AuditWords(**self.meta["rules"])
        self.tasks: dict[str, tuple[int, int]] = {
            t: tuple(v) for t, v in self.meta["tasks"].items()
        }
        self._hashes = self._map("hashes", np.uint64)
        self._examples = self._map("examples", np.uint32)
        self._places = self._map("places", np.uint32)
        self._filter = self._map("filter", np.uint8)
        self._content = self._mapped("texts")
        self._starts = self._map("starts", np.uint64)
        self._mask = np.uint64((1 << 64) - (1 << (64 - self.meta["hash_bits"])))
        self._shift = np.uint64(64 - self.meta["filter_bits"])
        self._first_of_task = np.array([first for first, _ in self.tasks.values()], np.int64)

    def _map(self, name: str, dtype: type) -> np.ndarray:
        # As a plain array: slices of a memmap are slow to make.
        try:
            return np.frombuffer(self._mapped(name), dtype)
        except ValueError as e:  # a part of a number
            raise UserError(f"{self.folder / name}.bin is damaged; {MEND}") from e

    def _mapped(self, name: str) -> mmap.mmap | bytes:
        path = self.folder / f"{name}.bin"
        try:
            if not path.stat().st_size:  # a pipe too, which would be waited for: `verify` names it
                return b""
            with path.open("rb") as file:
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as e:
            raise UserError(f"{path} is missing or damaged; {MEND}") from e

    def verify(self) -> None:
        """UserError unless all files are as they were written; reads each once."""
        if problem := damage(self.folder, self.meta["files"]):
            what = f"the index of an audit in {self.folder}"
            raise UserError(f"{what} is damaged ({problem}); {MEND}")

    def find(self, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which hashes are in the table.

        Args:
          hashes: uint64[M].

        Returns:
          int64[K], positions in `hashes`; int64[K], the first row of each in the table.
        """
        hashes = hashes & self._mask
        slots = hashes >> self._shift
        bits = self._filter[slots >> np.uint64(3)] >> (slots & np.uint64(7)).astype(np.uint8)
        possible = np.flatnonzero(bits & np.uint8(1))
        wanted = hashes[possible]
        rows = np.searchsorted(self._hashes, wanted)
        inside = rows < len(self._hashes)
        possible, wanted, rows = possible[inside], wanted[inside], rows[inside]
        same = self._hashes[rows] == wanted
        return possible[same], rows[same]

    def owners(
        self, rows: np.ndarray, texts: Sequence[bytes], whole: bool
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The examples that have certain n-grams, compared by words and not by hashes.

        Args:
          rows: int64[M], the first row of each n-gram's hash in the table.
          texts: their normal forms.
          whole: they are whole contents of short examples.

        Returns:
          int64[R], the n-gram (of the M); int64[R], an example that has it; bool[R], whether it is
          content there.
        """
        counts = np.searchsorted(self._hashes, self._hashes[rows], side="right") - rows
        grams = np.repeat(np.arange(len(rows)), counts)
        table = np.arange(len(grams)) + np.repeat(rows - np.cumsum(counts) + counts, counts)
        examples, places = self._examples[table].astype(np.int64), self._places[table]
        begins = self._starts[examples].astype(np.int64) + (places & _PLACE)
        ends = b"\n" if whole else b"\n "
        content = self._content

        def is_at(gram: int, begin: int) -> bool:
            end = begin + len(texts[gram])
            return content[begin:end] == texts[gram] and content[end : end + 1] in ends

        pairs = zip(grams.tolist(), begins.tolist(), strict=True)
        same = np.fromiter((is_at(*pair) for pair in pairs), bool, len(grams))
        return grams[same], examples[same], (places[same] & CONTENT) != 0

    def tasks_of(self, examples: np.ndarray) -> np.ndarray:
        """int64[N]: the tasks of some examples, as positions in `tasks`."""
        return np.searchsorted(self._first_of_task, examples, side="right") - 1

    def examples(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The examples themselves, or some columns of them."""
        return pq.read_table(self.folder / "examples.parquet", columns=columns)
