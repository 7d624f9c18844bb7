"""The launch scripts, with our own programs in the place of srun, scancel, scontrol and optiml."""

import os
import pathlib
import shutil
import signal
import subprocess
import time

import pytest

from optiml_jax.sharding.hardware import xla_flags

LAUNCH = pathlib.Path(__file__).resolve().parents[2] / "launch"
OPTIML = r"""#!/usr/bin/env bash
echo $$ >>"$STATE/pids"
echo "rank=${JAX_PROCESS_ID-${SLURM_PROCID-}} of=${JAX_NUM_PROCESSES-}"
echo "devices=${JAX_LOCAL_DEVICE_IDS-}"
echo "flags=${XLA_FLAGS-}${LIBTPU_INIT_ARGS-}"
echo "memory=$XLA_PYTHON_CLIENT_MEM_FRACTION arguments=$*"
trap 'echo saved; exit 0' TERM
[ -z "${FAIL-}" ] || exit "$FAIL"
[ -z "${WAITS-}" ] || for ((i = 0; i < 600; i++)); do sleep .1; done
"""
SRUN = r"""#!/usr/bin/env bash
while [[ $1 == --* ]]; do shift; done
pids=()
for i in 0 1; do SLURM_PROCID=$i "$@" & pids+=($!); done
status=0
for pid in "${pids[@]}"; do wait "$pid" || { wait "$pid" || status=$?; }; done
exit $status
"""
SCANCEL = r"""#!/usr/bin/env bash
echo "scancel $*" >>"$STATE/calls"
kill -TERM $(cat "$STATE/pids")
"""


@pytest.fixture
def place(tmp_path):
    """A copy of the scripts without the installation, and the environment to run them in."""
    (tmp_path / "launch").mkdir()
    for path in LAUNCH.iterdir():
        (tmp_path / "launch" / path.name).write_text(path.read_text())
        (tmp_path / "launch" / path.name).chmod(0o755)
    # What a host or a node runs finds the programs of ours, too.
    install = 'fail() { echo "error: $*" >&2; exit 2; }\nROOT=$(pwd)\nVENV=$ROOT\n'
    (tmp_path / "launch" / "install.sh").write_text(install)
    flags = pathlib.Path("optiml_jax/sharding/xla_flags")
    shutil.copytree(LAUNCH.parent / flags, tmp_path / flags)
    (tmp_path / "bin").mkdir()
    programs = {"optiml": OPTIML, "srun": SRUN, "scancel": SCANCEL}
    programs["scontrol"] = '#!/usr/bin/env bash\necho "scontrol $*" >>"$STATE/calls"\n'
    for name, text in programs.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    state = {"STATE": str(tmp_path), "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    slurm = {"SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_GPUS_ON_NODE": "4"}
    return tmp_path, os.environ | state | slurm


def run(place, script, *arguments, **more):
    folder, environment = place
    command = ["bash", f"launch/{script}", *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment | more, capture_output=True, text=True, timeout=60
    )


def logs(folder):
    return {path.name: path.read_text() for path in sorted(folder.glob("**/process_*.log"))}


@pytest.mark.parametrize("path", sorted(LAUNCH.iterdir()), ids=lambda path: path.name)
def test_scripts_are_well_formed(path):
    assert subprocess.run(["bash", "-n", str(path)]).returncode == 0


def test_xla_gets_the_flags_of_the_platform_and_the_users_last(place):
    mine = {"OPTIML_LOGS": "mine", "XLA_FLAGS": "--xla_of_mine=1"}
    run(place, "gpu_node.sh", "train", OPTIML_PROCESSES="2", OPTIML_GPUS="8", **mine)
    said = logs(place[0])["process_0.log"]
    gpu = xla_flags("gpu")
    assert f"flags={gpu} --xla_of_mine=1\n" in said
    run(place, "tpu_host.sh", "train", OPTIML_FLAVOUR="tpu")
    (said,) = [
        text
        for name, text in logs(place[0]).items()
        if name not in ("process_0.log", "process_1.log")
    ]
    assert xla_flags("tpu") in said
    assert gpu not in said


def test_gpu_node_starts_processes_with_equal_shares_and_a_log_each(place):
    done = run(place, "gpu_node.sh", "train", "--gin.A=b c", OPTIML_PROCESSES="2", OPTIML_GPUS="8")
    assert done.returncode == 0, done.stderr
    said = logs(place[0])
    assert "rank=0 of=2\ndevices=0,1,2,3\n" in said["process_0.log"]
    assert "rank=1 of=2\ndevices=4,5,6,7\n" in said["process_1.log"]
    for text in said.values():
        assert "memory=.92 arguments=train --gin.A=b c --gin.Run.distributed=True" in text
    refused = run(place, "gpu_node.sh", "train", OPTIML_PROCESSES="3", OPTIML_GPUS="8")
    assert refused.returncode == 2
    assert "OPTIML_PROCESSES=3 does not divide the 8 GPUs" in refused.stderr


def test_gpu_node_says_which_logs_to_read_when_a_process_fails(place):
    done = run(place, "gpu_node.sh", "train", OPTIML_PROCESSES="2", OPTIML_GPUS="2", FAIL="76")
    assert done.returncode == 76
    assert "started again (3 of 3)" in done.stderr
    assert "a process failed (76): see logs/process_*.log" in done.stderr


def test_gpu_node_starts_a_training_that_failed_again_but_no_mistake_and_no_stop(place):
    more = {"OPTIML_GPUS": "1", "OPTIML_RESTARTS": "2"}
    for status, starts in (("1", 3), ("76", 3), ("137", 3), ("2", 1), ("75", 1), ("127", 1)):
        done = run(place, "gpu_node.sh", "train", FAIL=status, **more)
        assert done.returncode == int(status)
        assert len((place[0] / "pids").read_text().splitlines()) == starts
        (place[0] / "pids").unlink()
    assert run(place, "gpu_node.sh", "report", FAIL="1", **more).returncode == 1
    assert len((place[0] / "pids").read_text().splitlines()) == 1


def started(folder, number):
    """Waits until so many processes have said what they are."""
    deadline = time.monotonic() + 30
    while len([text for text in logs(folder).values() if "arguments=" in text]) < number:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_gpu_node_passes_sigterm_on_and_waits(place):
    folder, environment = place
    more = {"OPTIML_PROCESSES": "2", "OPTIML_GPUS": "2", "WAITS": "1"}
    process = subprocess.Popen(
        ["bash", "launch/gpu_node.sh", "train"], cwd=folder, env=environment | more
    )
    started(folder, 2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 0
    assert all("saved" in text for text in logs(folder).values())


GCLOUD = r"""#!/usr/bin/env bash
# ssh runs the command in the folder of the one host, scp puts a file there.
cd "$STATE/host"
case "$4" in
  ssh) last="${@: -1}"; bash -c "${last#--command=}"; code=$? ;;
  scp) cp "$5" optiml.tar.gz; code=$? ;;
  describe) echo READY; code=0 ;;
esac
echo "$4 $code" >>"$STATE/calls"
exit $code
"""


def test_a_tpu_slice_is_copied_to_installed_and_started_again(place):
    folder, _ = place
    (folder / "host").mkdir()
    (folder / "bin" / "gcloud").write_text(GCLOUD)
    (folder / "bin" / "gcloud").chmod(0o755)
    for name, text in {"edited.gin": "1", "removed.gin": "1", ".gitignore": "bin\nhost\n"}.items():
        (folder / name).write_text(text)
    for command in (["init", "-q"], ["add", "-A"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    (folder / "edited.gin").write_text("2")
    (folder / "removed.gin").unlink()
    (folder / "a new.gin").write_text("3")
    where = {"TPU": "slice", "ZONE": "z"}
    assert run(place, "tpu_pod.sh", "train", "--gin.A=b c", **where).returncode == 0
    copied = {path.name: path.read_text() for path in (folder / "host").rglob("*.gin")}
    assert copied == {"edited.gin": "2", "a new.gin": "3"}
    (said,) = logs(folder / "host").values()
    assert "arguments=train --gin.A=b c --gin.Run.distributed=True" in said
    (folder / "calls").unlink()
    done = run(place, "tpu_pod.sh", "train", **where, FAIL="1", OPTIML_RESTARTS="1")
    assert done.returncode == 1
    assert "error: start 2 ended with 1; the logs are on the hosts" in done.stderr
    calls = (folder / "calls").read_text().splitlines()
    assert calls == ["ssh 0", "ssh 1", "describe 0", "ssh 0", "ssh 1"]
    for status, starts in (("75", 2), ("76", 2), ("2", 1)):
        (folder / "calls").unlink()
        done = run(place, "tpu_pod.sh", "train", **where, FAIL=status, OPTIML_RESTARTS="1")
        assert done.returncode == int(status)
        assert (folder / "calls").read_text().count(f"ssh {status}") == starts
    assert "say which slice" in run(place, "tpu_pod.sh", "train").stderr


def test_slurm_runs_a_process_per_gpu_or_per_node(place):
    assert run(place, "slurm_gpu.sbatch", "train", "--gin.A=b c").returncode == 0
    said = logs(place[0])
    assert "rank=1 of=\ndevices=\n" in said["process_1.log"]
    assert "arguments=train --gin.A=b c --gin.Run.distributed=True" in said["process_1.log"]
    assert not (place[0] / "calls").exists()
    assert run(place, "slurm_gpu.sbatch", "train", OPTIML_PROCESSES="node").returncode == 0
    assert "devices=0,1,2,3" in logs(place[0])["process_0.log"]


def test_slurm_queues_a_run_that_failed_again_but_not_for_ever(place):
    for count in ("9", "10", "11"):  # of time limits, too
        again = run(place, "slurm_gpu.sbatch", "train", FAIL="1", SLURM_RESTART_COUNT=count)
        assert again.returncode == 0
        assert run(place, "slurm_gpu.sbatch", "train", FAIL="75").returncode == 0  # no failure
    assert (place[0] / "calls").read_text() == "scontrol requeue 7\n" * 6
    assert run(place, "slurm_gpu.sbatch", "train", FAIL="1").returncode == 1
    assert run(place, "slurm_gpu.sbatch", "train", FAIL="1", SLURM_JOB_ID="8").returncode == 0


@pytest.mark.parametrize(("status", "queued"), [("75", True), ("2", False)])
def test_slurm_queues_a_stopped_run_always_and_one_to_mend_never(place, status, queued):
    done = run(place, "slurm_gpu.sbatch", "train", FAIL=status, SLURM_RESTART_COUNT="9")
    assert done.returncode == (0 if queued else int(status))
    assert (place[0] / "calls").exists() == queued


def test_slurm_at_its_time_limit_stops_the_processes_and_queues_the_run_again(place):
    folder, environment = place
    process = subprocess.Popen(
        ["bash", "launch/slurm_gpu.sbatch", "train"], cwd=folder, env=environment | {"WAITS": "1"}
    )
    started(folder, 2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 0
    assert (folder / "calls").read_text() == "scancel --signal=TERM 7\nscontrol requeue 7\n"
