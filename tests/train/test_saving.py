"""What is saved when a run has to end within its grace time, by a clock of the test."""

import contextlib
import dataclasses

import pytest
import tiny_run

from optiml_jax.train import duties

TAKES = 6.0  # seconds of a save


class Checkpoints:
    """A manager whose saves end at certain times."""

    def __init__(self, clock, ends=0.0):
        self.clock, self.ends, self.steps = clock, ends, []
        self.save_seconds = TAKES

    def save(self, step, items, metadata):
        self.steps.append(step)
        self.ends = self.clock.now + TAKES

    def ends_within(self, seconds):
        ended = self.ends <= self.clock.now + seconds
        self.clock.now = self.ends if ended else self.clock.now + max(0.0, seconds)
        return ended

    def wait(self):
        assert self.ends <= self.clock.now


@dataclasses.dataclass
class Clock:
    now: float = 100.0

    def monotonic(self):
        return self.now


class Quiet:
    """A reporter and a record of time that take everything."""

    def flush(self):
        pass

    def saving(self, step):
        pass

    def paused(self, kind):
        return contextlib.nullcontext()


class State:
    def items(self):
        return {}


@pytest.mark.parametrize(
    ("running", "grace", "saved", "steps"),
    [
        (0, 20, True, [9]),  # seconds that a save of step 8 still takes, ...
        (0, 5, False, []),  # too long, which is known
        (5, 20, True, [9]),
        (5, 10, False, []),  # step 8 ends, for another there is no time: not dropped for that
        (5, 4, False, []),
    ],
)
def test_a_save_in_progress_has_the_whole_grace_time(monkeypatch, running, grace, saved, steps):
    clock = Clock()
    monkeypatch.setattr(duties, "time", clock)
    checkpoints = Checkpoints(clock, clock.now + running)
    config = tiny_run.configs("", "")[0]
    saving = duties.Saving(config, Quiet(), checkpoints, {}, Quiet(), saved=8)
    assert saving.finish(9, State(), grace) == saved
    assert checkpoints.steps == steps
    assert clock.now == 100 + min(grace, running) + (TAKES if saved else 0)


@pytest.mark.parametrize(("grace", "saved"), [(5.5, True), (4, False)])
def test_the_save_of_the_last_step_itself_is_waited_for(monkeypatch, grace, saved):
    clock = Clock()
    monkeypatch.setattr(duties, "time", clock)
    checkpoints = Checkpoints(clock, clock.now + 5)
    saving = duties.Saving(tiny_run.configs("", "")[0], Quiet(), checkpoints, {}, Quiet(), saved=9)
    assert saving.finish(9, State(), grace) == saved
    assert checkpoints.steps == []
