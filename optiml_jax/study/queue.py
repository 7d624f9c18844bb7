"""The jobs of studies in SLURM's queue: which were submitted, and what `squeue` says of them.

`jobs.json` in the folder that studies share lists the submitted jobs with the gin files of their
runs, so that no run is submitted twice, whichever study needs it. A job that `squeue` does not list
has ended; what its runs have reached is read from what they wrote (state.py).
"""

import dataclasses
import os
import pathlib
import re
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from optiml_jax.errors import UserError
from optiml_jax.files import read_sealed, write_sealed
from optiml_jax.study.runs import Plan, StudyRun
from optiml_jax.study.state import RunState, log_of, run_state

JOBS = "jobs.json"
_LINE = re.compile(r"(?P<job>\d+(?:_\d+)?)\|(?P<state>\w+)\|(?P<reason>.*)")
# States of `squeue` in which a job waits, and in which it has ended; in all others it is at work.
_WAITS = {"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
_ENDED = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "LAUNCH_FAILED"} | {
    *("NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "RECONFIG_FAIL", "REVOKED", "TIMEOUT")
}
_SECONDS = 60  # that `squeue` may take

Kind = Literal["prepare", "runs", "evaluations", "report"]


class QueueError(UserError):
    """`squeue` gives no answer now."""

    passing = True


@dataclasses.dataclass(frozen=True)
class Job:
    """A submitted job.

    Attributes:
      number: its id.
      study: that it was submitted for.
      kind: what it does: "runs" train and evaluate, "evaluations" wait for the training of others.
      files: gin files relative to the shared folder; of an array, one for each index.
      cluster: its name, if `sbatch` gave one.
      cache: that a preparation writes to.
    """

    number: str
    study: str
    kind: Kind
    files: tuple[str, ...] = ()
    cluster: str = ""
    cache: str = ""


@dataclasses.dataclass(frozen=True)
class Entry:
    """A job, or a task of an array job, that is in the queue.

    Attributes:
      job: its id, "102" or "102_3".
      at_work: it has nodes; otherwise it waits.
      reason: why it waits.
    """

    job: str
    at_work: bool
    reason: str

    @property
    def number(self) -> str:
        """The id of the whole job."""
        return self.job.partition("_")[0]


class Queue:
    """The jobs of all studies of a folder that have not ended.

    Attributes:
      file: `jobs.json`.
      problem: why `squeue` could not be asked; None: it was, or no job was submitted.
    """

    def __init__(self, root: str | os.PathLike):
        """Reads `jobs.json` in `root` and asks `squeue`.

        Raises:
          UserError: the file is damaged.
        """
        self._root = pathlib.Path(root)
        self.file = self._root / JOBS
        self._jobs = self._read()
        self._entries: dict[str, Entry] = {}
        self.problem: UserError | None = None
        try:
            for cluster in {job.cluster for job in self._jobs}:
                own = [job.number for job in self._jobs if job.cluster == cluster]
                self._entries |= _ask(cluster, own)
        except UserError as e:
            self.problem = e
        else:
            self._jobs = [job for job in self._jobs if self._of_job(job)]

    def entry(self, file: pathlib.Path) -> Entry | None:
        """The job of the gin file of a run or preparation; None: none is in the queue."""
        name = self._name(file)
        for job in reversed(self._jobs):
            for i, own in enumerate(job.files):
                task = job.number if job.kind == "prepare" else f"{job.number}_{i}"
                if own == name and task in self._entries:
                    return self._entries[task]
        return None

    def training(self, folder: pathlib.Path) -> list[str]:
        """Ids of the jobs (or tasks of arrays) that train the run in a folder."""
        start = f"{self._name(folder)}/"
        files = [f for j in self._jobs if j.kind == "runs" for f in j.files if f.startswith(start)]
        entries = [self.entry(self._root / file) for file in files]
        return [entry.job for entry in entries if entry]

    def writers(self) -> dict[str, str]:
        """Cache -> id of the last preparation that writes to it."""
        return {job.cache: job.number for job in self._jobs if job.kind == "prepare"}

    def has_report(self, study: str) -> bool:
        """Whether a job waits that will write the report of a study."""
        reports = [job for job in self._jobs if (job.kind, job.study) == ("report", study)]
        return any(not entry.at_work for job in reports for entry in self._of_job(job))

    def add(self, job: Job) -> None:
        """Notes a job that was submitted; its files may be given with their folder."""
        job = dataclasses.replace(job, files=tuple(map(self._name, job.files)))
        self._jobs.append(job)
        write_sealed(self.file, {"jobs": [dataclasses.asdict(job) for job in self._jobs]})

    def _of_job(self, job: Job) -> list[Entry]:
        return [entry for entry in self._entries.values() if entry.number == job.number]

    def _name(self, file: str | os.PathLike) -> str:
        return pathlib.Path(os.path.relpath(file, self._root)).as_posix()

    def _read(self) -> list[Job]:
        if not self.file.exists():
            return []
        mend = "check with squeue that no job of these studies is queued, and remove the file"
        value = read_sealed(self.file, "the list of submitted jobs", mend)
        try:
            return [_job(row) for row in value["jobs"]]
        except (KeyError, TypeError) as e:
            raise UserError(f"{self.file} is of another version of this program; {mend}") from e


def _job(row: Mapping[str, Any]) -> Job:
    return Job(**{**row, "files": tuple(row["files"])})


def _ask(cluster: str, numbers: Sequence[str]) -> dict[str, Entry]:
    """What is in the queue: id -> entry; of an array each task that has not ended.

    Raises:
      UserError: `squeue` is missing.
      QueueError: it fails.
    """
    command = ["squeue", "--all", "--noheader", "--array", "--format=%i|%T|%r"]
    command += [f"--jobs={','.join(numbers)}", *([f"--clusters={cluster}"] if cluster else [])]
    # The user's variables may hide jobs.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SQUEUE_")}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_SECONDS, env=environment
        )
    except FileNotFoundError as e:
        raise UserError("squeue is not installed here") from e
    except subprocess.TimeoutExpired as e:
        raise QueueError(f"squeue gave no answer in {_SECONDS} s") from e
    if done.returncode and "Invalid job id" not in done.stderr:  # the only one asked for has ended
        said = (done.stderr or done.stdout).strip().splitlines()
        raise QueueError(f"squeue exited with {done.returncode}: {said[0] if said else '-'}")
    found = filter(None, map(_LINE.fullmatch, map(str.strip, done.stdout.splitlines())))
    return {
        line["job"]: Entry(line["job"], line["state"] not in _WAITS, line["reason"])
        for line in found
        if line["state"] not in _ENDED
    }


def state_in(queue: Queue, plan: Plan, run: StudyRun) -> RunState:
    """The state of a run of a study, its job in the queue and its preparation considered."""
    state = run_state(run)
    if not state.stage and not state.failed_tasks:
        return state
    if entry := queue.entry(run.gin_file):
        waits = state.status != "running" and not entry.at_work
        status = {"stage": state.stage or "evaluate", "status": "queued" if waits else "running"}
        job = f"{entry.job} ({entry.reason})" if waits else entry.job
        return dataclasses.replace(state, job=job, **status)
    preparation = log_of(plan.preparations[run.prepare].log("prepare"))
    if (state.stage, state.status) == ("plan", "waiting") and preparation.failed:
        reason = f"its preparation failed: {preparation.reason}"
        return dataclasses.replace(state, status="failed", reason=reason)
    return state
