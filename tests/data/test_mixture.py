"""Rates of tasks: examples-proportional with a maximum, within the proportions of benchmarks."""

import gin
import pytest

from optiml_jax.data.mixture import (
    Mixture,
    example_rates,
    matching_tasks,
    mixing_rates,
    row_streams,
)
from optiml_jax.errors import UserError

COUNTS = {"one/a": 100, "one/b": 10_000, "two/c": 50, "two/d": 0}


def test_rates_are_proportional_to_capped_counts():
    rates = mixing_rates(COUNTS, Mixture(name="m", eps=4096))
    total = 100 + 4096 + 50
    assert rates == pytest.approx(
        {"one/a": 100 / total, "one/b": 4096 / total, "two/c": 50 / total, "two/d": 0}
    )


def test_proportions_fix_the_share_of_each_benchmark():
    mixture = Mixture(name="m", eps=300, proportions={"one": 1, "two": 3})
    rates = mixing_rates(COUNTS, mixture)
    assert rates["one/a"] == pytest.approx(0.25 * 100 / 400)
    assert rates["one/b"] == pytest.approx(0.25 * 300 / 400)
    assert rates["two/c"] == pytest.approx(0.75)
    assert sum(rates.values()) == pytest.approx(1)


def test_a_task_may_count_several_times_as_if_each_prompt_were_a_task():
    prompts = {f"one/b {i}": 10_000 for i in range(3)}
    apart = mixing_rates({"one/a": 100, **prompts}, Mixture(name="m", eps=300))
    times = {"one/*": 7, "one/b": 3, "one/a": 1}  # the last glob that matches counts
    mixture = Mixture(name="m", eps=300, multiplicities=times)
    rates = mixing_rates({"one/a": 100, "one/b": 10_000}, mixture)
    assert rates["one/a"] == pytest.approx(apart["one/a"])
    assert rates["one/b"] == pytest.approx(sum(apart[p] for p in prompts))


def test_a_zero_proportion_leaves_a_benchmark_out():
    rates = mixing_rates(COUNTS, Mixture(name="m", proportions={"one": 0, "two": 3}))
    assert rates == {"one/a": 0, "one/b": 0, "two/c": 1, "two/d": 0}


def test_the_cap_on_examples_also_caps_the_rate():
    rates = mixing_rates({"one/a": 100, "one/b": 900}, Mixture(name="m", max_examples=300))
    assert rates == pytest.approx({"one/a": 0.25, "one/b": 0.75})


@pytest.mark.parametrize(
    ("proportions", "message"),
    [
        ({"one": 1, "two": 1, "three": 1}, "'three' a weight.*only examples of one, two;"),
        ({"one": 1}, "tasks of benchmark 'two' but no proportion"),
        (
            {"one": -1, "two": 1},
            r"proportions\['one'\] = -1 \(int\) must be a number of at",
        ),
        ({"one": "x", "two": 1}, r"Mixture.proportions\['one'\] = 'x' \(text\) must be a number"),
        ({"one": float("nan"), "two": 1}, r"Mixture.proportions\['one'\] = nan"),
        ({"one": 0, "two": 0}, "all proportions are 0"),
    ],
)
def test_proportions_that_do_not_fit_the_tasks_are_named(proportions, message):
    with pytest.raises(UserError, match=message):
        mixing_rates(COUNTS, Mixture(name="m", proportions=proportions))


def test_a_benchmark_with_a_proportion_needs_examples():
    mixture = Mixture(name="m", proportions={"one": 1, "two": 1})
    with pytest.raises(UserError, match="'two' a weight, but there are only examples of one;"):
        mixing_rates({"one/a": 3, "two/d": 0}, mixture)
    with pytest.raises(UserError, match="none of its 2 tasks has an example"):
        mixing_rates({"one/a": 0, "two/d": 0}, Mixture(name="m"))


def test_globs_pick_tasks_and_one_without_a_task_is_an_error():
    names = ["two/c", "one/abc", "one/b"]
    assert matching_tasks(Mixture(name="m"), names) == sorted(names)
    assert matching_tasks(Mixture(name="m", tasks=("one/*", "*/abc")), names) == names[1:]
    with pytest.raises(UserError, match=r"mixture 'm': no task matches 'one/abd'.*'one/abc'"):
        matching_tasks(Mixture(name="m", tasks=("two/*", "one/abd")), names)


def test_a_mixture_is_read_from_gin():
    gin.parse_config(
        "Mixture.name = 'm'\nMixture.tasks = 'one/*'\nMixture.eps = 7\n"
        "Mixture.proportions = {'one': 2}"
    )
    mixture = Mixture()
    assert (mixture.tasks, mixture.eps, mixture.proportions) == (("one/*",), 7, {"one": 2})


def test_caps_below_one_are_refused():
    with pytest.raises(UserError, match="at least 1"):
        Mixture(name="m", eps=0)


# --- shares, rows of their own, benchmarks that are missing


BENCH = {"one/a": 100, "one/b": 300, "two/c": 50, "think/d": 500, "plain/e": 9000, "plain/f": 1000}


def test_shares_are_taken_first_and_proportions_divide_the_rest():
    mixture = Mixture(
        name="m",
        eps=3000,
        proportions={"one": 1, "two": 3},
        shares={"think": 0.02},
        row_shares={"plain": 0.05},
    )
    assert mixing_rates(BENCH, mixture) == pytest.approx(
        {
            "one/a": 0.98 * 0.25 * 0.25,
            "one/b": 0.98 * 0.25 * 0.75,
            "two/c": 0.98 * 0.75,
            "think/d": 0.02,
            # Rows of their own: the rates within them.
            "plain/e": 0.75,
            "plain/f": 0.25,
        }
    )


def test_without_proportions_the_rest_is_examples_proportional():
    mixture = Mixture(name="m", shares={"think": 0.1}, row_shares={"plain": 0.05})
    rates = mixing_rates(BENCH, mixture)
    assert rates["one/b"] == pytest.approx(0.9 * 300 / 450)
    assert rates["think/d"] == pytest.approx(0.1)


def test_a_share_of_0_leaves_a_benchmark_out():
    mixture = Mixture(name="m", shares={"think": 0}, row_shares={"plain": 0})
    rates = mixing_rates(BENCH, mixture)
    assert (rates["think/d"], rates["plain/e"]) == (0, 0)
    assert rates["one/b"] == pytest.approx(300 / 450)
    assert [s.name for s in row_streams(rates, mixture.row_shares)] == [""]


def test_a_missing_benchmark_is_an_error_unless_the_others_may_take_its_part(caplog):
    settings = {
        "proportions": {"one": 1, "two": 2, "three": 1},
        "shares": {"talk": 0.01},
        "row_shares": {"books": 0.05},
    }
    counts = {"one/a": 10, "two/b": 10}
    with pytest.raises(UserError, match=r"'books' a weight.*Run\.data, or set Mixture\.missing"):
        mixing_rates(counts, Mixture(name="m", **settings))
    mixture = Mixture(name="m", missing="renormalise", **settings)
    assert mixing_rates(counts, mixture) == pytest.approx({"one/a": 1 / 3, "two/b": 2 / 3})
    assert "'m' goes without books, talk, three; the shares that result: one 33.3%" in caplog.text


def test_globs_of_missing_benchmarks():
    globs = ("one/*", "three/*")
    with pytest.raises(UserError, match=r"no task matches 'three/\*'; there are tasks of one, two"):
        matching_tasks(Mixture(name="m", tasks=globs), COUNTS)
    mixture = Mixture(name="m", tasks=globs, missing="renormalise")
    assert matching_tasks(mixture, COUNTS) == ["one/a", "one/b"]
    with pytest.raises(UserError, match="no task matches 'one/x'"):  # the benchmark is there
        matching_tasks(Mixture(name="m", tasks="one/x", missing="renormalise"), COUNTS)
    with pytest.raises(UserError, match="no task matches any of"):
        matching_tasks(Mixture(name="m", tasks="three/*", missing="renormalise"), COUNTS)


def test_a_benchmark_may_have_its_own_cap_on_examples():
    mixture = Mixture(name="m", max_examples=500, benchmark_max_examples={"two": 30}, eps=200)
    assert (mixture.max_examples_of("one/a"), mixture.max_examples_of("two/c")) == (500, 30)
    rates = mixing_rates({"one/a": 1000, "two/c": 1000}, mixture)
    assert rates == pytest.approx({"one/a": 200 / 230, "two/c": 30 / 230})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shares": {"one": 0.5, "two": 0.5}}, "'m': shares leave nothing for the others"),
        ({"row_shares": {"one": 1}}, r"row_shares.'one'. = 1 .int. .* at least 0 and below 1"),
        ({"shares": {"one": 0.1}, "proportions": {"one": 1}}, "'one' is in proportions and in sh"),
        (
            {"missing": "ignore"},
            "missing = 'ignore' .text. must be one of 'error', 'renormalise'",
        ),
        ({"num_tasks": 0}, "Mixture.num_tasks = 0 .int. must be a whole number of at least 1"),
        (
            {"benchmark_max_examples": {"one": 0}},
            r"_examples.'one'. = 0 .int. must be",
        ),
    ],
)
def test_settings_that_make_no_sense_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        Mixture(name="m", **settings)


def test_a_share_of_the_rows_is_a_share_of_the_examples_by_their_lengths():
    """Rows of 1,200 tokens: 9 hold 4 instructions of 300 each, 1 holds a single text."""
    rates = {"one/a": 0.5, "one/b": 0.5, "plain/e": 1.0}
    streams = row_streams(rates, {"plain": 0.1})
    assert [(s.name, s.row_share) for s in streams] == [("", 0.9), ("plain", 0.1)]
    lengths = {"one/a": 200, "one/b": 400, "plain/e": 1200}
    assert example_rates(streams, lengths) == pytest.approx(
        {"one/a": 18 / 37, "one/b": 18 / 37, "plain/e": 1 / 37}
    )
