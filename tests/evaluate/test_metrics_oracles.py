"""Metrics against hand-computed values, published accuracies, T5's metrics and scikit-learn."""

import json
import random

import numpy as np
import pytest
import sklearn.metrics
from t5.evaluation import metrics as t5_metrics

from optiml_jax.evaluate import metrics
from optiml_jax.evaluate.baselines import best_constant
from optiml_jax.evaluate.metrics import CandidateRow
from optiml_jax.evaluate.records import Record


def value(name, key, targets, outputs):
    return metrics.METRICS[name].fn(targets, outputs)[key]


def test_published_accuracies_of_codex_on_bbh(real_data):
    """The accuracies that BIG-Bench Hard publishes for code-davinci-002, from its answers."""
    folder = real_data / "bbh_outputs"
    published = json.loads((folder / "published_accuracies.json").read_text("utf-8"))
    assert len(published) == 24
    for task, modes in published.items():
        for mode, accuracy in modes.items():
            lines = (folder / f"{task}.{mode}.jsonl").read_text("utf-8").splitlines()[1:]
            rows = [json.loads(line) for line in lines]
            found = value(
                "em_bbh",
                "exact_match_bbh",
                [[row["target"]] for row in rows],
                [row["prediction"] for row in rows],
            )
            assert found == pytest.approx(accuracy, abs=1e-9), (task, mode)


def test_best_constant_answers_to_bbh(real_data):
    """30.4 on average over the 27 tasks; three of them are not in the data at hand."""
    scores = {"navigate": 58.0, "snarks": 53.9, "word_sorting": 0.4}
    for file in (real_data / "bbh").glob("*.json"):
        rows = json.loads(file.read_text("utf-8"))["examples"]
        records = [Record(str(i), "", "", (r["target"],), "", 0) for i, r in enumerate(rows)]
        scores[file.stem] = best_constant(metrics.METRICS["em_bbh"], records).value
    assert len(scores) == 27
    assert scores["boolean_expressions"] == pytest.approx(54.0)
    assert np.mean(list(scores.values())) == pytest.approx(30.4, abs=0.05)


def test_numbers_are_compared_as_numbers():
    score = metrics.METRICS["em_number"].score
    assert score(["18"], "18.0") == 1
    assert score(["5"], "-5") == 0
    assert score(["180"], "18.0") == 0
    assert score(["2,125"], "The answer is 2125.") == 1
    assert score(["48/2 = 24. 48+24 = 72\n#### 72"], "So 72") == 1
    assert score(["5"], "none") == 0
    assert value("em_number", "exact_match_number", ["5", "6"], ["5.0", "7"]) == 50


def test_word_f1_of_known_pairs():
    score = metrics.METRICS["f1_squad"].score
    assert score(["The Eiffel Tower"], "Eiffel tower in Paris") == pytest.approx(2 / 3)
    assert score(["x", "The Eiffel Tower"], "Eiffel tower in Paris") == pytest.approx(2 / 3)
    assert score(["the"], "the") == 0


def random_answers(seed):
    rng = random.Random(seed)
    words = ["the", "a", "cat", "Cat.", "dog's", "‘tis", "x_y", "12", "猫", "কি।", "of", "--"]

    def text():
        return " ".join(rng.choices(words, k=rng.randrange(1, 6)))

    targets = [[text() for _ in range(rng.randrange(1, 4))] for _ in range(200)]
    outputs = [rng.choice(t) if rng.random() < 0.3 else text() for t in targets]
    return targets, outputs


def test_squad_and_trivia_qa_equal_those_of_t5():
    targets, outputs = random_answers(0)
    squad = t5_metrics.squad(targets, outputs)
    assert 20 < squad["em"] < squad["f1"] < 90
    assert value("f1_squad", "exact_match_squad", targets, outputs) == pytest.approx(squad["em"])
    assert value("f1_squad", "f1_squad", targets, outputs) == pytest.approx(squad["f1"])
    targets, outputs = [*targets, ["dog's ‘tis"]], [*outputs, "dog s  tis"]
    trivia = t5_metrics.trivia_qa(targets, outputs)["em"]
    assert trivia > t5_metrics.squad(targets, outputs)["em"]
    assert value("em_triviaqa", "exact_match_trivia_qa", targets, outputs) == pytest.approx(trivia)


def test_tydiqa_has_columns_for_the_official_script_and_for_all_scripts():
    targets = [["ঢাকা"], ["القاهرة", "قاهرة"], ["The cat"]]
    outputs = ["ঢাকা।", "القاهرة؟ نعم", "cat"]
    found = metrics.METRICS["tydiqa"].fn(targets, outputs)
    assert found == {
        "exact_match_squad": pytest.approx(100 / 3),
        "f1_squad": pytest.approx(100 / 3),
        "exact_match_unicode": pytest.approx(200 / 3),
        "f1_unicode": pytest.approx(100 * (1 + 2 / 3 + 1) / 3),
    }
    assert metrics.METRICS["tydiqa"].score(*(x[0] for x in (targets, outputs))) == 0


def test_bleu_equals_that_of_t5_and_takes_any_number_of_references():
    targets, outputs = random_answers(1)
    first = [t[0] for t in targets]
    assert value("bleu", "bleu", first, outputs) == pytest.approx(
        t5_metrics.bleu(first, outputs)["bleu"]
    )
    assert value("bleu", "bleu", targets, outputs) > value("bleu", "bleu", first, outputs)
    assert metrics.METRICS["bleu"].score(["a b c d", "x"], "a b c d") == pytest.approx(1)


def judged(questions, labels=("False", "True")):
    """Rows and scores of answers: per question a list of (right, judged to be right)."""
    rows, scores = [], []
    for group, answers in enumerate(questions):
        for right, said in answers:
            item = len(rows) // 2
            for c, label in enumerate(labels):
                rows.append(CandidateRow(item, c, c == right, label, str(group)))
                scores.append(-1.0 - (c != said))
    return rows, scores


def test_multirc_of_known_judgements():
    rows, scores = judged([[(1, 1), (0, 0), (1, 1)], [(1, 1), (0, 1)]])
    assert value("multirc", "accuracy", rows, scores) == pytest.approx(80)
    assert value("multirc", "all_right", rows, scores) == pytest.approx(50)
    assert value("multirc", "f1a", rows, scores) == pytest.approx(600 / 7)
    assert value("multirc", "f1m", rows, scores) == pytest.approx(500 / 6)


def test_multirc_equals_scikit_learn_and_t5_whatever_the_order_of_rows_and_candidates():
    rng = np.random.default_rng(0)
    questions = [rng.integers(0, 2, (rng.integers(1, 6), 2)).tolist() for _ in range(40)]
    rows, scores = judged(questions)
    order = rng.permutation(len(rows))
    rows = [rows[i]._replace(candidate=1 - rows[i].candidate) for i in order]
    scores = [scores[i] for i in order]
    right, said = np.array([pair for q in questions for pair in q]).T
    f1a = 100 * sklearn.metrics.f1_score(right, said)
    t5_f1a = t5_metrics.multirc_f1_over_all_answers(
        [{"value": v} for v in right], [{"value": v} for v in said]
    )
    columns = [np.array(q).T for q in questions]
    per_question = [sklearn.metrics.f1_score(*pair, zero_division=1) for pair in columns]
    assert value("multirc", "f1a", rows, scores) == pytest.approx(f1a)
    assert list(t5_f1a.values()) == [pytest.approx(f1a)]
    assert value("multirc", "f1m", rows, scores) == pytest.approx(100 * np.mean(per_question))


def test_multirc_must_know_which_candidate_says_that_an_answer_is_right():
    rows, scores = judged([[(1, 1)]], labels=("wrong", "right"))
    with pytest.raises(ValueError, match="must begin with one of"):
        value("multirc", "f1a", rows, scores)


def labelled(gold, chosen):
    rows = [CandidateRow(i, c, c == g, "abc"[c]) for i, g in enumerate(gold) for c in range(3)]
    return rows, [float(c == said) for said in chosen for c in range(3)]


def test_macro_f1_of_known_labels_and_against_scikit_learn():
    rows, scores = labelled([0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 1, 0])
    assert value("macro_f1", "accuracy", rows, scores) == pytest.approx(200 / 3)
    assert value("macro_f1", "macro_f1", rows, scores) == pytest.approx(48.89, abs=0.005)
    rng = np.random.default_rng(0)
    for size in (1, 2, 3, 50):
        gold, said = rng.integers(0, 3, (2, size))
        oracle = 100 * sklearn.metrics.f1_score(gold, said, average="macro", zero_division=0)
        assert value("macro_f1", "macro_f1", *labelled(gold, said)) == pytest.approx(oracle)
