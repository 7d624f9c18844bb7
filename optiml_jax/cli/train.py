"""`optiml train`: trains on the plan of the run, or resumes it."""

import contextlib
import logging
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import gin

from optiml_jax.cli import main as command_line
from optiml_jax.cli.audit_gate import check_plan_decided
from optiml_jax.cli.settings import Evaluate, Run, configured
from optiml_jax.cli.vocabularies import load_run_vocabulary
from optiml_jax.data.made_of import change
from optiml_jax.data.mixture import Mixture
from optiml_jax.data.plan import Plan, PlanConfig
from optiml_jax.data.prompts import PromptConfig
from optiml_jax.errors import UserError
from optiml_jax.files import atomic_path, disk_errors
from optiml_jax.frozen import by_name, refuse_changes
from optiml_jax.model.config import DecoderConfig
from optiml_jax.one_writer import one_writer
from optiml_jax.paths import path_of
from optiml_jax.sharding import processes
from optiml_jax.sharding.mesh import MeshConfig
from optiml_jax.train.config import TrainConfig, run_metadata
from optiml_jax.train.duties import EvaluationHook
from optiml_jax.train.loop import train
from optiml_jax.train.optimizer import OptimizerConfig
from optiml_jax.train.start import run_model
from optiml_jax.words import counted
from tasks.splits import SplitConfig

logger = logging.getLogger(__name__)


def main() -> int:
    run = configured(Run)
    if run.distributed:
        processes.join()
    with processes.ending_together():
        return _train(run)


def _train(run: Run) -> int:
    plan = Plan.load(run.plan_dir("train"))
    check_settings(plan, run)
    if processes.is_first():
        warn_of_changed_files(plan)
    check_plan_decided(run)
    validation = run.plan_dir("validation")
    config = configured(
        TrainConfig,
        plan_dir=str(plan.folder),
        run_dir=run.run_dir,
        validation_plan_dir=str(validation) if (validation / "plan.json").exists() else None,
    )
    if config.validate_every and config.validation_plan_dir is None:
        raise UserError(
            f"TrainConfig.validate_every = {config.validate_every}, but there is no plan of "
            f"validation rows in {validation}: run `optiml plan` again, or set it to 0"
        )
    model = run_model(plan.meta["vocabulary"]["padded_size"], config.init_from)
    mesh, optimizer = MeshConfig(), OptimizerConfig()
    steps = evaluation_steps(Evaluate().during_training, config.num_steps)
    hook = evaluation_hook(model, run_metadata(config, model, optimizer, plan)) if steps else None
    first = processes.is_first()
    with one_writer(run.run_dir, "optiml train") if first else contextlib.nullcontext():
        if first:
            save_config(path_of(run.run_dir) / "config.gin")
        return train(config, model, mesh, optimizer, hook, steps)


def check_settings(plan: Plan, run: Run) -> None:
    """Raises a UserError if the plan was made with other settings than those of this run."""
    asked = {
        **by_name(PromptConfig()),
        # The special ids are the model's, which is checked against the plan elsewhere.
        **by_name(PlanConfig(num_rows=1), without=("num_rows", "bos_id", "pad_id")),
        **by_name(configured(Mixture)),
        **by_name(SplitConfig()),
    }
    what, way_out = f"the plan in {plan.folder}", "restore them, or prepare and plan with these"
    stored = dict(plan.meta["settings"])
    planned = plan.meta["vocabulary"]
    is_named_so = planned["spec"] == run.vocabulary  # else it may be the same one at another path
    if not is_named_so and load_run_vocabulary(run).fingerprint != planned["fingerprint"]:
        asked["Run.vocabulary"], stored["Run.vocabulary"] = run.vocabulary, planned["spec"]
    refuse_changes(what, stored, asked, way_out)


def warn_of_changed_files(plan: Plan) -> None:
    """Warns of tasks whose files have changed since they were prepared; training continues.

    Training reads only the cache; files that are not on this machine are not checked.
    """
    changed = {}
    for task in filter(None, plan.cached_tasks):
        files = [file["path"] for file in task.info["files"]]
        if all(map(os.path.exists, files)) and (what := change(files, task.info["files"])):
            changed[task.name] = what
    if changed:
        shown = "; ".join(f"{task}: {what}" for task, what in list(changed.items())[:3])
        logger.warning(
            "the files of %s changed since `optiml prepare`; training uses the cache of "
            "that time (%s%s); to use the new files, prepare and plan again",
            *(counted(len(changed), "task"), shown, "; ..." * (len(changed) > 3)),
        )


def evaluation_steps(wanted: int | Sequence[int], num_steps: int) -> set[int]:
    """The steps of `Evaluate.during_training`."""
    if isinstance(wanted, int):
        return {*range(wanted, num_steps, wanted), num_steps} if wanted > 0 else set()
    if beyond := [step for step in wanted if not 1 <= step <= num_steps]:
        raise UserError(
            f"Evaluate.during_training: step {beyond[0]} is not one of 1 ... {num_steps}; for the "
            "untrained model: optiml evaluate --gin.Evaluate.checkpoint=init"
        )
    return set(wanted)


def evaluation_hook(model: DecoderConfig, metadata: dict[str, Any]) -> EvaluationHook:
    """The evaluation hook; imported only on request, since it needs TensorFlow."""
    from optiml_jax.cli.evaluate import evaluation_hook as make

    return make(model, metadata)


def save_config(path: pathlib.Path) -> None:
    """Saves every gin parameter that this run used, in gin syntax."""
    with disk_errors(path, "the run's configuration"), atomic_path(path) as temporary:
        temporary.write_text(gin.operative_config_str(), "utf-8")


if __name__ == "__main__":
    sys.exit(command_line.main([pathlib.Path(__file__).stem, *sys.argv[1:]]))
