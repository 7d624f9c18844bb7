"""Properties of prompts that hold for every text, searched for counter-examples."""

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from optiml_jax.data.example import Example
from optiml_jax.data.prompts import (
    DELIMITERS,
    PromptConfig,
    fit_example,
    fit_source,
    render,
    select_demonstrations,
)

QUICK = settings(max_examples=80, deadline=None, database=None, derandomize=True)
# Letters, white space of several kinds, what prompts are made of, and whatever else there is.
TEXT = st.text(
    st.one_of(st.sampled_from("ab \n\t:?\u3000\u200b(A)é北🙂"), st.characters(codec="utf-8"))
)
EOS = -1


def example(number, texts):
    instruction, text, target = texts
    return Example(
        benchmark="b",
        task="b/t",
        category="c",
        prompt_id=f"p{number % 2}",
        example_id=str(number),
        split="train",
        instruction=instruction,
        input=text,
        target=target or "x",
        references=(target or "x",),
    )


EXAMPLES = st.lists(st.tuples(TEXT, TEXT, TEXT), min_size=1, max_size=6).map(
    lambda texts: [example(i, t) for i, t in enumerate(texts)]
)
CONFIGS = st.builds(
    PromptConfig,
    seed=st.integers(0, 2**32 - 1),
    separator=st.sampled_from(["\n\n", "\n\n\n", " "]),
    delimiter=st.sampled_from([None, "", *DELIMITERS]),
    shots=st.just((0.0, 0.0, 1.0)),
    demonstrations=st.sampled_from(["fixed", "per_instance", "train"]),
    loss=st.sampled_from(["label", "suffix"]),
)
LEVELS = st.sampled_from(["task", "instance", "verbatim"])


def letters(text):
    """A vocabulary in which a letter is a token."""
    return [ord(letter) for letter in text]


@QUICK
@given(examples=EXAMPLES, level=LEVELS, config=CONFIGS, keep=st.integers(0, 6))
def test_the_parts_of_a_prompt_are_the_whole_and_the_target_has_loss(examples, level, config, keep):
    prompt = render(examples[0], examples[1:], level, config)
    without, with_loss = prompt.without_and_with_loss(keep)
    assert (without + with_loss).startswith(prompt.source(keep))
    assert with_loss.endswith(examples[0].target.strip())
    shown = [d for d in prompt.demonstrations if d][:keep]
    places = [prompt.source(keep).find(d) for d in shown]
    assert -1 not in places


@QUICK
@given(examples=EXAMPLES, level=LEVELS, config=CONFIGS, length=st.integers(1, 60))
def test_a_row_holds_the_whole_target_and_the_end_of_the_source(examples, level, config, length):
    prompt = render(examples[0], examples[1:], level, config)
    parts = [letters(part) for part in prompt.without_and_with_loss()]
    fitted = fit_example(prompt, *parts, length, EOS, letters)
    if fitted is None:
        alone = letters(prompt.without_and_with_loss(0)[1])
        assert len(alone) + 1 > length
        return
    source, target = fitted
    assert len(source) + len(target) <= length
    assert target[-1] == EOS
    possible = [
        [letters(part) for part in prompt.without_and_with_loss(k)]
        for k in range(len(prompt.demonstrations) + 1)
    ]
    assert any(
        target[:-1] == whole and source == start[len(start) - len(source) :]
        for start, whole in possible
    )


@QUICK
@given(examples=EXAMPLES, level=LEVELS, config=CONFIGS, budget=st.integers(0, 60))
def test_a_source_is_cut_only_when_no_demonstration_is_left(examples, level, config, budget):
    prompt = render(examples[0], examples[1:], level, config)
    fitted = fit_source(prompt, letters(prompt.source()), budget, letters)
    assert len(fitted.ids) <= budget
    whole = letters(prompt.source(fitted.shots))
    assert fitted.ids == whole[fitted.dropped_tokens :]
    assert not (fitted.dropped_tokens and fitted.shots)
    if fitted.shots < len(prompt.demonstrations):
        assert len(letters(prompt.source(fitted.shots + 1))) > budget


@QUICK
@given(examples=EXAMPLES, config=CONFIGS, k=st.integers(0, 5))
def test_demonstrations_are_others_and_fewer_are_the_first_of_more(examples, config, k):
    query, pool = examples[0], examples
    chosen = select_demonstrations(query, pool, k, config)
    assert len(chosen) <= k
    assert query not in chosen
    inputs = [" ".join(e.input.split()) for e in (query, *chosen)]
    assert len(set(inputs)) == len(inputs)
    assert select_demonstrations(query, pool, k + 1, config)[: len(chosen)] == chosen


@pytest.fixture(scope="module")
def bpe():
    """A byte-level BPE of the pre-tokeniser of GPT-2, with some words of several letters."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", "a"), ("a", "b"), ("Ġ", "b"), ("Ċ", "Ċ"), ("Ġ", "Ġ"), (":", "Ġ"), ("Ġa", "b")]
    words = [*alphabet, *("".join(merge) for merge in merges)]
    model = tokenizers.models.BPE({word: i for i, word in enumerate(words)}, merges)
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    return lambda text: tokenizer.encode(text).ids


@QUICK
@given(examples=EXAMPLES, level=LEVELS, config=CONFIGS)
def test_ids_of_the_parts_are_the_ids_of_the_whole(bpe, examples, level, config):
    prompt = render(examples[0], examples[1:], level, config)
    without, with_loss = prompt.without_and_with_loss()
    assert bpe(without) + bpe(with_loss) == bpe(without + with_loss)
