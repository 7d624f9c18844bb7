"""From examples to token ids: verbatim prompts, partial scoring, joint tokenisation.

The ids of OPT's BPE are those of the real vocabulary, checked by hand against the tables of OPT.
"""

import pytest
import toy_evaluation as toy

from optiml_jax.data.prompts import PromptConfig
from optiml_jax.data.vocabulary import encode_batch, load_vocabulary
from optiml_jax.errors import UserError
from optiml_jax.evaluate.instances import InstanceBuilder


@pytest.fixture(scope="module")
def opt(real_data):
    return load_vocabulary(f"opt:{real_data / 'gpt2_bpe'}")


def builder(vocabulary, **more):
    settings = {
        "level": "verbatim",
        "prompts": PromptConfig(separator="\n\n", delimiter=""),
        "encode": lambda texts: encode_batch(vocabulary, texts),
        "sequence_length": 2048,
        "max_new_tokens": 16,
    }
    return InstanceBuilder(**(settings | more))


def question(i=0, **fields):
    values = {"instruction": "Add.", "input": f"Q: {i} + 1\nA:", "target": f" {i + 1}"}
    return toy.example("b/t", i, **(values | fields))


def test_verbatim_prompts_are_joined_by_the_separator_and_nothing_else():
    vocabulary = toy.vocabulary()
    (plain,) = builder(vocabulary).build([question(7)], (), 0, rank=False)
    assert vocabulary.decode(plain.prompt) == "Add.\n\nQ: 7 + 1\nA:"
    (shown,) = builder(vocabulary).build([question(7)], [question(1), question(2)], 2, rank=False)
    assert vocabulary.decode(shown.prompt) == (
        "Add.\n\nQ: 1 + 1\nA: 2\n\nQ: 2 + 1\nA: 3\n\nQ: 7 + 1\nA:"
    )


SCHEMA = {
    "input": "",
    "instruction": "",
    "contexts": ("The cup is in the box, so the cup", "The cup is in the box, so the box"),
    "target": "is small.",
    "options": ("the cup", "the box"),
    "references": ("the cup",),
}


def test_partial_scoring_puts_the_same_text_behind_every_context():
    vocabulary = toy.vocabulary()
    (instance,) = builder(vocabulary).build([question(0, **SCHEMA)], (), 0, rank=True)
    assert [vocabulary.decode(ids) for ids in instance.contexts] == list(SCHEMA["contexts"])
    assert instance.candidates == ("the cup", "the box")
    assert [vocabulary.decode(ids).strip() for ids in instance.candidate_ids] == ["is small."] * 2
    assert instance.candidate_ids[0] == vocabulary.encode(" is small.")
    assert instance.correct == (0,)


def test_all_contexts_lose_the_same_demonstrations():
    vocabulary = toy.vocabulary()
    long = SCHEMA | {"contexts": ("one", "one " + "seven " * 30)}
    pool = [question(i, instruction="") for i in range(4)]
    room = len(vocabulary.encode(long["contexts"][1])) + 30
    (instance,) = builder(vocabulary, sequence_length=room).build(
        [question(9, **long)], pool, 4, rank=True
    )
    shots = len(instance.demonstration_ids)
    assert 0 < shots < 4
    for ids in instance.contexts:
        assert vocabulary.decode(ids).count("Q:") == shots
    assert instance.n_prompt_tokens_dropped > 0


def test_as_many_contexts_as_options_are_wanted():
    odd = question(0, **(SCHEMA | {"options": ("the cup", "the box", "the lid")}))
    with pytest.raises(UserError, match="2 contexts for 3 distinct options"):
        builder(toy.vocabulary()).build([odd], (), 0, rank=True)


def test_a_space_is_a_safe_place_to_cut(opt):
    """`Answer:` + ` yes` is [33683, 35] + [4420] in OPT's BPE, together and apart."""
    item = question(0, instruction="", input="Answer:", options=("yes", "no"), references=("yes",))
    (apart,) = builder(opt).build([item], (), 0, rank=True)
    (together,) = builder(opt, joiner="").build(
        [
            toy.example(
                "b/t", 0, instruction="", input="Answer:", options=("yes",), references=("yes",)
            )
        ],
        (),
        0,
        rank=True,
    )
    assert (apart.prompt, apart.candidate_ids[0]) == ([33683, 35], [4420])
    assert not apart.boundary_repaired
    assert together.prompt == [33683, 35]


def test_a_join_inside_a_token_is_repaired(opt):
    """`1` + `0` is one token, `10`: prompt and candidates are cut before it."""
    item = question(0, instruction="", input="x = 1", options=("0", "5 apples"), references=("0",))
    (instance,) = builder(opt, joiner="").build([item], (), 0, rank=True)
    assert instance.boundary_repaired
    assert instance.prompt == opt.encode("x =")
    assert [opt.decode(ids) for ids in instance.candidate_ids] == [" 10", " 15 apples"]
    assert instance.candidates == ("0", "5 apples")
    (spaced,) = builder(opt).build([item], (), 0, rank=True)
    assert not spaced.boundary_repaired


def test_a_joined_prompt_loses_demonstrations_before_its_own_text(opt):
    item = question(0, instruction="", input="x = 1", options=("0", "5"), references=("0",))
    pool = [question(i, instruction="") for i in range(1, 5)]
    whole = builder(opt, joiner="").build([item], pool, 4, rank=True)[0]
    cut = builder(opt, joiner="", sequence_length=len(whole.prompt) - 3).build(
        [item], pool, 4, rank=True
    )[0]
    assert len(whole.demonstration_ids) == 4
    assert len(cut.demonstration_ids) == 3
    assert cut.n_prompt_tokens_dropped == len(whole.prompt) - len(cut.prompt)
    assert opt.decode(cut.prompt).endswith("x =")
