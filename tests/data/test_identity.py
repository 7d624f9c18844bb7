"""One source example in several collections has one identity; on upstream's own files."""

import glob
import json
import pathlib

import pytest

from optiml_jax.data.example import Example
from optiml_jax.data.identity import row_identity, source_identity, unless_common


def upstream(real_data, name):
    files = sorted((real_data / "datasets" / "super_glue" / name).glob("*.jsonl"))
    return {row_identity(json.loads(line)) for f in files for line in f.open(encoding="utf-8")}


@pytest.mark.parametrize(
    ("task", "name", "known"),
    # The copy of RTE at hand lacks rows; COPA's task827 shows some premises with other options.
    [("task1393", "copa", 495), ("task1388", "cb", 150), ("task1344", "rte", 120)],
)
def test_examples_of_super_natural_instructions_are_those_of_super_glue(
    real_data, task, name, known
):
    (file,) = glob.glob(f"{real_data}/super_natural_instructions/tasks/{task}_*.json")
    texts = [i["input"] for i in json.loads(pathlib.Path(file).read_text("utf-8"))["Instances"]]
    rows = upstream(real_data, name)
    assert sum(source_identity([text]) in rows for text in texts) >= known


@pytest.mark.parametrize(("name", "number"), [("cb", 56), ("copa", 100), ("rte", 277)])
def test_examples_of_crossfit_are_those_of_super_glue(real_data, name, number):
    (file,) = glob.glob(f"{real_data}/crossfit/data/superglue-{name}/*_100_test.tsv")
    texts = [line.split("\t")[0] for line in pathlib.Path(file).read_text("utf-8").splitlines()]
    rows = upstream(real_data, name)
    assert sum(source_identity([text]) in rows for text in texts) == number


def test_order_of_fields_labels_and_quotes_do_not_change_the_identity():
    row = {"hypothesis": "A man sleeps.", "premise": "A man is lying on “his” old bed.", "label": 1}
    texts = [
        'Premise: A man is lying on "his" old bed. Hypothesis: A man sleeps.',
        "sentence_A: A man is lying on 'his' old bed. sentence_B: A man sleeps.",
        "A man sleeps. [SEP] A man is lying on “his” old  bed.",
    ]
    assert {source_identity([text]) for text in texts} == {row_identity(row)} != {""}
    assert source_identity(["yes"]) == ""
    assert source_identity(["一个男人躺在他的旧床上睡觉了很久"]) != ""


def test_a_sentence_that_most_examples_show_identifies_none():
    question = "For which of these scenarios does the main character do something wrong?"

    def example(i, text):
        identity = source_identity([text])
        return Example(
            *("b", "b/t", "C", "p", f"e{i}", "test", "", text, "x", ("x",)), source_id=identity
        )

    common = [example(i, f"{question} I ate {i} cakes.") for i in range(40)]
    own = [example(100 + i, f"The passage about topic number {i} of them. Why?") for i in range(4)]
    found = unless_common(common + own)
    assert set(found[:40]) == {""}
    assert len(set(found[40:])) == 4


def test_a_text_of_dots_is_read_in_time_linear_in_it():
    film = "The film was long and loud"
    assert source_identity(["." * 400_000 + f"(\n{film}. Too long"]) == source_identity([film])
