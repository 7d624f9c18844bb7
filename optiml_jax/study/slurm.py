"""Runs of a study under SLURM: preparation jobs, array jobs, and a job that continues.

An array's tasks are runs; each plans, trains and evaluates through launch/slurm_gpu.sbatch, which
requeues itself after a time limit or failure. The last job is `optiml study` itself: it writes the
report, and submits the next study of a chain.
"""

import logging
import pathlib
import shlex
import subprocess
from collections.abc import Sequence

from optiml_jax.errors import UserError
from optiml_jax.study.runs import Plan, StudyRun
from optiml_jax.study.spec import Launch
from optiml_jax.study.state import STAGES, run_state

logger = logging.getLogger(__name__)
SCRIPT = "launch/slurm_gpu.sbatch"


def submit(plan: Plan, launch: Launch, arguments: Sequence[str]) -> list[list[str]]:
    """Submits the unfinished runs.

    Runs with different preparations are in different arrays, so that a failed preparation stops no
    other run; further evaluations of a training are in a later array.

    Args:
      plan: its gin files have been written.
      launch: options of `sbatch`.
      arguments: of this `optiml study` command, which the last job repeats.

    Returns:
      The commands; none if everything is done or running.

    Raises:
      UserError: `sbatch` is missing or rejects a job.
    """
    states = {run.evaluation: (run, run_state(run)) for run in plan.runs.values()}
    pending = [(r, s) for r, s in states.values() if s.status not in ("done", "running")]
    if not pending:
        return []
    groups: dict[str, list[StudyRun]] = {}
    later, trained = [], set()
    for run, state in pending:
        if state.stage in ("plan", "train") and run.folder in trained:
            later.append(run)
            continue
        trained.add(run.folder)
        groups.setdefault(run.prepare if state.stage == "plan" else "", []).append(run)
    commands: list[list[str]] = []
    arrays: list[str] = []
    writers: dict[str, str] = {}  # cache -> the last job that writes to it
    for key, runs in sorted(groups.items()):
        waits = []
        if key:
            preparation = plan.preparations[key]
            before = [f"--job-name=prepare-{plan.study.name}", *launch.sbatch_light]
            if earlier := writers.get(preparation.cache):
                before.append(f"--dependency=afterany:{earlier}")
            job = _sbatch(commands, before, ["prepare", f"--gin_file={preparation.gin_file}"])
            writers[preparation.cache] = job
            waits = [f"afterok:{job}"]
        arrays.append(_array(commands, plan, launch, runs, STAGES, waits, arrays))
    if later:
        dependencies = [f"afterany:{job}" for job in arrays]
        arrays.append(_array(commands, plan, launch, later, ("evaluate",), dependencies, arrays))
    _sbatch(
        commands,
        [f"--job-name=report-{plan.study.name}", f"--dependency=afterany:{':'.join(arrays)}"]
        + list(launch.sbatch_light),
        ["study", *arguments, f"--gin.Launch.after={plan.study.name}"],
    )
    return commands


def _array(
    commands: list[list[str]],
    plan: Plan,
    launch: Launch,
    runs: Sequence[StudyRun],
    verbs: Sequence[str],
    waits: Sequence[str],
    earlier: Sequence[str],
) -> str:
    """Submits one array job; returns its id.

    Args:
      waits: dependencies.
      earlier: arrays of this study: with a limit on concurrent runs they run one after another.
    """
    limit = f"%{launch.at_once}" if launch.at_once else ""
    if limit and earlier:
        waits = [*waits, f"afterany:{earlier[-1]}"]
    options = [f"--job-name={plan.study.name}", f"--array=0-{len(runs) - 1}{limit}"]
    if waits:  # jobs that depend on a failed preparation leave the queue
        options += [f"--dependency={','.join(dict.fromkeys(waits))}", "--kill-on-invalid-dep=yes"]
    place = _links(plan, [run.gin_file for run in runs])
    words = [",".join(verbs), f"--gin_file={place}/%a.gin"]
    return _sbatch(commands, [*options, *launch.sbatch], words)


def _links(plan: Plan, files: Sequence[pathlib.Path]) -> pathlib.Path:
    """A folder of links 0.gin, 1.gin, ... to the runs' files, by array index."""
    root = plan.folder / "array"
    root.mkdir(parents=True, exist_ok=True)
    number = len([path for path in root.iterdir() if path.name.isdigit()])
    place = root / str(number)  # an array that is still queued keeps its links
    place.mkdir()
    for i, file in enumerate(files):
        (place / f"{i}.gin").symlink_to(file.absolute())
    return place


def _sbatch(commands: list[list[str]], options: Sequence[str], arguments: Sequence[str]) -> str:
    """Submits one job; returns its id."""
    command = ["sbatch", "--parsable", *options, SCRIPT, *arguments]
    commands.append(command)
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as e:
        raise UserError(
            "sbatch is not installed here; Launch.launcher = 'print' prints the commands"
        ) from e
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise UserError(
            f"{shlex.join(command)} exited with {done.returncode}: {said[0] if said else '-'}"
        )
    number = done.stdout.strip().split(";")[0]
    logger.info("job %s: %s", number, shlex.join(command))
    return number
