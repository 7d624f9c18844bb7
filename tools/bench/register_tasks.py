"""Measures finding and registering thousands of tasks against reading their files.

    python tools/bench/register_tasks.py [--tasks=2000] [--instances=500]

Writes task files in the format of Super-NaturalInstructions, then finds them (with a table of
categories, and without one, from the beginnings of the files), registers them and a mixture of them
with SeqIO, and finally reads every file completely, which registration must not do.
"""

import argparse
import json
import pathlib
import tempfile
import time
from collections.abc import Callable
from typing import Any

import seqio

from optiml_jax.data.mixture import Mixture
from optiml_jax.data.prompts import PromptConfig
from tasks.mixtures import register_mixture, select
from tasks.registry import find_sources, register
from tasks.splits import Manifest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=2000)
    parser.add_argument("--instances", type=int, default=500, help="per task")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        write_bench(root, arguments.tasks, arguments.instances)
        size = sum(p.stat().st_size for p in (root / "tasks").iterdir())
        print(f"{arguments.tasks} files, {size / 2**20:.0f} MiB")
        measure(root)


def measure(root: pathlib.Path) -> None:
    data, manifest = {"superni": str(root)}, Manifest.load()
    timed("find, categories from the beginnings of the files", lambda: find_sources(data, manifest))
    table = "".join(f"{p.stem}\tMisc.\n" for p in (root / "tasks").iterdir())
    (root / "categories.tsv").write_text("task\tcategory\n" + table)
    sources = timed("find, categories from a table", lambda: find_sources(data, manifest))
    mixture = Mixture(name="bench")
    chosen = timed("select", lambda: select(sources, mixture, manifest))
    vocabulary = seqio.PassThroughVocabulary(50_272)
    prompts = PromptConfig()
    timed("register", lambda: [register(s, vocabulary, prompts) for s in chosen])
    counts = {s.name: 500 for s in chosen}
    timed("register the mixture", lambda: register_mixture(mixture, counts))
    timed("for comparison: read the files completely", lambda: [read(s.files[0]) for s in chosen])


def read(path: str) -> Any:
    return json.loads(pathlib.Path(path).read_text("utf-8"))


def timed(what: str, function: Callable[[], Any]) -> Any:
    started = time.perf_counter()
    result = function()
    print(f"{what}: {time.perf_counter() - started:.2f} s")
    return result


def write_bench(root: pathlib.Path, tasks: int, instances: int) -> None:
    for folder in (root / "tasks", root / "splits" / "default"):
        folder.mkdir(parents=True)
    text = (
        "A sentence of some twenty words, as inputs of instruction tasks have them, or more. " * 3
    )
    content = json.dumps(
        {
            "Categories": ["Mathematics"],
            "Definition": ["Say whether the number is even."],
            "Positive Examples": [],
            "Instances": [
                {"id": f"i{n}", "input": f"{text}{n}", "output": ["no" if n % 2 else "yes"]}
                for n in range(instances)
            ],
        }
    )
    stems = [f"task{n:04}_bench" for n in range(tasks)]
    for stem in stems:
        (root / "tasks" / f"{stem}.json").write_text(content)
    (root / "splits" / "default" / "train_tasks.txt").write_text("\n".join(stems))
    (root / "splits" / "default" / "test_tasks.txt").write_text("")


if __name__ == "__main__":
    main()
