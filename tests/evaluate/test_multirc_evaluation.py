"""MultiRC from examples to tables: answers are ranked one by one, questions are what counts."""

import collections

import pytest
import toy_evaluation as toy

from optiml_jax.evaluate.instances import subsample
from optiml_jax.evaluate.records import RunFolder
from optiml_jax.evaluate.rollup import Key, rollup


def judgement(task, i, split="test"):
    """Every question has two answers; both prompts ask about both."""
    gold = ("True", "False")[i % 3 == 0]
    return toy.example(
        task,
        i,
        split,
        prompt_id=f"p{i % 2}",
        target=gold,
        references=(gold,),
        options=("False", "True"),
        meta={"group": f"paragraph 1, question {i // 4}"},
    )


@pytest.mark.parametrize(("limit", "questions"), [(20, 10), (21, 10), (1, 1), (2, 1), (79, 39)])
def test_a_subsample_takes_whole_questions(limit, questions):
    examples = [judgement("b/multirc", i) for i in range(80)]
    kept = subsample(examples, limit, 0)
    found = collections.Counter((e.prompt_id, e.meta["group"]) for e in kept)
    assert len(found) == questions
    assert set(found.values()) == {2}
    assert kept == [e for e in examples if e in kept]  # in their order


def test_tables_average_over_questions_with_every_answer_judged_well(tmp_path):
    task = toy.eval_task("b/multirc", "multirc", number=40, make=judgement)
    assert not toy.run([task], tmp_path)
    records, summary = RunFolder(tmp_path).read("b/multirc", 0)
    questions = collections.defaultdict(list)
    for record in records:
        questions[record.prompt_id, record.group].append(record.prediction in record.references)
    assert {len(answers) for answers in questions.values()} == {2}
    expected = 100 * sum(map(all, questions.values())) / len(questions)
    answers = [right for members in questions.values() for right in members]
    assert 0 < expected < summary["metrics"]["accuracy"] == 100 * sum(answers) / len(answers)
    assert summary["metrics"]["all_right"] == expected
    tree = rollup(tmp_path)
    assert tree.cells[Key(0)].value == expected
    # "True" is right for both answers of every third of the (prompt, question) pairs.
    golds = collections.defaultdict(set)
    for record in records:
        golds[record.prompt_id, record.group].update(record.references)
    constant = sum(g == {"True"} for g in golds.values()) / len(golds)
    assert summary["best_constant"] == {"answer": "True", "score": constant}
