"""Batches by step: what a row looks like, who gets which rows, and that threads end."""

import threading
import time

import numpy as np
import pytest

from optiml_jax.data.loader import PlanLoader, assemble, read_rows
from optiml_jax.data.plan import Plan, PlanConfig, build_plan
from optiml_jax.errors import UserError

RATES = {"one/a": 0.5, "one/b": 0.2, "two/c": 0.3}


@pytest.fixture
def plan(cache, tmp_path):
    config = PlanConfig(num_rows=50, sequence_length=128, lookahead=64)
    return build_plan(cache, list(RATES), RATES, "train", config, tmp_path / "plan")


def assert_same(batch, other):
    assert batch.keys() == other.keys()
    for key in batch:
        np.testing.assert_array_equal(batch[key], other[key], err_msg=key)


def test_a_row_is_bos_source_target_against_source_target():
    uint16 = [np.array(ids, np.uint16) for ids in ([50271, 8], [9, 2], [], [5, 6, 2], [4], [2])]
    batch = assemble(list(zip(uint16[::2], uint16[1::2], strict=True)), np.array([2, 1]), 9)
    expected = {
        "tokens": [[2, 50271, 8, 9, 2, 5, 6, 1, 1], [2, 4, 1, 1, 1, 1, 1, 1, 1]],
        "targets": [[50271, 8, 9, 2, 5, 6, 2, 1, 1], [4, 2, 1, 1, 1, 1, 1, 1, 1]],
        "segment_ids": [[1, 1, 1, 1, 2, 2, 2, 0, 0], [1, 1, 0, 0, 0, 0, 0, 0, 0]],
        "positions": [[0, 1, 2, 3, 0, 1, 2, 0, 0], [0, 1, 0, 0, 0, 0, 0, 0, 0]],
        # An empty source (plain text) has loss everywhere, else only the target with its </s>.
        "loss_weights": [[0, 0, 1, 1, 1, 1, 1, 0, 0], [0, 1, 0, 0, 0, 0, 0, 0, 0]],
    }
    assert_same(batch, {key: np.array(rows) for key, rows in expected.items()})
    types = {key: array.dtype.name for key, array in batch.items()}
    assert types.pop("loss_weights") == "float32"
    assert set(types.values()) == {"int32"}


def test_bos_and_pad_are_those_of_the_config():
    batch = assemble([(np.array([7]), np.array([8, 2]))], np.array([1]), 5, bos_id=60_000, pad_id=3)
    assert batch["tokens"].tolist() == [[60_000, 7, 8, 3, 3]]
    assert batch["targets"].tolist() == [[7, 8, 2, 3, 3]]


def test_without_a_leading_token_the_first_token_is_predicted_by_nothing():
    pairs = [(np.array([7, 6]), np.array([8, 2])), (np.array([], int), np.array([5, 4, 2]))]
    batch = assemble(pairs, np.array([2]), 8, bos_id=None)
    assert batch["tokens"].tolist() == [[7, 6, 8, 2, 5, 4, 2, 1]]
    assert batch["targets"].tolist() == [[6, 8, 2, 1, 4, 2, 1, 1]]
    assert batch["loss_weights"].tolist() == [[0, 1, 1, 0, 1, 1, 0, 0]]
    assert batch["positions"].tolist() == [[0, 1, 2, 3, 0, 1, 2, 0]]
    assert batch["segment_ids"].tolist() == [[1, 1, 1, 1, 2, 2, 2, 0]]


def test_examples_that_do_not_fit_their_row_do_not_run_into_the_next():
    pair = (np.arange(3), np.arange(3))
    with pytest.raises(ValueError, match="more than 10 tokens"):
        assemble([pair, pair, pair], np.array([2, 1]), 10)


def test_rows_hold_the_examples_of_the_plan(plan):
    batch = read_rows(plan, range(7, 27))
    tasks = {task.name: task for task in plan.cached_tasks}
    for row in range(20):
        for number, (task, example) in enumerate(plan.row(7 + row)):
            ((source, target),) = tasks[task].read("train", [example])
            here = batch["segment_ids"][row] == number + 1
            whole = np.concatenate([source, target])
            np.testing.assert_array_equal(batch["targets"][row][here], whole)
            np.testing.assert_array_equal(batch["tokens"][row][here], [2, *whole[:-1]])
            assert batch["loss_weights"][row][here].sum() == len(target)
        assert batch["segment_ids"][row].max() == len(plan.row(7 + row))


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_step_s_is_rows_s_times_b_onwards(plan, prefetch):
    with PlanLoader(plan, 8, prefetch=prefetch) as loader:
        batches = list(loader)
    assert len(batches) == 6  # 50 rows: the last two fill no batch
    for step, batch in enumerate(batches):
        assert batch["tokens"].shape == (8, 128)
        assert_same(batch, read_rows(plan, range(8 * step, 8 * step + 8)))


def test_resuming_needs_the_step_alone(plan):
    with PlanLoader(plan, 4, num_steps=9) as loader:
        batches = list(loader)
    with PlanLoader(Plan.load(plan.folder), 4, start_step=5, num_steps=9) as loader:
        again = list(loader)
    assert len(again) == 4
    for batch, same in zip(batches[5:], again, strict=True):
        assert_same(batch, same)
    with PlanLoader(plan, 4, start_step=9, num_steps=9) as loader:
        assert list(loader) == []


def test_a_process_reads_the_rows_of_the_global_batch_that_it_asks_for(plan):
    with PlanLoader(plan, 8, start_step=2) as loader:
        whole = next(loader)
    for rows in ([0, 1], [2, 3, 6, 7], [7, 0]):
        with PlanLoader(plan, 8, start_step=2, rows=rows) as loader:
            assert_same(next(loader), {key: array[rows] for key, array in whole.items()})


def test_a_plan_too_short_for_the_steps_is_an_error(plan):
    with pytest.raises(UserError, match=r"has 50 rows, too few for 7 steps of 8.*at least 56"):
        PlanLoader(plan, 8, num_steps=7)
    with pytest.raises(UserError, match=r"has 50 rows, too few for 1 step of 64.*at least 64"):
        PlanLoader(plan, 64)


def test_a_cache_edited_after_planning_is_an_error_at_once(plan, make_cache):
    make_cache({"two/c": [([7], [8, 2])] * 7})
    with pytest.raises(UserError, match="task two/c was cached again"):
        PlanLoader(Plan.load(plan.folder), 8)


def test_a_cache_damaged_under_the_loader_is_an_error_not_a_hang(plan, cache):
    for path in (cache / "one.a").glob("train.array_record*"):
        path.unlink()
    with PlanLoader(plan, 8) as loader, pytest.raises(UserError, match="'one/a'"):
        next(loader)


def reading_threads():
    return [t for t in threading.enumerate() if t.name.startswith("grain-prefetch")]


@pytest.mark.parametrize("how", ["closed", "exhausted"])
def test_threads_end_when_the_loader_does(plan, how):
    before = len(reading_threads())
    loader = PlanLoader(plan, 8, num_steps=3, prefetch=2)
    next(loader)
    assert len(reading_threads()) > before
    if how == "closed":
        loader.close()
    else:
        assert len(list(loader)) == 2
    deadline = time.monotonic() + 20
    while len(reading_threads()) > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(reading_threads()) == before
