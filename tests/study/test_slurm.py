"""Studies under SLURM: a stand-in for `sbatch` takes the jobs, and the jobs' own script runs them.

srun, scontrol and the verbs are stand-ins too (study_bench.py).
"""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest
from study_bench import VERBS, planned

from optiml_jax.errors import UserError
from optiml_jax.study.runs import Plan
from optiml_jax.study.slurm import submit
from optiml_jax.study.spec import Launch
from optiml_jax.study.state import describe, run_state

ROOT = pathlib.Path(__file__).resolve().parents[2]
SBATCH = """#!/usr/bin/env bash
echo "$*" >>"$STATE/jobs"
[ -z "${REFUSES-}" ] || { echo "sbatch: error: invalid partition" >&2; exit 1; }
echo "$((100 + $(wc -l <"$STATE/jobs")));cluster"
"""
SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do shift; done
SLURM_PROCID=0 exec "$@"
"""


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A folder with the launch scripts and the programs of a cluster."""
    shutil.copytree(ROOT / "launch", tmp_path / "launch")
    shutil.copytree(
        ROOT / "optiml_jax/sharding/xla_flags", tmp_path / "optiml_jax/sharding/xla_flags"
    )
    install = 'fail() { echo "error: $*" >&2; exit 2; }\nROOT=$(pwd)\nVENV=$ROOT\n'
    (tmp_path / "launch/install.sh").write_text(install)
    (tmp_path / "verbs.py").write_text(VERBS)
    programs = {
        "sbatch": SBATCH,
        "srun": SRUN,
        "scontrol": '#!/usr/bin/env bash\necho "$*" >>"$STATE/requeued"\n',
        "optiml": f'#!/usr/bin/env bash\nexec {sys.executable} "$STATE/verbs.py" "$@"\n',
    }
    (tmp_path / "bin").mkdir()
    for name, text in programs.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("STATE", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path


def jobs(folder: pathlib.Path) -> list[str]:
    return (folder / "jobs").read_text().splitlines()


def run_job(folder: pathlib.Path, job: str, number: int = 0, restarts: int = 0) -> int:
    """Runs a submitted job (one number of an array) as SLURM does; its exit status."""
    words = job.split("launch/slurm_gpu.sbatch ")[1].split()
    slurm = {"SLURM_JOB_ID": str(200 + number), "SLURM_SUBMIT_DIR": str(folder)}
    slurm |= {"SLURM_ARRAY_TASK_ID": str(number), "SLURM_RESTART_COUNT": str(restarts)}
    command = ["bash", str(folder / "launch/slurm_gpu.sbatch"), *words]
    return subprocess.run(command, env=os.environ | slurm, capture_output=True).returncode


def states(plan: Plan) -> dict[str, str]:
    return {
        variant: describe(run_state(run), run.num_steps) for (variant, _), run in plan.runs.items()
    }


def test_one_array_stands_behind_its_preparation_and_a_report_behind_it(cluster, monkeypatch):
    plan = planned(cluster / "studies")
    launch = Launch(launcher="slurm", at_once=2, sbatch=("--nodes=8", "--partition=gpu"))
    submit(plan, launch, ["--gin_file=eps.gin"])
    prepare, array, last = jobs(cluster)
    key = next(iter(plan.preparations))
    place = plan.folder / "array/0"
    assert prepare.endswith(
        f"launch/slurm_gpu.sbatch prepare --gin_file={plan.preparations[key].gin_file}"
    )
    # Where the preparation fails SLURM takes the array out of its queue, and the report comes.
    waits = "--dependency=afterok:101 --kill-on-invalid-dep=yes"
    assert f"--array=0-2%2 {waits} --nodes=8 --partition=gpu" in array
    assert array.endswith(f"plan,train,evaluate --gin_file={place}/%a.gin")
    assert "--dependency=afterany:102" in last
    assert last.endswith("study --gin_file=eps.gin --gin.Launch.after=eps")
    files = {(place / f"{i}.gin").resolve() for i in range(3)}
    assert files == {run.gin_file.resolve() for run in plan.runs.values()}
    monkeypatch.setenv("REFUSES", "1")
    with pytest.raises(UserError, match="exited with 1: sbatch: error: invalid partition"):
        submit(plan, launch, [])


def test_a_preparation_holds_up_its_own_runs_alone_and_evaluations_wait_for_training(cluster):
    shots, separator = "PromptConfig.shots = 2", 'EvalConfig.separator = "##"'
    variants = {"20": (), "20, ##": (separator,), "two": (shots,), "two, ##": (shots, separator)}
    plan = planned(cluster / "studies", variants=variants)
    submit(plan, Launch(launcher="slurm"), [])
    before, first, other, second, third, last = jobs(cluster)
    assert " prepare " in before
    assert " prepare " in other
    assert "--array=0-0 --dependency=afterok:101 " in first
    assert "--array=0-0 --dependency=afterok:103 " in second
    assert "--array=0-1 --dependency=afterany:102,afterany:104 " in third
    assert third.endswith(f" evaluate --gin_file={plan.folder}/array/2/%a.gin")
    assert "--dependency=afterany:102:104:105" in last


def test_preparations_of_one_cache_wait_for_each_other(cluster):
    variants = {"all": (), "some": ('Mixture.missing = "renormalise"',)}
    plan = planned(cluster / "studies", variants=variants)
    submit(plan, Launch(launcher="slurm"), [])
    first, _, second, *_ = jobs(cluster)
    assert "--dependency" not in first
    assert "--dependency=afterany:101 " in second
    assert " prepare " in second


def test_a_failed_run_stops_no_other_and_a_preempted_one_is_queued_again(cluster):
    marked = ('EvalConfig.separator = "##"',)
    variants = {"666": ("Mixture.eps = 666",), "20": (), "20, ##": marked}
    plan = planned(cluster / "studies", variants=variants)
    launch = Launch(launcher="slurm")
    submit(plan, launch, [])
    prepare, array, evaluations, _ = jobs(cluster)
    assert run_job(cluster, prepare) == 0
    assert run_job(cluster, array, 0) == 2
    (cluster / "preempted").touch()
    assert run_job(cluster, array, 1) == 0
    assert (cluster / "requeued").read_text() == "requeue 201\n"
    assert states(plan) == {
        "666": "train failed: the loss is not finite",
        "20": "train stopped at step 2/4",
        "20, ##": "train stopped at step 2/4",
    }
    assert run_job(cluster, array, 1, restarts=1) == 0
    assert states(plan)["20"] == "done"
    assert states(plan)["20, ##"] == "evaluate waiting"
    assert run_job(cluster, evaluations, 0) == 0
    assert states(plan)["20, ##"] == "done"
    assert (cluster / "requeued").read_text() == "requeue 201\n"
    # Submitting again submits what failed, which is planned already.
    assert submit(plan, launch, [])[0][-2:] == [
        "plan,train,evaluate",
        f"--gin_file={plan.folder}/array/2/%a.gin",
    ]
