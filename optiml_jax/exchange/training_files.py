"""The training data of a mixture as rows for other trainers, streamed from the cache.

Texts are what the cached tokens spell, so that a row is what the trainer here reads: delimiters,
demonstrations and cuts included. Tokens come by random access (`data/store.py`), and what a row is
of from SeqIO's records beside them.
"""

import contextlib
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from optiml_jax.data import chat
from optiml_jax.data.cache_records import RecordIds
from optiml_jax.data.plan import Plan
from optiml_jax.data.store import CachedTask, Store
from optiml_jax.data.text_vocabulary import TextVocabulary
from optiml_jax.data.vocabulary import decode
from optiml_jax.exchange.request_files import json_line
from optiml_jax.files import atomic_path, disk_errors

Form = Literal["parquet", "jsonl"]
Layout = Literal["prompt_completion", "chat"]

_CHUNK = 256  # examples read at once
_ROW_GROUP = 2_000
_STRINGS = ("task", "benchmark", "category", "prompt_id", "example_id")
_MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string())])
_TEXTS = {
    "prompt_completion": [("prompt", pa.string()), ("completion", pa.string())],
    "chat": [("messages", pa.list_(_MESSAGE))],
}


class TrainingRows:
    """Makes rows of cached examples.

    Args:
      vocabulary: the one that the cache was made with.
      layout: "prompt_completion": the two texts, whose concatenation is what is trained on (the
        completion begins with its space); "chat": messages of user and assistant, prompts without
        the frame that they have in the cache.
    """

    def __init__(self, cache_dir: str, vocabulary: TextVocabulary, layout: Layout):
        self._ids = RecordIds(cache_dir)
        self._vocabulary, self._layout = vocabulary, layout

    def of_task(self, task: CachedTask, split: str) -> Iterator[dict[str, Any]]:
        """Every example of a task once, in the cache's order."""
        for start in range(0, task.num_examples(split), _CHUNK):
            indices = range(start, min(start + _CHUNK, task.num_examples(split)))
            yield from self._rows(task, split, indices)

    def of_plan(self, plan: Plan) -> Iterator[dict[str, Any]]:
        """The examples of a plan in its order, `row` saying in which packed row each lies."""
        split, tasks = plan.meta["split"], plan.cached_tasks
        for row in range(plan.num_rows):
            entries = slice(int(plan.row_offsets[row]), int(plan.row_offsets[row + 1]))
            which, examples = plan.entry_tasks[entries], plan.entry_examples[entries]
            made: dict[int, dict[str, Any]] = {}
            for task in np.unique(which):
                places = np.flatnonzero(which == task)
                rows = self._rows(tasks[task], split, examples[places].tolist())
                made |= zip(places.tolist(), rows, strict=True)
            yield from (made[place] | {"row": row} for place in range(len(which)))

    def _rows(
        self, task: CachedTask, split: str, indices: Sequence[int]
    ) -> Iterator[dict[str, Any]]:
        info = task.info
        for index, (source, target) in zip(indices, task.read(split, indices), strict=True):
            example_id, prompt_id = self._ids.get(task, split, index)
            prompt = self._vocabulary.spell(source.tolist())
            message = chat.taken_out(info["prompts"].get("chat"), prompt)
            completion = decode(self._vocabulary, target.tolist())
            yield self._texts(prompt, prompt if message is None else message, completion) | {
                "task": task.name,
                "benchmark": info["benchmark"],
                "category": info["category"],
                "prompt_id": prompt_id,
                "example_id": example_id,
            }

    def _texts(self, prompt: str, message: str, completion: str) -> dict[str, Any]:
        if self._layout == "prompt_completion":
            return {"prompt": prompt, "completion": completion}
        # Plain text and dialogues have no prompt.
        user = [{"role": "user", "content": message}] if prompt else []
        answer = {"role": "assistant", "content": completion.strip() if prompt else completion}
        return {"messages": [*user, answer]}


def write_rows(
    rows: Iterable[Mapping[str, Any]],
    folder: pathlib.Path,
    split: str,
    form: Form,
    layout: Layout,
    shard_rows: int,
) -> int:
    """Writes rows to `<split>-00000.<form>`, ... of `shard_rows` each; returns how many there were.

    Rows are held in memory by the thousand, whatever their number.
    """
    total = 0
    with contextlib.ExitStack() as stack:
        writer: Any = None
        for row in rows:
            if total % shard_rows == 0:
                stack.close()
                path = folder / f"{split}-{total // shard_rows:05d}.{form}"
                writer = stack.enter_context(_open_shard(path, form, layout, "row" in row))
            writer.add(row)
            total += 1
        return total


class _Parquet:
    def __init__(self, path: pathlib.Path, schema: pa.Schema):
        self._writer = pq.ParquetWriter(path, schema, compression="zstd")
        self._schema, self._rows = schema, []

    def add(self, row: Mapping[str, Any]) -> None:
        self._rows.append(row)
        if len(self._rows) == _ROW_GROUP:
            self._flush()

    def _flush(self) -> None:
        self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
        self._rows.clear()

    def close(self) -> None:
        if self._rows:
            self._flush()
        self._writer.close()


class _Lines:
    def __init__(self, path: pathlib.Path):
        self._file = path.open("w", encoding="utf-8")

    def add(self, row: Mapping[str, Any]) -> None:
        self._file.write(json_line(dict(row)))

    def close(self) -> None:
        self._file.close()


@contextlib.contextmanager
def _open_shard(path: pathlib.Path, form: Form, layout: Layout, planned: bool) -> Iterator[Any]:
    fields = [*_TEXTS[layout], *((name, pa.string()) for name in _STRINGS)]
    fields += [("row", pa.int64())] if planned else []
    with disk_errors(path, "exported training data"), atomic_path(path) as temporary:
        writer = _Parquet(temporary, pa.schema(fields)) if form == "parquet" else _Lines(temporary)
        yield writer
        writer.close()


def planned_counts(plan: Plan) -> dict[str, int]:
    """How often the plan takes an example of each task, those never taken left out."""
    counts = np.bincount(plan.entry_tasks, minlength=len(plan.meta["tasks"]))
    return {t["task"]: int(n) for t, n in zip(plan.meta["tasks"], counts, strict=True) if n}


def cached_counts(cache_dir: str, tasks: Sequence[str], split: str) -> dict[str, int]:
    """The number of cached examples of each task that has the split."""
    store = Store(cache_dir)
    found = {name: store.task(name) for name in tasks}
    return {n: t.num_examples(split) for n, t in found.items() if split in t.info["splits"]}
