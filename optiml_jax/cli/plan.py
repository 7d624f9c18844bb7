"""`optiml plan`: the packed, step-addressed training order of the mixture, and validation rows."""

import dataclasses
import pathlib
import sys

from optiml_jax.cli import main as command_line
from optiml_jax.cli.audit_gate import check_decided
from optiml_jax.cli.settings import Run, configured, is_bound
from optiml_jax.data.mixture import Mixture
from optiml_jax.data.plan import Plan, PlanConfig, plan_mixture
from optiml_jax.data.store import Store
from optiml_jax.model.architectures import model_config
from optiml_jax.one_writer import one_writer
from optiml_jax.train.config import TrainConfig
from tasks import mixtures
from tasks.registry import find_sources
from tasks.splits import Manifest


def main() -> None:
    run, mixture = configured(Run), configured(Mixture)
    manifest = Manifest.load()
    sources = find_sources(run.data, manifest)
    tasks = [s.name for s in mixtures.select(sources, mixture, manifest)]
    check_decided(run, sources, manifest, mixture.roles, tasks)
    train = configured(TrainConfig, plan_dir="", run_dir="")
    rows = {
        "train": train.num_steps * train.global_batch_size,
        "validation": train.validation_batches * train.global_batch_size,
    }
    with one_writer(run.plan_dir("train").parent, "optiml plan"):
        write_plans(run, mixture, tasks, rows, train)


def write_plans(
    run: Run, mixture: Mixture, tasks: list[str], rows: dict[str, int], train: TrainConfig
) -> None:
    """Writes the plan of every split that has rows, and prints what it holds."""
    for split, num_rows in rows.items():
        if split == "validation" and not train.validate_every:
            continue
        if split == "validation":  # not every benchmark has one
            name = f"{mixture.name}, validation"
            mixture = dataclasses.replace(mixture, name=name, missing="renormalise")
        plan = plan_mixture(
            run.cache_dir,
            tasks_with_split(run.cache_dir, tasks, split),
            mixture,
            split,
            configured(PlanConfig, num_rows=num_rows, **special_ids()),
            run.plan_dir(split),
        )
        print_plan(plan)


def special_ids() -> dict[str, int | None]:
    """The model's special ids, for the fields of `PlanConfig` that gin does not set."""
    model = model_config()
    names = ("bos_id", "pad_id")
    return {n: getattr(model, n) for n in names if not is_bound(f"PlanConfig.{n}")}


def tasks_with_split(cache_dir: str, tasks: list[str], split: str) -> list[str]:
    """The tasks that were cached with the split at all."""
    store = Store(cache_dir)
    return [task for task in tasks if split in store.task(task).info["splits"]]


def print_plan(plan: Plan) -> None:
    """What the plan holds: its rows, and what it takes from each benchmark and category."""
    summary = plan.summary
    epochs = summary["epochs"]
    print(
        f"{plan.meta['split']}: {plan.num_rows:,} rows of {plan.config.sequence_length} tokens, "
        f"{summary['tokens']:,} tokens ({summary['loss_tokens']:,} with loss), "
        f"{summary['fill']:.2%} of the slots filled, {len(plan.meta['tasks'])} tasks, "
        f"epochs per task {epochs['min']:.2f} to {epochs['max']:.2f}; {plan.folder}"
    )
    for kind in ("benchmarks", "categories"):
        for name, part in sorted(summary[kind].items(), key=lambda item: -item[1]["rate"]):
            print(
                f"  {name:32}{part['tasks']:5} tasks {part['examples']:9,} examples: "
                f"{part['share']:6.1%} (asked for {part['rate']:.1%}), "
                f"{part['token_share']:.1%} of the tokens"
            )
    for name, part in summary["row_shares"].items():
        if name:
            print(f"  rows of {name}: {part['planned']:.1%} (asked for {part['asked']:.1%})")


if __name__ == "__main__":
    sys.exit(command_line.main([pathlib.Path(__file__).stem, *sys.argv[1:]]))
