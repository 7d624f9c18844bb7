"""Studies under SLURM: a stand-in for `sbatch` takes the jobs, and the jobs' own script runs them.

srun, scontrol and the verbs are stand-ins too (study_bench.py). `squeue` prints what a test puts
into the queue. Its lines, and its answer to an id that it does not know, are those of SLURM 22.05
for such jobs.
"""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest
from study_bench import VERBS, look_done, planned

from optiml_jax.cli import study as verb
from optiml_jax.errors import UserError, may_pass
from optiml_jax.study import local
from optiml_jax.study.queue import Queue, state_in
from optiml_jax.study.runs import Plan
from optiml_jax.study.slurm import submit
from optiml_jax.study.spec import Launch
from optiml_jax.study.state import STAGES, describe

ROOT = pathlib.Path(__file__).resolve().parents[2]
SBATCH = """#!/usr/bin/env bash
echo "$*" >>"$STATE/jobs"
[ -z "${REFUSES-}" ] || { echo "sbatch: error: invalid partition" >&2; exit 1; }
echo "$((100 + $(wc -l <"$STATE/jobs")));cluster"
"""
SQUEUE = """#!/usr/bin/env bash
[ -z "${DOWN-}" ] || { echo "$DOWN" >&2; exit 1; }
for word; do case $word in --jobs=*) asked=${word#--jobs=} ;; esac; done
found=$(grep -E "^(${asked//,/|})(_[0-9]+)?[|]" "$STATE/queue")
[[ -n $found || $asked == *,* ]] || { echo "$JOB_IS_UNKNOWN" >&2; exit 1; }
echo "$found"
"""
JOB_IS_UNKNOWN = "slurm_load_jobs error: Invalid job id specified"
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
        "squeue": SQUEUE,
        "srun": SRUN,
        "scontrol": '#!/usr/bin/env bash\necho "$*" >>"$STATE/requeued"\n',
        "optiml": f'#!/usr/bin/env bash\nexec {sys.executable} "$STATE/verbs.py" "$@"\n',
    }
    (tmp_path / "bin").mkdir()
    for name, text in programs.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "queue").touch()
    monkeypatch.setenv("JOB_IS_UNKNOWN", JOB_IS_UNKNOWN)
    monkeypatch.setenv("STATE", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path


def jobs(folder: pathlib.Path) -> list[str]:
    return (folder / "jobs").read_text().splitlines()


def run_job(folder: pathlib.Path, job: str, number: int = 0) -> int:
    """Runs a submitted job (one number of an array) as SLURM does; its exit status."""
    words = job.split("launch/slurm_gpu.sbatch ")[1].split()
    slurm = {"SLURM_JOB_ID": str(200 + number), "SLURM_SUBMIT_DIR": str(folder)}
    slurm |= {"SLURM_ARRAY_TASK_ID": str(number)}
    command = ["bash", str(folder / "launch/slurm_gpu.sbatch"), *words]
    return subprocess.run(command, env=os.environ | slurm, capture_output=True).returncode


def put_into_queue(folder: pathlib.Path, *lines: str) -> None:
    (folder / "queue").write_text("".join(f"{line}\n" for line in lines))


def states(plan: Plan) -> dict[str, str]:
    queue = Queue(plan.study.folder)
    return {
        variant: describe(state_in(queue, plan, run), run.num_steps)
        for (variant, _), run in plan.runs.items()
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
    assert run_job(cluster, array, 1) == 0
    assert states(plan)["20"] == "done"
    assert states(plan)["20, ##"] == "evaluate waiting"
    assert run_job(cluster, evaluations, 0) == 0
    assert states(plan)["20, ##"] == "done"
    assert (cluster / "requeued").read_text() == "requeue 201\n"
    # Submitting again submits what failed, which is planned already.
    assert submit(plan, launch, []).commands[0][-2:] == [
        "plan,train,evaluate",
        f"--gin_file={plan.folder}/array/2/%a.gin",
    ]


def test_an_evaluation_is_queued_again_only_where_that_can_help(cluster):
    plan, launch = planned(cluster / "studies", variants={"20": ()}), Launch(launcher="slurm")
    submit(plan, launch, [])
    (cluster / "no_rows").write_text("2")
    array = jobs(cluster)[1]
    assert run_job(cluster, array) == 2
    assert not (cluster / "requeued").exists()
    why = "done, 1 task x shots failed: b/t at 0 shots: no usable row"
    assert states(plan) == {"20": why}
    # Mended, it is evaluated by the same command; before, that is tried too.
    assert submit(plan, launch, []).runs == 1
    assert " evaluate --gin_file" in jobs(cluster)[3]
    (cluster / "no_rows").write_text("1")  # a network, say
    assert run_job(cluster, array) == 0
    assert (cluster / "requeued").read_text() == "requeue 200\n"
    (cluster / "no_rows").unlink()
    assert run_job(cluster, array) == 0
    assert states(plan) == {"20": "done"}


QUEUED = ["101|RUNNING|None", *(f"102_{i}|PENDING|Dependency" for i in range(3))]


def test_what_is_queued_or_running_is_not_submitted_again(cluster, capsys):
    plan, launch = planned(cluster / "studies"), Launch(launcher="slurm")
    assert verb.submitted(plan, launch)
    assert "eps: 3 jobs submitted for 3 runs; the last one" in capsys.readouterr().out
    put_into_queue(cluster, *QUEUED, "103|PENDING|Dependency")
    assert verb.submitted(plan, launch)
    assert "3 queued already, which are left as they are" in capsys.readouterr().out
    assert len(jobs(cluster)) == 3
    assert states(plan)["20"] == "plan queued as job 102_1 (Dependency)"
    # One is done, one runs, one was cancelled.
    look_done(plan.runs["10", 1234])
    put_into_queue(cluster, "102_1|RUNNING|None", "103|PENDING|Dependency")
    found = {"10": "done", "20": "plan running as job 102_1", "40": "plan waiting"}
    assert states(plan) == found
    assert local.printed([plan], verb.left_to_slurm(plan, Queue(plan.study.folder)))[2:] == [
        f"optiml {v} --gin_file={plan.runs['40', 1234].gin_file}" for v in STAGES
    ]
    assert "left to SLURM: 1 run (job 102_1)" in capsys.readouterr().out
    done = submit(plan, launch, [])
    assert (done.runs, [state.status for state in done.waiting]) == (1, ["running"])
    assert "--array=0-0" in jobs(cluster)[4]
    assert "--dependency=afterany:102:105 " in jobs(cluster)[5]
    (link,) = (plan.folder / "array/1").iterdir()
    assert link.resolve() == plan.runs["40", 1234].gin_file.resolve()
    # Nothing is left in the queue or to do.
    put_into_queue(cluster)
    for variant in ("20", "40"):
        look_done(plan.runs[variant, 1234])
    assert not verb.submitted(plan, launch)
    assert len(jobs(cluster)) == 6


def test_a_report_that_was_not_submitted_follows_and_an_earlier_one_does_not_continue(cluster):
    plan, launch = planned(cluster / "studies"), Launch(launcher="slurm")
    submit(plan, launch, [])
    put_into_queue(cluster, *QUEUED)
    submit(plan, launch, [])
    assert len(jobs(cluster)) == 4
    assert "--dependency=afterany:102 " in jobs(cluster)[3]
    assert verb.continued_later(plan)
    put_into_queue(cluster)
    assert not verb.continued_later(plan)


def test_new_variants_wait_for_the_preparations_and_trainings_that_are_queued(cluster):
    launch = Launch(launcher="slurm", at_once=1)
    submit(planned(cluster / "studies", variants={"20": ()}), launch, [])
    put_into_queue(cluster, "101|PENDING|Priority", "102_0|PENDING|Dependency")
    other = {"separator": ('EvalConfig.separator = "##"',), "40": ("Mixture.eps = 40",)}
    other["cache"] = ('Mixture.missing = "renormalise"',)
    plan = planned(cluster / "studies", name="other", variants={"20": ()} | other)
    submit(plan, launch, [])
    *_, report = added = jobs(cluster)[3:]
    prepares, arrays = ([j for j in added if word in j] for word in (" prepare ", "--array="))
    assert len(prepares) == 1
    assert "--dependency=afterany:101 " in prepares[0]  # one after another into one cache
    waits = [job.split("--dependency=")[1].split()[0] for job in arrays]
    assert "afterok:101,afterany:102" in waits  # with at most one run at once
    assert any(
        w.startswith("afterany:102_0,")
        for w, j in zip(waits, arrays, strict=True)
        if " evaluate " in j
    )
    assert "afterany:102:" in report


def test_without_squeue_nothing_is_submitted_twice(cluster, monkeypatch, capsys):
    plan, launch = planned(cluster / "studies"), Launch(launcher="slurm")
    monkeypatch.setenv("DOWN", "slurm_load_jobs error: Unable to contact slurm controller")
    submit(plan, launch, [])  # the first time there is nothing to ask about
    message = "squeue exited with 1: .*Unable to contact.*nothing was submitted.*remove .*jobs.json"
    with pytest.raises(UserError, match=message) as e:
        submit(plan, launch, [])
    assert may_pass(e.value)
    assert len(jobs(cluster)) == 3
    monkeypatch.setattr(verb, "plan_of", lambda study, takes: plan)
    verb.show_status([(plan.study, ())], launch)
    said = " ".join(capsys.readouterr().out.split())
    assert "Unable to contact slurm controller: jobs in" in said
    assert "3 runs: 3 waiting" in said
    monkeypatch.delenv("DOWN")
    put_into_queue(cluster, *QUEUED)
    verb.show_status([(plan.study, ())], launch)
    said = capsys.readouterr().out
    assert "plan queued as job 102_2 (Dependency)" in said
    assert "3 runs: 3 queued" in said
    (plan.folder.parent / "jobs.json").write_text("{")
    with pytest.raises(UserError, match=r"jobs.json.*check with squeue that no job of these"):
        submit(plan, launch, [])


def test_runs_whose_preparation_failed_say_so(cluster):
    plan = planned(cluster / "studies")
    submit(plan, Launch(launcher="slurm"), [])
    (cluster / "no_data").touch()
    assert run_job(cluster, jobs(cluster)[0]) == 2
    why = "plan failed: its preparation failed: no data"
    assert states(plan) == dict.fromkeys(plan.study.variants, why)


def test_the_jobs_of_the_next_study_have_logs_of_their_own(cluster, monkeypatch):
    """The last job of a study submits them, with what its own script has exported."""
    sbatch = cluster / "bin/sbatch"
    sbatch.write_text(SBATCH.replace('"$*"', '"logs=${OPTIML_LOGS-} $*"'))
    monkeypatch.setenv("OPTIML_LOGS", "mine")
    plan = planned(cluster / "studies")
    submit(plan, Launch(launcher="slurm"), [])
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    submit(planned(cluster / "more"), Launch(launcher="slurm"), [])
    assert [job.split()[0] for job in jobs(cluster)] == ["logs=mine"] * 3 + ["logs="] * 3
