"""Runs studies on this machine, one run after another or several at once.

Each verb is a separate process with its own log. When this process ends, for any reason, its
children get SIGTERM: training saves and exits, and the next start resumes it.
"""

import dataclasses
import itertools
import logging
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple

from optiml_jax.errors import MEND
from optiml_jax.study.runs import Plan, Preparation, StudyRun
from optiml_jax.study.state import STAGES, ended, log_of, run_state, started

logger = logging.getLogger(__name__)
_POLL_SECONDS = 0.2


class Failure(NamedTuple):
    """Why a run or preparation was given up, and whether the same command may succeed later."""

    reason: str
    may_pass: bool


@dataclasses.dataclass
class _Job:
    """A run or preparation and its remaining verbs."""

    name: str
    of: StudyRun | Preparation
    verbs: list[str]
    needs: str | None = None  # name of the preparation that it needs
    trained_by: str | None = None  # name of the job whose training it only evaluates


def make_runs(
    plan: Plan,
    at_once: int = 1,
    threads: int = 0,
    done: Callable[[], None] = lambda: None,
    elsewhere: Collection[pathlib.Path] = (),
) -> dict[str, Failure]:
    """Executes the unfinished runs, and continues if some fail.

    Args:
      plan: its gin files have been written.
      at_once: number of concurrent runs.
      threads: CPU threads of one run; 0: all.
      done: called after each finished run.
      elsewhere: evaluations of runs that are left to others.

    Returns:
      The failures, by name of run (study, variant, seed) or preparation.

    Raises:
      KeyboardInterrupt: SIGINT or SIGTERM; the child processes have ended.
    """
    return _Pool(at_once, threads, done).make(_jobs(plan, elsewhere))


def _jobs(plan: Plan, elsewhere: Collection[pathlib.Path]) -> list[_Job]:
    jobs, needed, trained_by = [], {}, {}
    for (variant, seed), run in plan.runs.items():
        if run.evaluation in elsewhere:
            continue
        state = run_state(run)
        if not state.stage and not state.failed_tasks:  # done, or made from other data
            continue
        verbs = list(STAGES[STAGES.index(state.stage) :]) if state.stage else ["evaluate"]
        name = f"{plan.study.name}: {variant}, seed {seed}"
        if verbs[0] != "evaluate" and trained_by.setdefault(run.folder, name) != name:
            jobs.append(_Job(name, run, ["evaluate"], trained_by=trained_by[run.folder]))
            continue
        needs = run.prepare if verbs[0] == "plan" else None
        if needs:
            needed[needs] = plan.preparations[needs]
        jobs.append(_Job(name, run, verbs, needs))
    first = [_Job(key, of, ["prepare"]) for key, of in needed.items()]
    return first + jobs


class _Pool:
    """The running processes."""

    def __init__(self, at_once: int, threads: int, done: Callable[[], None]):
        self._at_once, self._threads, self._done = max(at_once, 1), threads, done
        self._active: list[tuple[_Job, subprocess.Popen, int]] = []
        self._failed: dict[str, Failure] = {}  # by name of the job

    def make(self, jobs: list[_Job]) -> dict[str, Failure]:
        """Runs the jobs, each after the preparation that it needs."""
        waiting = list(jobs)
        slots = set(range(self._at_once))
        with _interrupted_by_sigterm():
            try:
                while waiting or self._active:
                    self._drop_hopeless(waiting)
                    while slots and (job := self._ready(waiting)) is not None:
                        waiting.remove(job)
                        self._start(job, slots.pop())
                    time.sleep(_POLL_SECONDS)
                    slots |= set(self._collect())
            except BaseException:
                self._stop()
                raise
        return self._failed

    def _drop_hopeless(self, waiting: list[_Job]) -> None:
        for job in list(waiting):
            if job.needs in self._failed:
                what, why = "its preparation failed", self._failed[job.needs]
            elif job.trained_by in self._failed and not _is_trained(job):
                what, why = "not trained", self._failed[job.trained_by]
            else:
                continue
            self._failed[job.name] = Failure(f"{what}: {why.reason}", why.may_pass)
            waiting.remove(job)

    def _ready(self, waiting: Sequence[_Job]) -> _Job | None:
        """The next job whose preparation is done and that no other process is running."""
        unfinished = {job.name for job in waiting} | {job.name for job, *_ in self._active}
        active = [job.of for job, *_ in self._active if isinstance(job.of, Preparation)]
        written = {preparation.cache for preparation in active}
        for job in waiting:
            if isinstance(job.of, Preparation) and job.of.cache in written:
                continue
            if job.needs in unfinished or (job.trained_by and not _is_trained(job)):
                continue
            if isinstance(job.of, StudyRun) and run_state(job.of).status == "running":
                continue  # of another start of this study, which is ending or runs elsewhere
            return job
        return None

    def _start(self, job: _Job, slot: int) -> None:
        verb = job.verbs[0]
        log = job.of.log(verb)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as file:
            process = subprocess.Popen(
                command(verb, job.of.gin_file, self._processors(slot)),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                process_group=0,  # Ctrl-C reaches this process alone, which sends SIGTERM to them
            )
            file.write(started(verb, process.pid))
        logger.info("%s: %s (%s)", job.name, verb, log)
        self._active.append((job, process, slot))

    def _processors(self, slot: int) -> list[int]:
        """The CPUs of the slot-th run, if their number is limited."""
        if not self._threads:
            return []
        ours = sorted(os.sched_getaffinity(0))
        return sorted({ours[(slot * self._threads + i) % len(ours)] for i in range(self._threads)})

    def _collect(self) -> Iterator[int]:
        """Handles processes that have ended; returns the freed slots."""
        for job, process, slot in list(self._active):
            status = process.poll()
            if status is None:
                continue
            self._active.remove((job, process, slot))
            verb = job.verbs.pop(0)
            _note_end(job.of, verb, status)
            if status:
                why = Failure(f"{verb}: {log_of(job.of.log(verb)).reason}", status != MEND)
                self._failed[job.name] = why
                logger.warning("%s failed: %s", job.name, why.reason)
            if status and not (verb == "evaluate" and run_state(job.of).status == "done"):
                yield slot  # not only tasks without a score
            elif _left(job):
                self._start(job, slot)
            else:
                if isinstance(job.of, StudyRun):
                    self._done()
                yield slot

    def _stop(self) -> None:
        """Ends the processes as Ctrl-C would, and waits for them."""
        for _, process, _ in self._active:
            process.send_signal(signal.SIGTERM)
        for job, process, _ in self._active:
            _note_end(job.of, job.verbs[0], process.wait())


def _is_trained(job: _Job) -> bool:
    return run_state(job.of).stage not in ("plan", "train")


def _left(job: _Job) -> list[str]:
    """The job's remaining verbs: training may have evaluated as well."""
    if isinstance(job.of, StudyRun) and job.verbs and run_state(job.of).status == "done":
        job.verbs = []
    return job.verbs


def command(verb: str, gin_file: pathlib.Path, processors: Sequence[int] = ()) -> list[str]:
    """The command that runs a verb as a child of this process."""
    own = ",".join(map(str, processors)) or "-"
    program = [sys.executable, "-m", "optiml_jax.study.child", str(os.getpid()), own]
    return [*program, verb, f"--gin_file={gin_file}"]


def _note_end(of: StudyRun | Preparation, verb: str, status: int) -> None:
    with of.log(verb).open("a", encoding="utf-8") as file:
        file.write(ended(verb, status))


class _interrupted_by_sigterm:  # noqa: N801 - used as a function
    """In the block, SIGTERM has the effect of Ctrl-C."""

    def __enter__(self):
        def stop(number: int, _: Any) -> None:
            raise KeyboardInterrupt(f"stopped by signal {number}")

        self._before = signal.signal(signal.SIGTERM, stop)

    def __exit__(self, *_):
        signal.signal(signal.SIGTERM, self._before)


def printed(plans: Sequence[Plan], elsewhere: Collection[pathlib.Path] = ()) -> list[str]:
    """The commands of the unfinished runs that are not left to others, in a valid order."""
    lines: list[str] = []
    for plan in plans:
        if jobs := _jobs(plan, elsewhere):
            lines.append(f"# {plan.study.name}: {plan.study.title}".rstrip(": "))
        for job, verb in itertools.chain.from_iterable(((j, v) for v in j.verbs) for j in jobs):
            lines.append(f"optiml {verb} --gin_file={job.of.gin_file}")
    return list(dict.fromkeys(lines))
