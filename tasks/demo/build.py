"""Writes the demo bench: about 40 small tasks in the file format of Super-NaturalInstructions v2.

    python -m tasks.demo.build --out=build/demo

Beside them goes vocabulary.model, a SentencePiece vocabulary trained on their prompts.

All content is the project's own: generated from `words.yaml` and `tasks.yaml` by the families of
`families.py`. The same seed gives the same bytes. This module balances, removes duplicates and
writes files; it knows nothing of readers, splits into training and test, or scoring.
"""

import argparse
import os
import pathlib
import random
from typing import Any

import yaml

from optiml_jax.data.example import Drops
from optiml_jax.data.prompts import PromptConfig, render, target_text
from optiml_jax.data.vocabulary import train_sentencepiece
from optiml_jax.errors import UserError
from optiml_jax.files import atomic_path, disk_errors, write_json
from tasks.demo.families import FAMILIES, Candidate, Words
from tasks.splits import Manifest
from tasks.super_natural_instructions import find_tasks

HERE = pathlib.Path(__file__).parent
SEED = 1234
NUM_INSTANCES = 400
NUM_POSITIVE = 4
NUM_NEGATIVE = 2
VOCABULARY_SIZE = 1024  # all that the bench's few hundred words need
LOOK_AHEAD = 1_000  # candidates drawn to find the buckets of a task
PATIENCE = 20_000  # draws without a new candidate of a bucket before it counts as exhausted


def load_words() -> Words:
    return yaml.safe_load((HERE / "words.yaml").read_text("utf-8"))


def load_tasks() -> list[dict[str, Any]]:
    """The entries of `tasks.yaml`, each with its file stem under "id"."""
    tasks = yaml.safe_load((HERE / "tasks.yaml").read_text("utf-8"))
    for number, task in enumerate(tasks, start=1):
        category = task["category"].lower().replace(" ", "_")
        task["id"] = f"demo{number:03d}_{category}_{task['name']}"
    return tasks


def draw(task: dict[str, Any], words: Words, rng: random.Random, count: int) -> list[Candidate]:
    """`count` different candidates of a task, every bucket equally often.

    The order is rounds over all buckets, each round shuffled, so that whatever part a reader cuts
    off by position is balanced too.
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
                    f"demo task {task['id']}: only {len(chosen)} of {count} balanced instances "
                    f"found (no more of {bucket!r}); add words to tasks/demo/words.yaml"
                )
            seen.add(new.key)
            chosen.append(new)
    return chosen[:count]


def task_file(task: dict[str, Any], words: Words, seed: int) -> dict[str, Any]:
    """The contents of one task's JSON file."""
    # Seeded by the task's own name: adding a task changes no other.
    rng = random.Random(f"{seed} {task['family']} {task['name']}")
    candidates = draw(task, words, rng, NUM_INSTANCES + NUM_POSITIVE + NUM_NEGATIVE)
    instances = candidates[:NUM_INSTANCES]
    positive = candidates[NUM_INSTANCES : NUM_INSTANCES + NUM_POSITIVE]
    negative = candidates[NUM_INSTANCES + NUM_POSITIVE :]

    def example(candidate: Candidate, output: str, explanation: str) -> dict[str, str]:
        facts = {"output": candidate.output, "wrong": candidate.wrong, "input": candidate.input}
        return {
            "input": candidate.input,
            "output": output,
            "explanation": explanation.format(**facts),
        }

    return {
        "Contributors": ["optiml_jax"],
        "Source": ["optiml_jax_demo"],
        "URL": [],
        "Categories": [task["category"]],
        "Reasoning": [],
        "Definition": [task["definition"]],
        "Input_language": ["English"],
        "Output_language": ["English"],
        "Instruction_language": ["English"],
        "Domains": ["Synthetic"],
        "Positive Examples": [example(c, c.output, task["explanation"]) for c in positive],
        "Negative Examples": [example(c, c.wrong, task["wrong"]) for c in negative],
        "Instances": [
            {"id": f"{task['id'][:7]}-{i:06d}", "input": c.input, "output": [c.output]}
            for i, c in enumerate(instances)
        ],
        "Instance License": ["Apache 2.0"],
    }


def build(out: str | os.PathLike, seed: int = SEED) -> list[str]:
    """Writes the bench to the folder `out` (tasks/*.json, splits/default/*.txt).

    Args:
      out: folder to write; made if it is not there. Files of the same name are replaced.
      seed: the same seed gives the same bytes.

    Returns:
      The task ids, in order.

    Raises:
      UserError: the folder cannot be written.
    """
    out = pathlib.Path(out)
    words, tasks = load_words(), load_tasks()
    with disk_errors(out, "the demo bench"):
        for task in tasks:
            write_json(out / "tasks" / f"{task['id']}.json", task_file(task, words, seed))
        for split in ("train", "test"):
            chosen = [t["id"] for t in tasks if t.get("held_out", False) == (split == "test")]
            with atomic_path(out / "splits" / "default" / f"{split}_tasks.txt") as path:
                path.write_text("".join(f"{task}\n" for task in chosen), "utf-8")
    return [task["id"] for task in tasks]


def train_vocabulary(out: str | os.PathLike) -> None:
    """Trains `<out>/vocabulary.model` on the zero-shot prompts of the bench in `out`."""
    root = pathlib.Path(out)
    manifest = Manifest.load()
    texts = []
    for source in find_tasks(root, manifest, "demo"):
        for example in source.read("train", Drops()):
            prompt = render(example, (), source.instruction_level, PromptConfig())
            texts.append(prompt.source() + target_text(prompt.source(), prompt.target))
    train_sentencepiece(texts, root / "vocabulary.model", VOCABULARY_SIZE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", required=True, help="folder to write the bench to")
    parser.add_argument("--seed", type=int, default=SEED)
    options = parser.parse_args()
    tasks = build(options.out, options.seed)
    train_vocabulary(options.out)
    print(f"{len(tasks)} tasks with {NUM_INSTANCES} instances each: {options.out}")


if __name__ == "__main__":
    main()
