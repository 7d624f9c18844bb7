import json

import pytest

from optiml_jax.data.example import Drops
from optiml_jax.data.prompts import PromptConfig, render, select_demonstrations
from optiml_jax.errors import UserError
from optiml_jax.evaluate.metrics import METRICS
from tasks.splits import Manifest, category
from tasks.suites import mgsm
from tasks.suites.word_problems import find_tasks

MANIFEST = Manifest.load()
ROW = MANIFEST.lookup("word_problems/gsm8k", None)
CONFIG = PromptConfig(separator=ROW.protocol.separator, delimiter="\nOutput:").for_evaluation()
SOLVED = [
    {"question": "Two cats, twice?", "answer": "2*2=<<2*2=4>>4\n#### 4"},
    {
        "question": "3 dogs, and 1,000 more? ",
        "answer": "That is $<<3+1000=1003>>1,003.\n#### 1,003",
    },
]
VARIATION = {"Body": " A pen costs 2 dollars", "Question": "What do 2 pens cost?", "Answer": 4.0}


def write(root, train=SOLVED, test=SOLVED, svamp=(VARIATION,)):
    folder = root / "grade-school-math" / "grade_school_math" / "data"
    folder.mkdir(parents=True)
    for name, records in (("train", train), ("test", test)):
        if records is not None:
            lines = "".join(json.dumps(r) + "\n" for r in records)
            (folder / f"{name}.jsonl").write_text(lines, "utf-8")
    (root / "SVAMP").mkdir()
    (root / "SVAMP" / "SVAMP.json").write_text(json.dumps(svamp), "utf-8")
    return root


def prompts(source, shots=8):
    pool = source.demonstrations()
    for example in source.read("test", Drops()):
        chosen = select_demonstrations(example, pool, shots, CONFIG)
        yield render(example, chosen, source.instruction_level, CONFIG).source()


def test_solutions_are_shown_without_the_calculators_notes(tmp_path):
    other = {"question": "5?", "answer": "5\n#### 5"}
    gsm8k, svamp = find_tasks(write(tmp_path, test=[other]), MANIFEST)
    shown = (
        "Question: Two cats, twice?\nAnswer: 2*2=4\n#### 4\n\n"
        "Question: 3 dogs, and 1,000 more?\nAnswer: That is $1,003.\n#### 1,003\n\n"
    )
    assert list(prompts(gsm8k)) == [f"{shown}Question: 5?\nAnswer:"]
    # SVAMP has no solutions in words: those of GSM8K are shown.
    question = "A pen costs 2 dollars What do 2 pens cost?"
    assert list(prompts(svamp)) == [f"{shown}Question: {question}\nAnswer:"]
    assert list(prompts(svamp, 0)) == [f"Question: {question}\nAnswer:"]
    assert [category(s) for s in (gsm8k, svamp)] == ["GSM8K", "SVAMP"]
    assert [e.references for e in svamp.read("test", Drops())] == [("4.0",)]


def test_a_problem_is_never_its_own_demonstration(tmp_path):
    gsm8k, _ = find_tasks(write(tmp_path), MANIFEST)
    for text, own in zip(prompts(gsm8k), SOLVED, strict=True):
        assert text.count(own["question"].strip()) == 1
        assert text.count("####") == 1


def test_damaged_records_are_counted(tmp_path):
    broken = [{"question": "no mark?", "answer": "4"}, {"question": 1, "answer": "#### 4"}, {}]
    nothing = {"question": "nothing behind it?", "answer": "x\n#### "}
    variations = [VARIATION, {**VARIATION, "Answer": None}, {"Body": "x"}, "x", {**VARIATION}]
    root = write(tmp_path, test=[*broken, nothing, SOLVED[1]], svamp=variations)
    gsm8k, svamp = find_tasks(root, MANIFEST)
    drops = Drops()
    (example,) = gsm8k.read("test", drops)
    assert (example.target, example.source_id) == ("1,003", "gsm8k test 5")
    assert drops == {"malformed record": 3, "empty target": 1}
    drops = Drops()
    assert len(list(svamp.read("test", drops))) == 2
    assert drops == {
        "malformed record": 2,
        "not a JSON object": 1,
        "warning: repeated record": 1,
    }


@pytest.mark.parametrize("answer", ["8.0", "12345678901234567", "0.1", "true", "NaN", "[8]"])
def test_answers_of_svamp_keep_their_spelling(tmp_path, answer):
    root = write(tmp_path, svamp=[{**VARIATION, "Answer": "HERE"}])
    (path,) = root.rglob("SVAMP.json")
    path.write_text(path.read_text().replace('"HERE"', answer))
    (_, svamp), drops = find_tasks(root, MANIFEST), Drops()
    found = [e.target for e in svamp.read("test", drops)]
    assert found == [answer] * answer[0].isdigit()
    assert drops["malformed record"] == (not found)


def test_without_training_problems_there_are_no_demonstrations(tmp_path):
    gsm8k, _ = find_tasks(write(tmp_path, train=None), MANIFEST)
    assert gsm8k.demonstrations() == []
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no grade_school_math/data/test.jsonl or SVAMP.json"):
        find_tasks(tmp_path / "empty", MANIFEST)


def test_released_problems(real_data):
    """Counts of the releases; MGSM's English file is an independent copy of 250 problems."""
    gsm8k, svamp = find_tasks(real_data, MANIFEST)
    drops = Drops()
    problems = list(gsm8k.read("test", drops))
    assert (len(problems), len(list(svamp.read("test", drops))), drops) == (1319, 1000, {})
    (english,) = (s for s in mgsm.find_tasks(real_data, MANIFEST) if s.name == "mgsm/en")
    same = METRICS["em_number"].score
    for ours, theirs in zip(problems, english.read("test", Drops()), strict=False):
        assert ours.meta == theirs.meta
        assert same(theirs.references, ours.target) == 1
    assert ROW.metric == "em_number"


def test_the_answer_of_every_released_solution_is_found_by_the_metric(real_data):
    gsm8k, _ = find_tasks(real_data, MANIFEST)
    pool = gsm8k.demonstrations()
    assert len(pool) == 100
    for shown in pool:
        answer = shown.target.rsplit("#### ", 1)[1]
        assert "<<" not in shown.target
        assert METRICS["em_number"].score([answer], shown.target) == 1
