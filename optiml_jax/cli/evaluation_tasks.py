"""The tasks that `optiml evaluate` and `optiml export` ask, and how their prompts are fitted."""

import dataclasses
import fnmatch
import functools
from typing import Any

import seqio

from optiml_jax.audit.flags import read_flags
from optiml_jax.cli.audit_gate import check_decided
from optiml_jax.cli.settings import Audit, Evaluate, Export, Run, configured
from optiml_jax.data.example import Drops, TaskSource
from optiml_jax.data.mixture import Mixture
from optiml_jax.data.prompts import PromptConfig
from optiml_jax.data.vocabulary import decode, encode_batch, padded_size
from optiml_jax.errors import UserError
from optiml_jax.evaluate.config import EvalConfig
from optiml_jax.evaluate.evaluator import EvalTask
from optiml_jax.evaluate.instances import subsample
from optiml_jax.evaluate.records import TaskInfo
from optiml_jax.exchange.requests import Tokens
from optiml_jax.model.architectures import model_config
from tasks.registry import find_sources, register
from tasks.splits import Manifest, Row, category

NUM_DEV = 250  # (example, prompt) pairs of a task that is for validation only; paper, section 4.1


def evaluation_tasks(run: Run, settings: Evaluate, vocabulary: Any) -> list[EvalTask]:
    """The evaluation tasks of a run.

    Raises:
      UserError: no task matches the settings.
    """
    manifest = Manifest.load()
    sources = find_sources(run.data, manifest)
    check_decided(run, sources, manifest, configured(Mixture, name="").roles, ())
    found = [evaluation_task(s, manifest.row(s), settings, vocabulary) for s in sources]
    flags = read_flags(Audit().folder_of(run)) or {}
    tasks = [
        dataclasses.replace(t, overlaps=flags.get(t.info.task))
        for t in found
        if t is not None and t.info.shots
    ]
    if not tasks:
        raise UserError(
            f"nothing to evaluate: no task of {', '.join(run.data)} with the role "
            f"{' or '.join(settings.roles)} "
            f"matches Evaluate.tasks={settings.tasks} and Evaluate.shots={settings.shots}"
        )
    return tasks


def request_tokens(vocabulary: seqio.Vocabulary, settings: Export) -> Tokens:
    """How the prompts of requests are fitted: as the run's own model would have them."""
    if settings.max_tokens == 0:
        return Tokens.unlimited()
    positions = (
        settings.max_tokens or model_config(vocab_size=padded_size(vocabulary)).max_positions
    )
    return Tokens(
        encode=functools.partial(encode_batch, vocabulary),
        decode=functools.partial(decode, vocabulary),
        positions=positions,
    )


def evaluation_task(
    source: TaskSource, row: Row, settings: Evaluate, vocabulary: Any
) -> EvalTask | None:
    """The task as the evaluator wants it, its metrics taken from SeqIO; None: not asked for."""
    asked = any(fnmatch.fnmatchcase(source.name, pattern) for pattern in settings.tasks)
    if not asked or {*settings.roles}.isdisjoint(row.role):
        return None
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
    registered = register(source, vocabulary, PromptConfig(), shots=0)
    return EvalTask(
        info=info,
        examples=functools.partial(read_test_split, source, None if tested else NUM_DEV),
        demonstrations=source.demonstrations,
        metric_fns=registered.metric_fns,
        instruction_level=source.instruction_level,
    )


def read_test_split(source: TaskSource, limit: int | None) -> list:
    """The evaluated examples, `limit` of them at most, drawn by hash.

    An empty test part is a UserError, so the task counts as failed.
    """
    drops = Drops()
    examples = list(source.read("test", drops))
    if not examples:
        reasons = ", ".join(f"{n} {reason}" for reason, n in drops.items()) or "it is too small"
        raise UserError(f"task {source.name} has no test instances ({reasons})")
    return subsample(examples, limit, EvalConfig().seed)
