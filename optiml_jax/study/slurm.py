"""Runs of a study under SLURM: preparation jobs, array jobs, and a job that continues.

An array's tasks are runs; each plans, trains and evaluates through launch/slurm_gpu.sbatch, which
requeues itself after a time limit or failure. The last job is `optiml study` itself: it writes the
report, and submits the next study of a chain. What is queued already (queue.py) is left alone.
"""

import dataclasses
import logging
import os
import pathlib
import shlex
import subprocess
from collections.abc import Sequence

from optiml_jax.errors import UserError
from optiml_jax.study.queue import Job, Kind, Queue, state_in
from optiml_jax.study.runs import Plan, StudyRun
from optiml_jax.study.spec import Launch
from optiml_jax.study.state import STAGES, RunState

logger = logging.getLogger(__name__)
SCRIPT = "launch/slurm_gpu.sbatch"


@dataclasses.dataclass(frozen=True)
class Submission:
    """What `submit` did.

    Attributes:
      commands: of `sbatch`.
      runs: number of runs that were submitted.
      waiting: states of those that were left alone because they are queued or running.
    """

    commands: list[list[str]]
    runs: int
    waiting: list[RunState]


def submit(plan: Plan, launch: Launch, arguments: Sequence[str]) -> Submission:
    """Submits the runs that are neither done nor queued nor running.

    Runs with different preparations are in different arrays, so that a failed preparation stops no
    other run; further evaluations of a training are in a later array. Called by one process of a
    shared folder at a time.

    Args:
      plan: its gin files have been written.
      launch: options of `sbatch`.
      arguments: of this `optiml study` command, which the last job repeats.

    Raises:
      UserError: `sbatch` is missing or rejects a job, or `squeue` cannot be asked about jobs of
        earlier calls.
    """
    queue = Queue(plan.study.folder)
    if queue.problem:
        raise UserError(
            f"{queue.problem}; without it jobs of an earlier command would be submitted twice, so "
            f"nothing was submitted. Try again; or, once they are gone, remove {queue.file}"
        ) from queue.problem
    return _Submitter(plan, launch, queue).submit(arguments)


class _Submitter:
    """One call of `submit`."""

    def __init__(self, plan: Plan, launch: Launch, queue: Queue):
        self._plan, self._launch, self._queue = plan, launch, queue
        self._commands: list[list[str]] = []
        self._arrays: list[str] = []  # ids of jobs that the report waits for
        self._writers = queue.writers()

    def submit(self, arguments: Sequence[str]) -> Submission:
        states = {
            run.evaluation: (run, state_in(self._queue, self._plan, run))
            for run in self._plan.runs.values()
        }
        waiting = [state for _, state in states.values() if state.status in ("queued", "running")]
        pending = [(run, state) for run, state in states.values() if _is_pending(state)]
        entries = [self._queue.entry(run.gin_file) for run, _ in states.values()]
        self._arrays += dict.fromkeys(entry.number for entry in entries if entry)
        self._submit_runs(pending)
        if self._arrays and (pending or not self._queue.has_report(self._plan.study.name)):
            self._submit_report(arguments)
        return Submission(self._commands, len(pending), waiting)

    def _submit_runs(self, pending: Sequence[tuple[StudyRun, RunState]]) -> None:
        groups: dict[str, list[StudyRun]] = {}
        scored, later, after, trained = [], [], [], set()
        for run, state in pending:
            if state.stage not in ("plan", "train"):
                scored.append(run)
                continue
            training = self._queue.training(run.folder)
            if run.folder in trained or training:
                later.append(run)
                after += training
                continue
            trained.add(run.folder)
            groups.setdefault(run.prepare if state.stage == "plan" else "", []).append(run)
        for key, runs in sorted(groups.items()):
            waits = [f"afterok:{self._preparation(key)}"] if key else []
            self._array("runs", runs, STAGES, waits)
            after.append(self._arrays[-1])
        if scored:
            self._array("evaluations", scored, ("evaluate",), [])
        if later:
            waits = [f"afterany:{job}" for job in dict.fromkeys(after)]
            self._array("evaluations", later, ("evaluate",), waits)

    def _preparation(self, key: str) -> str:
        """Id of the job that makes a preparation: one that is queued, or a new one."""
        preparation = self._plan.preparations[key]
        if queued := self._queue.entry(preparation.gin_file):
            return queued.number
        options = [f"--job-name=prepare-{self._plan.study.name}", *self._launch.sbatch_light]
        if earlier := self._writers.get(preparation.cache):
            options.append(f"--dependency=afterany:{earlier}")
        files = [preparation.gin_file]
        words = ["prepare", f"--gin_file={preparation.gin_file}"]
        job = self._sbatch("prepare", options, words, files, preparation.cache)
        self._writers[preparation.cache] = job
        return job

    def _array(
        self, kind: Kind, runs: Sequence[StudyRun], verbs: Sequence[str], waits: Sequence[str]
    ) -> None:
        """Submits one array job.

        Args:
          waits: dependencies. With a limit on concurrent runs, arrays run one after another too.
        """
        limit = f"%{self._launch.at_once}" if self._launch.at_once else ""
        if limit and self._arrays:
            waits = [*waits, f"afterany:{self._arrays[-1]}"]
        name = self._plan.study.name
        options = [f"--job-name={name}", f"--array=0-{len(runs) - 1}{limit}"]
        if waits:  # jobs that depend on a failed preparation leave the queue
            dependencies = ",".join(dict.fromkeys(waits))
            options += [f"--dependency={dependencies}", "--kill-on-invalid-dep=yes"]
        files = [run.gin_file for run in runs]
        words = [",".join(verbs), f"--gin_file={_links(self._plan, files)}/%a.gin"]
        self._arrays.append(self._sbatch(kind, [*options, *self._launch.sbatch], words, files))

    def _submit_report(self, arguments: Sequence[str]) -> None:
        name = self._plan.study.name
        options = [f"--job-name=report-{name}", f"--dependency=afterany:{':'.join(self._arrays)}"]
        words = ["study", *arguments, f"--gin.Launch.after={name}"]
        self._sbatch("report", [*options, *self._launch.sbatch_light], words)

    def _sbatch(
        self,
        kind: Kind,
        options: Sequence[str],
        arguments: Sequence[str],
        files: Sequence[pathlib.Path] = (),
        cache: str = "",
    ) -> str:
        """Submits one job and notes it in the queue; returns its id."""
        command = ["sbatch", "--parsable", *options, SCRIPT, *arguments]
        number, _, cluster = _output(command).partition(";")
        logger.info("job %s: %s", number, shlex.join(command))
        self._commands.append(command)
        study = self._plan.study.name
        self._queue.add(Job(number, study, kind, tuple(map(str, files)), cluster, cache))
        return number


def _is_pending(state: RunState) -> bool:
    if not state.stage:  # done, or made from other data
        return state.failed_tasks > 0
    return state.status not in ("queued", "running")


def _links(plan: Plan, files: Sequence[pathlib.Path]) -> pathlib.Path:
    """A folder of links 0.gin, 1.gin, ... to the runs' files, by array index."""
    root = plan.folder / "array"
    root.mkdir(parents=True, exist_ok=True)
    numbers = [int(path.name) for path in root.iterdir() if path.name.isdigit()]
    place = root / str(max(numbers, default=-1) + 1)  # a queued array keeps its links
    place.mkdir()
    for i, file in enumerate(files):
        (place / f"{i}.gin").symlink_to(file.absolute())
    return place


def _output(command: Sequence[str]) -> str:
    """What `sbatch` prints."""
    # The last job of a study submits the next: its folder of logs is not theirs.
    inside = "SLURM_JOB_ID" in os.environ
    kept = {k: v for k, v in os.environ.items() if not (inside and k == "OPTIML_LOGS")}
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=kept)
    except FileNotFoundError as e:
        raise UserError(
            "sbatch is not installed here; Launch.launcher = 'print' prints the commands"
        ) from e
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise UserError(
            f"{shlex.join(command)} exited with {done.returncode}: {said[0] if said else '-'}"
        )
    return done.stdout.strip()
