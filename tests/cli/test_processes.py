"""Several processes with a tensor group across them: training, evaluation during it, evaluation.

What one process writes of the same checkpoint, on as many devices, is what they must write.
"""

import json
import os
import pathlib
import socket
import subprocess
import sys

import gin
from tiny_bench import task_file, write_tiny_bench

from optiml_jax.cli.main import main
from optiml_jax.one_writer import one_writer

MESH = ["--gin.MeshConfig.data=1", "--gin.MeshConfig.tensor=2"]


def environment(devices: int) -> dict[str, str]:
    """That of the tests, for so many devices; compiled as users do: the records must be equal."""
    flags = [f for f in os.environ["XLA_FLAGS"].split() if "device_count" not in f]
    flags.append(f"--xla_force_host_platform_device_count={devices}")
    return os.environ | {"XLA_FLAGS": " ".join(flags)}


def alone(verb: str, arguments: list[str]) -> None:
    """Runs the verb in one process with two devices.

    Not in this one: in the last digit, scores have differed in a process that had run other tests.
    """
    command = [sys.executable, "-m", f"optiml_jax.cli.{verb}", *arguments]
    subprocess.run(command, env=environment(2), check=True, timeout=600)


def together(verbs: list[str], arguments: list[str]) -> list[str]:
    """Runs the verbs in two processes of one device each; returns what they said."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    processes = []
    for i in range(2):
        names = ("COORDINATOR_ADDRESS", "NUM_PROCESSES", "PROCESS_ID")
        values = dict(zip((f"JAX_{n}" for n in names), (address, "2", str(i)), strict=True))
        command = [sys.executable, "-m", "optiml_jax.cli.main", *verbs, *arguments]
        processes.append(
            subprocess.Popen(
                [*command, "--gin.Run.distributed=True"],
                env=environment(1) | values,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    try:
        outputs = [p.communicate(timeout=600)[0] for p in processes]
    finally:
        for process in processes:
            process.kill()
    assert [p.returncode for p in processes] == [0, 0], outputs
    return outputs


def files(folder: pathlib.Path) -> dict[str, bytes]:
    found = {p.name: p.read_bytes() for p in (folder / "records").iterdir()}
    assert found
    return found


def add_ranked_task(root: pathlib.Path) -> None:
    """A task whose answer is one of two options; the manifest knows it by its name."""
    content = task_file("Is the number of letters even or odd?", 0, "Program Execution")
    for i, instance in enumerate(content["Instances"]):
        instance["output"] = [("even", "odd")[i % 2]]
    name = "demo904_program_execution_even_or_odd"
    (root / "bench" / "tasks" / f"{name}.json").write_text(json.dumps(content))
    with (root / "bench/splits/default/test_tasks.txt").open("a") as f:
        f.write(f"{name}\n")


def test_two_processes_evaluate_as_one_and_resume(tmp_path):
    """Another evaluation holds the folder of step 2: only that one does not take place."""
    arguments = [f"--gin_file={write_tiny_bench(tmp_path)}", *MESH]
    add_ranked_task(tmp_path)
    for verb in ("prepare", "plan"):
        gin.clear_config()
        assert main([verb, arguments[0]]) == 0
    folder = tmp_path / "run" / "evaluation"
    during = "--gin.Evaluate.during_training=(2, 4)"
    with one_writer(folder / "step_2", "optiml evaluate"):
        said = together(["train", "evaluate"], [*arguments, during])
    failed = "evaluation after step 2 failed, training continues: another `optiml evaluate` is at"
    assert [text.count(failed) for text in said] == [1, 1]
    assert ["evaluating 0 of 8 (task, shots) pairs" in text for text in said] == [True, True]
    assert "checkpoint step_4: " in said[0]
    assert "weights float32, computed in float32" in said[0]
    assert "checkpoint step_4: " not in said[1]

    alone("evaluate", [*arguments, "--gin.Evaluate.name=alone"])
    expected = files(folder / "alone")
    assert any("uncond_logprob" in str(content) for content in expected.values())
    assert files(folder / "step_4") == expected

    removed = min(p for p in (folder / "step_4" / "records").iterdir() if p.suffix == ".jsonl")
    removed.unlink()
    assert "evaluating 1 of 8 (task, shots) pairs" in together(["evaluate"], arguments)[1]
    assert files(folder / "step_4") == expected
    run = json.loads((folder / "step_4" / "tasks.json").read_text())["run"]
    assert (run["dtype"], run["params_dtype"]) == ("float32", "float32")
