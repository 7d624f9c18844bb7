"""Making the runs of a study under SLURM: jobs that prepare, one array job, and one that goes on.

The array's tasks are runs; each plans, trains and evaluates through launch/slurm_gpu.sbatch, which
queues itself again at a time limit or failure. The last job is `optiml study` itself: it writes the
report, and submits the next study of a chain.
"""

import logging
import pathlib
import shlex
import subprocess
from collections.abc import Sequence

from optiml_jax.errors import UserError
from optiml_jax.study.runs import Plan
from optiml_jax.study.spec import Launch
from optiml_jax.study.state import STAGES, run_state

logger = logging.getLogger(__name__)
SCRIPT = "launch/slurm_gpu.sbatch"


def submit(plan: Plan, launch: Launch, arguments: Sequence[str]) -> list[list[str]]:
    """Submits what is not done yet.

    Args:
      plan: its gin files have been written.
      launch: options of `sbatch`.
      arguments: of this call of `optiml study`, which the last job repeats.

    Returns:
      The commands; none when everything is done or at work.

    Raises:
      UserError: `sbatch` is not there or refuses a job.
    """
    states = {run.folder: (run, run_state(run)) for run in plan.runs.values()}
    open_runs = [run for run, state in states.values() if state.status not in ("done", "running")]
    if not open_runs:
        return []
    commands: list[list[str]] = []
    unplanned = {run.prepare for run in open_runs if states[run.folder][1].stage == "plan"}
    before = [
        _sbatch(
            commands,
            [f"--job-name=prepare-{plan.study.name}", *launch.sbatch_light],
            ["prepare", f"--gin_file={plan.preparations[key].gin_file}"],
        )
        for key in sorted(unplanned)
    ]
    array = _links(plan, [run.folder for run in open_runs])
    limit = f"%{launch.at_once}" if launch.at_once else ""
    options = [f"--job-name={plan.study.name}", f"--array=0-{len(open_runs) - 1}{limit}"]
    if before:
        options.append(f"--dependency=afterok:{':'.join(before)}")
    job = _sbatch(
        commands,
        [*options, *launch.sbatch],
        [",".join(STAGES), f"--gin_file={array}/%a/run.gin"],
    )
    _sbatch(
        commands,
        [f"--job-name=report-{plan.study.name}", f"--dependency=afterany:{job}"]
        + list(launch.sbatch_light),
        ["study", *arguments, f"--gin.Launch.after={plan.study.name}"],
    )
    return commands


def _links(plan: Plan, folders: Sequence[pathlib.Path]) -> pathlib.Path:
    """A folder of links 0, 1, ... to the runs: a number of the array is a run."""
    root = plan.folder / "array"
    root.mkdir(parents=True, exist_ok=True)
    number = len([path for path in root.iterdir() if path.name.isdigit()])
    place = root / str(number)  # an array that is still queued keeps its own
    place.mkdir()
    for i, folder in enumerate(folders):
        (place / str(i)).symlink_to(folder.absolute())
    return place


def _sbatch(commands: list[list[str]], options: Sequence[str], arguments: Sequence[str]) -> str:
    """Submits one job; its number."""
    command = ["sbatch", "--parsable", *options, SCRIPT, *arguments]
    commands.append(command)
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as e:
        raise UserError(
            "there is no sbatch on this machine; Launch.launcher = 'print' prints the commands"
        ) from e
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise UserError(
            f"{shlex.join(command)} ended with {done.returncode}: {said[0] if said else '-'}"
        )
    number = done.stdout.strip().split(";")[0]
    logger.info("job %s: %s", number, shlex.join(command))
    return number
