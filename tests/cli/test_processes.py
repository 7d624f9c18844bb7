"""Training by two processes that know of each other, each loading its own rows only."""

import os
import pathlib
import shutil
import socket
import subprocess
import sys

import gin
import jax
import numpy as np
from tiny_bench import write_tiny_bench

from optiml_jax.checkpoint.manager import load_metadata, load_params
from optiml_jax.cli.main import main
from optiml_jax.model.architectures import config_from_dict
from optiml_jax.sharding.rules import abstract_params


def start(gin_file: str, more: list[str], settings: dict[str, str]) -> subprocess.Popen:
    environment = {**os.environ, "XLA_FLAGS": "", **settings}
    command = [sys.executable, "-m", "optiml_jax.cli.train", gin_file, *more]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def params_of(run: pathlib.Path):
    return load_params(run, abstract_params(config_from_dict(load_metadata(run)["model"])))


def test_two_processes_train_as_one(tmp_path):
    gin_file = f"--gin_file={write_tiny_bench(tmp_path)}"
    for verb in ("prepare", "plan"):
        gin.clear_config()
        assert main([verb, gin_file]) == 0
    alone = tmp_path / "alone"
    shutil.copytree(tmp_path / "run", alone)
    processes = [start(gin_file, [f"--gin.Run.run_dir={alone}"], {})]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    for i in range(2):
        names = ("COORDINATOR_ADDRESS", "NUM_PROCESSES", "PROCESS_ID")
        values = dict(zip((f"JAX_{n}" for n in names), (address, "2", str(i)), strict=True))
        processes.append(start(gin_file, ["--gin.Run.distributed=True"], values))
    outputs = [p.communicate(timeout=300)[0] for p in processes]
    assert [p.returncode for p in processes] == [0, 0, 0], outputs
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        params_of(alone),
        params_of(tmp_path / "run"),
    )
