"""Plans with rows of their own for some benchmarks: the paper's pre-training updates."""

import numpy as np
import pytest

from optiml_jax.data import draws
from optiml_jax.data.mixture import Mixture
from optiml_jax.data.plan import PlanConfig, plan_mixture

TASKS = ["one/a", "one/b", "two/c", "plain/d", "plain/e"]
SHARE = 0.05


@pytest.fixture
def cache(make_cache, random_examples):
    """Instructions of at most 60 tokens, and texts of at most 120."""
    sizes = {"one/a": 40, "one/b": 15, "two/c": 7}
    tasks = {n: random_examples(i, size) for i, (n, size) in enumerate(sizes.items())}
    texts = {n: random_examples(i, 30, longest=120) for i, n in ((7, "plain/d"), (8, "plain/e"))}
    return make_cache(tasks | texts)


@pytest.fixture
def plan_of(cache, tmp_path):
    def plan(num_rows, share=SHARE, tasks=TASKS, seed=3, **settings):
        mixture = Mixture(name="m", row_shares={"plain": share}, **settings)
        config = PlanConfig(num_rows=num_rows, sequence_length=128, seed=seed)
        name = f"plan{num_rows}-{share}-{len(tasks)}"
        return plan_mixture(cache, tasks, mixture, "train", config, tmp_path / name)

    return plan


def rows_of(plan):
    return [plan.row(row) for row in range(plan.num_rows)]


def is_plain(row):
    return [task.startswith("plain/") for task, _ in row]


def test_rows_are_of_one_kind_and_a_share_of_them_is_plain_text(plan_of):
    plan = plan_of(3000)
    kinds = [set(is_plain(row)) for row in rows_of(plan)]
    assert all(len(kind) == 1 for kind in kinds)
    planned = np.mean([kind == {True} for kind in kinds])
    assert planned == pytest.approx(SHARE, abs=0.005)
    shares = plan.summary["row_shares"]
    assert shares["plain"] == {"asked": SHARE, "planned": planned}
    assert shares[""] == {"asked": 1 - SHARE, "planned": 1 - planned}


def test_a_longer_plan_has_the_shorter_one_as_its_prefix(plan_of):
    short, long = plan_of(300), plan_of(700)
    assert rows_of(short) == rows_of(long)[:300]
    assert short.fingerprint == long.fingerprint


def test_the_rows_of_a_kind_are_the_same_whatever_its_share(plan_of):
    """So two runs that differ by the share differ by nothing else."""
    few, many = rows_of(plan_of(600)), rows_of(plan_of(600, share=0.5))
    mixed = [row for row in few if not any(is_plain(row))]
    also_mixed = [row for row in many if not any(is_plain(row))]
    assert len(mixed) > len(also_mixed) > 250
    assert mixed[: len(also_mixed)] == also_mixed


def test_planned_examples_are_those_asked_for(plan_of):
    summary = plan_of(4000, share=0.2).summary
    for name, part in {**summary["benchmarks"], **summary["categories"]}.items():
        assert part["share"] == pytest.approx(part["rate"], abs=0.005), name
    plain = summary["benchmarks"]["plain"]
    assert plain["token_share"] == pytest.approx(0.2, abs=0.01)
    assert plain["share"] < 0.15  # of the examples: texts are longer


def test_a_plan_of_one_kind_alone_has_no_other_rows(plan_of):
    plan = plan_of(50, tasks=["plain/d", "plain/e"])
    assert plan.summary["row_shares"] == {"plain": {"asked": 1.0, "planned": 1.0}}
    instructions = plan_of(50, tasks=TASKS[:3], missing="renormalise")
    assert instructions.summary["row_shares"] == {"": {"asked": 1.0, "planned": 1.0}}


def test_a_plan_too_short_for_a_row_of_a_kind_is_made(plan_of):
    assert plan_of(3, share=0.001).num_rows == 3


@pytest.mark.parametrize("share", [0.01, 0.05, 0.1, 0.5])
def test_the_share_of_the_rows_is_kept_to_half_a_point(share):
    for seed in range(60):
        streams = draws.draw_streams([1 - share, share], 5000, seed)
        counts = np.cumsum(streams == 1)
        for rows in (2000, 2345, 3333, 5000):
            assert abs(counts[rows - 1] / rows - share) < 0.005
        blocks = np.diff(np.r_[0, counts[63::64]])
        assert np.abs(blocks - 64 * share).max() < 1


def test_the_kind_of_a_row_falls_into_no_step():
    plain = np.flatnonzero(draws.draw_streams([0.95, 0.05], 100_000, seed=1))
    gaps = np.diff(plain)
    assert gaps.mean() == pytest.approx(20, abs=0.1)
    assert 10 < gaps.std() < 19.5  # 0: equal distances; 19.5: independent draws
    for devices in (8, 64, 256):  # no device's place in the batch gets more of them
        counts = np.bincount(plain % devices, minlength=devices)
        chi2 = ((counts - len(plain) / devices) ** 2).sum() / (len(plain) / devices)
        assert chi2 < devices + 5 * np.sqrt(2 * devices)


def test_more_rows_only_append():
    shares = [0.7, 0.2, 0.1]
    long = draws.draw_streams(shares, 1000, seed=2)
    np.testing.assert_array_equal(draws.draw_streams(shares, 300, seed=2), long[:300])
    assert not np.array_equal(draws.draw_streams(shares, 1000, seed=3), long)
    assert set(long) == {0, 1, 2}
