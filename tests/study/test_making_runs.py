"""Making the runs of a study: what is skipped, what goes on after a failure and after a kill.

The verbs are a stand-in (study_bench.py) that notes each call.
"""

import collections
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from study_bench import VERBS, planned, states

from optiml_jax.cli import study as verb
from optiml_jax.files import write_sealed
from optiml_jax.study import local
from optiml_jax.study.queue import Queue
from optiml_jax.study.spec import Launch
from optiml_jax.study.state import STAGES, log_of, run_state


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """The stand-in for the verbs; gives its folder."""
    script = tmp_path / "optiml_verbs.py"
    script.write_text(VERBS)
    monkeypatch.setenv("STATE", str(tmp_path))
    monkeypatch.setattr(
        local,
        "command",
        lambda name, gin, _: [sys.executable, str(script), name, f"--gin_file={gin}"],
    )
    return tmp_path


def calls(folder: pathlib.Path) -> collections.Counter:
    lines = (folder / "calls").read_text().splitlines()
    return collections.Counter(line.split()[0] for line in lines)


def test_everything_is_made_once_and_a_failure_stops_nothing_else(stand_in):
    variants = {"10": (), "666": ("Mixture.eps = 666",), "20": ("Mixture.eps = 20",)}
    plan = planned(stand_in / "studies", variants=variants)
    assert states(plan) == dict.fromkeys(variants, "plan waiting")
    failed = local.make_runs(plan, at_once=2)
    assert failed == {"eps: 666, seed 1234": ("train: the loss is not finite", False)}
    assert calls(stand_in) == {"prepare": 1, "plan": 3, "train": 3, "evaluate": 2}
    assert states(plan) == {
        "10": "done",
        "666": "train failed at step 2/4: the loss is not finite",
        "20": "done",
    }
    # Again: what is done is skipped, what failed is tried from where it failed.
    assert local.make_runs(plan) == failed
    assert calls(stand_in) == {"prepare": 1, "plan": 3, "train": 4, "evaluate": 2}


def test_preparations_of_one_cache_wait_for_each_other(stand_in):
    variants = {"all": (), "some": ('Mixture.missing = "renormalise"',)}
    other = {"other": ('Run.cache_dir = "other"',)}
    plan = planned(stand_in / "studies", variants=variants | other)
    assert len(plan.preparations) == 3
    assert local.make_runs(plan, at_once=3) == {}


def test_time_left_is_that_of_the_stages_that_others_are_through(stand_in):
    plan = planned(stand_in / "studies", variants={"10": (), "20": ("Mixture.eps = 20",)})
    queues = {plan.study.folder: Queue(plan.study.folder)}
    assert "time left unknown" in verb.summary([plan], Launch(), queues)
    for (variant, _), run in plan.runs.items():
        for stage, seconds in zip(STAGES, (10, 100, 40), strict=True):
            log = run.folder / "logs" / f"{stage}.log"
            log.parent.mkdir(exist_ok=True)
            lines = [
                f"[study] 2026-01-01T00:00:00+00:00 optiml {stage} started as process 1 on other",
                "INFO: step 1/4: loss 1",
                f"[study] 2026-01-01T00:{seconds // 60:02}:{seconds % 60:02}+00:00 optiml {stage} "
                "ended with -15",
            ]
            if variant == "10" or stage == "plan":
                log.write_text("\n".join(lines) + "\n")
    first, second = plan.runs.values()
    for run, parts in ((first, "plan train evaluate"), (second, "plan")):
        if "plan" in parts:
            (run.folder / "plan/train").mkdir(parents=True)
            (run.folder / "plan/train/plan.json").write_text("{}")
    (first.folder / "checkpoints/4").mkdir(parents=True)
    first.evaluation.mkdir(parents=True)
    write_sealed(first.evaluation / "tasks.json", {"run": {}, "tasks": []})
    said = verb.summary([plan], Launch(), queues)
    assert said == "2 runs: 1 done, 1 waiting; about 2 min left"  # 140 s
    (second.folder / "logs/train.log").write_text("\n".join(lines) + "\n")  # stopped at step 1 of 4
    assert run_state(second).status == "stopped"
    assert log_of(first.log("train")).seconds == 100


DRIVER = """
import sys
sys.path.insert(0, {here!r})
from study_bench import planned
from optiml_jax.study import local, state
state.find_checkpoint = lambda place, items: place
local.command = lambda verb, gin, _: [
    *(sys.executable, "-c", {child!r}), {script!r}, verb, f"--gin_file={{gin}}"]
print(local.make_runs(planned({folder!r})))
"""
# What child.py does, for the stand-in.
CHILD = (
    "import ctypes, runpy, signal, sys; ctypes.CDLL(None).prctl(1, signal.SIGTERM); "
    "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0])"
)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_study_goes_on_where_it_was(stand_in, how):
    folder = stand_in / "studies"
    (stand_in / "hold").touch()  # training waits
    script = {"script": str(stand_in / "optiml_verbs.py"), "child": CHILD}
    code = DRIVER.format(here=str(pathlib.Path(__file__).parent), folder=str(folder), **script)
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    deadline = time.monotonic() + 60
    while not (stand_in / "calls").exists() or "train" not in calls(stand_in):
        assert time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)
    plan = planned(folder)
    assert "running" in {run_state(run).status for run in plan.runs.values()}
    process.send_signal(how)
    process.wait(timeout=30)
    while any(run_state(run).status == "running" for run in plan.runs.values()):
        assert time.monotonic() < deadline  # the child is told to end, too
        time.sleep(0.05)
    (stand_in / "hold").unlink()
    assert local.make_runs(plan) == {}
    assert {*states(plan).values()} == {"done"}
    # Runs that were not planned yet have the cache looked at again, nothing else comes twice.
    assert calls(stand_in) == {"prepare": 2, "plan": 3, "train": 4, "evaluate": 3}


def test_a_training_serves_several_evaluations_and_its_failure_none(stand_in):
    other = ('EvalConfig.separator = "##"',)
    bad = ("Mixture.eps = 666",)
    variants = {"bad": bad, "bad, ##": bad + other, "20": (), "20, ##": other}
    plan = planned(stand_in / "studies", variants=variants)
    assert [line.split()[1] for line in local.printed([plan])[1:]] == [
        "prepare",
        *(*STAGES, "evaluate") * 2,
    ]
    failed = local.make_runs(plan, at_once=3)
    why = "train: the loss is not finite"
    assert failed == {
        "eps: bad, ##, seed 1234": (f"not trained: {why}", False),
        "eps: bad, seed 1234": (why, False),
    }
    assert calls(stand_in) == {"prepare": 1, "plan": 2, "train": 2, "evaluate": 2}
    assert states(plan) == dict.fromkeys(
        ("bad", "bad, ##"), "train failed at step 2/4: the loss is not finite"
    ) | dict.fromkeys(("20", "20, ##"), "done")


def test_tasks_without_a_score_stop_no_run_and_are_tried_again(stand_in):
    plan = planned(stand_in / "studies", variants={"20": ()})
    (stand_in / "no_rows").write_text("2")
    finished = []
    failed = local.make_runs(plan, done=lambda: finished.append(states(plan)["20"]))
    assert failed == {
        "eps: 20, seed 1234": ("evaluate: step_4: b/t at 0 shots: no usable row", False)
    }
    assert finished == ["done, 1 task x shots failed: b/t at 0 shots: no usable row"]
    (stand_in / "no_rows").unlink()
    assert local.make_runs(plan) == {}
    assert states(plan) == {"20": "done"}


def test_the_printed_commands_make_what_is_left(stand_in):
    plan = planned(stand_in / "studies")
    run = plan.runs["10", 1234]
    printed = local.printed([plan])
    assert printed[0] == "# eps"
    assert [line.split()[1] for line in printed[1:]] == ["prepare", *STAGES * 3]
    local.make_runs(plan)
    (run.evaluation / "tasks.json").unlink()
    assert local.printed([plan])[1:] == [f"optiml evaluate --gin_file={run.gin_file}"]
