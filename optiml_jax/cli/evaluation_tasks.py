"""The tasks of `optiml evaluate` and `optiml export`, and how their prompts are truncated."""

import dataclasses
import fnmatch
import functools
import logging
from collections.abc import Collection, Mapping, Sequence

from optiml_jax.audit.flags import read_flags
from optiml_jax.cli.audit_gate import check_decided
from optiml_jax.cli.settings import Audit, Evaluate, Export, Run, configured
from optiml_jax.data.example import Drops, TaskSource
from optiml_jax.data.made_of import reader_settings
from optiml_jax.data.mixture import Mixture
from optiml_jax.data.text_vocabulary import TextVocabulary
from optiml_jax.data.vocabulary import encode_batch, padded_size
from optiml_jax.errors import UserError
from optiml_jax.evaluate.config import EvalConfig
from optiml_jax.evaluate.evaluator import EvalTask
from optiml_jax.evaluate.instances import subsample
from optiml_jax.evaluate.origin import Origin
from optiml_jax.evaluate.records import TaskInfo
from optiml_jax.exchange.requests import Tokens
from optiml_jax.files import fingerprint
from optiml_jax.model.architectures import model_config
from optiml_jax.words import counted
from tasks.registry import find_sources, metric_functions
from tasks.splits import Manifest, Row, category

_log = logging.getLogger(__name__)
MOST_NAMES = 6  # names of tasks in a warning
NUM_DEV = 250  # (example, prompt) pairs per validation task; paper, section 4.1


def evaluation_tasks(run: Run, settings: Evaluate) -> list[EvalTask]:
    """The evaluation tasks of a run.

    Raises:
      UserError: no task matches the settings.
    """
    manifest = Manifest.load()
    sources = find_sources(run.data, manifest)
    asked = [(s, manifest.row(s)) for s in sources if is_asked_for(s, manifest, settings)]
    warn_of_globs([s.name for s, _ in asked], settings.tasks)
    roles = configured(Mixture, name="").roles
    check_decided(run, sources, manifest, roles, evaluated=[s.name for s, _ in asked])
    warn_of_shots({s.name: row.shots for s, row in asked}, settings.shots)
    found = [evaluation_task(s, row, settings) for s, row in asked]
    flags = read_flags(Audit().folder_of(run)) or {}
    tasks = [dataclasses.replace(t, overlaps=flags.get(t.info.task)) for t in found if t.info.shots]
    if not tasks:
        raise UserError(
            f"nothing to evaluate: no task of {', '.join(run.data)} with the role "
            f"{' or '.join(settings.roles)} "
            f"matches Evaluate.tasks={settings.tasks} and Evaluate.shots={settings.shots}"
        )
    return tasks


def request_tokens(vocabulary: TextVocabulary, settings: Export) -> Tokens:
    """How the prompts of requests are truncated: as for the run's own model."""
    if settings.max_tokens == 0:
        return Tokens.unlimited()
    positions = (
        settings.max_tokens or model_config(vocab_size=padded_size(vocabulary)).max_positions
    )
    return Tokens(
        encode=functools.partial(encode_batch, vocabulary),
        decode=vocabulary.spell,
        positions=positions,
    )


def is_asked_for(source: TaskSource, manifest: Manifest, settings: Evaluate) -> bool:
    """Whether the task has a name and role to evaluate."""
    named = any(fnmatch.fnmatchcase(source.name, pattern) for pattern in settings.tasks)
    return named and not {*settings.roles}.isdisjoint(manifest.row(source).role)


def warn_of_globs(names: Sequence[str], globs: Sequence[str]) -> None:
    """Warns of globs of `Evaluate.tasks` that match no evaluated task."""
    if lost := [glob for glob in globs if not fnmatch.filter(names, glob)]:
        _log.warning("Evaluate.tasks: no evaluation task of these roles matches %s", _some(lost))


def warn_of_shots(listed: Mapping[str, Sequence[int]], asked: Sequence[int]) -> None:
    """Warns of tasks that are not evaluated with a requested number of shots.

    Args:
      listed: task -> the numbers of shots that the manifest lists for it.
      asked: `Evaluate.shots`.
    """
    for shots in asked:
        if without := [task for task, numbers in listed.items() if shots not in numbers]:
            _log.warning(
                "Evaluate.shots: the manifest does not list %s for %d of %s, skipped there: %s",
                counted(shots, "shot"),
                len(without),
                counted(len(listed), "task"),
                _some(without),
            )


def warn_of_trained(tasks: Sequence[EvalTask], trained: Collection[str]) -> None:
    """Warns of tasks that count as held out but that the checkpoint was trained on."""
    held_out = {t.info.task for t in tasks if t.info.level != "fully_supervised"}
    if seen := sorted(held_out & {*trained}):
        _log.warning(
            "the checkpoint was trained on %s of a level that is held out, where a score says "
            "nothing about generalisation: %s",
            counted(len(seen), "task"),
            _some(seen),
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:MOST_NAMES]) + (", ..." if len(names) > MOST_NAMES else "")


def evaluation_task(source: TaskSource, row: Row, settings: Evaluate) -> EvalTask:
    """The task as the evaluator expects it, with the metric functions of its SeqIO task."""
    tested = any(role.startswith("test") for role in row.role)
    info = TaskInfo(
        task=source.name,
        benchmark=source.benchmark,
        category=category(source),
        level=row.level,
        metric=row.metric,
        aggregate_as=row.aggregate_as,
        protocol=row.protocol,
        shots=tuple(k for k in settings.shots if k in row.shots),
        prompts="crossed" if tested else "pooled",
    )
    most, reader = None if tested else NUM_DEV, fingerprint(reader_settings(source))
    return EvalTask(
        info=info,
        examples=functools.partial(read_test_split, source, most),
        demonstrations=source.demonstrations,
        metric_fns=metric_functions(source),
        instruction_level=source.instruction_level,
        origin=Origin(reader, source.files, most, source.instruction_level),
    )


def read_test_split(source: TaskSource, limit: int | None) -> list:
    """The evaluated examples, at most `limit` of them, sampled by hash.

    An empty test split is a UserError, so the task counts as failed.
    """
    drops = Drops()
    examples = list(source.read("test", drops))
    if not examples:
        reasons = ", ".join(f"{n} {reason}" for reason, n in drops.items()) or "it is too small"
        raise UserError(f"task {source.name} has no test instances ({reasons})")
    return subsample(examples, limit, EvalConfig().seed)
