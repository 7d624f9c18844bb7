"""Evaluates tasks: prompts, model, SeqIO metric functions, records; resumable per task.

The instances of many tasks go through the model together, by length, so that a hundred small tasks
do not cost a hundred nearly empty batches. What a task is comes in as an EvalTask; averages over
tasks are made from the records by rollup.py.
"""

import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from optiml_jax.data.example import Example, InstructionLevel
from optiml_jax.data.identity import unless_common
from optiml_jax.data.prompts import PromptConfig
from optiml_jax.data.text_vocabulary import TextVocabulary
from optiml_jax.data.vocabulary import vocabulary_fingerprint
from optiml_jax.errors import may_pass, reason_of
from optiml_jax.evaluate import answers, metrics
from optiml_jax.evaluate.baselines import Constant, best_constant
from optiml_jax.evaluate.batching import Engine
from optiml_jax.evaluate.config import EvalConfig
from optiml_jax.evaluate.instances import EncodeBatch, Instance, InstanceBuilder, subsample
from optiml_jax.evaluate.metric_calls import MetricFn, call_metric_fns
from optiml_jax.evaluate.origin import Origin, Parts
from optiml_jax.evaluate.progress import progress
from optiml_jax.evaluate.protocol import Protocol
from optiml_jax.evaluate.records import (
    Candidate,
    Record,
    RunFolder,
    TaskInfo,
    prompt_key,
    rescore,
)
from optiml_jax.evaluate.runner import Answerer, Request, Runner, check_vocabulary
from optiml_jax.files import fingerprint
from optiml_jax.model.config import DecoderConfig
from optiml_jax.sharding import processes

_log = logging.getLogger(__name__)
_OTHER = "its files or their reader give other examples now"
_VOID = "; its earlier records are kept, and count again once its examples are theirs"


@dataclasses.dataclass(frozen=True)
class EvalTask:
    """A task to evaluate.

    Attributes:
      info: what the tables need to know.
      examples: the evaluated examples, read when it is their turn.
      demonstrations: the pool of demonstrations, in order of preference.
      metric_fns: SeqIO metric functions, `(targets, predictions)` or `(targets, scores)`.
      instruction_level: where demonstrations stand, see `prompts.render`.
      overlaps: (example id, prompt id) of what overlaps with the training data; None: not audited.
      origin: where the examples come from; None: not known.
    """

    info: TaskInfo
    examples: Callable[[], Sequence[Example]]
    demonstrations: Callable[[], Sequence[Example]]
    metric_fns: Sequence[MetricFn]
    instruction_level: InstructionLevel = "task"
    overlaps: frozenset[tuple[str, str]] | None = None
    origin: Origin | None = None

    @property
    def protocol(self) -> Protocol:
        return self.info.protocol

    def overlap(self, example: Example) -> bool | None:
        """Whether the training data overlaps with an example; None: not audited."""
        if self.overlaps is None:
            return None
        return (example.example_id, example.prompt_id) in self.overlaps

    @property
    def metric(self) -> metrics.Metric:
        return metrics.METRICS[self.info.metric]

    @property
    def ranks(self) -> bool:
        """Whether options are ranked; otherwise answers are generated."""
        return self.metric.ranked

    def prompt_config(self, prompts: PromptConfig) -> PromptConfig:
        """The settings of the run, overridden by those of the task."""
        own = {"delimiter": self.protocol.delimiter, "separator": self.protocol.separator}
        own = {name: value for name, value in own.items() if value is not None}
        return dataclasses.replace(prompts, **own)

    def max_new_tokens(self, config: EvalConfig) -> int:
        """The most new tokens of an answer, eos included."""
        return self.protocol.max_new_tokens or config.max_new_tokens


class Failure(NamedTuple):
    """Why a task has no records at a number of shots, and whether a retry may help."""

    task: str
    shots: int
    reason: str
    may_pass: bool


@dataclasses.dataclass(frozen=True)
class _Job:
    """One task at one number of shots, with its instances."""

    task: EvalTask
    shots: int
    instances: list[Instance]
    source: dict[str, Any] | None

    def sources(self) -> list[str]:
        """The source example of every instance: one of its own where none is known."""
        examples = [instance.example for instance in self.instances]
        return [
            source or f"{e.task}:{e.example_id}"
            for e, source in zip(examples, unless_common(examples), strict=True)
        ]

    def content(self) -> list[Any]:
        """What the model is given."""
        own = [[list(i.prompt), list(map(list, i.candidate_ids))] for i in self.instances]
        return [self.task.info.task, self.shots, own]


def evaluate(
    tasks: Sequence[EvalTask],
    graphdef: Any,
    params: Any,
    model_config: DecoderConfig,
    vocabulary: TextVocabulary,
    config: EvalConfig,
    out_dir: str,
    *,
    prompts: PromptConfig | None = None,
    metadata: Mapping[str, Any] | None = None,
    mesh: jax.sharding.Mesh | None = None,
    preset: str = "standard",
    run: Mapping[str, Any] | None = None,
) -> list[Failure]:
    """Evaluates every task at each of its numbers of shots and writes records to `out_dir`.

    What is there already is kept, so an interrupted evaluation continues; tasks that failed are
    tried again.

    Args:
      tasks: what to evaluate.
      graphdef, params: the model, `nnx.merge(graphdef, params)`.
      vocabulary: the one the model was trained with.
      prompts: how prompts are rendered; delimiter and separator are those of `config`.
      metadata: of the checkpoint: `vocabulary` and `bos_id` are used.
      mesh, preset: the sharding of the parameters.
      run: what else identifies the run (checkpoint, step, ...); JSON-able, kept with the records.

    Returns:
      Everything that failed; the reasons are in the folder too.

    Raises:
      UserError: the vocabulary is not the checkpoint's, or `out_dir` holds another evaluation.
    """
    check_vocabulary(vocabulary, model_config, metadata)
    bos_id = (metadata or {}).get("bos_id", model_config.bos_id)
    model = {
        "bos_id": bos_id,
        "vocabulary": vocabulary_fingerprint(vocabulary),
        "dtype": model_config.dtype,
        "params_dtype": jax.tree.leaves(params)[0].dtype.name,
        "model": fingerprint(model_config.to_dict()),
        "step": (metadata or {}).get("step"),
        "plan": (metadata or {}).get("plan_fingerprint"),
        "seed": (metadata or {}).get("seed"),
        "plan_seed": (metadata or {}).get("plan_seed"),
        "configuration": _configuration(metadata or {}),
    }
    engine = Engine(graphdef, params, model_config, bos_id, config.tokens_per_batch, mesh, preset)
    runner = Runner(engine, vocabulary, config.seed)
    return evaluate_with(
        runner, tasks, config, out_dir, prompts=prompts, run=model | {**(run or {})}
    )


def evaluate_with(
    answerer: Answerer,
    tasks: Sequence[EvalTask],
    config: EvalConfig,
    out_dir: str,
    *,
    prompts: PromptConfig | None = None,
    run: Mapping[str, Any],
) -> list[Failure]:
    """`evaluate` for any source of answers: a model here, or stored answers of another.

    Args:
      run: what identifies the answerer; JSON-able, kept with the records.
    """
    prompts = prompts_of_evaluation(prompts or PromptConfig(), config)
    folder = RunFolder(out_dir)
    settings = {
        "delimiter": config.delimiter,
        "separator": prompts.separator,
        "demonstrations": prompts.demonstrations,
        "option_order": prompts.option_order,
        "option_format": prompts.option_format,
        "chat": prompts.chat,
        "prompt_seed": prompts.seed,
        "max_new_tokens": config.max_new_tokens,
        "max_examples": config.max_examples,
        "examples_seed": config.seed,
    }
    infos = [task.info for task in tasks]
    processes.on_first(lambda: folder.open({**settings, **run}, infos))
    return _Evaluation(answerer, config, prompts, folder).run(tasks)


def prompts_of_evaluation(prompts: PromptConfig, config: EvalConfig) -> PromptConfig:
    """How prompts are rendered unless a task has its own settings."""
    usual = prompts.for_evaluation()
    separator = usual.separator if config.separator is None else config.separator
    return dataclasses.replace(usual, delimiter=config.delimiter, separator=separator)


def instance_builder(
    task: EvalTask, config: EvalConfig, prompts: PromptConfig, encode: EncodeBatch, positions: int
) -> InstanceBuilder:
    """What makes the instances of a task.

    Args:
      prompts: of the evaluation; the task's own settings go before them.
      encode: texts to ids.
      positions: of the model, leading token and new tokens included.
    """
    return InstanceBuilder(
        level=task.instruction_level,
        prompts=task.prompt_config(prompts),
        encode=encode,
        sequence_length=positions,
        max_new_tokens=task.max_new_tokens(config),
        joiner=task.protocol.joiner,
    )


def _configuration(metadata: Mapping[str, Any]) -> str | None:
    """Fingerprint of how the model was made, without its seeds; None: its seed is unknown."""
    if metadata.get("seed") is None:
        return None
    left_out = ("seed", "plan_seed", "plan_fingerprint", "num_microbatches", "step", "checkpoint")
    same = {name: value for name, value in metadata.items() if name not in left_out}
    plan = metadata.get("plan_configuration", metadata.get("plan_fingerprint"))
    return fingerprint(same | {"plan_configuration": plan})


class _Evaluation:
    """One call of `evaluate`."""

    def __init__(
        self,
        answerer: Answerer,
        config: EvalConfig,
        prompts: PromptConfig,
        folder: RunFolder,
    ):
        self.answerer, self.config = answerer, config
        self.prompts, self.folder = prompts, folder
        self.failures: list[Failure] = []
        self.constants: dict[str, Constant] = {}

    def run(self, tasks: Sequence[EvalTask]) -> list[Failure]:
        cells = [(task, shots) for task in tasks for shots in task.info.shots]
        todo = processes.on_first(lambda: [not self.is_done(task, shots) for task, shots in cells])
        pending = [cell for cell, wanted in zip(cells, todo, strict=True) if wanted]
        total = len(cells)
        _log.info("evaluating %d of %d (task, shots) pairs", len(pending), total)
        with progress(len(pending)) as (task_done, rows_done):
            self.answerer.watch(rows_done)
            rounds = _rounds(self.jobs(pending), self.config.instances_per_round)
            while True:
                jobs = next(rounds, [])
                processes.check_same([job.content() for job in jobs], _names(jobs))
                if not jobs:
                    return self.failures
                self.round(jobs)
                task_done(len(jobs))

    def is_done(self, task: EvalTask, shots: int) -> bool:
        """Whether there are records, of the examples that the task has now."""

        stamps = []

        def changed(summary: Mapping[str, Any]) -> str:
            stored = summary.get("source")
            stamps.append(stored)
            try:
                if not stored or not task.origin or not task.origin.differs(stored, parts):
                    return ""
            except Exception as e:  # it fails in the same way when it is its turn
                return f"its examples cannot be read now: {reason_of(e)}"
            _log.warning("%s at %d shots is evaluated again: %s", task.info.task, shots, _OTHER)
            return _OTHER

        def parts() -> Parts:
            examples = subsample(task.examples(), self.config.max_examples, self.config.seed)
            return examples, task.demonstrations() if shots else ()

        status, _ = self.folder.status(task.info, shots, changed)
        if status == "failed":
            return self.folder.recover(task.info, shots, changed)
        if status == "done" and task.origin and (stamp := task.origin.moved(stamps[0])):
            self.folder.restamp(task.info.task, shots, stamp)
        return status == "done"

    def fail(self, task: EvalTask, shots: int, error: Exception) -> Failure:
        """Records a failure of the task itself, not of the model."""
        reason = reason_of(error)
        if self.folder.has_records(task.info.task, shots):
            reason += _VOID
        _log.warning("%s at %d shots failed: %s", task.info.task, shots, reason)
        _log.debug("the failure above:", exc_info=error)
        if processes.is_first():
            self.folder.fail(task.info.task, shots, reason)
        return Failure(task.info.task, shots, reason, may_pass(error))

    def jobs(self, pending: Sequence[tuple[EvalTask, int]]) -> Iterator[_Job]:
        """The jobs of all (task, shots) pairs whose examples can be read and rendered."""
        examples: Sequence[Example] = ()
        previous = None
        for task, shots in pending:
            try:
                if task is not previous:
                    previous = None
                    examples = subsample(
                        task.examples(), self.config.max_examples, self.config.seed
                    )
                    previous = task
                pool = task.demonstrations() if shots else ()
                source = task.origin and task.origin.stamp((examples, pool))
                job = _Job(task, shots, self.instances(task, shots, examples, pool), source)
            except Exception as e:
                self.failures.append(self.fail(task, shots, e))
                continue
            yield job

    def instances(
        self, task: EvalTask, shots: int, examples: Sequence[Example], pool: Sequence[Example]
    ) -> list[Instance]:
        builder = instance_builder(
            task, self.config, self.prompts, self.answerer.encode, self.answerer.max_positions
        )
        instances = builder.build(examples, pool, shots, task.ranks)
        self.answerer.check(instances)
        return instances

    def round(self, jobs: Sequence[_Job]) -> None:
        """Runs the instances of all jobs through the model and writes their records.

        All processes run the model together, its rows divided among their devices, and all get the
        results; the first makes records of them.
        """
        ranked = [i for job in jobs if job.task.ranks for i in job.instances]
        scores = iter(self.answerer.score(ranked))
        requests = [
            self.request(job.task, i) for job in jobs if not job.task.ranks for i in job.instances
        ]
        replies = iter(self.answerer.generate(requests))
        outputs = [
            [next(scores if job.task.ranks else replies) for _ in job.instances] for job in jobs
        ]
        failed = processes.on_first(lambda: self.write(jobs, outputs))
        self.failures += [Failure(*failure) for failure in failed]

    def write(self, jobs: Sequence[_Job], outputs: Sequence[Sequence[Any]]) -> list[Failure]:
        """Writes the records of the jobs; returns those that failed."""
        failed = []
        for job, own in zip(jobs, outputs, strict=True):
            try:
                records = [
                    self.record(job.task, *parts)
                    for parts in zip(job.instances, own, job.sources(), strict=True)
                ]
                summary = self.summary(job, records)
            except Exception as e:
                failed.append(self.fail(job.task, job.shots, e))
                continue
            texts = (self.prompt_text(instance) for instance in job.instances)
            prompts = {prompt_key(text): text for text in texts}
            self.folder.write(job.task.info.task, job.shots, records, summary, prompts)
            self.report(job, summary)
        return failed

    def request(self, task: EvalTask, instance: Instance) -> Request:
        protocol = task.protocol
        return Request(
            instance,
            task.max_new_tokens(self.config),
            protocol.stop,
            protocol.samples,
            protocol.temperature,
        )

    def record(self, task: EvalTask, instance: Instance, output: Any, source: str) -> Record:
        example = instance.example
        record = Record(
            example_id=example.example_id,
            prompt_id=example.prompt_id,
            cluster=source,
            group=str(example.meta.get("group", "")),
            references=tuple(example.references),
            prediction="",
            score=0.0,
            demonstration_ids=instance.demonstration_ids,
            n_prompt_tokens=len(instance.prompt),
            n_prompt_tokens_dropped=instance.n_prompt_tokens_dropped,
            correct=instance.correct,
            boundary_repaired=instance.boundary_repaired,
            prompt=prompt_key(self.prompt_text(instance)),
            overlap=task.overlap(example),
        )
        if task.ranks:
            return self.ranked(record, task.protocol.rule, instance, output)
        texts, best = [answer.text for answer in output], 0
        if task.protocol.samples:
            best = answers.vote(texts, [answer.logprob for answer in output], task.metric.extract)
        return dataclasses.replace(
            record,
            prediction=texts[best],
            score=task.metric.score(example.references, texts[best]),
            n_new_tokens=output[best].num_tokens,
            finished=output[best].finished,
            samples=tuple(texts) if task.protocol.samples else (),
            options=tuple(example.options or ()),
            raw="" if output[best].raw.strip() == texts[best] else output[best].raw,
        )

    def prompt_text(self, instance: Instance) -> str:
        """What the model saw before the answer, without the leading token."""
        return self.answerer.decode(instance.prompt)

    def ranked(
        self, record: Record, rule: str, instance: Instance, candidates: tuple[Candidate, ...]
    ) -> Record:
        """The record of a rank classification, with all score components of every candidate."""
        unlisted = len(candidates) > len(instance.candidates)
        return rescore(dataclasses.replace(record, candidates=candidates, unlisted=unlisted), rule)

    def summary(self, job: _Job, records: Sequence[Record]) -> dict[str, Any]:
        """The last line of a record file: the metrics of the task and notes on them."""
        info, prompts = job.task.info, job.task.prompt_config(self.prompts)
        shown = [len(r.demonstration_ids) for r in records]
        if info.task not in self.constants:
            self.constants[info.task] = best_constant(job.task.metric, records)
        constant = self.constants[info.task]
        return {
            "task": info.task,
            "shots": job.shots,
            "source": job.source,
            "metric": info.metric,
            "protocol": dataclasses.asdict(info.protocol),
            "num_instances": len(records),
            "metrics": call_metric_fns(job.task.metric_fns, records, info.protocol.rule),
            "best_constant": {"answer": constant.answer, "score": constant.value / 100.0},
            "effective_shots": {"mean": sum(shown) / len(shown), "min": min(shown)},
            "num_truncated": sum(r.n_prompt_tokens_dropped > 0 for r in records),
            "num_ties": sum(r.tied for r in records),
            "num_boundary_repairs": sum(r.boundary_repaired for r in records),
            "num_unfinished": 0 if job.task.ranks else sum(not r.finished for r in records),
            "delimiter": prompts.delimiter,
            "separator": prompts.separator,
        }

    def report(self, job: _Job, summary: Mapping[str, Any]) -> None:
        values = ", ".join(f"{k} {v:.1f}" for k, v in summary["metrics"].items())
        _log.info("%s at %d shots: %s", job.task.info.task, job.shots, values)


def _names(jobs: Sequence[_Job]) -> str:
    names = [job.task.info.task for job in jobs]
    return f"the prompts of {', '.join(names[:3])}{', ...' * (len(names) > 3)}"


def _rounds(jobs: Iterable[_Job], size: int) -> Iterator[list[_Job]]:
    """Consecutive jobs with about `size` instances in all, at least one job each."""
    current: list[_Job] = []
    for job in jobs:
        current.append(job)
        if sum(len(j.instances) for j in current) >= size:
            yield current
            current = []
    if current:
        yield current
