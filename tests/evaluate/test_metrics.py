"""Metric functions against hand-computed values and against the rouge-score package."""

import random

import pytest
from rouge_score import rouge_scorer

from optiml_jax.evaluate import answer_scores, metrics
from optiml_jax.evaluate.baselines import best_constant
from optiml_jax.evaluate.records import Record


@pytest.mark.parametrize(
    ("reference", "prediction", "expected"),
    [
        ("the cat sat on the mat", "the cat is on the mat", 5 / 6),
        ("police killed the gunman", "police kill the gunman", 1.0),
        ("police killed the gunman", "the gunman kill police", 0.5),
        ("The dogs were running quickly", "a dog runs quick", 4 / 9),
        ("yes", " ".join(["no"] * 199 + ["yes"]), 2 / 201),
        ("a b c d e", "a c e", 0.75),
        ("naïve café", "naive cafe", 0.0),
        ("?", "?", 0.0),
        ("猫", "猫", 0.0),
        ("Привет", "Привет", 0.0),
        ("", "", 0.0),
        ("a > 3", "a < 3", 1.0),
        ("positive", "positively", 1.0),
    ],
)
def test_rouge_l_of_known_pairs(reference, prediction, expected):
    assert answer_scores.rouge_l_f1(reference, prediction) == pytest.approx(expected, abs=1e-12)


def test_rouge_l_equals_the_rouge_score_package_on_random_texts():
    oracle = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
    words = [
        "the",
        "cats",
        "running",
        "run",
        "quickly",
        "quick",
        "naïve",
        "?",
        "12,5",
        "don't",
        "G",
    ]
    rng = random.Random(0)
    for _ in range(300):
        a, b = (" ".join(rng.choices(words, k=rng.randrange(25))) for _ in range(2))
        assert answer_scores.rouge_l_f1(a, b) == oracle.score(a, b)["rougeL"].fmeasure
        refs = [a, " ".join(rng.choices(words, k=5))]
        assert answer_scores.rouge_l_max(refs, b) == oracle.score_multi(refs, b)["rougeL"].fmeasure


def test_rouge_l_takes_the_best_reference_and_counts_references_without_tokens():
    result = metrics.METRICS["rougeL"].fn([["the gunman kill police", "a b c d e"]], ["a c e"])
    assert result == {"rougeL": pytest.approx(75.0), "num_empty_references": 0.0}
    result = metrics.METRICS["rougeL"].fn([["猫", "cat"], "?"], ["cat", "?"])
    assert result == {"rougeL": pytest.approx(50.0), "num_empty_references": 2.0}


def test_exact_match_variants_differ_in_articles_and_punctuation_only():
    assert answer_scores.exact_squad(["cat"], "The cat.") == 1
    assert answer_scores.exact_tk_instruct(["cat"], "The cat.") == 0
    assert answer_scores.exact_tk_instruct(["the cat"], "The  cat.") == 1
    assert answer_scores.exact(["cat"], "The cat.") == 0
    assert answer_scores.exact(["a", " cat "], "cat") == 1


def test_raw_exact_match_keeps_answers_that_are_punctuation_apart():
    assert answer_scores.exact([") ]"], "} >") == 0
    assert metrics.METRICS["em"].fn([[") ]"], "-185"], [") ]", "185"]) == {"exact_match": 50.0}


def test_rank_accuracy_takes_the_first_of_equal_scores_and_counts_the_tie():
    rows = [(0, 0, True), (0, 1, False), (1, 1, True), (1, 0, False)]
    assert metrics.METRICS["acc_rank"].fn(rows, [-1.0, -1.0, -2.0, -2.0]) == {
        "accuracy": 50.0,
        "num_ties": 2.0,
    }
    assert metrics.METRICS["acc_rank"].fn(rows, [-1.0, -2.0, -1.0, -2.0])["accuracy"] == 100.0


def test_rank_accuracy_refuses_a_candidate_that_was_scored_twice():
    with pytest.raises(ValueError, match="twice"):
        metrics.METRICS["acc_rank"].fn([(0, 0, True), (0, 0, False)], [0.0, 0.0])


def answered(references):
    return [Record(str(i), "", str(i), tuple(r), "", 0.0) for i, r in enumerate(references)]


def test_best_constant_of_labels_is_the_most_frequent_one():
    records = answered([["yes"]] * 3 + [["no"]] * 5 + [["yes", "maybe"]])
    found = best_constant(metrics.METRICS["acc_rank"], records)
    assert (found.answer, found.value) == ("no", pytest.approx(500 / 9))


def test_best_constant_for_rouge_may_beat_the_most_frequent_answer():
    records = answered([["x"]] * 2 + [["a b"], ["a c"], ["a d"], ["a"]])
    found = best_constant(metrics.METRICS["rougeL"], records)
    assert (found.answer, found.value) == ("a", pytest.approx(100 * (1 + 3 * 2 / 3) / 6))
