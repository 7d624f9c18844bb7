"""A mixture draws the same by the plan and as nested SeqIO mixtures."""

import collections
import functools

import numpy as np
import pytest

seqio = pytest.importorskip("seqio")
import tensorflow as tf  # noqa: E402 - only where SeqIO is

from optiml_jax.data.mixture import Mixture  # noqa: E402
from optiml_jax.data.plan import PlanConfig, plan_mixture  # noqa: E402
from optiml_jax.errors import UserError  # noqa: E402
from tasks.mixtures import register_mixture  # noqa: E402
from tasks.registry import registered_name  # noqa: E402

SIZES = {"one/a": 40, "one/b": 300, "two/c": 25, "think/d": 60, "plain/e": 50, "plain/f": 20}
MIXTURE = Mixture(
    name="matched",
    eps=120,
    proportions={"one": 3, "two": 1},
    shares={"think": 0.04},
    row_shares={"plain": 0.1},
)


@pytest.fixture
def examples(random_examples):
    longest = {"plain/e": 120, "plain/f": 90}
    return {n: random_examples(i, k, longest.get(n, 60)) for i, (n, k) in enumerate(SIZES.items())}


@pytest.fixture
def registered():
    """The tasks in SeqIO's registry; every record is the index of its task."""

    def dataset(index, split, shuffle_files, seed=None):
        return tf.data.Dataset.from_tensors({"targets": [index]}).repeat(4)

    for index, (task, size) in enumerate(SIZES.items()):
        name = registered_name(task)
        seqio.TaskRegistry.remove(name)
        seqio.TaskRegistry.add(
            name,
            source=seqio.FunctionDataSource(
                functools.partial(dataset, index),
                splits=["train"],
                num_input_examples={"train": size},
            ),
            output_features={"targets": seqio.Feature(seqio.PassThroughVocabulary(99))},
        )


def effective_rates(mixture):
    """What SeqIO makes of nested rates: task -> probability."""
    rates = {task.name: mixture.get_rate(task) for task in mixture.tasks}
    return {task: rates.get(registered_name(task), 0) / sum(rates.values()) for task in SIZES}


def mean_lengths(examples):
    return {n: np.mean([len(s) + len(t) for s, t in pairs]) for n, pairs in examples.items()}


@pytest.mark.usefixtures("registered")
def test_plan_and_seqio_mixture_have_the_same_rates(make_cache, examples, tmp_path):
    mixture = register_mixture(MIXTURE, SIZES, mean_lengths(examples))
    expected = effective_rates(mixture)
    assert sum(expected.values()) == pytest.approx(1)

    config = PlanConfig(num_rows=6000, sequence_length=256)
    plan = plan_mixture(make_cache(examples), list(SIZES), MIXTURE, "train", config, tmp_path / "p")
    planned = {row["task"]: row for row in plan.meta["tasks"]}
    for task, rate in expected.items():
        assert planned[task]["rate"] == pytest.approx(rate, rel=1e-6), task
        assert planned[task]["share"] == pytest.approx(rate, abs=0.01), task  # 40,000 draws

    drawn = collections.Counter(
        int(record["targets"][0])
        for record in mixture.get_dataset(None, split="train", seed=0, shuffle=True)
        .take(4000)
        .as_numpy_iterator()
    )
    for index, (task, rate) in enumerate(expected.items()):
        assert drawn[index] / 4000 == pytest.approx(rate, abs=0.03), task


@pytest.mark.usefixtures("registered")
def test_sub_mixtures_have_the_rates_of_seqios_own_maximum():
    register_mixture(MIXTURE, SIZES, dict.fromkeys(SIZES, 10.0))
    rate = functools.partial(seqio.mixing_rate_num_examples, maximum=MIXTURE.eps)
    for benchmark, tasks in (("one", ("one/a", "one/b")), ("plain", ("plain/e", "plain/f"))):
        mixture = seqio.MixtureRegistry.get(f"matched.{benchmark}")
        names = [registered_name(task) for task in tasks]
        assert mixture.rate_per_task_name == {n: rate(seqio.TaskRegistry.get(n)) for n in names}


@pytest.mark.usefixtures("registered")
def test_without_rows_of_their_own_no_lengths_are_needed_and_a_benchmark_may_stay_out():
    mixture = Mixture(name="matched", proportions={"one": 1, "two": 0})
    counts = {task: n for task, n in SIZES.items() if task.startswith(("one", "two"))}
    rates = effective_rates(register_mixture(mixture, counts))
    assert rates == pytest.approx(
        {**dict.fromkeys(SIZES, 0), "one/a": 40 / 340, "one/b": 300 / 340}
    )
    with pytest.raises(UserError, match=r"'matched' gives plain a share of the rows.*mean_lengths"):
        register_mixture(MIXTURE, SIZES)
