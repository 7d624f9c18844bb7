"""How a prompt lists its options."""

import collections
import dataclasses
import itertools

import pytest

from optiml_jax.data.example import Example
from optiml_jax.data.options import OPTION_FORMATS, relist
from optiml_jax.data.prompts import PromptConfig, render


def example(before, block, options, after="", id="e", target=None) -> Example:
    return Example(
        benchmark="b",
        task="b/t",
        category="Misc.",
        prompt_id="p",
        example_id=id,
        split="train",
        instruction="",
        input=before + block + after,
        target=target or options[0],
        references=(target or options[0],),
        options=tuple(options),
        options_text=block,
    )


FLAN = example(
    "All cats sleep.\nSo?\n\n",
    "OPTIONS:\n- yes\n- no\n- it depends",
    FLAN_OPTIONS := (
        "yes",
        "no",
        "it depends",
    ),
)
CROSSFIT = example("It rained. ", "(A) sun (B) mud", ("sun", "mud"), " context: z")


@pytest.mark.parametrize(
    ("option_format", "expected"),
    [
        ("dashes", "All cats sleep.\nSo?\n\nOPTIONS:\n- no\n- it depends\n- yes"),
        ("parentheses", "All cats sleep.\nSo?\n\nOPTIONS:\n(A) no\n(B) it depends\n(C) yes"),
        ("letters", "All cats sleep.\nSo?\n\nChoose from:\nA. no\nB. it depends\nC. yes"),
        ("numbers", "All cats sleep.\nSo?\n\nOptions:\n1. no\n2. it depends\n3. yes"),
        ("inline", "All cats sleep.\nSo?\n\n(A) no (B) it depends (C) yes"),
        ("commas", "All cats sleep.\nSo?\n\nOptions: no, it depends, yes"),
        ("given", "All cats sleep.\nSo?\n\nOPTIONS:\n- no\n- it depends\n- yes"),
        ("none", "All cats sleep.\nSo?"),
    ],
)
def test_options_are_listed_in_an_order_and_a_format(option_format, expected):
    assert relist(FLAN, option_format, (1, 2, 0)) == expected


@pytest.mark.parametrize(
    ("option_format", "expected"),
    [
        ("dashes", "It rained.\nOPTIONS:\n- mud\n- sun\ncontext: z"),
        ("inline", "It rained. (A) mud (B) sun context: z"),
        ("given", "It rained. (A) mud (B) sun context: z"),
    ],
)
def test_a_list_of_lines_stands_on_lines_of_its_own(option_format, expected):
    assert relist(CROSSFIT, option_format, (1, 0)) == expected


def test_every_format_is_tested_here():
    tested = test_options_are_listed_in_an_order_and_a_format.pytestmark[0].args[1]
    assert {name for name, _ in tested} == {*OPTION_FORMATS, "given", "none"}


# Options that look like the text around them.
@pytest.mark.parametrize(
    ("block", "options", "reversed_block"),
    [
        ("OPTIONS:\n- IO\n- S now", ("IO", "S now"), "OPTIONS:\n- S now\n- IO"),
        ("(A) B 1 (B) A 2", ("B 1", "A 2"), "(A) A 2 (B) B 1"),
        ("(1) 10 (2) 1", ("10", "1"), "(1) 1 (2) 10"),
        ("(A) a cat  (B)  A cat", ("a cat", "A cat"), "(A) A cat  (B)  a cat"),
        ("- A cat\n- A cat, B", ("A cat", "A cat, B"), "- A cat, B\n- A cat"),
        ("yes or no:\n* yes;\n* no;", ("yes", "no"), "yes or no:\n* no;\n* yes;"),
        ("a) -1.5\nb) $2 (two)", ("-1.5", "$2 (two)"), "a) $2 (two)\nb) -1.5"),
        ("1. two\nlines\n2. one", ("two\nlines", "one"), "1. one\n2. two\nlines"),
    ],
)
def test_the_given_format_survives_another_order(block, options, reversed_block):
    e = example("Which? ", block, options, " Say it.")
    assert relist(e, "given", (1, 0)) == f"Which? {reversed_block} Say it."
    assert relist(e, "given", (0, 1)) == e.input
    again = dataclasses.replace(e, input=reversed_block, options_text=reversed_block)
    again = dataclasses.replace(again, options=options[::-1])
    assert relist(again, "given", (1, 0)) == block


def test_letters_go_on_behind_z():
    options = [f"option {i}" for i in range(60)]
    listed = relist(example("", "\n".join(options), options), "letters", range(60)).split("\n")
    assert [line.split(".")[0] for line in listed[1:]][24:54:2] == [
        *("Y", "AA", "AC", "AE", "AG", "AI", "AK", "AM", "AO", "AQ", "AS", "AU", "AW", "AY", "BA"),
    ]


@pytest.mark.parametrize("options", [("A", "B"), ("(A)", "(B)"), ("1", "2"), ("a.", "b.")])
def test_options_that_are_names_stay_as_they_are(options):
    e = example("(A) x (B) y\n", "\n".join(options), options)
    assert relist(e, "dashes", (1, 0)) == e.input


def test_an_input_that_lists_nothing_stays_as_it_is():
    e = example("q", "", ("yes", "no"))
    config = PromptConfig(delimiter="A:", option_order="shuffled", option_format="random")
    assert render(e, (), "instance", config).query == "q A:"


@pytest.mark.parametrize(
    "e",
    [
        example("", "- sun\n- mud", ("sun", "mud"), "\n- sun\n- mud"),
        dataclasses.replace(CROSSFIT, input="another text"),
        dataclasses.replace(CROSSFIT, options=("sun", "mud", "ice")),
        dataclasses.replace(CROSSFIT, options=("mud", "sun")),
    ],
    ids=["twice", "nowhere", "too many", "other order"],
)
def test_a_reader_that_gives_another_text_is_told_so_with_the_task(e):
    with pytest.raises(ValueError, match=r"b/t, example e: options_text .* must occur once"):
        relist(e, "given", range(len(e.options or ())))


# --- in prompts


def rendered(e, shown=(), **settings) -> str:
    return render(e, shown, "instance", PromptConfig(delimiter="A:", **settings)).source()


def copies(n):
    return [dataclasses.replace(FLAN, example_id=str(i)) for i in range(n)]


def test_every_order_and_every_format_is_drawn_as_often():
    settings = {"option_order": "shuffled", "option_format": "random"}
    counts = collections.Counter(rendered(e, **settings) for e in copies(3600))
    orders = list(itertools.permutations(range(3)))
    expected = {f"{relist(FLAN, name, order)} A:" for name in OPTION_FORMATS for order in orders}
    assert set(counts) == expected
    assert all(50 < n < 160 for n in counts.values())  # 100 expected
    assert all(rendered(e) == f"{FLAN.input} A:" for e in copies(5))


def test_demonstrations_have_the_format_of_the_prompt_and_orders_of_their_own():
    (query, *shown), seen = copies(13), set()
    for option_format in ("dashes", "inline"):
        config = PromptConfig(delimiter="A:", option_order="shuffled", option_format=option_format)
        prompt = render(query, shown, "instance", config)
        options = {
            f"{relist(FLAN, option_format, order)} A: yes"
            for order in itertools.permutations(range(3))
        }
        assert set(prompt.demonstrations) <= options
        assert len(set(prompt.demonstrations)) > 2
        assert prompt.target == "yes"
        seen.add(prompt.query)
    assert len(seen) == 2
    randoms = [rendered(e, shown[:1], option_format="random") for e in copies(40)]
    assert all(r.count("Choose from:\n") in (0, 2) for r in randoms)


def test_a_part_of_the_training_prompts_lists_no_options():
    config = PromptConfig(delimiter="", without_options={"b": 0.5, "other": 1.0})
    examples = [dataclasses.replace(FLAN, example_id=str(i)) for i in range(400)]
    listed = ["OPTIONS:" in render(e, (), "instance", config).query for e in examples]
    assert 170 < sum(listed) < 230  # three standard deviations of a fair coin
    evaluated = config.for_evaluation()
    assert all("OPTIONS:" in render(e, (), "instance", evaluated).query for e in examples)
    assert render(CROSSFIT, (), "instance", PromptConfig(delimiter="", option_format="given")).query
    none = dataclasses.replace(config, without_options={"b": 1.0})
    assert render(CROSSFIT, (), "instance", none).query == "It rained. context: z"
