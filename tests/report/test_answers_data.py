"""Single answers are scored as the tables of the same report are."""

import numpy as np
import paper_run
import pytest

from optiml_jax.evaluate.records import RULES, Candidate, Record, RunFolder, TaskInfo
from optiml_jax.evaluate.rollup import Key, rollup
from optiml_jax.report.answers_data import answers_data
from optiml_jax.report.run_tables import details_table


def candidate(text: str, total: float, tokens: int) -> Candidate:
    return Candidate(text, total, tokens, len(text), len(text), 0.0, -9.0 * tokens, False)


@pytest.fixture
def folder(tmp_path):
    """Ranked: "no" by its sum, "maybe" (right) by its mean, a tie by neither; and generated."""
    run = RunFolder(tmp_path)
    infos = [
        TaskInfo("c/ranked", "c", "Entailment", "fully_held_out", "acc_rank"),
        TaskInfo("c/free", "c", "Entailment", "fully_held_out", "em"),
    ]
    run.open({"step": 0}, infos)
    for info in infos:
        ranked = info.metric == "acc_rank"
        records = [
            Record(
                *(f"e{i}", "p", f"{info.task}:{i}", ("maybe",), ("The Maybe!", "no")[ranked], 0.0),
                candidates=(candidate("no", -2.0, 1), candidate("maybe", -3.0 + i / 9, 3))
                if ranked
                else (),
                correct=(1,) if ranked else (),
            )
            for i in range(4)
        ]
        run.write(info.task, 0, records, paper_run.summary(info, 4) | {"num_ties": 7})
    return tmp_path


@pytest.mark.parametrize("rule", [None, *RULES])
@pytest.mark.parametrize("metric", [None, "em_squad", "macro_f1"])
def test_answers_follow_the_rule_and_the_metric_of_the_report(folder, rule, metric):
    tree = rollup(folder, rule=rule, metric=metric)
    answers = answers_data({"run": [folder]}, 10, rule, metric)["answers"]
    for task in ("c/ranked", "c/free"):
        own = [a for a in answers if a["task"] == task]
        scores = [100 * a["by_run"][0]["score"] for a in own]
        (leaf,) = [leaf for leaf in tree.leaves if leaf.key.subtask == task]
        assert np.mean(scores) == pytest.approx(np.mean(leaf.scores))
        assert {a["metric"] for a in own} == {leaf.metric}
    ranked = [a["by_run"][0] for a in answers if a["task"] == "c/ranked"]
    for answer in ranked:  # what the page marks is the best of the numbers beside it
        best = max(answer["candidates"], key=lambda c: c[1])
        assert answer["answer"] == best[0]
    assert {a["rule"] for a in ranked} == {rule or "sum"}


def test_a_report_by_another_rule_or_metric_shows_it_in_what_was_run(folder):
    assert rollup(folder).cells[Key(0)].value == 0
    tree = rollup(folder, rule="mean", metric="em_squad")
    assert tree.cells[Key(0)].value == pytest.approx(100)
    rows = [row[1:4] + (row[8],) for row in details_table({"run": tree}).rows]
    assert rows == [("c/free", "em_squad", "", "0"), ("c/ranked", "acc_rank", "a", "0")]
