"""Training and evaluation tasks from lists of texts, as the audit sees them."""

import functools
import pathlib
from collections.abc import Sequence

from optiml_jax.audit.index import Index, IndexWriter
from optiml_jax.audit.pipeline import EvaluationTask
from optiml_jax.audit.scan import read_scan, scan_file, scan_task
from optiml_jax.audit.words import AuditWords
from optiml_jax.data.example import Drops, Example, TaskSource


def example(task: str, i: int, text: str, target: str = "", instruction: str = "", prompt="p"):
    return Example("b", task, "c", prompt, str(i), "x", instruction, text, target, (target,))


def read_lines(path: str, task: str, split: str, drops: Drops):
    """One example a line: input and target with a tab between."""
    with open(path, encoding="utf-8") as file:
        for i, line in enumerate(file):
            text, _, target = line.rstrip("\n").partition("\t")
            yield example(task, i, text, target)


def file_source(path: pathlib.Path, task: str, lines: Sequence[str]) -> TaskSource:
    path.write_text("".join(f"{line}\n" for line in lines), "utf-8")
    read = functools.partial(read_lines, str(path), task)
    return TaskSource(task, ("train", "test"), (str(path),), read, None)


def evaluation(source: TaskSource) -> EvaluationTask:
    return EvaluationTask(source, functools.partial(source.read, "test", Drops()))


def overlapping(
    tmp_path: pathlib.Path,
    train: Sequence[Example],
    evaluated: Sequence[Example],
    rules: AuditWords | None = None,
    hash_bits: int = 64,
) -> dict[int, dict]:
    """Evaluation example -> its row in the result of one training task."""
    rules = rules or AuditWords()
    writer = IndexWriter(tmp_path / "index", rules, hash_bits)
    for task in dict.fromkeys(e.task for e in evaluated):
        writer.add(task, [e for e in evaluated if e.task == task])
    writer.close({"fingerprint": ""})
    source = TaskSource("b/train", ("train",), (), lambda split, drops: iter(train), None)
    outcome = scan_task(source, tmp_path, Index(tmp_path / "index"))
    assert outcome.status == "scanned", outcome.error
    table, _ = read_scan(scan_file(tmp_path, "b/train"))
    return {row["example"]: row for row in table.to_pylist()}
