import pytest
from seqio import test_utils
from tokenizers.pre_tokenizers import ByteLevel

from optiml_jax.data.example import Drops, Example, TaskSource
from optiml_jax.data.preprocessors import ENCODED_FEATURES, encode_examples, seqio_task
from optiml_jax.data.prompts import PromptConfig
from optiml_jax.data.vocabulary import OPTVocabulary, decode

LENGTH = 120


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    """One token per byte: lengths can be counted by eye."""
    import json

    folder = tmp_path_factory.mktemp("bytes")
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *sorted(ByteLevel.alphabet())]
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return OPTVocabulary(folder / "vocab.json", folder / "merges.txt")


def example(i: int, *, input: str | None = None, target: str = "yes") -> Example:
    return Example(
        benchmark="b",
        task="b/t",
        category="Misc.",
        prompt_id="p",
        example_id=f"e{i}",
        split="train",
        instruction="Do.",
        input=f"input {i}" if input is None else input,
        target=target,
        references=(target, "ja"),
        options=("yes", "no"),
    )


EXAMPLES = [
    *(example(i) for i in range(600)),
    example(600, input="x" * 300 + " end"),
    example(601, target="y" * 200),
    example(602, target="y" * (LENGTH - 2)),
    example(603, input="é ドラ </s>", target="</s>"),
]


def source(level="task") -> TaskSource:
    return TaskSource(
        name="b/t",
        splits=("train",),
        files=(),
        read=lambda split, drops: iter(EXAMPLES),
        demonstrations=lambda: [example(-1), example(-2), example(-3)],
        instruction_level=level,
    )


@pytest.mark.parametrize("level", ["task", "instance"])
@pytest.mark.parametrize(
    "config",
    [PromptConfig(), PromptConfig(shots=(0.4, 0.3, 0.0, 0.3), demonstrations="per_instance")],
    ids=["zero-shot", "mixed shots"],
)
def test_a_live_seqio_task_and_batch_encoding_give_the_same_records(vocabulary, config, level):
    task = source(level)
    drops = Drops()
    batch = list(encode_examples(EXAMPLES, task, vocabulary, config, LENGTH, drops))
    live = seqio_task("b.t", task, vocabulary, config, LENGTH).get_dataset(
        sequence_length=None, split="train", shuffle=False
    )
    assert all(list(record) == list(ENCODED_FEATURES) for record in batch)
    test_utils.assert_dataset(live, batch)
    assert drops == {"target too long": 1}
    assert len(batch) == len(EXAMPLES) - 1


def test_no_record_is_too_long_and_no_target_is_cut(vocabulary):
    config = PromptConfig(delimiter="\nA:", shots=(0.0, 0.0, 1.0))
    records = {
        r["example_id"]: r
        for r in encode_examples(EXAMPLES, source(), vocabulary, config, LENGTH, Drops())
    }
    assert max(len(r["inputs"]) + len(r["targets"]) for r in records.values()) == LENGTH
    assert {r["targets"][-1] for r in records.values()} == {2}
    short, long = records["e0"], records["e600"]
    assert decode(vocabulary, short["inputs"]).startswith("Instructions: Do.\n\n\nInput: input -1")
    assert decode(vocabulary, long["inputs"]).endswith("xxx end\nA:")
    assert len(long["inputs"]) == LENGTH - len(" yes") - 1
    assert "input -1" not in decode(vocabulary, long["inputs"])
    assert decode(vocabulary, records["e602"]["targets"]) == " " + "y" * (LENGTH - 2)
    assert records["e602"]["inputs"] == []
    assert decode(vocabulary, records["e603"]["targets"]) == " </s>"


def test_demonstrations_are_dropped_whole_before_the_instance_is_cut(vocabulary):
    config = PromptConfig(delimiter="\nA:", shots=(0.0, 0.0, 0.0, 1.0))
    (record,) = encode_examples([EXAMPLES[0]], source(), vocabulary, config, 100, Drops())
    assert decode(vocabulary, record["inputs"]) == (
        "Instructions: Do.\n\n\nInput: input -1\nA: yes\n\n\nInput: input -2\nA: yes\n\n\n"
        "Input: input 0\nA:"
    )


def test_passthrough_fields_are_json_where_they_are_lists(vocabulary):
    (record,) = encode_examples(
        [EXAMPLES[0]], source(), vocabulary, PromptConfig(), LENGTH, Drops()
    )
    assert record["references"] == '["yes", "ja"]'
    assert record["options"] == '["yes", "no"]'
    assert (record["task"], record["example_id"], record["prompt_id"]) == ("b/t", "e0", "p")
