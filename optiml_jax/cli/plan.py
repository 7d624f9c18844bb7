"""`optiml plan`: the packed, step-addressed training order of the mixture, and validation rows."""

import pathlib
import sys

from optiml_jax.cli import main as command_line
from optiml_jax.cli.settings import Run, configured
from optiml_jax.data.mixture import Mixture
from optiml_jax.data.plan import Plan, PlanConfig, plan_mixture
from optiml_jax.data.store import Store
from optiml_jax.train.config import TrainConfig
from tasks import mixtures
from tasks.registry import find_sources
from tasks.splits import Manifest


def main() -> None:
    run, mixture = configured(Run), configured(Mixture)
    manifest = Manifest.load()
    tasks = [s.name for s in mixtures.select(find_sources(run.data, manifest), mixture, manifest)]
    train = configured(TrainConfig, plan_dir="", run_dir="")
    rows = {
        "train": train.num_steps * train.global_batch_size,
        "validation": train.validation_batches * train.global_batch_size,
    }
    for split, num_rows in rows.items():
        if split == "validation" and not train.validate_every:
            continue
        present = tasks_with_examples(run.cache_dir, tasks, split)
        config = configured(PlanConfig, num_rows=num_rows)
        plan = plan_mixture(run.cache_dir, present, mixture, split, config, run.plan_dir(split))
        print_plan(plan, len(tasks))


def tasks_with_examples(cache_dir: str, tasks: list[str], split: str) -> list[str]:
    """The tasks that have examples in the split; a small task has no validation part."""
    if split == "train":
        return tasks  # an empty one is an error there, and the plan names it
    store = Store(cache_dir)
    parts = {task: store.task(task).info["splits"].get(split) for task in tasks}
    return [task for task, part in parts.items() if part and part["examples"]]


def print_plan(plan: Plan, num_tasks: int) -> None:
    """What the plan holds, by benchmark and category."""
    summary = plan.summary
    print(
        f"{plan.meta['split']}: {plan.num_rows:,} rows of {plan.config.sequence_length} tokens, "
        f"{summary['tokens']:,} tokens, {summary['fill']:.2%} of the slots filled, "
        f"{len(plan.meta['tasks'])} of {num_tasks} tasks, fingerprint {plan.fingerprint}"
    )


if __name__ == "__main__":
    sys.exit(command_line.main([pathlib.Path(__file__).stem, *sys.argv[1:]]))
