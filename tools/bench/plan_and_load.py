"""Measures planning and loading against the live SeqIO pipeline, on a synthetic cache.

    python tools/bench/plan_and_load.py [--tasks=1500] [--examples=200] [--seqio_tasks=100] ...

Writes a cache of lognormal lengths with the store's own writer, then runs each side in a separate
process, one after another and each pinned to one core: planning, the loader, and
`seqio.get_dataset(..., PrefixLMFeatureConverter(pack=True))` on the first `seqio_tasks` tasks of
the same cache. Prints times from process start, resident memory, tokens per second, share of slots
filled, and the ratios. Live SeqIO needs one open pipeline per task: minutes at 1,500 of them.
"""

import argparse
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np

from optiml_jax import files
from optiml_jax.data import cache_writer, store
from optiml_jax.data.example import seqio_name
from optiml_jax.data.loader import PlanLoader
from optiml_jax.data.mixture import Mixture
from optiml_jax.data.plan import Plan, PlanConfig, plan_mixture

VOCABULARY = 50_272
LENGTH = 2048
TARGETS_LENGTH = 256  # the longest synthetic target; SeqIO needs a length per feature


def main() -> None:
    arguments = parse_arguments()
    if arguments.side:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        result = SIDES[arguments.side](arguments)
        result["resident"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(json.dumps(result))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        arguments.folder = folder
        # Also in a separate process: a child's peak memory starts from its parent's.
        cache = in_new_process("cache", arguments)
        print_side(f"cache of {arguments.tasks} tasks x {arguments.examples} examples", cache)
        plan, load = in_new_process("plan", arguments), in_new_process("load", arguments)
        print_side("plan", plan)
        print_side("loader", load)
        if arguments.seqio_tasks:
            live = in_new_process("seqio", arguments)
            print_side(f"live SeqIO, {arguments.seqio_tasks} tasks", live)
            ratio = {key: load[key] / live[key] for key in live}
            print(
                "loader / live SeqIO: {tokens_per_second:.1f} x tokens/s, "
                "{tokens_per_cpu_second:.1f} x tokens per second of CPU, {first_batch:.3f} x time "
                "to the first batch, {resident:.2f} x memory".format(**ratio)
            )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=1500)
    parser.add_argument("--examples", type=int, default=200, help="per task")
    parser.add_argument("--mean", type=float, default=293, help="tokens per example")
    parser.add_argument("--sigma", type=float, default=1.0, help="of the lognormal")
    parser.add_argument("--batch", type=int, default=64, help="rows per batch")
    parser.add_argument("--batches", type=int, default=100, help="batches to time")
    parser.add_argument("--seqio_tasks", type=int, default=100, help="0: without SeqIO")
    parser.add_argument("--folder", help="where to put the cache (default: the temporary folder)")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--started", type=float, help=argparse.SUPPRESS)
    return parser.parse_args()


def in_new_process(side: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Runs one side in a fresh interpreter; returns what it measured."""
    given = {k: v for k, v in vars(arguments).items() if k not in ("side", "started")}
    given |= {"side": side, "started": time.time()}
    command = [sys.executable, __file__, *(f"--{k}={v}" for k, v in given.items())]
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "JAX_PLATFORMS": "cpu"}
    # TensorFlow logs to stderr; the figures are the last line of stdout.
    output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE).stdout
    return json.loads(output.splitlines()[-1])


def print_side(name: str, result: dict[str, float]) -> None:
    formats = {
        "written": "written {:.1f} s after process start",
        "plan": "planned {:.2f} s after process start",
        "examples_per_second": "{:,.0f} examples/s",
        "first_batch": "first batch {:.2f} s after process start",
        "tokens_per_second": "{:,.0f} tokens/s",
        "tokens_per_cpu_second": "{:,.0f} per second of CPU",
        "fill": "{:.4f} of the slots filled",
        "resident": "{:.2f} GiB resident",
    }
    print(f"{name}: " + ", ".join(t.format(result[k]) for k, t in formats.items() if k in result))


# --- the sides


def measure_plan(arguments: argparse.Namespace) -> dict[str, float]:
    started = time.perf_counter()
    config = PlanConfig(num_rows=arguments.batch * (arguments.batches + 1), sequence_length=LENGTH)
    plan = plan_mixture(
        cache_dir(arguments),
        store.Store(cache_dir(arguments)).tasks(),
        Mixture(name="bench"),
        "train",
        config,
        pathlib.Path(arguments.folder) / "plan",
    )
    return {
        "plan": time.time() - arguments.started,
        "examples_per_second": plan.summary["examples"] / (time.perf_counter() - started),
        "fill": plan.summary["fill"],
    }


def measure_loader(arguments: argparse.Namespace) -> dict[str, float]:
    plan = Plan.load(pathlib.Path(arguments.folder) / "plan")
    with PlanLoader(plan, arguments.batch) as loader:
        return measure_batches(loader, "segment_ids", arguments)


def measure_seqio(arguments: argparse.Namespace) -> dict[str, float]:
    import seqio
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")
    seqio.add_global_cache_dirs([str(cache_dir(arguments))])
    vocabulary = seqio.PassThroughVocabulary(VOCABULARY)
    names = [seqio_name(name) for name in task_names(arguments)[: arguments.seqio_tasks]]
    for name in names:
        seqio.TaskRegistry.add(
            name,
            source=seqio.FunctionDataSource(lambda split, shuffle_files: None, splits=["train"]),
            preprocessors=[seqio.CacheDatasetPlaceholder()],
            output_features={
                "inputs": seqio.Feature(vocabulary, add_eos=False),
                "targets": seqio.Feature(vocabulary, add_eos=False),
            },
        )
    rate = seqio.mixing_rate_num_examples
    seqio.MixtureRegistry.add("bench", [(name, rate) for name in names])
    dataset = seqio.get_dataset(
        "bench",
        task_feature_lengths={"inputs": LENGTH - TARGETS_LENGTH, "targets": TARGETS_LENGTH},
        dataset_split="train",
        shuffle=True,
        num_epochs=None,
        use_cached=True,
        feature_converter=seqio.PrefixLMFeatureConverter(pack=True, bos_id=2),
        batch_size=arguments.batch,
    )
    return measure_batches(
        dataset.prefetch(2).as_numpy_iterator(), "decoder_segment_ids", arguments
    )


def measure_batches(iterator, segments: str, arguments: argparse.Namespace) -> dict[str, float]:
    next(iterator)
    first_batch = time.time() - arguments.started
    started, cpu_started = time.perf_counter(), time.process_time()
    tokens = sum(np.count_nonzero(next(iterator)[segments]) for _ in range(arguments.batches))
    return {
        "first_batch": first_batch,
        "tokens_per_second": tokens / (time.perf_counter() - started),
        # What one idle core would give: not lowered by other work on the machine.
        "tokens_per_cpu_second": tokens / (time.process_time() - cpu_started),
        "fill": tokens / (arguments.batches * arguments.batch * LENGTH),
    }


# --- the cache


def cache_dir(arguments: argparse.Namespace) -> pathlib.Path:
    return pathlib.Path(arguments.folder) / "cache"


def task_names(arguments: argparse.Namespace) -> list[str]:
    return [f"bench/task{i:04d}" for i in range(arguments.tasks)]


def write_cache(arguments: argparse.Namespace) -> dict[str, float]:
    rng = np.random.default_rng(0)
    location = np.log(arguments.mean) - arguments.sigma**2 / 2
    for index, name in enumerate(task_names(arguments)):
        drawn = rng.lognormal(location, arguments.sigma, arguments.examples)
        lengths = np.clip(drawn, 8, LENGTH).astype(int)
        targets = np.minimum(np.clip(lengths // 8, 2, TARGETS_LENGTH), lengths - 1)
        examples = [
            (rng.integers(4, VOCABULARY, n - t), [*rng.integers(4, VOCABULARY, t - 1), 2])
            for n, t in zip(lengths.tolist(), targets.tolist(), strict=True)
        ]
        with cache_writer.task_folder(cache_dir(arguments), name) as folder:
            write_tokens(folder, name, examples)
            if index < arguments.seqio_tasks:
                write_tfrecords(folder, examples)
    return {"written": time.time() - arguments.started}


def write_tokens(folder: pathlib.Path, name: str, examples: list) -> None:
    writer = cache_writer.SplitWriter(folder, "train", np.dtype("uint16"))
    for source, target in examples:
        writer.add(source, target)
    writer.close()
    info = {
        "format_version": store.FORMAT_VERSION,
        "task": name,
        "benchmark": "bench",
        "category": "Misc.",
        "splits": {"train": {"examples": len(examples)}},
        "dtype": "uint16",
        "vocabulary": {"spec": "synthetic", "fingerprint": "none", "padded_size": VOCABULARY},
        "fingerprint": name,
    }
    cache_writer.write_info(folder, info)


def write_tfrecords(folder: pathlib.Path, examples: list) -> None:
    """SeqIO's own files of the same examples."""
    import tensorflow as tf

    writer = cache_writer.TFRecordSplitWriter(folder, "train")
    for parts in examples:
        features = {
            name: tf.train.Feature(int64_list=tf.train.Int64List(value=ids))
            for name, ids in zip(("inputs", "targets"), parts, strict=True)
        }
        example = tf.train.Example(features=tf.train.Features(feature=features))
        writer.add(example.SerializeToString())
    writer.close()
    described = {name: {"shape": [None], "dtype": "int32"} for name in ("inputs", "targets")}
    info = {"num_shards": store.num_shards(len(examples)), "features": described}
    files.write_json(folder / "info.train.json", info)
    files.write_json(folder / "stats.train.json", {"examples": len(examples)})


SIDES = {
    "cache": write_cache,
    "plan": measure_plan,
    "load": measure_loader,
    "seqio": measure_seqio,
}

if __name__ == "__main__":
    main()
