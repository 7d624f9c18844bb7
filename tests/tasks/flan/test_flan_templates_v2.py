"""FLAN v2's four kinds of prompts, from files of the form that google-research/FLAN has.

Expected texts are put together as its flan/v2/templates.py says of FewShotPattern: prefix, input,
delimiter, prefix of the target, target, separator.
"""

import json

import gin
import pytest
import yaml

from optiml_jax.data.example import Drops
from optiml_jax.data.prompts import PromptConfig, render_for_training
from optiml_jax.errors import UserError
from tasks.flan import reader as flan
from tasks.flan.templates_v2 import read_templates_v2
from tasks.splits import Manifest

TEMPLATES = """
import copy
from flan.v2 import flan_templates_branched as flan_templates
PATTERNS = {
    "parity": [
        ("Choose from options: is {number} odd "
         "or even?\\n\\n{options_}", "{answer}"),
        ("Name an {answer} number.", "{number}"),
    ],
    "only_v2": [("{number}?", "{answer}")],
}
PATTERNS["alias"] = PATTERNS["parity"]
class FewShotPattern:
  inputs: str
FEWSHOT_PATTERNS = {
    "parity": [
        FewShotPattern(
            inputs="{number}"
            " | {options_}",
            targets="{answer}",
            inputs_prefix="Q: ",
            targets_prefix="A: ",
            x_y_delimiter="\\n**\\n",
            example_separator="\\n\\n",
            in_template_mix=False),
        FewShotPattern(inputs="number {number} ({options_})", targets="{answer}"),
        FewShotPattern(inputs="odd one: {answer}", targets="{number}"),
    ],
}
FEWSHOT_PATTERNS_NO_OPTIONS = copy.deepcopy(FEWSHOT_PATTERNS)
"""
FIRST = """
PATTERNS = {"parity": [("Is {number} odd or even?\\n{options_}", "{answer}")]}
"""
CONFIG = """
tasks: {parity: {cluster: math, fields: {number: number}, options: [odd, even]}}
"""
LIST = "OPTIONS:\n- odd\n- even"


@pytest.fixture
def clone(tmp_path):
    """A clone of FLAN with rows."""
    (tmp_path / "flan/v2").mkdir(parents=True)
    (tmp_path / "flan/v2/templates.py").write_text(TEMPLATES)
    (tmp_path / "flan/v2/flan_templates_branched.py").write_text(FIRST)
    (tmp_path / "task_config.yaml").write_text(CONFIG)
    (tmp_path / "datasets/parity").mkdir(parents=True)
    for split, number in (("train", 200), ("test", 3)):
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


def test_templates_of_four_kinds_are_read(clone):
    read = read_templates_v2(clone)
    assert [t.id for t in read["only_v2"]] == ["only_v2.zs_opt#0", "only_v2.zs_noopt#0"]
    texts = {t.id: (t.source, t.target) for t in read["parity"]}
    assert texts["parity.zs_opt#0"][0].endswith("odd or even?\n\n{options_}")
    assert texts["parity.zs_noopt#0"] == ("Is {number} odd or even?", "{answer}")
    assert texts["parity.fs_opt#0"] == ("Q: {number} | {options_}", "{answer}")
    assert texts["parity.fs_noopt#0"] == ("Q: {number}", "{answer}")
    assert texts["parity.fs_noopt#1"] == ("number {number}", "{answer}")
    assert "alias" not in read


def test_training_prompts_have_the_form_of_their_template(clone):
    source = find(clone)
    examples = list(source.read("train", Drops()))
    shots = (0.5, 0.0, 0.5)
    config = PromptConfig(shots=shots, demonstrations="train", without_options={"flan": 1.0})
    prompts = {
        e.example_id: (e, render_for_training(e, examples, "instance", config)) for e in examples
    }
    kinds = set()
    for example, prompt in prompts.values():
        kind = example.prompt_id.split(".")[1]
        kinds.add(kind)
        answer = example.target
        if kind == "zs_opt#0":
            assert prompt.query.endswith(f"odd or even?\n\n{LIST}")
            assert prompt.source() == prompt.query
        elif kind == "zs_noopt#0":
            assert prompt.source().endswith("odd or even?")
        elif kind.startswith("fs"):
            assert len(prompt.demonstrations) == 2
            listed = f" | {LIST}" if kind == "fs_opt#0" else ""
            if kind.endswith("#0"):
                first, second, query = prompt.source().split("\n\n")
                for text in (first, second):
                    number, said = text.removeprefix("Q: ").split(f"{listed}\n**\nA: ")
                    assert said == ("even", "odd")[int(number) % 2]
                number = query.removeprefix("Q: ").removesuffix(f"{listed}\n**\nA:")
                assert answer == ("even", "odd")[int(number) % 2]
    assert kinds == {"zs_opt#0", "zs_noopt#0", "fs_opt#0", "fs_opt#1", "fs_noopt#0", "fs_noopt#1"}


def test_evaluation_shows_the_zero_shot_templates_with_options(clone):
    examples = list(find(clone, "test").read("test", Drops()))
    assert {e.prompt_id for e in examples} == {"parity.zs_opt#0"}
    assert len(examples) == 3


def test_missing_files_and_code_are_refused(clone):
    path = clone / "flan/v2/templates.py"
    path.write_text(TEMPLATES.replace('targets="{answer}",', "targets=answer(),", 1))
    with pytest.raises(UserError, match=r"line 1\d: targets must be a literal text; code .* never"):
        read_templates_v2(clone)
    path.unlink()
    with pytest.raises(UserError, match=r"'v2' needs flan/v2/templates.py in .* a clone of FLAN"):
        read_templates_v2(clone)
