"""Writes the demo bench: about 40 small tasks, in the file formats of all the collections.

    python -m tasks.demo --out=build/demo

Each collection's folder is as a user's copy of the real one would be. Beside them goes
vocabulary.model, a SentencePiece vocabulary trained on the prompts.

All content is the project's own: the rows are drawn by the families of `families.py` from
`words.yaml` as `tasks.yaml` says, templates and instruction sentences lie in `files/`. The same
seed gives the same bytes. This module balances, removes duplicates and writes files; which task is
trained on and how it is scored is in the split manifest.
"""

import argparse
import itertools
import json
import os
import pathlib
import random
import re
from typing import Any

import yaml

from optiml_jax.data.example import Drops
from optiml_jax.data.prompts import PromptConfig, render, target_text
from optiml_jax.data.vocabulary import train_sentencepiece
from optiml_jax.errors import UserError
from optiml_jax.files import atomic_path, disk_errors
from tasks.demo import superni
from tasks.demo.families import FAMILIES, Candidate, Words
from tasks.registry import find_sources
from tasks.splits import Manifest

HERE = pathlib.Path(__file__).parent
SEED = 1234
VOCABULARY_SIZE = 1024  # all that the bench's few hundred words need
LOOK_AHEAD = 1_000  # candidates drawn to find the buckets of a task
PATIENCE = 20_000  # draws without a new candidate of a bucket before it counts as exhausted

_ONE_VALUE = re.compile(r"\{(\w+)\}")


def load_words() -> Words:
    return yaml.safe_load((HERE / "words.yaml").read_text("utf-8"))


def load_tasks() -> dict[str, list[dict[str, Any]]]:
    """Collection -> the tasks of `tasks.yaml`, with their shared fields filled in."""
    collections = yaml.safe_load((HERE / "tasks.yaml").read_text("utf-8"))
    for collection, common in collections.items():
        common["collection"] = collection
        tasks = enumerate(common.pop("tasks"), start=1)
        collections[collection] = [common | task | {"number": number} for number, task in tasks]
    return collections


def draw(task: dict[str, Any], words: Words, rng: random.Random, count: int) -> list[Candidate]:
    """`count` different candidates of a task, every bucket equally often.

    The order is rounds over all buckets, each round shuffled, so that whatever part is cut off by
    position is balanced too.
    """

    def candidate() -> Candidate:
        return FAMILIES[task["family"]](rng, words, **task.get("parameters", {}))

    buckets = sorted({candidate().bucket for _ in range(LOOK_AHEAD)})
    seen = set()
    chosen: list[Candidate] = []
    while len(chosen) < count:
        for bucket in rng.sample(buckets, len(buckets)):
            for _ in range(PATIENCE):
                new = candidate()
                if new.bucket == bucket and new.key not in seen:
                    break
            else:
                raise UserError(
                    f"demo task {task['name']}: only {len(chosen)} of {count} balanced instances "
                    f"found (no more of {bucket!r}); add words to tasks/demo/words.yaml"
                )
            seen.add(new.key)
            chosen.append(new)
    return chosen[:count]


def cell(template: Any, values: dict[str, Any]) -> Any:
    """A column of a row: `{x}` alone gives the value x, other text has values put in."""
    if not isinstance(template, str):
        return template
    match = _ONE_VALUE.fullmatch(template)
    return values[match[1]] if match else template.format(**values)


def rows_by_split(
    task: dict[str, Any], words: Words, rng: random.Random
) -> dict[str, list[dict[str, Any]]]:
    """Split -> rows of a task, by `columns` and `splits` of its entry."""
    splits = task["held_out_splits" if task.get("held_out") else "splits"]
    candidates = enumerate(draw(task, words, rng, sum(splits.values())))
    rows = (
        {
            column: cell(template, {"index": i, "input": c.input, "output": c.output, **c.fields})
            for column, template in task["columns"].items()
        }
        for i, c in candidates
    )
    return {split: list(itertools.islice(rows, size)) for split, size in splits.items()}


def file_text(rows: list[dict[str, Any]], suffix: str) -> str:
    """Rows as the text of a .json, .jsonl or .tsv file (cells with `\\n` for a newline)."""
    if suffix == ".json":
        return json.dumps(rows, indent=1)
    if suffix == ".jsonl":
        return "".join(f"{json.dumps(row)}\n" for row in rows)
    cells = ([str(cell).replace("\n", "\\n") for cell in row.values()] for row in rows)
    return "".join("\t".join(row) + "\n" for row in cells)


def build(out: str | os.PathLike, seed: int = SEED) -> list[str]:
    """Writes the bench to the folder `out`: one folder for each collection.

    Args:
      out: folder to write; made if it is not there. Files of the same name are replaced.
      seed: the same seed gives the same bytes.

    Returns:
      The tasks, `<collection>/<name>`, in order.

    Raises:
      UserError: the folder cannot be written.
    """
    out = pathlib.Path(out)
    words, collections = load_words(), load_tasks()
    with disk_errors(out, "the demo bench"):
        for path in sorted(p for p in (HERE / "files").rglob("*") if p.is_file()):
            _write(out / path.relative_to(HERE / "files"), path.read_text("utf-8"))
        for collection, tasks in collections.items():
            for task in tasks:
                # Seeded by the task's own name: adding a task changes no other.
                rng = random.Random(f"{seed} {collection} {task['name']}")
                for file, text in task_files(task, words, rng).items():
                    _write(out / collection / file, text)
        for file, text in superni.split_lists(collections["superni"]).items():
            _write(out / "superni" / file, text)
    return [f"{c}/{task['name']}" for c, tasks in collections.items() for task in tasks]


def task_files(task: dict[str, Any], words: Words, rng: random.Random) -> dict[str, str]:
    """File below the collection's folder -> its text."""
    if task["collection"] == "superni":
        candidates = draw(task, words, rng, superni.NUM_CANDIDATES)
        content = json.dumps(superni.task_content(task, candidates), indent=1)
        return {f"tasks/{superni.stem(task)}.json": content}
    files = {}
    for split, rows in rows_by_split(task, words, rng).items():
        file = task["file"].format(name=task["name"], split=split)
        files[file] = file_text(rows, pathlib.Path(file).suffix)
    return files


def _write(file: pathlib.Path, text: str) -> None:
    with atomic_path(file) as path:
        path.write_text(text, "utf-8")


def data_folders(out: str | os.PathLike) -> dict[str, str]:
    """Benchmark -> its folder in the bench at `out`, as `Run.data` has it."""
    return {f"demo_{collection}": str(pathlib.Path(out, collection)) for collection in load_tasks()}


def train_vocabulary(out: str | os.PathLike) -> None:
    """Trains `<out>/vocabulary.model` on the zero-shot prompts of the bench in `out`."""
    texts = []
    for source in find_sources(data_folders(out), Manifest.load()):
        for example in source.read("train", Drops()):
            prompt = render(example, (), source.instruction_level, PromptConfig())
            texts.append(prompt.source() + target_text(prompt.source(), prompt.target))
    train_sentencepiece(texts, pathlib.Path(out, "vocabulary.model"), VOCABULARY_SIZE)


def main() -> None:
    parser = argparse.ArgumentParser("python -m tasks.demo", description=__doc__.splitlines()[0])
    parser.add_argument("--out", required=True, help="folder to write the bench to")
    parser.add_argument("--seed", type=int, default=SEED)
    options = parser.parse_args()
    tasks = build(options.out, options.seed)
    train_vocabulary(options.out)
    print(f"{len(tasks)} tasks in the formats of {len(load_tasks())} collections: {options.out}")
