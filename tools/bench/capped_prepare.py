"""A cap on a task's examples reaches the reader: prepare a large Parquet file with and without it.

Prints seconds and peak resident memory of each run, in a separate process:
    python tools/bench/capped_prepare.py --rows=2000000 --cap=10000
With one and with two workers, whose caches are compared byte for byte. Without the cap only
`--uncapped_rows` rows are prepared, so that it ends; the ratio is per row.
"""

import argparse
import pathlib
import resource
import subprocess
import sys
import tempfile
import time


def write_rows(path: pathlib.Path, number: int) -> None:
    """Rows of a translation task: two texts of some 25 words."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)
    words = np.array([f"word{i}" for i in range(5000)])
    path.parent.mkdir(parents=True)
    schema = pa.schema([("source", pa.string()), ("target", pa.string())])
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, number, 100_000):
            size = min(100_000, number - start)
            texts = [" ".join(row) for row in words[rng.integers(0, 5000, (2 * size, 25))]]
            columns = {"source": texts[:size], "target": texts[size:]}
            writer.write_table(pa.table(columns, schema))


def prepare(folder: pathlib.Path, cap: int | None, workers: int) -> None:
    """One run; prints its seconds and the largest peak of its processes in GiB."""
    from optiml_jax.data.prepare import prepare as run
    from optiml_jax.data.prompts import PromptConfig
    from tasks.registry import find_sources
    from tasks.splits import Manifest

    sources = find_sources({"mine": str(folder / "mine")}, Manifest.load())
    began = time.perf_counter()
    summary = run(
        sources,
        f"sentencepiece:{folder}/vocabulary.model",
        PromptConfig(),
        folder / f"cache_{cap}_{workers}",
        sequence_length=512,
        num_workers=workers,
        max_examples={s.name: cap for s in sources},
    )
    seconds = time.perf_counter() - began
    kept = sum(row["kept"] for row in summary.rows())
    used = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu, peak = sum(u.ru_utime + u.ru_stime for u in used), max(u.ru_maxrss for u in used)
    print(f"cap {cap}, {workers} workers: {kept:,} examples, {seconds:.1f} s", end=" ")
    print(f"({cpu:.1f} s of CPU including start-up), peak {peak / 2**20:.2f} GiB")


def examples(cache: pathlib.Path) -> dict[str, bytes]:
    """The files of a cache that contain examples."""
    found = (path for path in cache.rglob("*") if "record-" in path.name)
    return {str(path.relative_to(cache)): path.read_bytes() for path in found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--uncapped_rows", type=int, default=50_000)
    parser.add_argument("--cap", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--folder", type=pathlib.Path)
    arguments = parser.parse_args()
    if arguments.folder:
        prepare(arguments.folder, arguments.cap or None, arguments.workers)
        return
    from optiml_jax.data.vocabulary import train_sentencepiece

    for rows, cap in ((arguments.uncapped_rows, 0), (arguments.rows, arguments.cap)):
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            write_rows(folder / "mine/big/train.parquet", rows)
            (folder / "mine/big.yaml").write_text(
                "rows: big\nprompt: '{{ source }}'\ntarget: '{{ target }}'\n"
                "level: train_only\nrole: [train]\n"
            )
            train_sentencepiece([f"word{i}" for i in range(2000)], folder / "vocabulary.model", 280)
            print(f"{rows:,} rows:", flush=True)
            command = [sys.executable, __file__, f"--folder={folder}", f"--cap={cap}"]
            for workers in (1, 2) if cap else (1,):
                subprocess.run([*command, f"--workers={workers}"], check=True)
            first, *others = (examples(path) for path in folder.glob("cache_*"))
            if others:
                print(f"the same files with both: {others == [first]}")


if __name__ == "__main__":
    main()
