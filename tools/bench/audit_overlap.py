"""The audit against polars on the same files, its memory on a large evaluation side, its growth.

    python tools/bench/audit_overlap.py compare    200,000 training x 20,000 evaluation examples
    python tools/bench/audit_overlap.py cpu        48,000 x 20,000, per CPU second
    python tools/bench/audit_overlap.py memory     466,000 evaluation examples of 200 words
    python tools/bench/audit_overlap.py growth     50,000 to 800,000 training examples

Texts are drawn from 20,000 words; one training example in a hundred is a copy of an evaluation
example. Polars gets the same files, normalises with a regular expression, hashes words, combines 13
shifted columns and joins. Both read, normalise and count; polars does not check prompts or texts.
"""

import contextlib
import functools
import os
import pathlib
import shutil
import sys
import tempfile
import threading
import time

import numpy as np
import polars as pl
import psutil

from optiml_jax.audit import pairs
from optiml_jax.audit.pipeline import EvaluationTask, audit
from optiml_jax.audit.words import AuditWords
from optiml_jax.data.example import Drops, Example, TaskSource

WORKERS = 2
FILES = 8
N = 13
CHUNK = 50_000  # examples that polars holds at a time


def read_lines(path: str, task: str, split: str, drops: Drops):
    with open(path, encoding="utf-8") as file:
        for i, line in enumerate(file):
            yield Example("bench", task, "c", "p", str(i), split, "", line.rstrip("\n"), "", ("",))


def source(path: pathlib.Path) -> TaskSource:
    task = f"bench/{path.stem}"
    read = functools.partial(read_lines, str(path), task)
    return TaskSource(task, ("train", "test"), (str(path),), read, None)


def write_texts(folder: pathlib.Path, train: int, evaluated: int, words: int) -> None:
    rng = np.random.default_rng(0)
    vocabulary = np.array([f"word{i}" for i in range(20_000)])
    for k in range(FILES):
        with open(folder / f"eval{k}.txt", "w") as file:
            for _ in range(evaluated // FILES):
                file.write(" ".join(vocabulary[rng.integers(len(vocabulary), size=words)]) + "\n")
    copies = (folder / "eval0.txt").read_text().splitlines()[:1000]
    for k in range(FILES):
        with open(folder / f"train{k}.txt", "w") as file:
            for i in range(train // FILES):
                text = " ".join(vocabulary[rng.integers(len(vocabulary), size=words)])
                file.write(
                    (copies[(i // 100 + 31 * k) % len(copies)] if i % 100 == 0 else text) + "\n"
                )


def run_audit(folder: pathlib.Path) -> tuple[float, float, int]:
    """Seconds for the index, seconds for the scans, overlapping evaluation examples."""
    training = [source(p) for p in sorted(folder.glob("train*.txt"))]
    sources = [source(p) for p in sorted(folder.glob("eval*.txt"))]
    evaluated = [EvaluationTask(s, functools.partial(s.read, "test", Drops())) for s in sources]
    out = folder / "audit"
    shutil.rmtree(out, ignore_errors=True)
    start = time.perf_counter()
    audit([], evaluated, out, AuditWords(), num_workers=WORKERS)
    indexed = time.perf_counter()
    audit(training, evaluated, out, AuditWords(), num_workers=WORKERS)
    seconds = time.perf_counter() - indexed
    found = sum(row["overlap"] for row in pairs.read_rows(out, "eval_tasks"))
    return indexed - start, seconds, found


def grams(texts: pl.Series, first: int) -> pl.DataFrame:
    """Example number and hash of every 13-gram."""
    words = (
        pl.DataFrame({"text": texts})
        .with_row_index("example", offset=first)
        .with_columns(pl.col("text").str.to_lowercase().str.replace_all(r"[^a-z0-9]+", " "))
        .with_columns(pl.col("text").str.strip_chars(" ").str.split(" "))
        .explode("text")
        .select("example", pl.col("text").hash().alias("word"))
    )
    gram = pl.col("word")
    for k in range(1, N):
        gram = gram * pl.lit(0x9E3779B97F4A7C15, pl.UInt64) + pl.col("word").shift(-k)
    same = pl.col("example") == pl.col("example").shift(-(N - 1))
    return words.select("example", gram.alias("gram"), same.alias("same")).filter("same")


def run_polars(folder: pathlib.Path) -> tuple[float, int]:
    """Seconds for the training side, overlapping evaluation examples."""
    texts = [pl.Series(p.read_text().splitlines()) for p in sorted(folder.glob("eval*.txt"))]
    known = grams(pl.concat(texts), 0).unique(["example", "gram"])
    start = time.perf_counter()
    found: set[int] = set()
    for path in sorted(folder.glob("train*.txt")):
        lines = pl.Series(path.read_text().splitlines())
        for first in range(0, len(lines), CHUNK):
            own = grams(lines[first : first + CHUNK], first).select("gram").unique()
            found |= {*known.join(own, on="gram", how="semi")["example"].unique()}
    return time.perf_counter() - start, len(found)


def compare(folder: pathlib.Path) -> None:
    train, evaluated = 200_000, 20_000
    for words in (40, 80, 160):
        write_texts(folder, train, evaluated, words)
        for _ in range(2):  # the first time starts the workers' server
            index, seconds, found = run_audit(folder)
        polars_seconds, polars_found = run_polars(folder)
        assert found == polars_found, (found, polars_found)
        print(
            f"{words} words: audit {train / seconds:,.0f} examples/s on {WORKERS} processes "
            f"(index {index:.1f} s), polars {train / polars_seconds:,.0f} on "
            f"{pl.thread_pool_size()} threads: {polars_seconds / seconds:.2f} times as fast; "
            f"both found {found} examples"
        )


def cpu(folder: pathlib.Path) -> None:
    """Per CPU second of one process, for a shared machine."""
    train = 48_000
    write_texts(folder, train, 20_000, 80)
    training = [source(p) for p in sorted(folder.glob("train*.txt"))]
    sources = [source(p) for p in sorted(folder.glob("eval*.txt"))]
    evaluated = [EvaluationTask(s, functools.partial(s.read, "test", Drops())) for s in sources]
    audit([], evaluated, folder / "audit", AuditWords(), num_workers=1)
    start = time.process_time()
    audit(training, evaluated, folder / "audit", AuditWords(), num_workers=1)
    own = time.process_time() - start
    texts = [pl.Series(p.read_text().splitlines()) for p in sorted(folder.glob("eval*.txt"))]
    known = grams(pl.concat(texts), 0).unique(["example", "gram"])
    start = time.process_time()
    for path in sorted(folder.glob("train*.txt")):
        found = grams(pl.Series(path.read_text().splitlines()), 0).select("gram").unique()
        known.join(found, on="gram", how="semi")["example"].unique()
    other = time.process_time() - start
    print(f"per CPU second: audit {train / own:,.0f} examples, polars {train / other:,.0f}")


def memory(folder: pathlib.Path) -> None:
    write_texts(folder, 80_000, 466_000, 200)
    done, peaks = threading.Event(), []
    watch = threading.Thread(target=watch_memory, args=(done, peaks))
    watch.start()
    index, seconds, found = run_audit(folder)
    done.set()
    watch.join()
    private, largest = (max(peak) / 2**30 for peak in zip(*peaks, strict=True))
    size = sum(p.stat().st_size for p in (folder / "audit" / "index").iterdir()) / 2**30
    print(
        f"466,000 evaluation examples of 200 words: index {index:.0f} s, {size:.2f} GiB on disk; "
        f"scan of 80,000 examples {80_000 / seconds:,.0f} a second; at most {private:.2f} GiB of "
        f"private memory in all processes together, {largest:.2f} GiB resident in the largest (its "
        f"pages of the index included); {found} examples found"
    )


def watch_memory(done: threading.Event, peaks: list[tuple[int, int]]) -> None:
    """Appends (private bytes of all processes, resident bytes of the largest) until it is done."""
    while not done.wait(0.25):
        private, largest = 0, 0
        for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                used = process.memory_full_info()
                private, largest = private + used.uss, max(largest, used.rss)
        peaks.append((private, largest))


def growth(folder: pathlib.Path) -> None:
    times = []
    write_texts(folder, FILES, 20_000, 80)
    run_audit(folder)
    for train in (50_000, 100_000, 200_000, 400_000, 800_000):
        write_texts(folder, train, 20_000, 80)
        _, seconds, _ = run_audit(folder)
        times.append(seconds)
        print(f"{train:,} training examples: {seconds:.1f} s, {train / seconds:,.0f} a second")
    slope = (times[-1] - times[0]) / 750_000
    print(f"{slope * 1e6:.1f} s a million: {18 * slope * 1e6 / 3600:.2f} hours for 18 million")


if __name__ == "__main__":
    place = pathlib.Path(tempfile.mkdtemp(prefix="audit_bench_", dir=os.environ.get("TMPDIR")))
    try:
        {"compare": compare, "cpu": cpu, "memory": memory, "growth": growth}[sys.argv[1]](place)
    finally:
        shutil.rmtree(place, ignore_errors=True)
