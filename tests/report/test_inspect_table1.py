"""Table 1 against counts and lengths computed by hand and by numpy."""

import dataclasses
import functools
import pathlib

import numpy as np
import pytest
import yaml
from test_inspect_prompts import encode, example

from optiml_jax.data.example import Drops, TaskSource
from optiml_jax.data.prompts import PromptConfig, render
from optiml_jax.data.vocabulary import encode_batch, load_vocabulary
from optiml_jax.report import table1
from optiml_jax.report.inspect_prompts import TaskFacts
from tasks.crossfit.reader import find_tasks
from tasks.splits import Manifest

CONFIG = PromptConfig(delimiter="")
PAPER = {
    "collections": {
        "b": {"clusters": 76, "tasks": 1613, "examples": "12.4M", "prompts": 1.0}
        | {"mean": 287, "std": 882}
    },
    "bench": {role: {"tasks": 1545} for role in ("train", "dev", "test")},
}


def facts(task: str = "b/t", role=("train",), category: str = "C") -> TaskFacts:
    return TaskFacts(task, task[0], category, "train_only", role, True, "rougeL", (0,))


def source(**splits) -> TaskSource:
    return TaskSource(
        name="b/t",
        splits=tuple(splits),
        files=(),
        read=lambda split, drops: iter(splits[split]),
        demonstrations=list,
        instruction_level="instance",
    )


def text(i: int, length: int, prompt: str = "p"):
    return example(i, prompt, instruction="", input="x" * length, options_text="", options=None)


def count(task: TaskSource, own: TaskFacts) -> table1.TaskCount:
    return table1.count_files(task, own, CONFIG, lambda texts: [encode(t) for t in texts])


def table(counts, cap=None) -> dict[str, tuple[str, ...]]:
    made = table1.table(counts, PAPER, lambda task: cap, [])
    return {row[0]: row[1:] for row in made.rows}


def test_moments_are_numpys():
    lengths = np.random.default_rng(0).integers(1, 3000, 1000)
    whole = table1.Moments.of(lengths[:300]) + table1.Moments.of(lengths[300:])
    assert whole.mean == pytest.approx(np.mean(lengths), rel=1e-12)
    assert whole.std == pytest.approx(np.std(lengths), rel=1e-9)


def test_examples_of_tests_are_counted_once_whatever_the_number_of_prompts():
    pairs = [text(i, 10, prompt) for i in range(5) for prompt in ("p", "q", "r")]
    counted = count(source(train=[text(i, 8) for i in range(4)], test=pairs), facts())
    assert counted.examples == {"train": 4, "test": 5}
    assert counted.prompts == 3


def test_rows_hold_our_numbers_beside_the_papers():
    one = count(source(train=[text(0, 10), text(1, 20)]), facts("b/one"))
    two = count(source(train=[text(0, 30)], test=[text(1, 40)]), facts("b/two", category="D"))
    rows = table([one, two])
    # By hand: lengths 10, 20, 30, 40: mean 25, variance 125.
    assert rows["b"] == (
        *("2", "76", "2", "1,613", "4", "12.4M", "1.0", "1.0"),
        *("25 ± 11", "287 ± 882"),
    )
    assert rows["bench (train)"][4] == "3"
    assert rows["bench (dev)"][0] == "–"


def test_the_bench_keeps_what_the_cap_leaves_and_weighs_lengths_by_it():
    big = count(source(train=[text(i, 10) for i in range(100)]), facts("b/big"))
    small = count(source(train=[text(i, 30) for i in range(10)]), facts("b/small"))
    row = table([big, small], cap=10)["bench (train)"]
    assert (row[4], row[8]) == ("20", "20 ± 10")  # ten of 10 characters, ten of 30
    assert table([big, small])["b"][8] == "12 ± 6"


def test_roles_decide_the_rows_of_the_bench_and_plain_text_is_in_none():
    test = count(source(train=[text(0, 5)], test=[text(1, 10)]), facts("b/test", ("test",)))
    plain = dataclasses.replace(text(0, 0), target="words")
    prose = count(source(train=[plain]), facts("c/prose"))
    rows = table([test, prose])
    assert rows["bench (test)"][4] == "1"
    assert rows["bench (train)"][2] == "–"
    assert rows["c"][:3] == ("1", "–", "1")


def test_the_papers_numbers_are_complete():
    """Against the sums that the paper states: 2,207 tasks in all (section 1)."""
    path = pathlib.Path(__file__).parents[2] / "tasks" / "data" / "table1.yaml"
    content = yaml.safe_load(path.read_text("utf-8"))
    collections = content["collections"]
    assert sum(row["tasks"] for row in collections.values()) == 2207
    assert all(
        {"clusters", "examples", "prompts", "mean", "std"} <= set(r) for r in collections.values()
    )
    assert set(content["bench"]) == {"train", "dev", "test"}


def test_lengths_of_real_prompts_are_numpys(real_data):
    """CrossFit's sample: 1,557 rows of 5 tasks, each encoded on its own."""
    vocabulary = load_vocabulary(f"opt:{real_data}/gpt2_bpe")
    counts, lengths = [], []
    for task in find_tasks(real_data / "crossfit", Manifest.load(), "crossfit"):
        own = facts(task.name)
        encode = functools.partial(encode_batch, vocabulary)
        counts.append(table1.count_files(task, own, PromptConfig(), encode))
        lengths += [
            len(vocabulary.encode(render(e, [], "instance", PromptConfig()).source()))
            for split in task.splits
            for e in task.read(split, Drops())
        ]
    assert len(lengths) == sum(c.lengths[s].count for c in counts for s in c.lengths)
    made = table1.table(counts, PAPER, lambda task: None, [])
    assert made.rows[0][9] == f"{np.mean(lengths):.0f} ± {np.std(lengths):.0f}"
