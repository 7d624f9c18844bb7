"""Scanning one training task: which evaluation examples have an n-gram in common with it.

The function that a worker runs, whatever starts it (a pool or Beam). What it finds becomes a file
in the audit's folder, whole or not at all.
"""

import dataclasses
import logging
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from optiml_jax.audit.index import Index
from optiml_jax.audit.prompt_words import shared_by_prompt
from optiml_jax.audit.tables import read_about, read_table, write_tables
from optiml_jax.audit.texts import Batch, batches, content_text
from optiml_jax.data.example import Drops, Example, TaskSource, seqio_name
from optiml_jax.data.pool import Stopped
from optiml_jax.errors import UserError, may_pass, reason_of
from optiml_jax.files import fingerprint

logger = logging.getLogger(__name__)

SCHEMA = pa.schema(
    [
        ("example", pa.uint32()),  # evaluation example, numbered through the index
        ("instantiated", pa.bool_()),  # an n-gram of the whole sequence
        ("content", pa.bool_()),  # an n-gram that is content on both sides
        ("short", pa.bool_()),  # its content is shorter than an n-gram and there as a whole
        ("ngrams", pa.uint32()),  # distinct n-grams
    ]
)
_MOST_WITNESSES = 3  # per evaluation task
_MOST_CHARACTERS = 20_000  # of a witness
_MOST_CANDIDATES = 16  # of which those are chosen, as not all turn out to be content


@dataclasses.dataclass(frozen=True)
class ScanOutcome:
    """The outcome of one training task.

    Attributes:
      task: its name.
      status: "scanned", "unchanged" (was there already) or "failed".
      examples: training examples read.
      error: why it failed.
      may_pass: a retry may succeed although nobody mends anything.
    """

    task: str
    status: str
    examples: int = 0
    error: str = ""
    may_pass: bool = False


class Scan:
    """The state of one scan: n-grams found so far, in how many examples of which prompt each is."""

    def __init__(self, index: Index):
        self._index = index
        self._tasks = list(index.tasks)
        self._texts: dict[int, bytes] = {}  # hash of an n-gram -> its normal form
        self._prompts: dict[str, int] = {}
        self._sizes = np.zeros(0, np.int64)  # examples of each prompt
        self._found: list[np.ndarray] = []  # uint64[R, 2]: hash and prompt, once for each example
        # (hash, evaluation example, content there, whole) of each n-gram that both sides have.
        self._owners: list[tuple[np.ndarray, ...]] = []
        self._candidates: dict[int, list[tuple[int, Example]]] = {}
        self.examples = 0

    def add(self, batch: Batch) -> None:
        """Looks up the n-grams of some training examples."""
        prompts = self._prompts
        numbers = [prompts.setdefault(e.prompt_id, len(prompts)) for e in batch.examples]
        numbers = np.array(numbers, np.int64)
        self._sizes = np.pad(self._sizes, (0, len(prompts) - len(self._sizes)))
        self._sizes += np.bincount(numbers, minlength=len(prompts))
        begins, hashes = batch.words.ngrams(self._index.rules.n)
        hits, rows = self._index.find(hashes)
        if len(hits):
            ends = begins[hits] + self._index.rules.n
            self._keep(batch, numbers, hashes[hits], rows, begins[hits], ends, False)
        short = batch.short(self._index.rules.n)
        if len(short):
            wholes = batch.whole(short)
            hits, rows = self._index.find(wholes)
            begins, ends = batch.content[short[hits]], batch.words.first[short[hits] + 1]
            self._keep(batch, numbers, wholes[hits], rows, begins, ends, True)
        self.examples += len(batch.examples)

    def _keep(
        self,
        batch: Batch,
        prompts: np.ndarray,
        hashes: np.ndarray,
        rows: np.ndarray,
        begins: np.ndarray,
        ends: np.ndarray,
        whole: bool,
    ) -> None:
        """Takes in n-grams of a batch whose hashes are in the index at `rows`."""
        sequences = batch.words.text_of(begins)
        order = np.lexsort((sequences, hashes))
        h, s = hashes[order], sequences[order]
        new = np.ones(len(h), bool)
        new[1:] = (h[1:] != h[:-1]) | (s[1:] != s[:-1])
        once = np.sort(order[new])
        self._found.append(
            np.stack([hashes[once], prompts[sequences[once]].astype(np.uint64)], axis=1)
        )
        _, firsts = np.unique(hashes, return_index=True)
        fresh = [i for i in np.sort(firsts).tolist() if int(hashes[i]) not in self._texts]
        if not fresh:
            return
        texts = [batch.words.text(begins[i], ends[i]) for i in fresh]
        self._texts.update(zip(map(int, hashes[fresh]), texts, strict=True))
        grams, owners, is_content = self._index.owners(rows[fresh], texts, whole)
        own = hashes[fresh][grams]
        self._owners.append((own, owners, is_content, np.full(len(own), whole)))
        tasks = self._index.tasks_of(owners)
        for task in np.unique(tasks[is_content]).tolist():
            kept = self._candidates.setdefault(task, [])
            for gram in np.unique(grams[is_content & (tasks == task)]).tolist():
                if len(kept) == _MOST_CANDIDATES:
                    break
                example = batch.examples[sequences[fresh[gram]]]
                if all(e is not example for _, e in kept):
                    kept.append((int(hashes[fresh[gram]]), example))

    def result(self) -> tuple[pa.Table, list[dict[str, Any]]]:
        """The evaluation examples that overlap (`SCHEMA`), ascending, and the witnesses."""
        total = self._index.meta["examples"]
        if not self._owners:
            return SCHEMA.empty_table(), []
        hashes, owners, is_content, whole = map(np.concatenate, zip(*self._owners, strict=True))
        is_content = is_content & ~np.isin(hashes, self._shared())
        counts = np.bincount(owners[~whole], minlength=total)
        content, short = np.zeros(total, bool), np.zeros(total, bool)
        content[owners[is_content & ~whole]] = True
        short[owners[whole]] = True
        ids = np.flatnonzero((counts > 0) | short)
        columns = (ids, counts[ids] > 0, content[ids], short[ids], counts[ids])
        table = pa.table(list(map(pa.array, columns)), names=SCHEMA.names).cast(SCHEMA)
        return table, list(self._witnesses(hashes[is_content], owners[is_content]))

    def _shared(self) -> np.ndarray:
        """The n-grams that most examples of one of this task's prompts have."""
        pairs = np.concatenate(self._found)
        prompts = pairs[:, 1].astype(np.int64)
        return pairs[shared_by_prompt(pairs[:, 0], prompts, self._sizes), 0]

    def _witnesses(self, hashes: np.ndarray, owners: np.ndarray) -> Iterator[dict[str, Any]]:
        """Pairs of examples to show, a few for each evaluation task that has any."""
        for task, candidates in sorted(self._candidates.items()):
            first, count = self._index.tasks[self._tasks[task]]
            shown = 0
            for key, example in candidates:
                own = owners[hashes == np.uint64(key)]
                own = own[(own >= first) & (own < first + count)]
                if len(own) and shown < _MOST_WITNESSES:
                    shown += 1
                    yield {
                        "eval_example": int(own.min()),
                        "ngram": self._texts[key].decode("utf-8", "replace"),
                        "train_example_id": example.example_id,
                        "train_prompt_id": example.prompt_id,
                        "train_text": content_text(example)[:_MOST_CHARACTERS],
                    }


def scan_file(folder: str | os.PathLike, task: str) -> pathlib.Path:
    """The file that describes the result of a training task; see `tables.py`."""
    return pathlib.Path(folder) / "scans" / f"{seqio_name(task)}.json"


def read_scan(path: pathlib.Path) -> tuple[pa.Table, dict[str, Any]]:
    """The overlapping evaluation examples, and what is known of the scan (see `scan_task`).

    Raises:
      UserError: they are not as they were written.
    """
    return read_table(path, path.stem), read_about(path)


def source_stamp(source: TaskSource) -> list[Any]:
    """Changes when the files of a task or its reader's settings do; JSON-able."""
    files = []
    for file in source.files:
        stat = os.stat(file) if os.path.exists(file) else None
        files.append([file, stat and stat.st_size, stat and stat.st_mtime_ns])
    return [source.name, files, repr(sorted(source.settings.items()))]


def _fingerprint(source: TaskSource, index: Index) -> str:
    return fingerprint([source_stamp(source), index.meta["fingerprint"]])


def is_scanned(source: TaskSource, folder: str | os.PathLike, index: Index) -> bool:
    """Whether the folder holds the result of this task against this index."""
    path = scan_file(folder, source.name)
    try:
        return path.exists() and read_about(path)["fingerprint"] == _fingerprint(source, index)
    except UserError as e:
        logger.warning("%s: %s is scanned again", e, source.name)
        return False


def scan_task(
    source: TaskSource,
    folder: str | os.PathLike,
    index: Index,
    stopped: Callable[[], bool] = lambda: False,
) -> ScanOutcome:
    """Scans the training part of a task into its file; a failure is an outcome, not an exception.

    `stopped` is asked now and then whether to give up, which raises `Stopped`.

    The description of the table says: task, examples, drops (reason -> records), source_datasets,
    witnesses, fingerprint.
    """
    try:
        drops, scan, datasets = Drops(), Scan(index), set()
        for batch in batches(_train_examples(source, drops), index.rules):
            if stopped():
                raise Stopped
            scan.add(batch)
            datasets.update(e.source_dataset for e in batch.examples)
        table, witnesses = scan.result()
        about = {
            "task": source.name,
            "examples": scan.examples,
            "drops": dict(sorted(drops.items())),
            "source_datasets": sorted(datasets)[:8],
            "witnesses": witnesses,
            "fingerprint": _fingerprint(source, index),
        }
        path = scan_file(folder, source.name)
        write_tables(path, {path.stem: table}, about)
        return ScanOutcome(source.name, "scanned", scan.examples)
    except UserError as e:
        return ScanOutcome(source.name, "failed", error=reason_of(e), may_pass=may_pass(e))
    except Stopped:
        raise
    except Exception as e:
        logger.exception("auditing task %s", source.name)  # a fault of a reader, not of the data
        return ScanOutcome(source.name, "failed", error=reason_of(e), may_pass=may_pass(e))


def _train_examples(source: TaskSource, drops: Drops) -> Iterator[Example]:
    if "train" not in source.splits:
        return
    try:
        yield from source.read("train", drops)
    except OSError as e:
        raise UserError(f"cannot read {e.filename or source.files}: {e.strerror or e}") from e
