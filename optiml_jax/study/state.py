"""The progress of a run, read from what it has written: plan, checkpoints, records, claims, logs.

There is no separate state file, so whatever started or killed a run, the progress is correct.
"""

import dataclasses
import datetime
import os
import pathlib
import re
import socket
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from optiml_jax import interrupt
from optiml_jax.checkpoint.manager import find_checkpoint
from optiml_jax.errors import UserError
from optiml_jax.evaluate.records import RunFolder, TaskInfo
from optiml_jax.one_writer import writer_of
from optiml_jax.study.data import evaluated_data_changed, training_data_changed
from optiml_jax.study.runs import StudyRun

STAGES = ("plan", "train", "evaluate")
_MARK = "[study]"
_STARTED = re.compile(
    rf"{re.escape(_MARK)} (?P<time>\S+) optiml \w+ started as process (?P<pid>\d+) on (?P<host>\S+)"
)
_ENDED = re.compile(rf"{re.escape(_MARK)} (?P<time>\S+) optiml \w+ ended with (?P<status>-?\d+)")
_STEP = re.compile(r"step (\d+)/(\d+):")

Status = Literal[
    "done", "running", "queued", "failed", "stopped", "waiting", "made from other data"
]
OTHER_DATA: Status = "made from other data"


@dataclasses.dataclass(frozen=True)
class RunState:
    """The progress of a run.

    Attributes:
      stage: the first unfinished one of `STAGES`; "" if all are done.
      status: of that stage. "stopped": it was started but no process is running it; "queued": a job
        of SLURM waits that will continue it. "made from other data": all are done, but what it was
        trained on has changed since.
      step: the last known training step.
      reason: of the last failure, or what has changed.
      failed_tasks: of a finished evaluation, how many (task, shots) have no score.
      job: of SLURM that is in its queue for this run, and why it waits.
    """

    stage: str
    status: Status
    step: int = 0
    reason: str = ""
    failed_tasks: int = 0
    job: str = ""


def run_state(run: StudyRun) -> RunState:
    """The current state of a run."""
    done = {"plan": _planned, "train": _trained}
    for stage, is_done in done.items():
        if not is_done(run):
            return _unfinished(run, stage)
    found = _evaluated(run)
    if not found.finished or (found.failed and log_of(run.log("evaluate")).running):
        return _unfinished(run, "evaluate")
    if changed := training_data_changed(run.folder / "plan" / "train", found.plan):
        return RunState("", OTHER_DATA, run.num_steps, changed)
    if found.changed:
        state = _unfinished(run, "evaluate")
        more = f" (and {len(found.changed) - 1} more)" if len(found.changed) > 1 else ""
        return dataclasses.replace(state, reason=f"{found.changed[0]}{more}")
    return RunState("", "done", run.num_steps, "; ".join(found.failed[:1]), len(found.failed))


def _planned(run: StudyRun) -> bool:
    return (run.folder / "plan" / "train" / "plan.json").exists()


def _trained(run: StudyRun) -> bool:
    place = run.folder / "checkpoints" / str(run.num_steps)
    if not place.exists():
        return False
    try:
        find_checkpoint(place, ("params",))
    except UserError:  # half-written or damaged: training resumes from an earlier one
        return False
    return True


class _Evaluated(NamedTuple):
    """What an evaluation has.

    Attributes:
      finished: every (task, shots) was attempted.
      failed: why which failed.
      changed: which have files that changed since.
      plan: fingerprint of the plan that the checkpoint was trained with.
    """

    finished: bool
    failed: Sequence[str] = ()
    changed: Sequence[str] = ()
    plan: str | None = None


def _evaluated(run: StudyRun) -> _Evaluated:
    folder = RunFolder(run.evaluation)
    if not (run.evaluation / "tasks.json").exists():
        return _Evaluated(False)
    settings, infos = folder.load()
    failed, changed, finished = [], [], True
    for info, shots in ((task, shots) for task in infos for shots in task.shots):
        status, reason, other = _cell(folder, info, shots)
        name = f"{info.task} at {shots} shots"
        failed += [f"{name}: {reason}"] if status == "failed" else []
        changed += [f"{name}: its files changed since"] if other else []
        finished &= status != "missing"
    return _Evaluated(finished, failed, changed, settings.get("plan"))


def _cell(folder: RunFolder, info: TaskInfo, shots: int) -> tuple[str, str, bool]:
    """`RunFolder.status`, and whether the files of records that count have changed."""
    changed = False

    def noted(summary: Mapping[str, Any]) -> str:
        nonlocal changed
        changed = evaluated_data_changed(summary)
        return ""

    status, reason = folder.status(info, shots, noted)
    return status, reason, changed


def _unfinished(run: StudyRun, stage: str) -> RunState:
    log = log_of(run.log(stage))
    step = _step(run)
    claimed = {"plan": run.folder / "plan", "train": run.folder, "evaluate": run.evaluation}[stage]
    if log.running or writer_of(claimed, f"optiml {stage}"):
        return RunState(stage, "running", step)
    if log.failed:
        return RunState(stage, "failed", step, log.reason)
    return RunState(stage, "stopped" if log.starts else "waiting", step)


def _step(run: StudyRun) -> int:
    """The last known training step: from its log (none under SLURM) or a checkpoint."""
    saved = (run.folder / "checkpoints").glob("[0-9]*")
    steps = [int(path.name) for path in saved if path.name.isdigit()]
    return max([log_of(run.log("train")).step, *steps])


@dataclasses.dataclass(frozen=True)
class Log:
    """The content of a verb's log.

    Attributes:
      starts: number of starts.
      running: the last started process is alive on this machine.
      status: exit status of the last one; None: it has not ended, or never started.
      seconds: total run time of those that ended.
      since: seconds since the running one started.
      reason: the last error message.
      step: the last training step in it.
    """

    starts: int = 0
    running: bool = False
    status: int | None = None
    seconds: float = 0.0
    since: float = 0.0
    reason: str = ""
    step: int = 0

    @property
    def failed(self) -> bool:
        """Whether the last start ended with an error, which Ctrl-C and SIGTERM are not."""
        return self.status not in (None, 0, interrupt.STOPPED, 130, -15, 143)


def started(verb: str, pid: int) -> str:
    """The log line at the start of a verb."""
    return f"{_MARK} {_now()} optiml {verb} started as process {pid} on {socket.gethostname()}\n"


def ended(verb: str, status: int) -> str:
    """The log line at the end of a verb."""
    return f"{_MARK} {_now()} optiml {verb} ended with {status}\n"


def log_of(file: pathlib.Path) -> Log:
    """Reads the log of a verb of a run (or of a preparation)."""
    try:
        text = file.read_text("utf-8", "replace")
    except FileNotFoundError:
        return Log()
    starts, status, seconds, reason, step, begun = 0, None, 0.0, "", 0, None
    for line in text.splitlines():
        if found := _STARTED.match(line):
            begun, status, starts, reason = found, None, starts + 1, ""
        elif (found := _ENDED.match(line)) and begun is not None:
            status = int(found["status"])
            seconds += (_time(found["time"]) - _time(begun["time"])).total_seconds()
        elif line.startswith(("error: ", "failed: ")):
            reason = line.split(": ", 1)[1]
        elif found := _STEP.search(line):
            step = int(found[1])
    alive = begun is not None and status is None and _alive(begun["host"], int(begun["pid"]))
    since = (_time(_now()) - _time(begun["time"])).total_seconds() if alive else 0.0
    if status and not reason:
        reason = f"exit status {status}; see {file}"
    return Log(starts, alive, status, seconds, since, reason, step)


def seconds_left(states: Mapping[StudyRun, RunState] | Iterable, at_once: int = 1) -> float | None:
    """Seconds until runs are done, from the durations of finished stages; None: not known.

    Args:
      states: (run, its state), each run once.
      at_once: number of concurrent runs.
    """
    pairs = list(states)
    rates = {stage: _mean_rate(stage, pairs) for stage in STAGES}
    left, counted = 0.0, set()
    for run, state in pairs:
        if not state.stage or state.status == "failed":
            continue
        for stage in STAGES[STAGES.index(state.stage) :]:
            if (place := run.evaluation if stage == "evaluate" else (run.folder, stage)) in counted:
                continue  # trained once for several evaluations
            counted.add(place)
            rate = rates[stage]
            if rate is None:
                return None
            share = 1.0
            if stage == state.stage == "train":
                share = 1 - min(state.step, run.num_steps) / run.num_steps
            whole = rate * (run.num_steps if stage == "train" else 1)
            spent = 0.0
            if stage == state.stage != "train" and state.status == "running":
                spent = log_of(run.log(stage)).since
            left += max(whole * share - spent, 0.0)
    return left / max(at_once, 1)


def _mean_rate(stage: str, pairs: list[tuple[StudyRun, RunState]]) -> float | None:
    """Seconds of a stage (for training, of one step), mean over the runs that finished it."""
    values = []
    for run, state in pairs:
        log = log_of(run.log(stage))
        steps = run.num_steps if stage == "train" else 1
        through = not state.stage or STAGES.index(state.stage) > STAGES.index(stage)
        if through and log.seconds:
            values.append(log.seconds / steps)
        elif stage == state.stage == "train" and log.running and log.step and log.starts == 1:
            values.append(log.since / log.step)
    return sum(values) / len(values) if values else None


def describe(state: RunState, num_steps: int) -> str:
    """The state in words."""
    why = f": {state.reason}" if state.reason else ""
    if state.status == "done":
        return (
            f"done, {state.failed_tasks} task x shots failed{why}" if state.failed_tasks else "done"
        )
    if state.status == OTHER_DATA:
        return f"{OTHER_DATA}{why}"
    at = f" at step {state.step}/{num_steps}" if state.stage == "train" and state.step else ""
    job = f" as job {state.job}" if state.job else ""
    if state.status in ("queued", "running") and why:
        why = f"; it failed before{why}"
    return f"{state.stage} {state.status}{at}{job}{why}"


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _time(text: str) -> datetime.datetime:
    return datetime.datetime.fromisoformat(text)


def _alive(host: str, pid: int) -> bool:
    if host != socket.gethostname():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:  # a zombie, or another process with the same id, is not it
        place = pathlib.Path(f"/proc/{pid}")
        status = (place / "stat").read_text("utf-8").rsplit(")", 1)[1].split()[0]
        return status != "Z" and b"optiml" in (place / "cmdline").read_bytes()
    except (OSError, IndexError):
        return True
