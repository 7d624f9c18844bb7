"""Intervals and tests against closed forms."""

import time

import numpy as np
import pytest

from optiml_jax.evaluate import statistics
from optiml_jax.evaluate.records import Record, RunFolder, TaskInfo
from optiml_jax.evaluate.rollup import MEAN, Key, rollup

LEVEL = "fully_held_out"


def run_of(path, tasks, clusters=None, metric="rougeL", category="C"):
    """tasks: {name: {shots: scores}}; clusters: {name: cluster of each instance}."""
    folder = RunFolder(path)
    infos = [TaskInfo(t, "b", category, LEVEL, metric, shots=tuple(s)) for t, s in tasks.items()]
    folder.open({}, infos)
    for task, by_shots in tasks.items():
        for shots, scores in by_shots.items():
            records = [
                Record(
                    example_id=f"e{i}",
                    prompt_id="p",
                    cluster=(clusters or {}).get(task, [f"e{j}" for j in range(len(scores))])[i],
                    references=("r",),
                    prediction="x",
                    score=float(s),
                )
                for i, s in enumerate(scores)
            ]
            summary = {"metric": metric, "best_constant": {"answer": "r", "score": 0.0}}
            summary["effective_shots"] = {"mean": 0.5 * shots, "min": 0}
            folder.write(task, shots, records, summary)
    return rollup(path)


def test_standard_errors_of_two_tasks_of_four_differences(tmp_path):
    tree = run_of(tmp_path, {"b/a": {0: [1, 0, 0, 1]}, "b/b": {0: [0, 0, 0, 1]}})
    assert tree.cells[Key(0)].value == pytest.approx(37.5)
    fixed = statistics.Resampling(tree, new_tasks=False).values(Key(0))
    new = statistics.Resampling(tree, new_tasks=True).values(Key(0))
    assert np.std(fixed) == pytest.approx(16.54, abs=0.35)
    assert np.std(new) == pytest.approx(18.75, abs=0.4)
    assert np.mean(fixed) == pytest.approx(37.5, abs=0.6)
    assert np.mean(new) == pytest.approx(37.5, abs=0.6)


def test_fixed_task_standard_error_is_the_closed_form(tmp_path):
    rng = np.random.default_rng(0)
    scores = {f"b/{t}": {0: rng.random(n)} for t, n in enumerate((20, 50, 100))}
    tree = run_of(tmp_path, scores)
    plug_in = sum(np.var(s[0]) / len(s[0]) for s in scores.values()) / len(scores) ** 2
    values = statistics.Resampling(tree, new_tasks=False).values(Key(0, LEVEL))
    assert np.std(values) == pytest.approx(100 * plug_in**0.5, rel=0.03)


def test_records_of_one_source_example_are_drawn_together(tmp_path):
    # Ten copies of each of eight examples: the interval must be that of eight, not of eighty.
    scores = np.repeat([1, 0, 0, 1, 1, 0, 1, 1], 10)
    clusters = {"b/t": [str(c) for c in np.repeat(np.arange(8), 10)]}
    tree = run_of(tmp_path, {"b/t": {0: scores}}, clusters)
    values = statistics.Resampling(tree, new_tasks=False).values(Key(0))
    assert np.std(values) == pytest.approx(100 * (0.625 * 0.375 / 8) ** 0.5, rel=0.03)


def test_numbers_of_shots_of_one_example_are_drawn_together(tmp_path):
    scores = [1, 0, 0, 1, 1, 0, 1, 1]
    tree = run_of(tmp_path, {"b/t": {0: scores, 2: scores}})
    resampling = statistics.Resampling(tree, new_tasks=False)
    np.testing.assert_allclose(resampling.values(Key(MEAN)), resampling.values(Key(0)))


def test_new_tasks_without_a_number_of_shots_do_not_spoil_the_average(tmp_path):
    tree = run_of(tmp_path, {"b/a": {0: [1, 0], 5: [1, 0]}, "b/b": {0: [1, 1]}})
    values = statistics.Resampling(tree, new_tasks=True).values(Key(5))
    assert np.isfinite(values).all()
    assert np.mean(values) == pytest.approx(50, abs=2)


def test_an_estimate_counts_tasks_and_source_examples(tmp_path):
    tree = run_of(tmp_path, {"b/a": {0: [1, 0, 1]}, "b/b": {0: [0, 1]}})
    estimate = statistics.estimates(tree, n=500)[Key(0, LEVEL)]
    assert (estimate.n_tasks, estimate.n_clusters) == (2, 5)
    assert estimate.fixed_tasks.low <= estimate.value <= estimate.fixed_tasks.high


def test_mcnemar_and_sign_flip_of_known_counts():
    assert statistics.mcnemar(10, 2) == pytest.approx(0.03857, abs=1e-5)
    assert statistics.mcnemar(0, 0) == 1.0
    assert statistics.sign_flip([1, 2, 3, 4]) == 0.125
    assert statistics.sign_flip([0.0, 0.0]) == 1.0
    many = np.random.default_rng(1).normal(0.2, 1.0, 30)
    normal = 2 * (1 - _phi(abs(many.sum()) / np.sqrt((many**2).sum())))
    assert statistics.sign_flip(many) == pytest.approx(normal, abs=0.02)


def _phi(x):
    from statistics import NormalDist

    return NormalDist().cdf(x)


def test_a_comparison_is_paired(tmp_path):
    rng = np.random.default_rng(0)
    before = {f"b/{t}": {0: rng.random(40)} for t in range(4)}
    after = {t: {0: s[0] + 0.01 * (t != "b/3")} for t, s in before.items()}
    result = statistics.compare(
        run_of(tmp_path / "a", after), run_of(tmp_path / "b", before), n=2000
    )
    row = result[Key(0, LEVEL)]
    assert row.delta == pytest.approx(0.75)
    assert row.value - row.baseline == pytest.approx(0.75)
    assert (row.wins, row.ties, row.losses) == (3, 1, 0)
    assert (row.n_tasks, row.n_clusters) == (4, 160)
    # The same step for every instance of a task: no spread within tasks, some between them.
    assert row.fixed_tasks.low == pytest.approx(0.75)
    assert row.new_tasks.low < 0.75
    assert row.p == pytest.approx(1 / 2001)
    assert row.p_tasks == pytest.approx(0.25)
    assert row.fixed_tasks.low > 0 or row.fixed_tasks.high < 0


def test_a_single_accuracy_task_is_compared_by_mcnemar(tmp_path):
    after = run_of(tmp_path / "a", {"b/t": {0: [1] * 10 + [0] * 2 + [1] * 3}}, metric="acc_rank")
    before = run_of(tmp_path / "b", {"b/t": {0: [0] * 10 + [1] * 2 + [1] * 3}}, metric="acc_rank")
    result = statistics.compare(after, before, n=500)
    for key in (Key(0, LEVEL, "C", "b/t"), Key(0, LEVEL, "C"), Key(MEAN)):
        assert result[key].p == pytest.approx(0.03857, abs=1e-5)


def test_a_difference_says_what_it_was_measured_with(tmp_path):
    scores = {"b/a": {0: [1, 0, 0, 1], 4: [1, 1, 0, 1]}, "b/c": {0: [0, 0, 1, 1]}}
    run, baseline = run_of(tmp_path / "a", scores), run_of(tmp_path / "b", scores)
    result = statistics.compare(run, baseline, n=300)
    assert [result[Key(k)].effective_shots for k in (0, 4, MEAN)] == [0, 2, pytest.approx(2 / 3)]
    assert [result[Key(k)].n_prompts for k in (0, 4, MEAN)] == [2, 1, 2]
    assert result[Key(MEAN)].rules == ("rougeL",)


def test_few_examples_are_never_significant(tmp_path):
    """Every replicate of three gains is a gain; the signs of three cannot say less than 1/4."""
    after = run_of(tmp_path / "a", {"b/t": {0: [0.9, 0.8, 0.7]}})
    before = run_of(tmp_path / "b", {"b/t": {0: [0.1, 0.3, 0.2]}})
    assert statistics.compare(after, before, n=500)[Key(0, LEVEL)].p == 0.25


def test_an_evaluation_against_itself_shows_nothing(tmp_path):
    run = run_of(tmp_path, {"b/t": {0: [1, 0, 1], 2: [0, 0, 1]}})
    for row in statistics.compare(run, run, n=300).values():
        assert (row.delta, row.p, row.ties) == (0.0, 1.0, 1)


def test_ten_thousand_replicates_of_a_hundred_tasks_take_seconds(tmp_path):
    rng = np.random.default_rng(0)
    tree = run_of(tmp_path, {f"b/{t}": {0: rng.random(100)} for t in range(100)})
    start = time.process_time()
    statistics.Resampling(tree, new_tasks=False).values(Key(0))
    assert time.process_time() - start < 30
