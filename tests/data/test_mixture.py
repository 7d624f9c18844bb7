"""Rates of tasks: examples-proportional with a maximum, within the proportions of benchmarks."""

import gin
import pytest

from optiml_jax.data.mixture import Mixture, matching_tasks, mixing_rates
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


def test_a_zero_proportion_leaves_a_benchmark_out():
    rates = mixing_rates(COUNTS, Mixture(name="m", proportions={"one": 0, "two": 3}))
    assert rates == {"one/a": 0, "one/b": 0, "two/c": 1, "two/d": 0}


def test_the_cap_on_examples_also_caps_the_rate():
    rates = mixing_rates({"one/a": 100, "one/b": 900}, Mixture(name="m", max_examples=300))
    assert rates == pytest.approx({"one/a": 0.25, "one/b": 0.75})


def test_rates_equal_those_of_nested_seqio_mixtures():
    """`mixing_rate_num_examples(maximum=eps)` in sub-mixtures, proportions in the mixture above."""
    seqio = pytest.importorskip("seqio")
    counts = {"one/a": 100, "one/b": 10_000, "two/c": 50, "two/e": 70}
    for task, n in counts.items():
        seqio.TaskRegistry.add(
            f"rates_{task.replace('/', '_')}",
            source=seqio.FunctionDataSource(
                lambda split, shuffle_files: None,
                splits=["train"],
                num_input_examples={"train": n},
            ),
            output_features={"targets": seqio.Feature(seqio.PassThroughVocabulary(10))},
        )
    rate = seqio.mixing_rate_num_examples
    for benchmark in ("one", "two"):
        tasks = [f"rates_{t.replace('/', '_')}" for t in counts if t.startswith(benchmark)]
        capped = [(t, lambda task: rate(task, maximum=300)) for t in tasks]
        seqio.MixtureRegistry.add(f"rates_{benchmark}", capped)
    top = seqio.MixtureRegistry.add("rates_all", [("rates_one", 1.0), ("rates_two", 3.0)])
    whole = {task.name: top.get_rate(task) for task in top.tasks}
    ours = mixing_rates(counts, Mixture(name="m", eps=300, proportions={"one": 1, "two": 3}))
    total = sum(whole.values())
    for task, rate in ours.items():
        assert whole[f"rates_{task.replace('/', '_')}"] / total == pytest.approx(rate)


@pytest.mark.parametrize(
    ("proportions", "message"),
    [
        ({"one": 1, "two": 1, "three": 1}, "'three' a weight.*only examples of one, two;"),
        ({"one": 1}, "tasks of benchmark 'two' but no proportion"),
        ({"one": -1, "two": 1}, "proportions of 'one' is -1"),
        ({"one": "x", "two": 1}, "proportions of 'one' is 'x'"),
        ({"one": float("nan"), "two": 1}, "proportions of 'one' is nan"),
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
