import collections
import dataclasses
import pathlib
import subprocess
import sys

import pytest

from optiml_jax.data.example import Example
from optiml_jax.data.prompts import (
    DELIMITERS,
    PromptConfig,
    fit_example,
    fit_source,
    render,
    select_demonstrations,
    target_text,
)
from optiml_jax.data.training_prompts import draw_shots, render_for_training
from optiml_jax.errors import UserError


def example(input, target, *, instruction="", id="e0", task="superni/task1") -> Example:
    return Example(
        benchmark=task.split("/")[0],
        task=task,
        category="Misc.",
        prompt_id="p",
        example_id=id,
        split="train",
        instruction=instruction,
        input=input,
        target=target,
        references=(target,),
    )


def rendered(e: Example, demonstrations=(), *, level="instance", delimiter=None) -> str:
    prompt = render(e, demonstrations, level, PromptConfig(delimiter=delimiter))
    source = prompt.source()
    return f"{source}|{target_text(source, prompt.target)}"


EVEN = "Say whether the number is even."


def test_worked_renderings_of_task_level_prompts():
    query = example("14", "yes", instruction=EVEN)
    demonstration = example("3", "no", instruction=EVEN, id="e1")
    assert rendered(query, level="task", delimiter="\nOutput:") == (
        "Instructions: Say whether the number is even.\nInput: 14\nOutput:| yes"
    )
    assert rendered(query, [demonstration], level="task", delimiter="A:") == (
        "Instructions: Say whether the number is even.\n\n\nInput: 3 A: no\n\n\nInput: 14 A:| yes"
    )


@pytest.mark.parametrize(
    ("e", "delimiter", "expected"),
    [
        (
            example(
                "All cats sleep.\nIs the sentence below supported?\nSome cats sleep.\n\n"
                "OPTIONS:\n- yes\n- no",
                "yes",
            ),
            "\nAnswer:",
            "All cats sleep.\nIs the sentence below supported?\nSome cats sleep.\n\n"
            "OPTIONS:\n- yes\n- no\nAnswer:| yes",
        ),
        (
            example("Guess the topic. Text: rain all week. Topic:", "weather"),
            None,
            "Guess the topic. Text: rain all week. Topic:| weather",
        ),
        (
            example(
                "It rained. (A) The street got wet. (B) The sun rose.",
                "The street got wet.",
                instruction="Pick the plausible alternative.",
            ),
            "\nAnswer:",
            "Pick the plausible alternative.\n"
            "It rained. (A) The street got wet. (B) The sun rose.\nAnswer:| The street got wet.",
        ),
        (
            example(
                "task: dart ; structured knowledge: Oslo : country : Norway", "Oslo is in Norway."
            ),
            "\nOutput:",
            "task: dart ; structured knowledge: Oslo : country : Norway\nOutput:"
            "| Oslo is in Norway.",
        ),
        (
            example(
                "Which is heavier?\nfeather, brick",
                "A brick is dense. The answer is brick",
                instruction="Think.",
            ),
            "Output:",
            "Think.\nWhich is heavier?\nfeather, brick Output:"
            "| A brick is dense. The answer is brick",
        ),
        (
            example("", "first turn\nsecond turn\nthird turn"),
            None,
            "|first turn\nsecond turn\nthird turn",
        ),
    ],
    ids=["flan", "colon", "manual sentence", "unifiedskg", "reasoning", "dialogue"],
)
def test_worked_renderings_of_instance_level_prompts(e, delimiter, expected):
    assert rendered(e, delimiter=delimiter) == expected


def test_metaicl_prompt_is_demonstration_pair_separator_and_instance():
    assert rendered(example("2+2", "4"), [example("1+1", "2", id="d")], delimiter="\nA:") == (
        "1+1\nA: 2\n\n\n2+2\nA:| 4"
    )


@pytest.mark.parametrize(
    ("text", "delimiter", "source"),
    [
        ("text", "A:", "text A:"),
        ("text\n", "A:", "text\nA:"),
        ("text ", "A:", "text A:"),
        ("text", "\nA:", "text\nA:"),
        ("Topic: ", "A:", "Topic:"),
        ("Topic:\n", "\nA:", "Topic:\n"),
        ("text ", "", "text"),
    ],
)
def test_how_a_delimiter_attaches(text, delimiter, source):
    assert rendered(example(text, "t"), delimiter=delimiter) == f"{source}| t"


def test_a_demonstration_that_ends_with_a_colon_gets_no_delimiter_the_others_do():
    pair = rendered(example("q", "t"), [example("Topic:", "x", id="d")], delimiter="\nA:")
    assert pair == "Topic: x\n\n\nq\nA:| t"


def test_the_delimiter_is_drawn_once_per_prompt_and_depends_on_task_prompt_and_example():
    demonstrations = [example(f"d{i}", "x", id=f"d{i}") for i in range(3)]
    counts = collections.Counter()
    for i in range(800):
        e = example("q", "t", id=str(i))
        prompt = render(e, demonstrations, "task", PromptConfig())
        drawn = [d for d in DELIMITERS if prompt.query in (f"Input: q{d}", f"Input: q {d}")]
        assert len(drawn) == 1
        joined = drawn[0] if drawn[0][0] == "\n" else f" {drawn[0]}"
        assert prompt.demonstrations == tuple(f"Input: d{k}{joined} x" for k in range(3))
        counts[drawn[0]] += 1
    assert set(counts) == set(DELIMITERS)
    assert all(60 < n < 150 for n in counts.values())  # 100 expected
    e = example("q", "t")
    for other in ({"task": "superni/task2"}, {"prompt_id": "p2"}):
        pairs = [
            (dataclasses.replace(e, example_id=str(i)), PromptConfig(seed=9)) for i in range(40)
        ]
        same = [
            render(a, (), "task", c).query
            == render(dataclasses.replace(a, **other), (), "task", c).query
            for a, c in pairs
        ]
        assert not all(same)


def test_one_of_several_separators_stands_between_all_parts_of_a_prompt():
    separators = ("\n\n\n", "\n--\n", " ## ")
    config = PromptConfig(delimiter="A:", separator=separators)
    demonstrations = [example(f"d{i}", "x", id=f"d{i}") for i in range(2)]
    counts = collections.Counter(
        render(example("q", "t", id=str(i)), demonstrations, "instance", config).source()
        for i in range(600)
    )
    assert set(counts) == {s.join(("d0 A: x", "d1 A: x", "q A:")) for s in separators}
    assert all(150 < n < 250 for n in counts.values())  # 200 expected


def test_prompts_are_the_same_in_another_process_with_another_hash_seed():
    code = (
        "from optiml_jax.data.example import Example\n"
        "from optiml_jax.data.prompts import *\n"
        "from optiml_jax.data.training_prompts import *\n"
        "c = PromptConfig(demonstrations='train', shots=(.5, .25, .25), separator=('#', '##'),"
        " loss='suffix', option_order='shuffled', option_format='random')\n"
        "examples = [Example('b','b/t','c','p',str(i),'train','',f'in {i} yes, no','y',('y',),"
        " ('yes', 'no'), 'yes, no') for i in range(20)]\n"
        "pool = sample_pool([examples[int(i)] for i in {str(i) for i in range(20)}], c)\n"
        "print([render_for_training(e, pool, 'task', c) for e in examples])\n"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(pathlib.Path(__file__).parents[2])},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


POOL = [example(f"input {i}", "y", id=f"pool{i}") for i in range(10)]


@pytest.mark.parametrize("mode", ["fixed", "per_instance"])
def test_k_shot_is_a_prefix_of_k_plus_one_shot_and_never_shows_the_example(mode):
    config = PromptConfig(demonstrations=mode)
    same_input_elsewhere = example("  input \n 4 ", "z", id="other")
    for query in [*POOL, same_input_elsewhere]:
        longest = select_demonstrations(query, POOL, 20, config)
        assert len(longest) == 9
        assert len({d.example_id for d in longest}) == 9
        assert query.input.split() not in [d.input.split() for d in longest]
        for k in range(9):
            assert select_demonstrations(query, POOL, k, config) == longest[:k]


def test_fixed_demonstrations_follow_the_order_of_the_pool():
    chosen = select_demonstrations(POOL[1], POOL, 3, PromptConfig())
    assert chosen == [POOL[0], POOL[2], POOL[3]]


def test_per_instance_demonstrations_are_spread_over_the_pool_and_change_with_the_seed():
    def first(seed):
        config = PromptConfig(seed=seed, demonstrations="per_instance")
        queries = [example(f"q{i}", "y", id=f"q{i}") for i in range(500)]
        return [select_demonstrations(q, POOL, 1, config)[0].example_id for q in queries]

    counts = collections.Counter(first(1))
    assert len(counts) == 10
    assert all(25 < n < 85 for n in counts.values())  # 50 expected
    assert first(1) != first(2)


def test_demonstrations_with_one_input_are_shown_once():
    twice = [example("same", "a", id="1"), example("same", "b", id="2")]
    assert len(select_demonstrations(example("q", "t"), twice, 2, PromptConfig())) == 1


def test_training_shots_follow_their_probabilities():
    config = PromptConfig(shots=(0.7, 0.0, 0.3))
    counts = collections.Counter(
        len(
            render_for_training(
                example(f"q{i}", "t", id=f"q{i}"), POOL, "task", config
            ).demonstrations
        )
        for i in range(600)
    )
    assert set(counts) == {0, 2}
    assert 0.64 < counts[0] / 600 < 0.76
    assert draw_shots(POOL[0], PromptConfig()) == 0


def characters(text: str) -> list[int]:
    return [ord(c) for c in text]


def test_whole_demonstrations_are_dropped_before_the_source_is_cut_on_the_left():
    demonstrations = [example("d" * 20, "y", id=str(i)) for i in range(3)]
    query = example("query", "t", instruction="define")
    prompt = render(query, demonstrations, "task", PromptConfig(delimiter="\nA:"))
    full = characters(prompt.source())
    whole = fit_source(prompt, full, len(full), characters)
    assert (whole.ids, whole.shots, whole.dropped_tokens) == (full, 3, 0)
    one_less = fit_source(prompt, full, len(full) - 1, characters)
    assert (one_less.ids, one_less.shots) == (characters(prompt.source(2)), 2)
    assert prompt.source(0) == "Instructions: define\nInput: query\nA:"
    cut = fit_source(prompt, full, 10, characters)
    assert (cut.ids, cut.shots) == (characters(": query\nA:"), 0)
    assert cut.dropped_tokens == len(prompt.source(0)) - 10


def test_a_training_example_fills_the_row_at_most_and_keeps_its_whole_target():
    prompt = render(example("0123456789", "yes"), (), "instance", PromptConfig(delimiter="\nA:"))
    source, target = characters(prompt.source()), characters(" yes")
    fits = fit_example(prompt, source, target, len(source) + 5, 2, characters)
    assert fits == (source, [*target, 2])
    cut = fit_example(prompt, source, target, 9, 2, characters)
    assert cut == (source[-4:], [*target, 2])
    assert fit_example(prompt, source, target, 5, 2, characters) == ([], [*target, 2])
    assert fit_example(prompt, source, target, 4, 2, characters) is None


@pytest.mark.parametrize(
    "bad",
    [
        {"shots": ()},
        {"shots": (0.5,)},
        {"shots": (1.5, -0.5)},
        {"demonstrations": "some"},
        {"loss": "prefix"},
        {"option_order": "odd"},
        {"option_format": "odd"},
        {"separator": ()},
    ],
)
def test_a_bad_configuration_is_refused_by_name(bad):
    with pytest.raises(UserError, match=f"PromptConfig.{next(iter(bad))}"):
        PromptConfig(**bad)
