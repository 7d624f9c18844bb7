"""Training prompts with demonstrations: how many, which, and where the loss is."""

import collections
import dataclasses
import pathlib

import gin
import pytest
from seqio import test_utils

from optiml_jax.data.example import Drops, Example, TaskSource
from optiml_jax.data.preprocessors import encode_examples, prompt_source, seqio_task, training_pool
from optiml_jax.data.prompts import (
    TRAIN_POOL,
    PromptConfig,
    fit_example,
    render,
    sample_pool,
    select_demonstrations,
    zipf_shots,
)
from optiml_jax.data.training_prompts import render_for_training
from optiml_jax.data.vocabulary import decode, load_vocabulary, train_sentencepiece

REPOSITORY = pathlib.Path(__file__).parents[2]
SUFFIX = PromptConfig(delimiter="\nA:", loss="suffix")
METAICL = PromptConfig(
    shots=(0.3, 0.3, 0.2, 0.2), demonstrations="train", separator=("\n\n\n", "\n***\n", " || ")
)


def example(input, target="y", *, instruction="", id="e", prompt="p", task="b/t") -> Example:
    return Example(
        benchmark="b",
        task=task,
        category="Misc.",
        prompt_id=prompt,
        example_id=id,
        split="train",
        instruction=instruction,
        input=input,
        target=target,
        references=(target,),
    )


def source_of(examples, level="task", splits=("train",), pool=()) -> TaskSource:
    return TaskSource(
        name="b/t",
        splits=splits,
        files=(),
        read=lambda split, drops: iter(examples),
        demonstrations=lambda: list(pool),
        instruction_level=level,
    )


# --- how many -------------------------------------------------------------------------------------


# benchmark_formats.md, 1.2 rule 5; the zero-shot shares are those that the paper reports.
@pytest.mark.parametrize(
    ("name", "shares", "loss"),
    [
        ("a2", [0.6705, 0.1676, 0.0745, 0.0419, 0.0268, 0.0186], "label"),
        ("a4", [0.9250, 0.0578, 0.0114, 0.0036, 0.0015, 0.0007], "label"),
        ("a2_suffix", [0.6705, 0.1676, 0.0745, 0.0419, 0.0268, 0.0186], "suffix"),
        ("a4_suffix", [0.9250, 0.0578, 0.0114, 0.0036, 0.0015, 0.0007], "suffix"),
    ],
)
def test_the_papers_settings_are_named_files(name, shares, loss, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    try:
        gin.parse_config_file(f"gin/prompts/metaicl_{name}.gin")
        config = PromptConfig()
    finally:
        gin.clear_config()
    assert [round(p, 4) for p in config.shots] == shares
    assert (config.demonstrations, config.separator, config.loss) == ("train", "\n\n\n", loss)


def test_separators_may_be_drawn_the_papers_first(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    try:
        gin.parse_config_file("gin/prompts/random_separators.gin")
        separators = PromptConfig().separator
    finally:
        gin.clear_config()
    assert separators[0] == PromptConfig().separator
    assert len(set(separators)) == 5


def test_prompts_have_as_many_demonstrations_as_the_law_says():
    config = dataclasses.replace(METAICL, shots=zipf_shots(2))
    examples = [example(f"q{i}", id=str(i)) for i in range(3000)]
    pool = sample_pool(examples, config)
    prompts = [render_for_training(e, pool, "task", config) for e in examples]
    counts = collections.Counter(len(p.demonstrations) for p in prompts)
    for k, share in enumerate(zipf_shots(2)):
        assert abs(counts[k] / 3000 - share) < 4 * (share * (1 - share) / 3000) ** 0.5


# --- which ----------------------------------------------------------------------------------------


def test_the_pool_is_a_bounded_draw_from_the_training_split_in_whatever_order_it_is_read():
    examples = [example(f"q{i}", id=str(i)) for i in range(4 * TRAIN_POOL)]
    pool = sample_pool(iter(examples), METAICL)
    assert len({e.example_id for e in pool}) == TRAIN_POOL
    assert sample_pool(reversed(examples), METAICL) == pool
    assert sample_pool(examples, dataclasses.replace(METAICL, seed=1)) != pool
    # A quarter of the pool from each quarter of the split, 14 to a standard deviation.
    quarters = collections.Counter(int(e.example_id) // TRAIN_POOL for e in pool)
    assert all(abs(n - TRAIN_POOL / 4) < 70 for n in quarters.values())


def test_training_shows_training_examples_and_nothing_is_read_that_no_prompt_shows():
    def read(split, drops):
        assert split == "train"
        return iter([example("a"), example("", "a document")])

    source = dataclasses.replace(source_of(()), read=read)
    assert training_pool(source, METAICL) == [example("a")]
    assert training_pool(dataclasses.replace(source, splits=("test",)), METAICL) == []
    zero_shot = dataclasses.replace(METAICL, shots=(1.0,))
    assert training_pool(dataclasses.replace(source, read=None), zero_shot) == ()


def test_no_prompt_shows_its_own_example_nor_its_input_nor_another_prompt_if_it_can():
    rows = [(f"e{i}", f"input {i % 25}") for i in range(30)]  # the last five repeat inputs
    examples = [example(f"{text} {p}", id=row, prompt=p) for row, text in rows for p in "pqr"]
    config = dataclasses.replace(METAICL, shots=(0.0, 0.0, 0.0, 1.0))
    pool = sample_pool(examples, config)
    shown = collections.Counter()
    for e in examples:
        chosen = select_demonstrations(e, pool, 3, config)
        assert len({d.input for d in chosen} - {e.input}) == 3
        assert e.example_id not in {d.example_id for d in chosen}
        assert {d.prompt_id for d in chosen} == {e.prompt_id}
        shown.update(d.example_id for d in chosen)
    assert len(shown) == 30
    rare = example("alone", id="alone", prompt="s")
    assert len(select_demonstrations(rare, pool, 3, config)) == 3


@pytest.mark.parametrize("mode", ["fixed", "per_instance"])
def test_demonstrations_of_the_same_prompt_come_first_in_evaluation_too(mode):
    pool = [example(f"d{i}", id=str(i), prompt="pq"[i % 2]) for i in range(8)]
    config = PromptConfig(demonstrations=mode)
    chosen = select_demonstrations(example("x", prompt="q"), pool, 8, config)
    assert [d.prompt_id for d in chosen] == [*"qqqqpppp"]
    if mode == "fixed":
        assert [d.example_id for d in chosen] == [*"13570246"]


def test_evaluation_takes_the_readers_pool_in_its_order_one_separator_and_no_suffix():
    evaluated = dataclasses.replace(METAICL, loss="suffix").for_evaluation()
    assert (evaluated.demonstrations, evaluated.loss) == ("fixed", "label")
    assert evaluated.separator == "\n\n\n"
    per_instance = PromptConfig(demonstrations="per_instance")
    assert per_instance.for_evaluation() == per_instance
    pool = [example(f"d{i}", id=f"d{i}") for i in range(9)]
    data = prompt_source(source_of([example("q")], pool=pool), METAICL, shots=2)
    (record,) = data.get_dataset("train", shuffle=False).as_numpy_iterator()
    assert [d.split()[1] for d in record["demonstrations"]] == [b"d0", b"d1"]
    assert record["separator"] == b"\n\n\n"
    assert record["suffix_start"] == 0


# --- where the loss is ----------------------------------------------------------------------------

SUM, FIRST, SECOND = (
    example("2+2", "4"),
    example("1+1", "2", id="d1"),
    example("3+3", "6", id="d2"),
)


# benchmark_formats.md, 1.7: label loss on the last label; suffix loss on the demonstration's label,
# the separator and the whole instance with its label.
@pytest.mark.parametrize(
    ("shown", "loss", "expected"),
    [
        ([], "label", "2+2\nA:| 4"),
        ([], "suffix", "2+2\nA:| 4"),
        ([FIRST], "label", "1+1\nA: 2\n\n\n2+2\nA:| 4"),
        ([FIRST], "suffix", "1+1\nA:| 2\n\n\n2+2\nA: 4"),
        ([FIRST, SECOND], "suffix", "1+1\nA:| 2\n\n\n3+3\nA: 6\n\n\n2+2\nA: 4"),
    ],
)
def test_worked_renderings_of_instance_level_prompts_under_both_losses(shown, loss, expected):
    config = PromptConfig(delimiter="\nA:", loss=loss)
    prompt = render(SUM, shown, "instance", config)
    assert "|".join(prompt.without_and_with_loss()) == expected


EVEN = "Say whether the number is even."


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (
            "label",
            "Instructions: Say whether the number is even.\n\n\nInput: 3 A: no\n\n\n"
            "Input: 14 A:| yes",
        ),
        (
            "suffix",
            "Instructions: Say whether the number is even.\n\n\nInput: 3 A:| no\n\n\n"
            "Input: 14 A: yes",
        ),
    ],
)
def test_worked_renderings_of_task_level_prompts_under_both_losses(loss, expected):
    query = example("14", "yes", instruction=EVEN)
    shown = [example("3", "no", instruction=EVEN, id="d")]
    prompt = render(query, shown, "task", PromptConfig(delimiter="A:", loss=loss))
    assert "|".join(prompt.without_and_with_loss()) == expected


def characters(text: str) -> list[int]:
    return [ord(c) for c in text]


def test_under_suffix_loss_whole_demonstrations_go_before_the_source_is_cut_and_no_target_is():
    prompt = render(SUM, [FIRST, SECOND], "instance", SUFFIX)
    parts = {k: [*map(characters, prompt.without_and_with_loss(k))] for k in range(3)}
    lengths = {k: len(s) + len(t) + 1 for k, (s, t) in parts.items()}
    assert lengths == {2: 31, 1: 20, 0: 9}

    def fit(sequence_length):
        return fit_example(prompt, *parts[2], sequence_length, 2, characters)

    for kept, (source, target) in parts.items():
        assert fit(lengths[kept]) == (source, [*target, 2])
        if kept:
            fewer, its_target = parts[kept - 1]
            assert fit(lengths[kept] - 1) == (fewer, [*its_target, 2])
    assert fit(6) == (characters("\nA:"), [*characters(" 4"), 2])
    assert fit(3) == ([], [*characters(" 4"), 2])
    assert fit(2) is None


TEXTS = ["a question?", "a newline\n", "ドラ é €5", "two  spaces  ", "Topic:", "tab\t", "x\n\n"]


@pytest.fixture(params=["opt", "sentencepiece"])
def vocabulary(request, tmp_path):
    if request.param == "opt":
        folder = request.getfixturevalue("real_data") / "gpt2_bpe"
        return load_vocabulary(f"opt:{folder}")
    train_sentencepiece([*TEXTS, "yes no A: Output: a question answer"] * 3, tmp_path / "sp", 330)
    return load_vocabulary(f"sentencepiece:{tmp_path / 'sp'}")


@pytest.mark.parametrize("separator", ["\n\n\n", "##", " ", "\n"])
def test_both_parts_encoded_are_the_whole_encoded(vocabulary, separator):
    targets = ["yes", "\n2nd line", "no.", "...", "é", "'s", "12 345"]
    examples = [
        example(text, target, instruction="Do.", id=f"{i} {target}")
        for i, text in enumerate(TEXTS)
        for target in targets
    ]
    config = dataclasses.replace(SUFFIX, delimiter=None, separator=separator)
    for i, e in enumerate(examples):
        for k in range(3):
            shown = [examples[i - j - 1] for j in range(k)]
            source, target = render(e, shown, "task", config).without_and_with_loss()
            ids = vocabulary.encode(source) + vocabulary.encode(target)
            assert ids == vocabulary.encode(source + target)
            assert decode(vocabulary, ids) == source + target


# --- both ways to the cache -----------------------------------------------------------------------


@pytest.mark.parametrize("level", ["task", "instance"])
def test_a_live_seqio_task_and_batch_encoding_agree_under_suffix_loss(tmp_path, level):
    train_sentencepiece([*TEXTS, "Do. yes A: Output: input"] * 3, tmp_path / "sp", 330)
    vocabulary = load_vocabulary(f"sentencepiece:{tmp_path / 'sp'}")
    config = dataclasses.replace(METAICL, loss="suffix", option_format="random")
    examples = [
        dataclasses.replace(
            example(f"{i}\n- yes\n- no {'x' * (i % 90)}", "yes", instruction="Do.", id=str(i)),
            options=("yes", "no"),
            options_text="- yes\n- no",
        )
        for i in range(300)
    ]
    examples.append(example("long target", "y " * 200, id="long"))
    source, drops = source_of(examples, level), Drops()
    records = list(encode_examples(examples, source, vocabulary, config, 120, drops))
    live = seqio_task("b.t", source, vocabulary, config, 120)
    test_utils.assert_dataset(live.get_dataset(None, "train", shuffle=False), records)
    # No prompt shows the long target: demonstrations are dropped instead.
    assert drops == {"target too long": 1}
    assert len(records) == 300
    assert max(len(r["inputs"]) + len(r["targets"]) for r in records) <= 120
    texts = [decode(vocabulary, r["targets"]) for r in records]
    assert all(any(separator in text for text in texts) for separator in METAICL.separator)
    assert all(text.startswith(" yes") and text.endswith(" yes") for text in texts)
