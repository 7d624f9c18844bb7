"""FLAN v2's kinds of prompts, from files of the form that google-research/FLAN has.

Templates and lists of options are compared with what Python makes of the same file, few-shot texts
with `seqio.experimental.fewshot_preprocessor`, which upstream builds its prompts with.
"""

import collections
import json

import flan_clone
import gin
import pytest
import seqio
import tensorflow as tf
import yaml

from optiml_jax.data.example import Drops
from optiml_jax.data.prompts import PromptConfig
from optiml_jax.data.training_prompts import fill, render_for_training
from optiml_jax.errors import UserError
from tasks.flan import reader as flan
from tasks.flan.templates_v2 import read_templates_v2
from tasks.splits import Manifest

CONFIG = """
tasks: {parity: {cluster: math, fields: {number: number}, options: [odd, even]}}
"""
LIST = "OPTIONS:\n- odd\n- even"
ROWS = 1200


@pytest.fixture
def clone(tmp_path):
    """A clone of FLAN with rows."""
    flan_clone.write_clone(tmp_path)
    (tmp_path / "task_config.yaml").write_text(CONFIG)
    (tmp_path / "datasets/parity").mkdir(parents=True)
    for split, number in (("train", ROWS), ("test", 3)):
        rows = [json.dumps({"number": i, "label": 1 - i % 2}) for i in range(number)]
        (tmp_path / f"datasets/parity/{split}.jsonl").write_text("\n".join(rows))
    gin.bind_parameter("FlanConfig.templates", "v2")
    return tmp_path


def find(clone, role="train"):
    row = {"tasks": "*/*", "level": "fully_supervised", "role": [role], "src": "inferred"}
    path = clone / "manifest.yaml"
    path.write_text(yaml.safe_dump({"rows": [row | {"metric": "acc_rank"}]}))
    (source,) = flan.find_tasks(clone, Manifest.load(path))
    return source


def test_templates_are_those_that_python_reads(clone):
    read, python = read_templates_v2(clone), flan_clone.executed()
    assert set(read.patterns) == set(python["PATTERNS"])
    for name, templates in read.patterns.items():
        kinds = collections.defaultdict(list)
        for t in templates:
            kinds[t.kind].append((t.source + t.form.delimiter, t.target))
        assert kinds["zs_opt"] == python["PATTERNS"][name]
        upstream = python["FEWSHOT_PATTERNS"].get(name, [])
        said = [
            (f.inputs_prefix + f.inputs + f.x_y_delimiter + f.targets_prefix, f.targets)
            for f in upstream
        ]
        assert kinds["fs_opt"] == said
        mixed = [text for text, f in zip(said, upstream, strict=True) if f.in_template_mix]
        assert kinds["fs_mix"] == (mixed if name != "natinst_v2" else [])
        assert kinds["fs_inline"] == python["INLINE_FS_PATTERNS"].get(name, [])
    (plain,) = [t for t in read.patterns["parity"] if t.kind == "zs_noopt"]
    # As upstream's str.replace leaves it, with the space before the list.
    assert (plain.source, plain.target) == ("Is {number} odd or even? \nSay", "{answer}")
    first, second, *_ = [t for t in read.patterns["parity"] if t.kind == "fs_noopt"]
    assert (first.source, second.source) == ("Q: {number}", "number {number}")


def test_lists_of_options_are_those_that_python_reads(clone):
    lists, python = read_templates_v2(clone).option_lists, flan_clone.executed()
    assert list(lists.starts) == python["OPT_START_STRING_CANDIDATES"]
    assert list(map(list, lists.marks)) == python["OPT_ITEM_NAME_CANDIDATES"]
    assert list(map(list, lists.ends)) == python["OPT_ITEM_END_STR_CANDIDATES"]
    drawn = {lists.drawn(("red", "blue"), f"key {i}") for i in range(200)}
    assert ("WHICH:\n(a). red;\n(b). blue;", ("(a).", "(b).")) in drawn  # a mark is the answer
    assert ("\n ~ red\n ~ blue", ("red", "blue")) in drawn  # marks are all the same
    assert len(drawn) == 3 * 4 * 2
    assert None in {lists.drawn(tuple("abcde"), f"key {i}") for i in range(50)}  # four numerals


def test_training_prompts_have_the_form_of_their_template(clone):
    source = find(clone)
    examples = list(source.read("train", Drops()))
    assert len(examples) == ROWS  # each row once
    config = PromptConfig(shots=(0.5, 0.0, 0.5), demonstrations="train")
    kinds, shots, marked = collections.Counter(), collections.Counter(), 0
    few_shot = []
    for example in examples:
        prompt = render_for_training(example, examples, "instance", config)
        kind, index = example.prompt_id.split(".")[1].split("#")
        kinds[kind] += 1
        answer = ("even", "odd")[int(example.slots["number"]) % 2]
        if kind == "zs_opt":
            assert prompt.source() == prompt.query == example.input
            assert example.target in example.options
            if example.target != answer:
                marked += 1
                place = ("odd", "even").index(answer)
                assert example.options[place] == example.target
                assert f"{example.target} {answer}" in " ".join(prompt.query.split())
        elif kind == "zs_noopt":
            assert prompt.source() == f"Is {example.slots['number']} odd or even? \nSay"
            assert prompt.target == answer
        else:
            shots[kind, len(prompt.demonstrations)] += 1
            listed = kind == "fs_opt" and index in "01"  # the third template has no list
            assert (LIST in prompt.source()) == (kind == "fs_mix" or listed)
            few_shot.append((example, prompt))
            assert "odd one" not in prompt.source()  # inverted, though in the mix
            assert prompt.target == (f"It is {answer}" if index == "1" else answer)
    assert [prompt.source() for _, prompt in few_shot] == composed(few_shot, examples)
    expected = dict.fromkeys(("zs_opt", "zs_noopt", "fs_noopt"), 0.25)
    expected |= dict.fromkeys(("fs_opt", "fs_mix"), 0.125)
    assert {k: n / ROWS for k, n in kinds.items()} == pytest.approx(expected, abs=0.05)
    assert marked > 0.5 * kinds["zs_opt"]
    twice = {(kind, n) for kind in ("fs_opt", "fs_noopt") for n in (2, 3)}
    assert set(shots) == {("fs_mix", 5)} | twice


def composed(few_shot, examples) -> list[str]:
    """The sources that SeqIO's few-shot preprocessor composes of the same examples.

    A target is put after one space here, whatever its delimiter ends with.
    """
    by_id = {e.example_id: e for e in examples}

    def parts():
        for example, prompt in few_shot:
            pairs = []
            for identifier, text in zip(
                prompt.demonstration_ids, prompt.demonstrations, strict=True
            ):
                (pair,) = written(example.form, by_id[identifier].slots, text)
                pairs.append((pair[0], f" {pair[1]}{example.form.separator}"))
            inputs, targets = zip(*pairs, strict=True)
            asked = {"inputs": example.input + example.form.delimiter, "targets": example.target}
            yield {"train": {"inputs": inputs, "targets": targets}, "eval": asked}

    text, texts = tf.TensorSpec([], tf.string), tf.TensorSpec([None], tf.string)
    spec = {
        split: dict.fromkeys(("inputs", "targets"), s)
        for split, s in (("train", texts), ("eval", text))
    }
    dataset = tf.data.Dataset.from_generator(parts, output_signature=spec)
    dataset = seqio.experimental.fewshot_preprocessor(dataset, example_separator="")
    return [found["inputs"].decode().rstrip(" ") for found in dataset.as_numpy_iterator()]


def written(form, slots, text) -> list[tuple[str, str]]:
    """The inputs and targets of a form that make the text of a demonstration."""
    made = [
        ((fill(t.source, slots) + t.delimiter).rstrip(" "), fill(t.target, slots))
        for t in form.texts
    ]
    return [pair for pair in made if " ".join(pair) == text]


def test_all_rows_are_trained_on(clone):
    config = CONFIG.replace(
        "options", "splits: {train: 'train[:50]', validation: 'train[-9:]'}, options"
    )
    (clone / "task_config.yaml").write_text(config)
    assert len(list(find(clone).read("train", Drops()))) == ROWS - 9
    gin.bind_parameter("FlanConfig.templates", "2021")
    (clone / "flan/templates.py").write_text(flan_clone.FIRST)
    assert len(list(find(clone).read("train", Drops()))) == 50


def test_inverted_templates_are_used_on_demand(clone):
    plain = {e.target for e in find(clone).read("train", Drops())}
    gin.bind_parameter("FlanConfig.inverted", True)
    found = {e.target for e in find(clone).read("train", Drops())}
    assert not any(target.isdecimal() for target in plain)
    assert any(target.isdecimal() for target in found)


def test_evaluation_shows_the_zero_shot_templates_with_options(clone):
    source = find(clone, "test")
    examples = list(source.read("test", Drops()))
    assert {e.prompt_id for e in examples} == {"parity.zs_opt#0"}
    assert len(examples) == 3
    assert {e.prompt_id for e in source.demonstrations()} == {"parity.zs_opt#0"}


def test_demonstrations_must_be_training_examples(clone):
    examples = list(find(clone).read("train", Drops()))
    example = next(e for e in examples if e.form.shots)
    config = PromptConfig(shots=(0.5, 0.5))
    with pytest.raises(UserError, match=r"demonstrations is 'fixed', set it to 'train'"):
        render_for_training(example, examples, "instance", config)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('targets="{answer}",', "targets=answer(),", r"targets must be a literal text; code .*"),
        ('chr(x) + "). "', 'open(x) + "). "', r"lists of options must be .*; code in this file"),
        ("for x in range(1, 27)", "for x in range(10**9)", r"lists of options must be"),
        ('ROMANS = ["I",', 'ROMANS = ROMANS + ["I",', r"lists of options must be"),
        ('["", "WHICH:"', '[1, "WHICH:"', r"OPT_START_STRING_CANDIDATES must be lists of texts"),
    ],
)
def test_code_is_refused(clone, old, new, message):
    path = clone / "flan/v2/templates.py"
    path.write_text(flan_clone.TEMPLATES.replace(old, new, 1))
    with pytest.raises(UserError, match=rf"templates.py, line \d+: {message}"):
        read_templates_v2(clone)


def test_a_missing_file_is_named(clone):
    (clone / "flan/v2/templates.py").unlink()
    with pytest.raises(UserError, match=r"'v2' needs flan/v2/templates.py in .* a clone of FLAN"):
        read_templates_v2(clone)
