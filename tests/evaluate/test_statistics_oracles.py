"""Tests and intervals against scipy, and powers against simulation."""

import numpy as np
import pytest
from scipy import stats
from test_statistics import LEVEL, run_of

from optiml_jax.evaluate import statistics
from optiml_jax.evaluate.new_tasks import Error
from optiml_jax.evaluate.rollup import Key


@pytest.mark.parametrize(("wins", "losses"), [(10, 2), (0, 7), (5, 5), (3, 9), (40, 61)])
def test_mcnemar_is_the_binomial_test_of_the_discordant_pairs(wins, losses):
    expected = stats.binomtest(wins, wins + losses).pvalue
    assert statistics.mcnemar(wins, losses) == pytest.approx(expected)


@pytest.mark.parametrize("n", [4, 9, 13])
def test_wilcoxon_is_exact_for_few_tasks(n):
    deltas = np.random.default_rng(n).normal(0.5, 1.0, n)
    expected = stats.wilcoxon(deltas, method="exact").pvalue
    assert statistics.wilcoxon(deltas) == pytest.approx(expected)


def test_wilcoxon_with_zeros_and_equal_deltas():
    deltas = [2.0, 2.0, -2.0, 0.0, 0.0, 3.0, 3.0, 1.0]
    flips = stats.PermutationMethod(n_resamples=np.inf)
    expected = stats.wilcoxon([d for d in deltas if d], method=flips).pvalue
    assert statistics.wilcoxon(deltas) == pytest.approx(expected)
    assert statistics.wilcoxon([0.0, 0.0]) == 1.0


def test_wilcoxon_and_sign_flips_of_many_tasks():
    deltas = np.random.default_rng(3).normal(0.3, 1.0, 60)
    assert statistics.wilcoxon(deltas) == pytest.approx(stats.wilcoxon(deltas).pvalue, abs=0.004)
    flips = stats.permutation_test(
        (deltas,), np.sum, permutation_type="samples", n_resamples=50_000, rng=0
    )
    assert statistics.sign_flip(deltas) == pytest.approx(flips.pvalue, abs=0.005)


def test_sign_flips_of_few_tasks_are_scipys():
    deltas = np.random.default_rng(5).normal(0.5, 1.0, 9)
    flips = stats.permutation_test(
        (deltas,), np.sum, permutation_type="samples", n_resamples=np.inf
    )
    assert statistics.sign_flip(deltas) == pytest.approx(flips.pvalue)
    assert statistics.sign_flip(np.ones(20)) == statistics.smallest_p(20) == 2.0**-19
    assert statistics.smallest_p(3) > 0.05  # three categories can never be significant


def test_the_interval_of_one_task_is_scipys_percentile_interval(tmp_path):
    scores = np.random.default_rng(0).random(60)
    estimate = statistics.estimates(run_of(tmp_path, {"b/t": {0: scores}}))[Key(0, LEVEL)]
    expected = stats.bootstrap((scores,), np.mean, method="percentile", n_resamples=10_000, rng=1)
    expected = [100 * x for x in expected.confidence_interval]
    found = [estimate.fixed_tasks.low, estimate.fixed_tasks.high]
    np.testing.assert_allclose(found, expected, atol=0.4)


def test_p_values_of_the_bootstrap_are_those_of_the_t_test_for_many_examples(tmp_path):
    rng = np.random.default_rng(2)
    before = rng.random(300)
    after = np.clip(before + rng.normal(0.03, 0.15, 300), 0, 1)
    runs = [run_of(tmp_path / n, {"b/t": {0: s}}) for n, s in (("a", after), ("b", before))]
    expected = stats.ttest_rel(after, before).pvalue
    assert 0.005 < expected < 0.2
    assert statistics.compare(*runs)[Key(0, LEVEL)].p == pytest.approx(expected, abs=0.01)


def test_holm():
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.6, 0.5]) == [1.0, 1.0]
    assert statistics.holm([]) == []


def test_a_detectable_difference_is_found_in_four_of_five_cases():
    rng = np.random.default_rng(0)
    n, spread = 200, 0.3
    error = Error(spread / n**0.5, np.inf)
    wanted = error.detectable()
    assert wanted == pytest.approx((1.959964 + 0.841621) * spread / n**0.5, rel=0.02)
    trials = rng.normal(wanted, spread, (4000, n))
    assert np.mean(stats.ttest_1samp(trials, 0, axis=1).pvalue < 0.05) == pytest.approx(
        0.8, abs=0.03
    )
    assert error.detectable(alpha=0.01, power=0.9) > wanted
    assert Error(0.0, 5).detectable() is None


def test_the_detectable_difference_counts_source_examples(tmp_path):
    """Ten templates of eight examples: sqrt(10) times that of eighty independent instances."""
    change = np.repeat([0.5, 0, 0, 0.5, 0.25, 0, 0.25, 0], 10)
    found = {}
    for name, clusters in (("templates", np.repeat(np.arange(8), 10)), ("alone", np.arange(80))):
        members = {"b/t": [str(c) for c in clusters]}
        runs = [
            run_of(tmp_path / name / part, {"b/t": {0: scores}}, members)
            for part, scores in (("a", change), ("b", np.zeros(80)))
        ]
        found[name] = statistics.compare(*runs, n=4000)[Key(0, LEVEL)]
    assert found["templates"].detectable / found["alone"].detectable == pytest.approx(
        10**0.5, rel=0.06
    )
