"""Small caches of prepared tasks, written as `prepare` writes them but from token ids."""

import numpy as np
import pytest

from optiml_jax import files
from optiml_jax.data import cache_writer, store

VOCABULARY = {"spec": "opt:none", "fingerprint": "v1", "padded_size": 50272}


def write_task(cache_dir, name, examples, split="train", vocabulary=VOCABULARY, category="Misc."):
    """Caches `examples` ((source ids, target ids with </s>) pairs) as task `name`."""
    with cache_writer.task_folder(cache_dir, name) as folder:
        writer = cache_writer.SplitWriter(folder, split, np.dtype("uint16"))
        for source, target in examples:
            writer.add(source, target)
        writer.close()
        cache_writer.write_info(
            folder,
            {
                "format_version": store.FORMAT_VERSION,
                "task": name,
                "benchmark": name.split("/")[0],
                "category": category,
                "splits": {split: {"examples": writer.num_examples}},
                "dtype": "uint16",
                "vocabulary": vocabulary,
                "fingerprint": files.fingerprint([[list(s), list(t)] for s, t in examples]),
            },
        )


def random_examples(seed, number, longest=60):
    """Examples whose source starts with (seed, index), so that each can be told from all others."""
    rng = np.random.default_rng(seed)
    examples = []
    for i in range(number):
        source = [
            100 + seed,
            1000 + i,
            *rng.integers(10, 90, rng.integers(0, longest - 8)).tolist(),
        ]
        target = [*rng.integers(10, 90, rng.integers(1, 6)).tolist(), 2]
        examples.append((source, target))
    return examples


@pytest.fixture
def make_cache(tmp_path):
    """`make_cache({task: examples}, **options of write_task)` -> the cache folder."""

    def make(tasks, **options):
        for name, examples in tasks.items():
            write_task(tmp_path / "cache", name, examples, **options)
        return tmp_path / "cache"

    return make


@pytest.fixture
def cache(make_cache):
    """Three tasks of two benchmarks, 40, 15 and 7 examples of at most 60 tokens."""
    sizes = {"one/a": 40, "one/b": 15, "two/c": 7}
    return make_cache({n: random_examples(i, size) for i, (n, size) in enumerate(sizes.items())})


@pytest.fixture(name="random_examples")
def _random_examples():
    return random_examples
