"""`optiml train`: trains on the plan of the run, or resumes it."""

import os
import pathlib
import sys

import gin
import jax

from optiml_jax.cli import main as command_line
from optiml_jax.cli.settings import Run, configured
from optiml_jax.data.plan import Plan
from optiml_jax.errors import UserError
from optiml_jax.files import atomic_path, disk_errors
from optiml_jax.model.config import model_config
from optiml_jax.sharding.mesh import MeshConfig
from optiml_jax.train.config import TrainConfig
from optiml_jax.train.loop import train
from optiml_jax.train.optimizer import OptimizerConfig


def main() -> int:
    run = configured(Run)
    if run.distributed:
        join_processes()
    plan = Plan.load(run.plan_dir("train"))
    validation = run.plan_dir("validation")
    config = configured(
        TrainConfig,
        plan_dir=str(plan.folder),
        run_dir=run.run_dir,
        validation_plan_dir=str(validation) if (validation / "plan.json").exists() else None,
    )
    model = model_config(vocab_size=plan.meta["vocabulary"]["padded_size"])
    mesh, optimizer = MeshConfig(), OptimizerConfig()
    if jax.process_index() == 0:
        save_config(pathlib.Path(run.run_dir) / "config.gin")
    return train(config, model, mesh, optimizer)


def join_processes() -> None:
    """Makes this process one of several; JAX itself recognises SLURM, Open MPI and TPU pods."""
    names = {"num_processes": "JAX_NUM_PROCESSES", "process_id": "JAX_PROCESS_ID"}
    try:
        given = {k: int(os.environ[name]) for k, name in names.items() if name in os.environ}
        jax.distributed.initialize(**given)
    except (ValueError, RuntimeError) as e:
        raise UserError(
            f"Run.distributed: cannot join the other processes ({e}); set JAX_COORDINATOR_ADDRESS "
            "(host:port of the first process), JAX_NUM_PROCESSES and JAX_PROCESS_ID"
        ) from e


def save_config(path: pathlib.Path) -> None:
    """Writes down every gin parameter that this run used, in gin's own syntax."""
    with disk_errors(path, "the run's configuration"), atomic_path(path) as temporary:
        temporary.write_text(gin.operative_config_str(), "utf-8")


if __name__ == "__main__":
    sys.exit(command_line.main([pathlib.Path(__file__).stem, *sys.argv[1:]]))
