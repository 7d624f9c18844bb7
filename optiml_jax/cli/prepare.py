"""`optiml prepare`: caches every task that the run trains on or evaluates."""

import collections
import os
import pathlib
import sys

from optiml_jax.cli import main as command_line
from optiml_jax.cli.settings import Evaluate, Prepare, Run, configured
from optiml_jax.cli.vocabularies import run_vocabulary
from optiml_jax.data.mixture import Mixture
from optiml_jax.data.plan import PlanConfig
from optiml_jax.data.prepare import PrepareError, PrepareSummary, prepare
from optiml_jax.data.prompts import PromptConfig
from optiml_jax.paths import is_bucket
from optiml_jax.words import counted
from tasks import mixtures
from tasks.registry import find_sources
from tasks.splits import Manifest

MOST_TASKS_LISTED = 12


def main() -> None:
    run, settings = configured(Run), Prepare()
    manifest = Manifest.load()
    sources = find_sources(run.data, manifest)
    mixture = configured(Mixture)
    trained = {s.name for s in mixtures.select(sources, mixture, manifest)}
    roles = {*Evaluate().roles}
    wanted = [s for s in sources if s.name in trained or roles & {*manifest.row(s).role}]
    print(
        f"{counted(len(sources), 'task')} found in {', '.join(run.data)}: "
        f"{len(trained)} to train on, {len(wanted) - len(trained)} more to evaluate, "
        f"{len(sources) - len(wanted)} unused"
    )
    index, number = settings.part
    wanted = sorted(wanted, key=lambda s: s.name)[index::number]
    if number > 1:
        print(f"part {index} of {number}: {counted(len(wanted), 'task')}")
    try:
        summary = prepare(
            wanted,
            run_vocabulary(run),
            PromptConfig(),
            run.cache_dir,
            sequence_length=PlanConfig(num_rows=1).sequence_length,
            num_workers=settings.num_workers or None,
            runner=settings.runner,
            runner_options=settings.beam_options,
            max_examples={s.name: mixture.max_examples_of(s.name) for s in wanted},
            subset_seed=mixture.seed,
            part=index if number > 1 else None,
            verify=settings.verify,
        )
    except PrepareError as e:
        print_summary(e.summary)
        raise
    print_summary(summary)
    print(f"cache: {run.cache_dir if is_bucket(run.cache_dir) else os.path.relpath(run.cache_dir)}")


def print_summary(summary: PrepareSummary) -> None:
    """Totals, and every reason for which records were dropped or repaired, with its tasks."""
    print(summary)
    for kind in ("dropped", "warned"):
        by_reason: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
        for row in summary.rows():
            for reason, n in row[kind].items():
                by_reason[reason][row["task"]] += n
        for reason, tasks in sorted(by_reason.items()):
            listed = ", ".join(f"{t} ({n})" for t, n in tasks.most_common(MOST_TASKS_LISTED))
            more = len(tasks) - MOST_TASKS_LISTED
            rest = f" and {counted(more, 'more task')} (see optiml.json in the cache)"
            rest = rest if more > 0 else ""
            print(f"  {kind}: {reason}: {tasks.total():,} in {listed}{rest}")


if __name__ == "__main__":
    sys.exit(command_line.main([pathlib.Path(__file__).stem, *sys.argv[1:]]))
