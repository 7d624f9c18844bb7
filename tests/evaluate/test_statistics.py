"""Intervals and tests against closed forms."""

import importlib.util
import pathlib

import numpy as np
import pytest

from optiml_jax.evaluate import statistics
from optiml_jax.evaluate.leaves import MEAN, Key
from optiml_jax.evaluate.records import Record, RunFolder, TaskInfo
from optiml_jax.evaluate.resampling import Resampling
from optiml_jax.evaluate.rollup import mean_of_seeds, rollup

LEVEL = "fully_held_out"
COVERAGE = pathlib.Path(__file__).parents[2] / "tools" / "bench" / "interval_coverage.py"


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
                    cluster=(clusters or {}).get(
                        task, [f"{task} e{j}" for j in range(len(scores))]
                    )[i],
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
    fixed = Resampling(tree).values(Key(0))
    assert np.std(fixed) == pytest.approx(16.54, abs=0.35)
    assert np.mean(fixed) == pytest.approx(37.5, abs=0.6)
    # Two tasks at 50 and 25 have a standard error of 12.5, but other instances give 16.54.
    new = statistics.estimates(tree)[Key(0)].new_tasks
    assert new.low == pytest.approx(37.5 - 12.7062 * 16.54, abs=7)
    assert new.high == pytest.approx(37.5 + 12.7062 * 16.54, abs=7)


def test_fixed_task_standard_error_is_the_closed_form(tmp_path):
    rng = np.random.default_rng(0)
    scores = {f"b/{t}": {0: rng.random(n)} for t, n in enumerate((20, 50, 100))}
    tree = run_of(tmp_path, scores)
    plug_in = sum(np.var(s[0]) / len(s[0]) for s in scores.values()) / len(scores) ** 2
    values = Resampling(tree).values(Key(0, LEVEL))
    assert np.std(values) == pytest.approx(100 * plug_in**0.5, rel=0.03)


def test_records_of_one_source_example_are_drawn_together(tmp_path):
    # Ten copies of each of eight examples: the interval must be that of eight, not of eighty.
    scores = np.repeat([1, 0, 0, 1, 1, 0, 1, 1], 10)
    clusters = {"b/t": [str(c) for c in np.repeat(np.arange(8), 10)]}
    tree = run_of(tmp_path, {"b/t": {0: scores}}, clusters)
    values = Resampling(tree).values(Key(0))
    assert np.std(values) == pytest.approx(100 * (0.625 * 0.375 / 8) ** 0.5, rel=0.03)


def test_numbers_of_shots_of_one_example_are_drawn_together(tmp_path):
    scores = [1, 0, 0, 1, 1, 0, 1, 1]
    tree = run_of(tmp_path, {"b/t": {0: scores, 2: scores}})
    resampling = Resampling(tree)
    np.testing.assert_allclose(resampling.values(Key(MEAN)), resampling.values(Key(0)))


def test_new_tasks_without_a_number_of_shots_do_not_spoil_the_average(tmp_path):
    tree = run_of(tmp_path, {"b/a": {0: [1, 0], 5: [1, 0]}, "b/b": {0: [1, 1]}})
    found = statistics.estimates(tree)
    assert found[Key(5)].new_tasks is None  # one task has it
    assert found[Key(MEAN)].value == pytest.approx((75 + 50) / 2)
    assert found[Key(MEAN)].new_tasks.low < 62.5 < found[Key(MEAN)].new_tasks.high


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


def test_tasks_come_in_the_order_of_their_names_so_that_p_values_repeat(tmp_path):
    # In the order of a set, which changes from process to process, sign flips fell otherwise.
    tasks = {f"b/{i}": {0: [i % 2, 1]} for i in range(40)}
    shares = Resampling(run_of(tmp_path, tasks)).shares(Key(0))
    assert list(shares) == sorted(shares)
    assert len(shares) == 40


def test_ten_thousand_replicates_of_a_hundred_tasks_have_the_standard_error(tmp_path):
    """By hand: the mean of T task means of n examples has the variance sum(var_t / n) / T**2."""
    scores = np.random.default_rng(0).random((100, 100))
    tree = run_of(tmp_path, {f"b/{t}": {0: row} for t, row in enumerate(scores)})
    values = Resampling(tree).values(Key(0))
    assert values.shape == (10_000,)
    percent = 100 * scores
    expected = np.sqrt(np.sum(np.var(percent, axis=1) / 100)) / 100
    assert np.std(values) == pytest.approx(expected, rel=0.03)
    assert np.mean(values) == pytest.approx(np.mean(percent), abs=4 * expected / 100)


def categories_of(path, gains, instances=200):
    """A run and a baseline whose difference is `gains`: category -> gain of each of its tasks."""
    runs = []
    for name, sign in (("run", 1), ("baseline", 0)):
        folder = RunFolder(path / name)
        infos, records = [], {}
        for category, values in gains.items():
            for t, gain in enumerate(values):
                task = f"b/{category}{t}"
                infos.append(TaskInfo(task, "b", category, LEVEL, "rougeL"))
                score = 0.5 + sign * gain / 100
                records[task] = [
                    Record(f"e{i}", "p", f"{task} {i}", ("r",), "x", score)
                    for i in range(instances)
                ]
        folder.open({}, infos)
        for task, own in records.items():
            folder.write(task, 0, own, {"metric": "rougeL", "best_constant": {"score": 0.0}})
        runs.append(rollup(path / name))
    return runs


def test_single_task_categories_that_scatter_have_a_wide_interval_for_new_tasks(tmp_path):
    """Ten categories of one task whose gains scatter with a standard deviation of 10."""
    gains = np.random.default_rng(1).normal(0, 10, 10)
    gains = 0.85 + (gains - gains.mean()) * 10 / gains.std(ddof=1)
    runs = categories_of(tmp_path, {f"C{i}": [gain] for i, gain in enumerate(gains)})
    row = statistics.compare(*runs, n=500)[Key(0, LEVEL)]
    assert row.delta == pytest.approx(0.85)
    # The t interval of ten numbers: 2.262 * 10 / sqrt(10).
    assert row.new_tasks.low == pytest.approx(0.85 - 7.153, abs=0.01)
    assert row.new_tasks.high == pytest.approx(0.85 + 7.153, abs=0.01)
    assert row.detectable_new == pytest.approx((2.2622 + 0.8834) * 10**0.5, abs=0.01)


@pytest.mark.parametrize("shape", ["5 of 2", "10 of 1", "1, 1, 2, 3", "24, 13, 7 (table 12)"])
def test_intervals_for_new_tasks_cover_the_truth_in_simulation(shape):
    """The simulation of docs/statistics.md: tasks scatter, categories have fixed effects."""
    spec = importlib.util.spec_from_file_location("interval_coverage", COVERAGE)
    simulation = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(simulation)
    rng, tasks_per_category = np.random.default_rng(0), simulation.SHAPES[shape]
    for categories in (0.0, 10.0):
        covered = [
            simulation.new_tasks(tasks_per_category, 10.0, categories, (100, 100), rng)
            for _ in range(300)
        ]
        assert np.mean(covered) >= 0.93


def test_p_values_test_the_mean_of_category_means_that_stands_beside_them(tmp_path):
    """One task +10, forty tasks -0.4: the gain is +4.8, and one task made all of it."""
    runs = categories_of(tmp_path, {"A": [10.0], "B": [-0.4] * 40}, instances=30)
    found = statistics.compare(*runs, n=300)
    row = found[Key(0, LEVEL)]
    assert row.delta == pytest.approx(4.8)
    assert row.p_tasks == pytest.approx(1.0)
    assert row.p_ranks == pytest.approx(1.0)  # of two category means
    assert found[Key(0, LEVEL, "B")].p_tasks < 1e-4
    assert found[Key(0, LEVEL, "B")].p_ranks < 1e-4


def test_one_task_is_too_few_for_an_interval_over_new_tasks(tmp_path):
    runs = categories_of(tmp_path, {"A": [3.0]})
    row = statistics.compare(*runs, n=300)[Key(0, LEVEL)]
    assert (row.new_tasks, row.detectable_new) == (None, None)


def test_source_examples_in_several_collections_are_drawn_together(tmp_path):
    """Two tasks of other names that show the same examples are no more than one of them."""
    scores = {"b/superni copa": {0: [1, 0, 0, 1, 1, 0, 1, 1]}}
    both = scores | {"b/flan copa": scores["b/superni copa"]}
    source = [f"copa {i}" for i in range(8)]
    together = run_of(tmp_path / "t", both, dict.fromkeys(both, source))
    apart = run_of(tmp_path / "a", both)
    spread = [np.std(Resampling(tree).values(Key(0))) for tree in (together, apart)]
    assert spread[0] == pytest.approx(100 * (0.625 * 0.375 / 8) ** 0.5, rel=0.03)
    assert spread[1] == pytest.approx(spread[0] / 2**0.5, rel=0.05)
    estimate = statistics.estimates(together, n=300)[Key(0)]
    assert (estimate.n_clusters, estimate.new_tasks) == (8, None)  # they are one draw of a task


def test_several_seeds_are_one_configuration_whose_spread_is_in_the_intervals(tmp_path):
    rng = np.random.default_rng(0)
    base = rng.random(400)
    shifts = (-0.06, 0.0, 0.06)
    trees = [
        run_of(tmp_path / str(s), {"b/t": {0: np.clip(base + shift, 0, 1)}})
        for s, shift in enumerate(shifts)
    ]
    mean = mean_of_seeds(trees)
    values = [tree.cells[Key(0)].value for tree in trees]
    assert mean.cells[Key(0)].value == pytest.approx(np.mean(values))
    estimate = statistics.estimates(mean, n=2000)[Key(0)]
    assert estimate.spread == statistics.Spread(3, pytest.approx(np.std(values, ddof=1)))
    # At least Student's interval of the three means; the examples add to it.
    half = 4.3027 * np.std(values, ddof=1) / 3**0.5
    assert (estimate.fixed_tasks.high - estimate.fixed_tasks.low) / 2 > 0.8 * half
    one = statistics.estimates(trees[1], n=2000)[Key(0)].fixed_tasks
    assert estimate.fixed_tasks.high - estimate.fixed_tasks.low > 2 * (one.high - one.low)
    row = statistics.compare(mean, trees[1], n=500)[Key(0)]
    assert row.seeds == (3, 1)
    assert row.p > 0.5


def test_seeds_that_score_the_same_add_nothing(tmp_path):
    """Satterthwaite's degrees of freedom have no bound where all variance is that of examples."""
    right = [1.0] * 90 + [0.0] * 10
    trees = [
        run_of(tmp_path / str(s), {"b/t": {0: scores}})
        for s, scores in enumerate((right, right[::-1]))
    ]
    found = statistics.estimates(mean_of_seeds(trees), n=2000)[Key(0)]
    replicates = Resampling(mean_of_seeds(trees), n=2000).values(Key(0))
    assert found.spread == statistics.Spread(2, 0.0)
    assert found.fixed_tasks.high - 90 == pytest.approx(1.96 * np.std(replicates), rel=1e-3)


def test_the_spread_of_seeds_is_over_what_all_of_them_have(tmp_path):
    right = {0: [1.0] * 90 + [0.0] * 10}
    wrong = {0: [0.0] * 100}
    trees = [
        run_of(tmp_path / "a", {"b/t": right, "b/failed elsewhere": wrong}),
        run_of(tmp_path / "b", {"b/t": right, "b/not in the baseline": wrong}),
    ]
    mean = mean_of_seeds(trees)
    assert [tree.cells[Key(0)].value for tree in mean.seeds] == [90.0, 90.0]
    assert statistics.estimates(mean, n=200)[Key(0)].spread.deviation == 0
    more = [
        run_of(tmp_path / str(i), {"b/t": right, "b/not in the baseline": {0: [i] * 100}})
        for i in range(2)
    ]
    baseline = run_of(tmp_path / "c", {"b/t": wrong})
    row = statistics.compare(mean_of_seeds(more), baseline, n=200)[Key(0)]
    assert (row.fixed_tasks.low, row.fixed_tasks.high) == pytest.approx((84, 96), abs=1.5)


def test_rounding_is_no_loss(tmp_path):
    third = [1.0] * 7 + [0.0] * 6
    trees = [run_of(tmp_path / str(s), {"b/t": {0: third[s:] + third[:s]}}) for s in range(3)]
    row = statistics.compare(
        mean_of_seeds(trees), run_of(tmp_path / "b", {"b/t": {0: third}}), 200
    )[Key(0)]
    assert (row.wins, row.ties, row.losses) == (0, 1, 0)
