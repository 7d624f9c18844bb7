"""`optiml audit`: an index of the evaluation side, and every training task scanned against it.

Resumable: a training task is scanned when its files, its reader or the evaluation side changed. The
result is a function of these alone, however many processes, Beam or restarts there were.
"""

import contextlib
import dataclasses
import functools
import logging
import os
import pathlib
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

import tqdm

from optiml_jax.audit import pairs
from optiml_jax.audit.index import FORMAT, Index, IndexWriter
from optiml_jax.audit.scan import ScanOutcome, is_scanned, scan_file, scan_task, source_stamp
from optiml_jax.audit.tables import write_tables
from optiml_jax.audit.words import AuditWords
from optiml_jax.data import pool
from optiml_jax.data.example import Example, TaskSource, check_unique_names
from optiml_jax.data.jobs import Progress, input_bytes
from optiml_jax.errors import UserError
from optiml_jax.files import fingerprint
from optiml_jax.one_writer import one_writer

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class EvaluationTask:
    """A task whose examples must not be in the training data.

    Attributes:
      source: where they come from.
      read: gives those that are evaluated.
      limit: how many at most, if `read` takes a part.
    """

    source: TaskSource
    read: Callable[[], Iterable[Example]]
    limit: int | None = None


@dataclasses.dataclass(frozen=True)
class AuditSummary:
    """What an audit did.

    Attributes:
      outcomes: training task -> its outcome.
      evaluation_examples: on the evaluation side.
    """

    outcomes: Mapping[str, ScanOutcome]
    evaluation_examples: int


class AuditError(UserError):
    """Some training tasks could not be scanned; the others are."""

    def __init__(self, outcomes: Collection[ScanOutcome]):
        failed = [o for o in outcomes if o.status == "failed"]
        reasons = "; ".join(f"{o.task}: {o.error}" for o in failed)
        super().__init__(
            f"{len(failed)} of {len(outcomes)} training tasks could not be scanned ({reasons}); "
            "put the files right and run the same command again"
        )
        self.passing = any(o.may_pass for o in failed)


def audit(
    training: Sequence[TaskSource],
    evaluation: Sequence[EvaluationTask],
    folder: str | os.PathLike,
    rules: AuditWords,
    num_workers: int | None = None,
    runner: str | None = None,
    runner_options: Sequence[str] = (),
) -> AuditSummary:
    """Writes `pairs.parquet` and `instances.parquet` (see `pairs.py`) into the audit's folder.

    Args:
      training, evaluation: the two sides; a task may be on both, with different parts.
      folder: made if needed. With a Beam runner on several machines the same on all of them.
      rules: what counts as the same text.
      num_workers: processes; None: one for each core.
      runner: a Beam runner instead of the process pool.
      runner_options: further command-line options of that runner.

    Raises:
      AuditError: training tasks that could not be scanned, with the reasons.
      UserError: an evaluation task cannot be read, the disk is full, or another audit is at work.
    """
    check_unique_names([source.name for source in training])
    folder = pathlib.Path(folder)
    with one_writer(folder, "optiml audit"):
        open_index.cache_clear()
        index = _index(evaluation, folder, rules)
        jobs = [s for s in training if not is_scanned(s, folder, index)]
        waiting = {s.name for s in jobs}
        outcomes = {s.name: ScanOutcome(s.name, "unchanged") for s in training}
        jobs.sort(key=input_bytes, reverse=True)  # the largest must not come last, alone
        engine = _engine(jobs, folder, num_workers, runner, runner_options)
        progress = Progress("audit", jobs, len(training) - len(waiting), logger)
        with contextlib.closing(engine), progress:
            for outcome in engine:
                outcomes[outcome.task] = outcome
                progress.advance(outcome.task, outcome.examples, outcome.error)
        if any(outcome.status == "failed" for outcome in outcomes.values()):
            raise AuditError(outcomes.values())
        paths = {s.name: scan_file(folder, s.name) for s in training}
        write_tables(folder / pairs.DESCRIPTION, pairs.collect(paths, index), {})
    return AuditSummary(outcomes, index.meta["examples"])


def _index(evaluation: Sequence[EvaluationTask], folder: pathlib.Path, rules: AuditWords) -> Index:
    """The index, rebuilt if it is not that of these tasks and rules."""
    wanted = fingerprint(
        [
            FORMAT,
            dataclasses.asdict(rules),
            [[*source_stamp(t.source), t.limit] for t in evaluation],
        ]
    )
    path = folder / "index"
    if (path / "index.json").exists():
        try:
            index = Index(path)
            if index.meta.get("fingerprint") == wanted:
                index.verify()
                return index
        except UserError as e:
            logger.warning("%s: it is rebuilt", e)
    writer = IndexWriter(path, rules)
    bar = tqdm.tqdm(evaluation, desc="index", unit="task", disable=not sys.stderr.isatty())
    for task in bar:
        try:
            writer.add(task.source.name, task.read())
        except OSError as e:
            raise UserError(
                f"cannot read {e.filename or task.source.files}: {e.strerror or e}"
            ) from e
    writer.close({"fingerprint": wanted})
    return Index(path)


def _engine(
    jobs: Sequence[TaskSource],
    folder: pathlib.Path,
    num_workers: int | None,
    runner: str | None,
    runner_options: Sequence[str],
) -> Iterator[ScanOutcome]:
    """The outcomes as they come in. Closing it early stops the work, and waits."""
    if runner is not None:
        from optiml_jax.audit import beam_audit  # Beam takes seconds to import

        return beam_audit.run(jobs, folder, runner, runner_options)
    num_workers = min(num_workers or len(os.sched_getaffinity(0)), len(jobs))
    work = functools.partial(scan_in_folder, folder=str(folder))
    if num_workers <= 1:
        return (work(source) for source in jobs)
    preload = "optiml_jax.data.worker_imports"
    return pool.run(work, jobs, num_workers, preload, lambda source: source.name)


@functools.lru_cache(maxsize=1)
def open_index(folder: str) -> Index:
    """The index of an audit's folder, opened once in a process."""
    return Index(pathlib.Path(folder) / "index")


def scan_in_folder(source: TaskSource, folder: str) -> ScanOutcome:
    """What a worker does with one training task."""
    return scan_task(source, folder, open_index(folder), pool.stopped)
