"""`optiml prepare`: caches every task of a list, resumably, on a pool of processes or on Beam.

What is done to one task is in `cache_task.py`; the layout of the cache in `store.py`. A task is in
the cache as a whole or not at all, at any moment, so a killed run is continued by the next one.
"""

import contextlib
import dataclasses
import functools
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from optiml_jax.data import pool
from optiml_jax.data.cache_task import (
    CacheSettings,
    TaskOutcome,
    cache_task,
    reuse_cached,
)
from optiml_jax.data.cache_writer import remove_temporaries
from optiml_jax.data.example import Drops, TaskSource, check_unique_names
from optiml_jax.data.jobs import Progress, input_bytes
from optiml_jax.data.prompts import PromptConfig
from optiml_jax.data.vocabulary import load_vocabulary, vocabulary_fingerprint
from optiml_jax.errors import UserError
from optiml_jax.one_writer import one_writer
from optiml_jax.paths import path_of

logger = logging.getLogger(__name__)

_WARNING = "warning: "  # how readers mark records that they repaired and kept
# Starting workers costs as much as caching some ten small tasks.
_SMALL_RUN_BYTES = 4_000_000


_PART = "prepare-part-"  # in the names of the claims of runs that prepare a part of the tasks


@dataclasses.dataclass(frozen=True)
class PrepareSummary:
    """What a run did.

    Attributes:
      outcomes: task -> its outcome, in the order of the sources.
    """

    outcomes: dict[str, TaskOutcome]

    @property
    def failures(self) -> dict[str, str]:
        """Task -> why it could not be cached."""
        return {o.task: o.error for o in self.outcomes.values() if o.status == "failed"}

    def rows(self) -> list[dict[str, Any]]:
        """One row per task and split.

        Keys: task, split, status, kept (number of examples), dropped and warned (reason -> number
        of records).
        """
        return [
            {
                "task": outcome.task,
                "split": split,
                "status": outcome.status,
                "kept": row["examples"],
                "dropped": {r: n for r, n in row["drops"].items() if not r.startswith(_WARNING)},
                "warned": {r: n for r, n in row["drops"].items() if r.startswith(_WARNING)},
            }
            for outcome in self.outcomes.values()
            for split, row in outcome.splits.items()
        ]

    def dropped(self) -> Drops:
        """Records dropped over all tasks, by reason."""
        return sum((Drops(row["dropped"]) for row in self.rows()), Drops())

    def __str__(self) -> str:
        count = Drops(outcome.status for outcome in self.outcomes.values())
        kept = sum(row["kept"] for row in self.rows())
        drops = ", ".join(f"{n:,} {reason}" for reason, n in self.dropped().most_common())
        return (
            f"{count['cached']} tasks cached, {count['unchanged']} unchanged, "
            f"{count['failed']} failed; {kept:,} examples kept; dropped: {drops or 'none'}"
        )


class PrepareError(UserError):
    """Some tasks could not be cached; `summary` tells of those that were."""

    def __init__(self, summary: PrepareSummary):
        failures = summary.failures
        reasons = "; ".join(f"{task}: {reason}" for task, reason in failures.items())
        super().__init__(
            f"{len(failures)} of {len(summary.outcomes)} tasks could not be cached ({reasons}); "
            "the others are; put the files right and run the same command again"
        )
        self.summary = summary
        self.passing = any(outcome.may_pass for outcome in summary.outcomes.values())


def prepare(
    sources: Sequence[TaskSource],
    vocabulary_spec: str,
    prompt_config: PromptConfig,
    cache_dir: str | os.PathLike,
    *,
    sequence_length: int = 2048,
    num_workers: int | None = None,
    runner: str | None = None,
    runner_options: Sequence[str] = (),
    max_examples: Mapping[str, int | None] | None = None,
    subset_seed: int = 1234,
    part: int | None = None,
    verify: bool = True,
) -> PrepareSummary:
    """Caches every split of every task whose inputs changed since it was last cached.

    Args:
      sources: the tasks.
      vocabulary_spec: see `vocabulary.load_vocabulary`.
      prompt_config: how prompts are rendered.
      cache_dir: the folder of the cache, made if needed; tasks in it that are not among `sources`
        stay. With a Beam runner on several machines it must be the same folder on all of them.
      sequence_length: the longest source + target + </s>; longer sources are cut from the left.
      num_workers: processes; None: one for each core, this process alone for a small run.
      runner: a Beam runner ("DirectRunner", "FlinkRunner", ...) instead of the process pool.
      runner_options: further command-line options of that runner.
      max_examples: task -> cap on its training examples, of which a random subset is cached.
      subset_seed: of these subsets.
      part: number of this part of the tasks; other runs may cache other parts in the same folder at
        the same time. None: `sources` are all.
      verify: verifies existing caches, and caches again what has changed on disk.

    Raises:
      PrepareError: some tasks could not be cached; all others are.
      UserError: two tasks have one name, the vocabulary is missing, another run is at work in the
        same folder, or the disk is full.
      KeyboardInterrupt: interrupted; what was finished is kept.
    """
    check_unique_names([source.name for source in sources])
    settings = CacheSettings(
        cache_dir=str(cache_dir),
        vocabulary_spec=vocabulary_spec,
        vocabulary_fingerprint=vocabulary_fingerprint(load_vocabulary(vocabulary_spec)),
        prompt_config=prompt_config,
        sequence_length=sequence_length,
        max_examples=max_examples or {},
        subset_seed=subset_seed,
        verify=verify,
    )
    with _claim(cache_dir, part):
        if part is None:
            remove_temporaries(cache_dir)
        outcomes: dict[str, TaskOutcome] = {}
        jobs: list[TaskSource] = []
        reasons = Drops()
        for source in sources:
            if outcome := reuse_cached(source, settings, reasons):
                outcomes[source.name] = outcome
            else:
                jobs.append(source)
        for reason, number in sorted(reasons.items()):
            logger.warning("prepare: %d tasks are cached again: %s", number, reason)
        jobs.sort(key=input_bytes, reverse=True)  # the largest must not come last, alone
        engine = _engine(jobs, settings, num_workers, runner, runner_options)
        progress = Progress("prepare", jobs, len(outcomes), logger)
        with contextlib.closing(engine), progress:
            for outcome in engine:
                if outcome.fatal:
                    raise UserError(outcome.error)
                outcomes[outcome.task] = outcome
                examples = sum(row["examples"] for row in outcome.splits.values())
                progress.advance(outcome.task, examples, outcome.error)
    summary = PrepareSummary({source.name: outcomes[source.name] for source in sources})
    if summary.failures:
        raise PrepareError(summary)
    return summary


def _engine(
    jobs: list[TaskSource],
    settings: CacheSettings,
    num_workers: int | None,
    runner: str | None,
    runner_options: Sequence[str],
) -> Iterator[TaskOutcome]:
    """The outcomes of the jobs as they come in. Closing it early stops the work, and waits."""
    if runner is not None:
        from optiml_jax.data import beam_prepare  # Beam takes seconds to import

        return beam_prepare.run(jobs, settings, runner, runner_options)
    if num_workers is None:
        small = sum(map(input_bytes, jobs)) < _SMALL_RUN_BYTES
        num_workers = 1 if small else len(os.sched_getaffinity(0))
    if min(num_workers, len(jobs)) <= 1:
        return (cache_task(source, settings) for source in jobs)
    work = functools.partial(_work, settings=settings)
    preload = "optiml_jax.data.worker_imports"
    return pool.run(work, jobs, min(num_workers, len(jobs)), preload, _name)


def _work(source: TaskSource, settings: CacheSettings) -> TaskOutcome:
    return cache_task(source, settings, stopped=pool.stopped)


@contextlib.contextmanager
def _claim(cache_dir: str | os.PathLike, part: int | None) -> Iterator[None]:
    """Holds the cache folder, or one part of it; a run of all tasks finds no part at work."""
    if part is not None:
        with one_writer(cache_dir, f"optiml {_PART}{part}"):
            yield
        return
    with one_writer(cache_dir, "optiml prepare"):
        for file in path_of(cache_dir).glob(f".{_PART}*.lock"):
            with one_writer(cache_dir, f"optiml {file.stem.removeprefix('.')}"):
                pass
        yield


def _name(source: TaskSource) -> str:
    return f"{source.name} ({', '.join(source.files[:1])})"
