"""The account of a run's time, over restarts."""

import json

import pytest

from optiml_jax.train.goodput import Goodput, duration


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def start(tmp_path):
    """start(step, at): the account of a start at that time."""
    clock = Clock()

    def start(step, at):
        clock.now = at
        return Goodput(tmp_path / "goodput.json", step, began=at, clock=clock), clock

    return start


def test_updates_that_are_made_again_and_time_between_starts_do_not_count(start):
    first, clock = start(0, 1000.0)
    first.add("starting", 10)
    first.add_updates(20)
    first.saving(8)
    first.add_updates(5)  # killed before the next checkpoint
    first.write()

    second, clock = start(8, 1100.0)
    second.add("data_wait", 3)
    second.add_updates(27)
    clock.now = 1200.0
    values = second.scalars()
    assert values["time/goodput"] == pytest.approx((20 + 27) / 200)
    assert values["time/starting_seconds"] == 10
    assert values["time/data_wait_seconds"] == 3
    assert values["time/restarts"] == 1
    assert "goodput 23.5 % of 0:03:20 since the first start" in second.describe()
    assert "lost or not running 0:02:20" in second.describe()


def test_a_start_from_an_older_checkpoint_counts_what_that_had(start):
    first, _ = start(0, 1000.0)
    for step in (8, 16):
        first.add_updates(20)
        first.saving(step)
    first.write()
    again, clock = start(8, 1050.0)  # that of step 16 is damaged
    clock.now = 1100.0
    assert again.scalars()["time/goodput"] == pytest.approx(20 / 100)


def test_the_time_after_a_complete_run_does_not_count_when_it_is_continued(start):
    first, clock = start(0, 1000.0)
    first.add_updates(50)
    first.saving(8)
    clock.now = 1100.0
    first.finish(complete=True)
    assert first.scalars()["time/goodput"] == 0.5
    again, clock = start(8, 900_000.0)
    assert again.scalars()["time/goodput"] == pytest.approx(0.5)
    clock.now += 100
    assert again.scalars()["time/goodput"] == pytest.approx(0.25)


def test_a_clock_that_was_put_back_makes_no_goodput_above_one(start):
    first, clock = start(0, 1000.0)
    first.add_updates(50)
    clock.now = 10.0
    assert first.scalars()["time/goodput"] == 1


def test_a_damaged_account_is_named_and_begun_anew(start, tmp_path, caplog):
    first, _ = start(0, 1000.0)
    first.add_updates(50)
    first.saving(8)
    first.write()
    path = tmp_path / "goodput.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"starts": 7}))
    again, clock = start(8, 2000.0)
    assert f"{path}" in caplog.text
    clock.now = 2010.0
    assert again.scalars()["time/restarts"] == 0


def test_durations_are_readable():
    assert [duration(s) for s in (0, 7.31, 59.96, 3600 * 26 + 187)] == [
        *("0.0 s", "7.3 s", "0:01:00", "26:03:07")
    ]
