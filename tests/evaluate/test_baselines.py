"""Baselines of ranked tasks against counts by hand, on real rows where the issue shows."""

import json

import pytest
from test_measures import candidate

from optiml_jax.evaluate.baselines import baselines, best, best_position
from optiml_jax.evaluate.metrics import METRICS
from optiml_jax.evaluate.records import Record


def ranked(options, right, i, group=""):
    return Record(
        example_id=f"e{i}",
        prompt_id="p",
        cluster=f"t:{i}",
        references=(options[right],),
        prediction=options[0],
        score=0.0,
        candidates=tuple(map(candidate, options)),
        correct=(right,),
        group=group,
    )


def test_copa_is_answered_by_position(real_data):
    """No option text occurs twice in COPA, but option 1 is right in 55 of 100 rows."""
    lines = (real_data / "datasets/super_glue/copa/validation.jsonl").read_text("utf-8")
    rows = [json.loads(line) for line in lines.splitlines()]
    records = [ranked((r["choice1"], r["choice2"]), r["label"], i) for i, r in enumerate(rows)]
    found = baselines(METRICS["acc_rank"], records)
    first = sum(r["label"] == 0 for r in rows)
    assert found["position"] == pytest.approx(100 * max(first, 100 - first) / 100)
    assert found["chance"] == pytest.approx(50)
    assert found["constant"] < 5
    assert best(found) == found["position"] >= 50


def test_multirc_is_answered_by_always_false():
    """Candidates hold the answer's text, so that no text is constant; "False" comes first."""
    questions = [(0, 0), (0, 1), (0, 0, 0), (1, 1), (0,)]
    records = [
        ranked((f"[False] {q} {a}", f"[True] {q} {a}"), right, f"{q}.{a}", group=str(q))
        for q, answers in enumerate(questions)
        for a, right in enumerate(answers)
    ]
    found = baselines(METRICS["multirc"], records)
    assert found["position"] == pytest.approx(60)  # three of five questions
    assert found["chance"] == pytest.approx(100 * (3 / 4 + 1 / 8 + 1 / 2) / 5)
    assert best_position(METRICS["multirc"], records).answer == "1"
    alone = baselines(METRICS["acc_rank"], records)
    assert alone["position"] == pytest.approx(70)  # seven of ten answers


def test_options_of_different_number_and_texts_without_options():
    records = [ranked(("a", "b"), 1, 0), ranked(("c", "d", "e", "f"), 1, 1), ranked(("g",), 0, 2)]
    found = baselines(METRICS["acc_rank"], records)
    assert found["position"] == pytest.approx(200 / 3)
    assert found["chance"] == pytest.approx(100 * (1 / 2 + 1 / 4 + 1) / 3)
    texts = [Record("e", "p", "c", ("x y",), "", 0.0)]
    found = baselines(METRICS["rougeL"], texts)
    assert found == {"constant": pytest.approx(100), "position": None, "chance": None}


def test_macro_f1_has_accuracy_as_its_average_and_matthews_no_chance():
    records = [ranked(("no", "yes"), int(i < 3), i) for i in range(10)]
    assert baselines(METRICS["macro_f1"], records)["constant"] == pytest.approx(70)
    found = baselines(METRICS["matthews"], records)
    assert found == {"constant": 0.0, "position": 0.0, "chance": None}
