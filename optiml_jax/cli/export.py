"""`optiml export`: the prompts of an evaluation, or the training data, for other programs."""

import pathlib
import sys
from collections.abc import Iterable

from optiml_jax.cli import main as command_line
from optiml_jax.cli.audit_gate import check_decided, check_plan_decided
from optiml_jax.cli.evaluation_tasks import evaluation_tasks, request_tokens
from optiml_jax.cli.gin_files import REPOSITORY
from optiml_jax.cli.settings import Evaluate, Export, Fetch, Run, configured, expand
from optiml_jax.cli.vocabularies import load_run_vocabulary
from optiml_jax.data.example import seqio_name
from optiml_jax.data.mixture import Mixture, mixing_rates
from optiml_jax.data.plan import Plan
from optiml_jax.data.prompts import PromptConfig
from optiml_jax.data.store import Store
from optiml_jax.data.text_vocabulary import TextVocabulary
from optiml_jax.data.vocabulary import vocabulary_fingerprint
from optiml_jax.errors import UserError, status_of
from optiml_jax.evaluate.config import EvalConfig
from optiml_jax.exchange.data_card import DataCard
from optiml_jax.exchange.harness import Harness
from optiml_jax.exchange.request_files import JsonLines, OpenAIBatches, export_requests
from optiml_jax.fetch.sources import read_sources
from optiml_jax.paths import plain_path
from optiml_jax.words import counted
from tasks import mixtures
from tasks.registry import find_sources
from tasks.splits import Manifest


def main() -> int:
    run, settings = configured(Run), Export()
    default = f"{run.run_dir}/export/{settings.what}_{settings.form}"
    folder = plain_path(expand(settings.output or default, "Export.output"), "Export.output")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists already; remove it, or set Export.output")
    folder.mkdir(parents=True, exist_ok=True)
    kinds = {"requests": requests, "training": training}
    return kinds[settings.what](run, settings, folder)


def requests(run: Run, settings: Export, folder: pathlib.Path) -> int:
    """Writes the requests of the evaluation; returns the exit status."""
    vocabulary = load_run_vocabulary(run)
    if settings.form == "openai" and PromptConfig().chat is not None:
        raise UserError(
            "batch files hold messages, to which the model applies its own template; export them "
            "(and evaluate the answers) with --gin.PromptConfig.chat=None"
        )
    tasks = evaluation_tasks(run, Evaluate())
    writers = {
        "jsonl": lambda: JsonLines(folder),
        "openai": lambda: OpenAIBatches(folder, settings.model),
        "lm_eval": lambda: Harness(folder, {t.info.task: t for t in tasks}),
    }
    written = export_requests(
        tasks,
        writers[settings.form](),
        folder,
        EvalConfig(),
        PromptConfig(),
        request_tokens(vocabulary, settings),
    )
    cells, number = written["tasks"], sum(c["requests"] for c in written["tasks"])
    of = f"{counted(len(cells), 'cell')} (task x shots)"
    print(f"{counted(number, 'request')} of {of}: {folder}")
    if settings.form == "lm_eval":
        print(f"run with: lm_eval run --tasks optiml --include_path {folder} --log_samples ...")
    for failure in written["failures"]:
        print("failed: {task} at {shots} shots: {reason}".format(**failure), file=sys.stderr)
    return status_of(failure["may_pass"] for failure in written["failures"])


def training(run: Run, settings: Export, folder: pathlib.Path) -> int:
    """Writes the training data of the mixture and a data card."""
    # Imported here because it needs TensorFlow: exporting requests takes a third of the memory
    # without.
    from optiml_jax.exchange.training_files import (
        TrainingRows,
        cached_counts,
        planned_counts,
        write_rows,
    )

    vocabulary = load_run_vocabulary(run)
    split, form, layout = settings.split, settings.form, settings.rows
    if settings.order == "plan":
        check_plan_decided(run)
        plan = Plan.load(run.plan_dir(split))
        cache_dir, counts = plan.meta["cache_dir"], planned_counts(plan)
        rates = {t["task"]: t["rate"] for t in plan.meta["tasks"]}
    else:
        cache_dir, mixture, manifest = run.cache_dir, configured(Mixture), Manifest.load()
        found = find_sources(run.data, manifest)
        names = [s.name for s in mixtures.select(found, mixture, manifest)]
        check_decided(run, found, manifest, mixture.roles, trained=names)
        counts = cached_counts(cache_dir, names, split)
        rates = mixing_rates(counts, mixture)
    check_vocabulary(cache_dir, counts, vocabulary)
    rows, store = TrainingRows(cache_dir, vocabulary, layout), Store(cache_dir)
    if settings.order == "plan":
        write_rows(rows.of_plan(plan), folder, split, form, layout, settings.shard_rows)
    else:
        for name in counts:
            place = folder / seqio_name(name)
            place.mkdir()
            made = rows.of_task(store.task(name), split)
            write_rows(made, place, split, form, layout, settings.shard_rows)
    card = DataCard(settings.order, split, form, layout, counts, rates, store, known_licences())
    card.write(folder)
    print(f"{counted(sum(counts.values()), 'row')} of {counted(len(counts), 'task')}: {folder}")
    return 0


def check_vocabulary(cache_dir: str, tasks: Iterable[str], vocabulary: TextVocabulary) -> None:
    """UserError if the cache was made with another vocabulary, which decodes ids differently."""
    name = next(iter(tasks), None)
    if name is None:
        raise UserError("nothing to export: no task has an example of this split")
    made = Store(cache_dir).task(name).info["vocabulary"]
    if made["fingerprint"] != vocabulary_fingerprint(vocabulary):
        raise UserError(
            f"{cache_dir} was made with the vocabulary {made['spec']}; set Run.vocabulary to it"
        )


def known_licences() -> dict[str, tuple[str, ...]]:
    """Collection -> the licences of its sources, from the list of sources."""
    known = read_sources(REPOSITORY / Fetch().sources)
    return {name: tuple(sorted({s.licence for s in group})) for name, group in known.items()}


if __name__ == "__main__":
    sys.exit(command_line.main([pathlib.Path(__file__).stem, *sys.argv[1:]]))
