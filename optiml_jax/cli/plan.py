"""`optiml plan`: the packed, step-addressed training order of the mixture, and validation rows."""

import contextlib
import dataclasses
import fnmatch
import logging
import os
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from optiml_jax.cli import main as command_line
from optiml_jax.cli.audit_gate import check_decided, write_seen
from optiml_jax.cli.settings import Run, configured, is_bound
from optiml_jax.cli.vocabularies import load_run_vocabulary
from optiml_jax.data.example import TaskSource
from optiml_jax.data.made_of import change, reader_settings
from optiml_jax.data.mixture import Mixture
from optiml_jax.data.plan import Plan, PlanConfig, plan_mixture
from optiml_jax.data.prompts import PromptConfig
from optiml_jax.data.store import CachedTask, Store
from optiml_jax.data.vocabulary import vocabulary_fingerprint
from optiml_jax.errors import UserError
from optiml_jax.frozen import by_name, refuse_changes
from optiml_jax.model.architectures import model_config
from optiml_jax.one_writer import one_writer
from optiml_jax.train.config import TrainConfig
from optiml_jax.words import counted
from tasks import mixtures
from tasks.registry import find_sources
from tasks.splits import Manifest, SplitConfig

logger = logging.getLogger(__name__)
MOST_TASKS_LISTED = 6


def main() -> None:
    run, mixture = configured(Run), configured(Mixture)
    manifest, store = Manifest.load(), Store(run.cache_dir)
    found = find_sources(run.data, manifest)
    sources = mixtures.select(found, mixture, manifest)
    names = [s.name for s in sources]
    undecided = check_decided(run, found, manifest, mixture.roles, trained=names)
    check_cache(store, sources, run)
    check_caps(store, sources, mixture)
    check_training_parts(store, sources, mixture, manifest)
    check_vanished(store, found, run, mixture, manifest)
    train = configured(TrainConfig, plan_dir="", run_dir="")
    rows = {"train": train.num_steps * train.global_batch_size}
    if train.validate_every:
        check_validation_part(store, sources, train.validate_every, mixture)
        rows["validation"] = train.validation_batches * train.global_batch_size
    with one_writer(run.plan_dir("train").parent, "optiml plan"):
        write_seen(run, undecided)
        write_plans(run, mixture, store, sources, rows)


def write_plans(
    run: Run,
    mixture: Mixture,
    store: Store,
    sources: Sequence[TaskSource],
    rows: Mapping[str, int],
) -> None:
    """Writes the plan of every split that has rows, and prints a summary."""
    for split, num_rows in rows.items():
        if split == "validation":  # not every benchmark has one
            name = f"{mixture.name}, validation"
            mixture = dataclasses.replace(mixture, name=name, missing="renormalise")
        plan = plan_mixture(
            run.cache_dir,
            tasks_with_split(store, sources, split),
            mixture,
            split,
            configured(PlanConfig, num_rows=num_rows, **special_ids()),
            run.plan_dir(split),
            settings=by_name(SplitConfig()),
        )
        print_plan(plan)


def special_ids() -> dict[str, int | None]:
    """The model's special ids, for the fields of `PlanConfig` that gin does not set."""
    model = model_config()
    names = ("bos_id", "pad_id")
    return {n: getattr(model, n) for n in names if not is_bound(f"PlanConfig.{n}")}


def check_cache(store: Store, sources: Sequence[TaskSource], run: Run) -> None:
    """Raises a UserError if a task was cached with other settings than those of this run."""
    asked = by_name(PromptConfig())
    asked["PlanConfig.sequence_length"] = PlanConfig(num_rows=1).sequence_length
    vocabulary = vocabulary_fingerprint(load_run_vocabulary(run))
    for source in sources:
        task = store.task(source.name)
        what, stored = f"the cache of task {source.name!r} in {store.cache_dir}", task.settings
        if (cached := task.info["vocabulary"])["fingerprint"] != vocabulary:
            stored["Run.vocabulary"] = f"{cached['spec']} ({cached['fingerprint']})"
            own = {"Run.vocabulary": f"{run.vocabulary} ({vocabulary})"}
        else:
            own = {}
        refuse_changes(
            what,
            stored,
            asked | own,
            "restore them, or run `optiml prepare` with these (and a separate Run.cache_dir if "
            "other runs use this one)",
        )
        refuse_changes(
            what,
            _flat(task.info["reader"]),
            _flat(reader_settings(source)),
            "run `optiml prepare` again",
        )
        if changed := change(source.files, task.info["files"]):
            raise UserError(
                f"{what} is older than its files: {changed}; run `optiml prepare` again"
            )


def check_caps(store: Store, sources: Sequence[TaskSource], mixture: Mixture) -> None:
    """Raises a UserError if fewer examples of a task were cached than the mixture may use."""
    for source in sources:
        info, asked = store.task(source.name).info, mixture.max_examples_of(source.name)
        cap = info["max_examples"]
        if cap is None:
            continue
        stored = {"Mixture.max_examples": cap, "Mixture.seed": info["subset_seed"]}
        enough = asked is not None and asked <= cap
        refuse_changes(
            f"the cache of task {source.name!r} in {store.cache_dir}",
            stored,
            {"Mixture.max_examples": cap if enough else asked, "Mixture.seed": mixture.seed},
            "run `optiml prepare` again",
        )


def _flat(reader: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a task's reader, flattened."""
    return {k: v for k, v in reader.items() if k != "settings"} | dict(reader["settings"])


def check_training_parts(
    store: Store, sources: Sequence[TaskSource], mixture: Mixture, manifest: Manifest
) -> None:
    """Refuses a mixture in which a training task has no training example.

    With `Mixture.missing = 'renormalise'` they are named in a warning. Tasks that only OPT-IML-Max
    trains on need not have a training split.
    """
    lost = {}
    for source in sources:
        part = store.task(source.name).info["splits"].get("train", {})
        if manifest.row(source).trained and not part.get("examples"):
            reasons = ", ".join(f"{n} {reason}" for reason, n in part.get("drops", {}).items())
            lost[source.name] = reasons or "its files have no training split"
    _refuse_lost(mixture, lost, "without a training example")


def check_validation_part(
    store: Store, sources: Sequence[TaskSource], validate_every: int, mixture: Mixture
) -> None:
    """Refuses to validate on a mixture none of whose tasks has a validation example."""
    parts = [store.task(s.name).info["splits"].get("validation", {}) for s in sources]
    if not any(part.get("examples") for part in parts):
        raise UserError(
            f"TrainConfig.validate_every = {validate_every}, but mixture {mixture.name!r} "
            f"({counted(len(parts), 'task')}) has no validation example; "
            "set TrainConfig.validate_every = 0, or give a task a validation split and run "
            "`optiml prepare` again"
        )


def check_vanished(
    store: Store, found: Sequence[TaskSource], run: Run, mixture: Mixture, manifest: Manifest
) -> None:
    """Refuses a mixture if training tasks cached from this run's folders are now missing there.

    With `Mixture.missing = 'renormalise'` they are named in a warning.
    """
    names, lost = {s.name for s in found}, {}
    for benchmark, place in run.data.items():
        folder = os.path.abspath(os.path.expanduser(place))
        for task in store.tasks_of(benchmark):
            here = [f["path"] for f in task.info["files"] if _is_below(f["path"], folder)]
            asked = any(fnmatch.fnmatchcase(task.name, glob) for glob in mixture.tasks)
            gone = here and asked and task.name not in names
            if gone and _was_trained_on(task, mixture, manifest):
                lost[task.name] = f"was read from {here[0]}"
    where = f"in the cache {store.cache_dir} but no longer in the folders of Run.data"
    _refuse_lost(mixture, lost, f"{where} (delete them there if that is intended)")


def _was_trained_on(task: CachedTask, mixture: Mixture, manifest: Manifest) -> bool:
    settings = task.info["reader"]["settings"]
    if "trained" in settings:  # by a split list of the collection
        return settings["trained"]
    with contextlib.suppress(UserError):  # nothing is known of a missing task file
        return manifest.lookup(task.name, None).trained_by(mixture.roles)
    return True


def _is_below(file: str, folder: str) -> bool:
    return os.path.abspath(file).startswith(folder.rstrip(os.sep) + os.sep)


def _refuse_lost(mixture: Mixture, lost: Mapping[str, str], what: str) -> None:
    """A UserError that names the tasks and reasons; a warning with `Mixture.missing` set."""
    if not lost:
        return
    named = [f"{task} ({why})" for task, why in lost.items()]
    shown = "; ".join(named[:MOST_TASKS_LISTED]) + "; ..." * (len(lost) > MOST_TASKS_LISTED)
    message = f"mixture {mixture.name!r}: {counted(len(lost), 'task')} {what}: {shown}"
    if mixture.missing == "error":
        raise UserError(
            f"{message}; fix their files and run `optiml prepare` again, or leave them out "
            "of Mixture.tasks, or set Mixture.missing = 'renormalise' to go without them"
        )
    logger.warning("%s", message)


def tasks_with_split(store: Store, sources: Sequence[TaskSource], split: str) -> list[str]:
    """The tasks whose cache has the split."""
    return [s.name for s in sources if split in store.task(s.name).info["splits"]]


def print_plan(plan: Plan) -> None:
    """The plan in words: its rows, and the shares of benchmarks and categories."""
    summary = plan.summary
    epochs = summary["epochs"]
    print(
        f"{plan.meta['split']}: {counted(plan.num_rows, 'row')} of {plan.config.sequence_length} "
        f"tokens, {summary['tokens']:,} tokens ({summary['loss_tokens']:,} with loss), "
        f"{summary['fill']:.2%} of the slots filled, {counted(len(plan.meta['tasks']), 'task')}, "
        f"epochs per task {epochs['min']:.2f} to {epochs['max']:.2f}; {plan.folder}"
    )
    for kind in ("benchmarks", "categories"):
        for name, part in sorted(summary[kind].items(), key=lambda item: -item[1]["rate"]):
            print(
                f"  {name:32}{part['tasks']:5} tasks {part['examples']:9,} examples: "
                f"{part['share']:6.1%} (requested {part['rate']:.1%}), "
                f"{part['token_share']:.1%} of the tokens"
            )
    for name, part in summary["row_shares"].items():
        if name:
            print(f"  rows of {name}: {part['planned']:.1%} (requested {part['asked']:.1%})")


if __name__ == "__main__":
    sys.exit(command_line.main([pathlib.Path(__file__).stem, *sys.argv[1:]]))
