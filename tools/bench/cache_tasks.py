"""Seconds per task of caching: `optiml prepare` against SeqIO's own `cache_tasks_main`.

    python tools/bench/cache_tasks.py --data ../shared/data

Both cache Super-NaturalInstructions tasks, tokenised with OPT's BPE. SeqIO's side runs on Beam's
DirectRunner, a sample of the tasks (all would take very long) in pipelines of five (its cost grows
faster than their size), with one output shard per split, which is faster than its default of 64.
Our time includes starting the workers; SeqIO's excludes importing TensorFlow.
"""

import argparse
import logging
import os
import pathlib
import random
import shutil
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import apache_beam as beam
import seqio
from absl import flags
from seqio.scripts import cache_tasks_main

from optiml_jax.data.beam_run import DIRECT_RUNNER
from optiml_jax.data.example import TaskSource
from optiml_jax.data.prepare import prepare
from optiml_jax.data.prompts import PromptConfig
from optiml_jax.data.vocabulary import load_vocabulary
from tasks.registry import find_sources, register
from tasks.splits import Manifest

TASKS_PER_PIPELINE = 5


def time_prepare(sources: list[TaskSource], spec: str, cache_dir: pathlib.Path, **how) -> float:
    """Seconds per task."""
    start = time.perf_counter()
    summary = prepare(sources, spec, PromptConfig(), cache_dir, **how)
    seconds = time.perf_counter() - start
    print(f"  {summary}")
    return seconds / len(sources)


def time_seqio(sources: list[TaskSource], spec: str, cache_dir: pathlib.Path) -> float:
    """Seconds per task."""
    vocabulary = load_vocabulary(spec)
    names = [register(source, vocabulary, PromptConfig()).name for source in sources]
    flags.FLAGS(["cache_tasks_main", "--min_shards=1", f"--output_cache_dir={cache_dir}"])
    seqio.add_global_cache_dirs([str(cache_dir)])
    start = time.perf_counter()
    for i in range(0, len(names), TASKS_PER_PIPELINE):
        with beam.Pipeline(runner=DIRECT_RUNNER) as pipeline:
            cache_tasks_main.run_pipeline(
                pipeline, names[i : i + TASKS_PER_PIPELINE], str(cache_dir)
            )
    return (time.perf_counter() - start) / len(names)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument(
        "--data",
        type=pathlib.Path,
        required=True,
        help="holds super_natural_instructions/ and gpt2_bpe/",
    )
    parser.add_argument("--sample", type=int, default=20, help="tasks that SeqIO caches")
    parser.add_argument("--workers", type=int, default=None, help="of prepare; default: all cores")
    args = parser.parse_args()

    logging.disable(logging.WARNING)  # Beam has dozens for every pipeline

    root = args.data / "super_natural_instructions"
    sources = find_sources({"superni": str(root)}, Manifest.load())
    sample = random.Random(0).sample(sources, min(args.sample, len(sources)))
    spec = f"opt:{args.data / 'gpt2_bpe'}"
    folder = pathlib.Path(tempfile.mkdtemp(prefix="cache_tasks."))
    try:
        print(f"optiml prepare, all {len(sources)} tasks")
        everything = time_prepare(sources, spec, folder / "all", num_workers=args.workers)
        again = time_prepare(sources, spec, folder / "all", num_workers=args.workers)
        print(f"optiml prepare, the {len(sample)} tasks that SeqIO caches, one process")
        ours = time_prepare(sample, spec, folder / "sample", num_workers=1)
        print(f"cache_tasks_main, {len(sample)} tasks, pipelines of {TASKS_PER_PIPELINE}")
        theirs = time_seqio(sample, spec, folder / "seqio")
        print()
        print(f"seconds per task                              {'':>8}  times faster than SeqIO")
        for label, seconds in (
            (f"SeqIO, DirectRunner ({len(sample)} tasks)", theirs),
            (f"prepare, one process (the same {len(sample)})", ours),
            (f"prepare, workers including start-up ({len(sources)})", everything),
            (f"prepare again, nothing changed ({len(sources)})", again),
        ):
            print(f"  {label:<44}{seconds:>8.3f}{theirs / seconds:>10.1f}")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
