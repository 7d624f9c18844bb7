"""Which tasks a mixture trains on: roles, scaling studies, and what must stay out."""

import gin
import pytest

from optiml_jax.data.example import TaskSource
from optiml_jax.data.mixture import Mixture
from optiml_jax.errors import UserError
from tasks.mixtures import select
from tasks.splits import Manifest

ROWS = """rows:
- {tasks: "*/*", level: train_only, role: [train], src: inferred}
- {tasks: "*/supervised*", level: fully_supervised, role: [train, dev], src: inferred}
- {tasks: "*/scored*", level: fully_supervised, role: [train, test], src: inferred}
- {tasks: "*/dev*", level: fully_held_out, role: [dev], src: inferred}
- {tasks: "*/test*", level: fully_held_out, role: [test], src: inferred}
- {tasks: "*/mmlu*", level: partially_held_out, role: [test_max], src: inferred}
- {tasks: "*/out*", level: train_only, role: [exclude], src: inferred}
"""


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    path = tmp_path_factory.mktemp("manifest") / "manifest.yaml"
    path.write_text(ROWS, "utf-8")
    return Manifest.load(path)


def source(name, category="Misc."):
    return TaskSource(
        name=name,
        splits=("train",),
        files=(),
        read=lambda split, drops: iter(()),
        demonstrations=list,
        settings={"category": category},
    )


@pytest.fixture
def names(manifest):
    def select_names(sources, **settings):
        return [s.name for s in select(sources, Mixture(name="m", **settings), manifest)]

    return select_names


def many(number, benchmark="one", category="Misc."):
    return [source(f"{benchmark}/task{i:03}", category) for i in range(number)]


# --- roles

BENCH = [
    source("one/plain", "A"),
    source("one/supervised", "A"),
    source("one/dev", "B"),
    source("one/test", "C"),
    source("one/mmlu", "A"),
    source("one/out", "C"),
]


def test_optiml_trains_on_training_tasks_and_max_on_dev_and_test_tasks_too(names):
    assert names(BENCH) == ["one/plain", "one/supervised"]
    everything = ["one/dev", "one/plain", "one/supervised", "one/test"]
    assert names(BENCH, roles=("train", "dev", "test")) == everything


def test_a_category_held_out_from_the_mixture_may_not_be_trained_on(names):
    clash = [source("one/plain", "C"), *BENCH[2:4]]
    with pytest.raises(UserError, match=r"'one/plain' has category 'C' of .*held-out task 'one/te"):
        names(clash)
    # Trained on by Max, so not held out from it; nor when a subset leaves the training task out.
    assert names(clash, roles=("train", "dev", "test")) == ["one/dev", "one/plain", "one/test"]
    with pytest.raises(UserError, match=r"'one/plain' has category 'C' of .*held-out task 'one/te"):
        names(clash, roles=("train", "dev"))
    assert names([*clash, source("one/scored", "D")], tasks="one/scored") == ["one/scored"]


# --- scaling studies (paper, section 4.4)


def test_smaller_sets_of_tasks_are_part_of_larger_ones(names):
    sources = many(300)
    sets = [set(names(sources, num_tasks=n)) for n in (16, 64, 256)]
    assert [len(s) for s in sets] == [16, 64, 256]
    assert sets[0] < sets[1] < sets[2]
    assert sets[0] != {s.name for s in sources[:16]}
    assert set(names(sources, num_tasks=16, seed=2)) != sets[0]


def test_the_order_of_the_tasks_does_not_depend_on_the_others(names):
    """More data adds tasks to the order, and moves none of the old ones."""
    few = many(100)
    with_more = names(few + many(100, "two"), num_tasks=80)
    kept = [name for name in with_more if name.startswith("one/")]
    assert 20 < len(kept) < 60
    assert kept == names(few, num_tasks=len(kept))


def test_fully_supervised_dev_tasks_are_always_in(names):
    supervised = [source(f"one/supervised{i}") for i in range(5)]
    scored = [source(f"one/scored{i}") for i in range(40)]  # ours, not the paper's dev tasks
    sources = [*many(100), *supervised, *scored]
    chosen = set(names(sources, num_tasks=16))
    assert len(chosen) == 16
    assert chosen > {s.name for s in supervised}
    assert set(names(sources, num_tasks=3)) == {s.name for s in supervised}


def test_the_largest_categories_come_after_those_that_are_always_in(names):
    sources = [
        source(f"one/{category.lower()}{i}", category)
        for category, n in (("A", 5), ("B", 9), ("C", 7), ("D", 1), ("E", 7))
        for i in range(n)
    ]
    by_name = {s.name: s.settings["category"] for s in sources}

    def categories(**settings):
        return sorted({by_name[name] for name in names(sources, **settings)})

    assert categories(num_categories=2) == ["B", "C"]
    assert categories(num_categories=3) == ["B", "C", "E"]
    assert categories(num_categories=2, always_categories="D") == ["B", "D"]
    assert len(names(sources, num_categories=2, always_categories="D")) == 10
    assert categories(num_categories=3, always_categories=("D", "X")) == ["B", "C", "D"]


def test_benchmarks_with_a_share_of_their_own_stay_whole(names):
    sources = [*many(50), *many(9, "think", "R"), *many(3, "plain", "P")]
    settings = {"shares": {"think": 0.01}, "row_shares": {"plain": 0.05}}
    for subset in ({"num_tasks": 4}, {"num_categories": 1}):
        chosen = names(sources, **settings, **subset)
        assert len([n for n in chosen if n.startswith("think/")]) == 9
        assert len([n for n in chosen if n.startswith("plain/")]) == 3
    assert len(names(sources, num_tasks=4, **settings)) == 16


def test_fewer_tasks_than_asked_for_are_said(names, caplog):
    assert len(names(many(10), num_tasks=16, num_categories=4)) == 10
    assert "mixture 'm': only 10 of 16 tasks are here" in caplog.text
    assert "mixture 'm': only 1 of 4 categories are here" in caplog.text


# --- missing benchmarks


def test_a_weight_without_data_is_an_error_before_any_work(names, caplog):
    weights = {"one": 1, "two": 1}
    with pytest.raises(UserError, match="'m' gives benchmark 'two' a weight, but there are only"):
        names(many(3), proportions=weights)
    settings = {"tasks": ("one/*", "two/*"), "missing": "renormalise"}
    assert len(names(many(3), proportions=weights, **settings)) == 3
    assert "no task matches 'two/*'" in caplog.text


# --- settings that match nothing


def warnings_of(caplog):
    return [r.getMessage() for r in caplog.records]


@pytest.mark.parametrize(
    ("setting", "value", "named"),
    [
        ("without", ("one/task000", "one/tsk*"), "'one/tsk*'"),
        ("without", ("two/*",), "'two/*'"),  # there, but not in the mixture
        ("benchmark_eps", {"one": 5, "noe": 5}, "'noe'"),
        ("benchmark_max_examples", {"one": 5, "noe": 5}, "'noe'"),
        ("multiplicities", {"one/*": 2, "one/tsk*": 3, "noe/*": 4}, "'one/tsk*', 'noe/*'"),
    ],
)
def test_a_setting_of_no_task_is_warned_about_by_name(names, caplog, setting, value, named):
    names([*many(3), *many(3, "two")], tasks="one/*", **{setting: value})
    (warning,) = warnings_of(caplog)
    assert warning.startswith(f"mixture 'm': Mixture.{setting} ")
    assert f" {named}" in warning


def test_prompts_without_options_of_no_benchmark_are_warned_about_and_nothing_else(names, caplog):
    gin.bind_parameter("PromptConfig.without_options", {"one": 0.5, "noe": 0.5})
    settings = {"benchmark_eps": {"one": 5}, "multiplicities": {"one/*": 2}}
    # The second glob is not idle because the first matches the same task.
    chosen = names(many(3), without=("one/task000", "*/task000"), **settings)
    assert chosen == ["one/task001", "one/task002"]
    (warning,) = warnings_of(caplog)
    assert "PromptConfig.without_options names 'noe', of which there is no task" in warning
