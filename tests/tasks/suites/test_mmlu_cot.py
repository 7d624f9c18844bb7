"""MMLU asked for reasoning: the prompt in upstream's form, the letters that are scored."""

import csv
import json

import pytest

from optiml_jax.data.example import Drops
from optiml_jax.data.prompts import PromptConfig, render
from optiml_jax.errors import UserError
from optiml_jax.evaluate.metrics import METRICS
from tasks.splits import Manifest, category
from tasks.suites import mmlu
from tasks.suites.mmlu_cot import find_tasks

MANIFEST = Manifest.load()
INSTRUCTION = "The following are multiple choice questions (with answers) about anatomy."
ASK = "\nA: Let's think step by step."
# The form of chain-of-thought-hub's MMLU/lib_prompt/mmlu-cot.json; the content is made.
PROMPT = (
    f"{INSTRUCTION}\n\nQ: How many hands?\n(A) 1 (B) 2 (C) 3 (D) 4{ASK} One left, one right. "
    f"The answer is (B).\n\nQ: How many noses?\n(A) 1 (B) 2 (C) 3 (D) 4{ASK} We see one. The "
    "answer is (A).\n\n"
)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "test").mkdir()
    with open(tmp_path / "test" / "anatomy_test.csv", "w", newline="") as file:
        csv.writer(file).writerow(["How many eyes? ", " 1", "2", "3", "4", "B"])
    (tmp_path / "mmlu-cot.json").write_text(json.dumps({"anatomy": PROMPT}))
    return tmp_path


@pytest.mark.parametrize("benchmark", ["mmlu_cot", "mmlu_cot_sc"])
def test_the_prompt_goes_on_like_its_demonstrations(folder, benchmark):
    (source,) = find_tasks(folder, MANIFEST, benchmark)
    row = MANIFEST.row(source)
    (example,) = source.read("test", Drops())
    config = PromptConfig(separator=row.protocol.separator)
    rendered = render(example, source.demonstrations(), source.instruction_level, config)
    assert rendered.source() == f"{PROMPT}Q: How many eyes?\n(A) 1 (B) 2 (C) 3 (D) 4{ASK}"
    kind = {"mmlu_cot": "chain of thought", "mmlu_cot_sc": "self-consistency"}[benchmark]
    assert (category(source), row.protocol.samples) == (f"MMLU ({kind})", 40 * ("sc" in benchmark))
    (plain,) = mmlu.find_tasks(folder, MANIFEST)[0].read("test", Drops())
    assert example.source_id == plain.source_id  # one question, asked in two ways


@pytest.mark.parametrize(
    ("text", "right"),
    [
        (" Two. The answer is (B).", True),
        (" The answer is (A)? No, so the answer is B.", True),
        (" The answer is (B). Or: the answer is (C).", False),
        (" B", False),  # nothing was said to be the answer
        (" The answer is Both.", False),
    ],
)
def test_the_last_letter_that_is_called_the_answer_counts(folder, text, right):
    (source,) = find_tasks(folder, MANIFEST)
    (example,) = source.read("test", Drops())
    assert METRICS[MANIFEST.row(source).metric].score(example.references, text) == right


def test_what_is_missing_is_named(folder):
    (folder / "mmlu-cot.json").write_text(json.dumps({"anatomy": "Q: no demonstration"}))
    (source,) = find_tasks(folder, MANIFEST)
    with pytest.raises(UserError, match=r"mmlu-cot.json: the prompt of 'anatomy' is not"):
        source.demonstrations()
    (folder / "mmlu-cot.json").write_text("{}")
    with pytest.raises(UserError, match=r"mmlu-cot.json has no prompt of 'anatomy'"):
        source.demonstrations()
    (folder / "mmlu-cot.json").unlink()
    with pytest.raises(UserError, match=r"no mmlu-cot.json of benchmark 'mmlu_cot'"):
        find_tasks(folder, MANIFEST)
