"""Answers made elsewhere: words that name no candidate, requests made again, lengths."""

import json

import pytest
import sklearn.metrics

from optiml_jax.data.example import Example
from optiml_jax.data.prompts import PromptConfig
from optiml_jax.evaluate.baselines import baselines
from optiml_jax.evaluate.config import EvalConfig
from optiml_jax.evaluate.evaluator import EvalTask, evaluate_with
from optiml_jax.evaluate.measures import macro_f1, matthews
from optiml_jax.evaluate.metrics import METRICS
from optiml_jax.evaluate.protocol import Protocol
from optiml_jax.evaluate.records import RunFolder, TaskInfo, rescore
from optiml_jax.exchange.answer_files import read_answers
from optiml_jax.exchange.answers import StoredAnswers
from optiml_jax.exchange.requests import Tokens, request_rows

OPTIONS = ("yes", "no")


def example(i, **fields):
    answer = OPTIONS[i % 2]
    values = {
        "benchmark": "b",
        "task": "b/t",
        "category": "C",
        "prompt_id": "p",
        "example_id": str(i),
        "split": "test",
        "instruction": "",
        "input": f"Same? {i}",
        "target": answer,
        "references": (answer,),
        "options": OPTIONS,
    }
    return Example(**(values | fields))


def task_of(metric, make=example, **protocol):
    info = TaskInfo("b/t", "b", "C", "fully_held_out", metric, protocol=Protocol(**protocol))
    return EvalTask(info, lambda: [make(i) for i in range(20)], list, [METRICS[metric].fn])


def requests(task):
    return list(request_rows(task, 0, EvalConfig(), PromptConfig(), Tokens.unlimited()))


def evaluated(folder, task, lines, missing="fail"):
    """(records, summary, remarks) of an evaluation by these lines of answers."""
    file = folder / "answers.jsonl"
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    answers = StoredAnswers(read_answers([str(file)]), Tokens.unlimited(), missing)
    assert not evaluate_with(answers, [task], EvalConfig(), str(folder / "run"), run={})
    return *RunFolder(folder / "run").read("b/t", 0), answers.remarks()


@pytest.mark.parametrize("metric", ["acc_rank", "f1_positive"])
def test_words_that_name_no_candidate_are_a_wrong_answer_and_no_candidate(tmp_path, metric):
    task = task_of(metric)
    lines = [{"id": r["id"], "text": r["references"][0]} for r in requests(task)]
    said = {0: "Yes, they mean the same.", 3: "I do not know."}
    for i, text in said.items():
        lines[i]["text"] = text
    records, summary, remarks = evaluated(tmp_path, task, lines)
    assert any(line.startswith("2 answers name none of their candidates") for line in remarks)
    assert summary["metrics"]["accuracy"] == 90.0
    assert [r.unlisted for r in records] == [i in said for i in range(20)]
    assert {r.offered for r in records if not r.unlisted} == {r.candidates for r in records[1:3]}
    if metric == "acc_rank":
        assert baselines(task.metric, records)["chance"] == 50.0
    else:  # nine of ten that are positive are found, nothing else
        assert summary["metrics"]["f1_positive"] == pytest.approx(100 * 18 / 19)
    right = [r.references[0] for r in records]
    given = ["none" if r.unlisted else r.prediction for r in records]
    of_labels = sklearn.metrics.f1_score(right, given, labels=OPTIONS, average="macro")
    units = [(r,) for r in records]
    assert macro_f1.of(units) == pytest.approx(100 * of_labels)
    assert matthews.of(units) == pytest.approx(
        100 * sklearn.metrics.matthews_corrcoef(right, given)
    )


@pytest.mark.parametrize("rule", ["chars", "bytes"])
def test_a_missing_answer_is_wrong_under_every_rule(tmp_path, rule):
    task = task_of("acc_rank", rule=rule)
    lines = [{"id": r["id"], "text": r["references"][0]} for r in requests(task)]
    records, summary, _ = evaluated(tmp_path, task, lines[1:], missing="wrong")
    assert summary["metrics"]["accuracy"] == 95.0
    assert [rescore(r, "sum").score for r in records] == [0.0] + [1.0] * 19


@pytest.mark.parametrize("place", [0, 20])
def test_a_request_that_failed_and_was_asked_again_has_one_answer(tmp_path, place):
    def line(row):
        choices = [{"message": {"content": row["references"][0]}}]
        body = {"choices": choices}
        return {"custom_id": row["id"], "response": {"status_code": 200, "body": body}}

    task = task_of("acc_rank")
    rows = requests(task)
    lines = [line(row) for row in rows]
    failed = {"custom_id": rows[0]["id"], "response": None, "error": {"code": "rate_limit"}}
    lines.insert(place, failed)
    _, summary, remarks = evaluated(tmp_path, task, lines)
    assert summary["metrics"]["accuracy"] == 100.0
    assert remarks == [f"1 requests have an answer more than once: {rows[0]['id']}"]


def test_partial_scoring_counts_the_length_of_what_is_scored(tmp_path):
    """All candidates have the same text after them, so that no rule may prefer the long one."""

    def schema(i):
        names = ("Jo", "Maximiliane")
        return example(
            i,
            options=names,
            references=("Jo",),
            target="was too big.",
            input="The cup did not fit since Jo",
            contexts=tuple(f"The cup did not fit since {name}" for name in names),
        )

    task = task_of("acc_rank", make=schema, rule="chars")
    rows = requests(task)
    lines = [{"id": r["id"], "logprobs": [-5.0, -6.0]} for r in rows]
    records, summary, _ = evaluated(tmp_path, task, lines)
    assert summary["metrics"]["accuracy"] == 100.0
    assert {(c.n_chars, c.n_bytes) for r in records for c in r.candidates} == {(12, 12)}


def test_answers_with_fewer_texts_than_votes_are_counted(tmp_path):
    task = task_of("em", samples=3)
    rows = requests(task)
    lines = [
        {"id": r["id"], "texts": r["references"] * (1 if i else 3)} for i, r in enumerate(rows)
    ]
    _, summary, remarks = evaluated(tmp_path, task, lines)
    assert summary["metrics"]["exact_match"] == 100.0
    (said,) = remarks
    assert said.startswith("19 answers have another number of texts than their task votes over: ")
