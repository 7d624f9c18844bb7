"""What an evaluation writes down: one JSON line per instance, one file per (task, shots).

The records are enough to recompute every score normalisation, metric and table without the model.
A folder of records looks like this:

    tasks.json                                  settings of the run, and the TaskInfo of every task
    records/<task>.<k>shot.jsonl                one line per instance; the last line is the summary
    records/<task>.<k>shot.prompts.jsonl.gz     the texts of its prompts, each distinct one once
    records/<task>.<k>shot.failed.json          why a task gave no records

A record file appears under its name only when its task is done. Averages live in rollup.py.
"""

import dataclasses
import gzip
import hashlib
import json
import math
import pathlib
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from optiml_jax.data.example import seqio_name
from optiml_jax.errors import UserError
from optiml_jax.evaluate.protocol import Protocol
from optiml_jax.files import (
    atomic_path,
    disk_errors,
    fingerprint,
    read_json,
    read_sealed,
    regular_file,
    write_json,
    write_sealed,
)
from optiml_jax.frozen import refuse_changes
from optiml_jax.paths import path_of

Status = Literal["done", "failed", "missing"]
Changed = Callable[[Mapping[str, Any]], str]
# What an evaluation depends on -> the setting that decides on it.
GIN_NAMES = {
    "delimiter": "EvalConfig.delimiter",
    "separator": "EvalConfig.separator (where it is None, PromptConfig.separator)",
    "demonstrations": "PromptConfig.demonstrations",
    "option_order": "PromptConfig.option_order",
    "option_format": "PromptConfig.option_format",
    "chat": "PromptConfig.chat",
    "prompt_seed": "PromptConfig.seed",
    "max_new_tokens": "EvalConfig.max_new_tokens",
    "max_examples": "EvalConfig.max_examples",
    "examples_seed": "EvalConfig.seed",
    "bos_id": "model_config.bos_id",
    "vocabulary": "Run.vocabulary (fingerprint)",
    "dtype": "model_config.dtype",
    "params_dtype": "Evaluate.params_dtype",
    "model": "model_config (fingerprint)",
    "checkpoint": "Evaluate.checkpoint",
    "step": "the checkpoint's step",
    "plan": "the checkpoint's plan (fingerprint)",
    "seed": "the checkpoint's TrainConfig.seed",
    "plan_seed": "the checkpoint's PlanConfig.seed",
    "configuration": "the checkpoint's configuration (fingerprint)",
    "answers": "Evaluate.answers (their hash)",
}


@dataclasses.dataclass(frozen=True)
class TaskInfo:
    """What the tables need to know about a task.

    Attributes:
      task: `<benchmark>/<upstream id>`.
      level: generalisation level, e.g. "fully_held_out".
      metric: "acc_rank", "em", "rougeL", ... (names of `metrics.METRICS`).
      aggregate_as: the task that this one is a sub-task or another benchmark's version of; None
        means the task itself.
      shots: the numbers of demonstrations it is evaluated with.
      protocol: how it is asked and scored.
      prompts: "pooled" averages over all (example, prompt) pairs at once, "crossed" per prompt and
        then over prompts (paper section 4.1: validation pools, the test sets cross).
    """

    task: str
    benchmark: str
    category: str
    level: str
    metric: str
    aggregate_as: str | None = None
    shots: tuple[int, ...] = (0,)
    protocol: Protocol = dataclasses.field(default_factory=Protocol)
    prompts: Literal["pooled", "crossed"] = "pooled"

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "TaskInfo":
        own = {"shots": tuple(value["shots"]), "protocol": Protocol(**value["protocol"])}
        return cls(**(value | own))


@dataclasses.dataclass(frozen=True)
class Candidate:
    """The score components of one candidate; log-probabilities are natural logs.

    Attributes:
      n_chars, n_bytes: length of what is scored (under partial scoring the text that follows it)
        without outer whitespace, bytes in UTF-8.
      logprob_eos_after: log p(eos | prompt, candidate).
      uncond_logprob: sum over the candidate's tokens after the context "Answer:" alone.
      is_greedy: every token of the candidate was the model's first choice.
      n_prompt_tokens_dropped: tokens of the full prompt that did not fit.

    None is what is not known of answers that were made elsewhere.
    """

    text: str
    sum_logprob: float
    n_tokens: int | None
    n_chars: int
    n_bytes: int
    logprob_eos_after: float | None
    uncond_logprob: float | None
    is_greedy: bool | None
    n_prompt_tokens_dropped: int = 0


# Score rules: arithmetic on the stored components, higher is better.
RULES: dict[str, Callable[[Candidate], float]] = {
    "sum": lambda c: c.sum_logprob,
    "mean": lambda c: c.sum_logprob / c.n_tokens,
    "chars": lambda c: c.sum_logprob / max(1, c.n_chars),
    "bytes": lambda c: c.sum_logprob / max(1, c.n_bytes),
    "unconditional": lambda c: c.sum_logprob - c.uncond_logprob,
    "sum_eos": lambda c: c.sum_logprob + c.logprob_eos_after,
}


@dataclasses.dataclass(frozen=True)
class Record:
    """One evaluated (example, prompt) pair.

    Attributes:
      cluster: the underlying source example, whatever the task; records that share it are
        resampled together.
      group: records of one group and prompt count as one where the metric says so; "": the cluster.
      score: the task's metric of this instance, in [0, 1].
      prediction: the chosen candidate or the generated text.
      demonstration_ids: example ids of the demonstrations that the model saw, in order.
      n_prompt_tokens: prompt tokens the model saw, without the leading token.
      n_prompt_tokens_dropped: tokens of the full prompt that it did not see.
      candidates, correct: of rank classification; `correct` indexes `candidates`.
      unlisted: the last candidate is none that the prompt offered, but an answer made elsewhere
        that names none of them.
      tied: another candidate scored as high as the prediction.
      n_new_tokens, finished: of generation; `finished` means that it ended with eos or a stop.
      samples: the texts of self-consistency, of which `prediction` stands for the majority.
      boundary_repaired: prompt and candidates were cut where their joint ids allowed it, not at the
        end of the prompt.
      prompt: key of the prompt's text (`prompt_key`) in the file of prompts; "": not stored.
      options: of the example where it was answered freely; else `candidates` holds them.
      overlap: whether the training data holds an n-gram of its content (`optiml audit`); None: the
        task was not audited.
      raw: the generated text before it was cut at a stop string; "": it was not cut.
    """

    example_id: str
    prompt_id: str
    cluster: str
    references: tuple[str, ...]
    prediction: str
    score: float
    demonstration_ids: tuple[str, ...] = ()
    n_prompt_tokens: int = 0
    n_prompt_tokens_dropped: int = 0
    candidates: tuple[Candidate, ...] = ()
    correct: tuple[int, ...] = ()
    tied: bool = False
    n_new_tokens: int = 0
    finished: bool = False
    samples: tuple[str, ...] = ()
    boundary_repaired: bool = False
    group: str = ""
    prompt: str = ""
    options: tuple[str, ...] = ()
    raw: str = ""
    overlap: bool | None = None
    unlisted: bool = False

    @property
    def offered(self) -> tuple[Candidate, ...]:
        """The candidates without an answer that names none of them."""
        return self.candidates[:-1] if self.unlisted else self.candidates

    @property
    def names_none(self) -> bool:
        """Whether the prediction is an answer that names none of the candidates."""
        return self.unlisted and self.prediction == self.candidates[-1].text

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Record":
        value = dict(value)
        value["candidates"] = tuple(Candidate(**c) for c in value["candidates"])
        for name in ("references", "demonstration_ids", "correct", "samples", "options"):
            value[name] = tuple(value.get(name, ()))
        return cls(**value)


def prompt_key(text: str) -> str:
    """Names a prompt's text in the records."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


def choose(candidates: Sequence[Candidate], rule: str) -> tuple[int, bool]:
    """Index of the first best candidate under `rule`, and whether another one equals it."""
    try:
        scores = [RULES[rule](c) for c in candidates]
    except TypeError as e:
        raise UserError(
            f"score rule {rule!r} needs more than these answers tell of candidate "
            f"{candidates[0].text!r}: give them uncond_logprobs, eos_logprobs or n_tokens"
        ) from e
    if any(math.isnan(s) for s in scores):
        raise ValueError(f"a candidate's score is not a number: {candidates}")
    best = scores.index(max(scores))
    return best, scores.count(scores[best]) > 1


def rescore(record: Record, rule: str) -> Record:
    """The record as it would be under another score rule; generated answers stay as they are."""
    if not record.candidates:
        return record
    best, tied = choose(record.candidates, rule)
    return dataclasses.replace(
        record,
        prediction=record.candidates[best].text,
        score=float(best in record.correct),
        tied=tied,
    )


def _checksum(lines: Sequence[str], summary: dict[str, Any]) -> str:
    """Of everything in a file of records."""
    return fingerprint([zlib.crc32("\n".join(lines).encode("utf-8")), len(lines), summary])


def _plain(protocol: Protocol) -> dict[str, Any]:
    """As JSON gives it back."""
    return json.loads(json.dumps(dataclasses.asdict(protocol)))


class RunFolder:
    """The folder of one evaluation; see the top of this file."""

    def __init__(self, path: str | pathlib.Path):
        self.path = path_of(path)

    def open(self, run: dict[str, Any], infos: Sequence[TaskInfo]) -> None:
        """Starts or continues an evaluation: writes tasks.json.

        Tasks and numbers of shots of earlier calls stay, so that suites may be evaluated one after
        the other.

        Args:
          run: settings that must not change between start and continuation (JSON-able).

        Raises:
          UserError: the folder holds records that were made with other settings.
        """
        file = self.path / "tasks.json"
        run = json.loads(json.dumps(run))
        tasks = {info.task: info for info in infos}
        if file.exists():
            old, known = self.load()
            for info in known:
                shots = {*info.shots, *tasks.get(info.task, info).shots}
                tasks[info.task] = dataclasses.replace(
                    tasks.get(info.task, info), shots=tuple(sorted(shots))
                )
            asked = dict.fromkeys(old) | run
            refuse_changes(
                f"the evaluation in {self.path}",
                *({GIN_NAMES.get(k, k): settings.get(k) for k in asked} for settings in (old, run)),
                "restore them, choose another Evaluate.name, or delete that folder",
            )
        rows = [dataclasses.asdict(info) for info in tasks.values()]
        write_sealed(file, {"run": run, "tasks": rows})

    def load(self) -> tuple[dict[str, Any], list[TaskInfo]]:
        """The settings of the run and its tasks."""
        mend = f"remove {self.path} and evaluate again"
        value = read_sealed(self.path / "tasks.json", "an evaluation (tasks.json)", mend)
        try:
            return value["run"], [TaskInfo.from_json(task) for task in value["tasks"]]
        except (KeyError, TypeError) as e:
            raise UserError(
                f"{self.path} holds an evaluation of another version of this program ({e!r}); "
                "delete it and evaluate again"
            ) from e

    def _file(self, task: str, shots: int, suffix: str) -> pathlib.Path:
        return self.path / "records" / f"{seqio_name(task)}.{shots}shot.{suffix}"

    def write(
        self,
        task: str,
        shots: int,
        records: Sequence[Record],
        summary: dict[str, Any],
        prompts: Mapping[str, str] | None = None,
    ) -> None:
        """Writes a finished task; the summary becomes the last line of its file.

        Args:
          prompts: the texts of the records' prompts by their keys.
        """
        if prompts:
            texts = self._file(task, shots, "prompts.jsonl.gz")
            with disk_errors(texts, f"the prompts of task {task}"), atomic_path(texts) as temporary:
                rows = ({"prompt": key, "text": text} for key, text in prompts.items())
                lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
                # Demonstrations recur in them. No time stamp: equal prompts are equal bytes.
                packed = gzip.compress("".join(lines).encode("utf-8"), compresslevel=6, mtime=0)
                temporary.write_bytes(packed)
        file = self._file(task, shots, "jsonl")
        lines = [r.to_json() for r in records]
        last = {"summary": summary, "checksum": _checksum(lines, summary)}
        lines.append(json.dumps(last, ensure_ascii=False))
        with disk_errors(file, f"the records of task {task}"), atomic_path(file) as temporary:
            temporary.write_text("\n".join(lines) + "\n", "utf-8")
        self._file(task, shots, "failed.json").unlink(missing_ok=True)

    def fail(self, task: str, shots: int, reason: str) -> None:
        """Writes down why a task gave no records; older ones of it do not count, see `recover`."""
        write_json(self._file(task, shots, "failed.json"), {"task": task, "reason": reason})

    def forget(self, task: str, shots: int) -> None:
        """Removes what is known of a task, so that it is evaluated again."""
        for suffix in ("jsonl", "failed.json"):
            self._file(task, shots, suffix).unlink(missing_ok=True)

    def has_records(self, task: str, shots: int) -> bool:
        """Whether there are records, which count or not (`status`)."""
        return self._file(task, shots, "jsonl").exists()

    def recover(self, info: TaskInfo, shots: int, changed: Changed) -> bool:
        """Whether records that a later failure made void are again those of the task.

        They then count, and the failure is forgotten.
        """
        found = self._of_records(info, shots, changed)[0] == "done"
        if found:
            self._file(info.task, shots, "failed.json").unlink(missing_ok=True)
        return found

    def status(
        self, info: TaskInfo, shots: int, changed: Changed = lambda summary: ""
    ) -> tuple[Status, str]:
        """Whether the task is done, failed or missing, and the reason where it is not done.

        Args:
          changed: says of a summary why its records do not count; "": they do.
        """
        failure = self._file(info.task, shots, "failed.json")
        if failure.exists():
            try:
                reason = read_json(failure, "a failed task's reason", dict)["reason"]
            except (UserError, KeyError):  # damaged: it is evaluated again all the same
                reason = f"for a reason that {failure} no longer tells"
            return "failed", str(reason)
        return self._of_records(info, shots, changed)

    def _of_records(self, info: TaskInfo, shots: int, changed: Changed) -> tuple[Status, str]:
        """`status`, whatever failed later."""
        if not self.has_records(info.task, shots):
            return "missing", "not evaluated yet"
        try:
            summary = self.summary(info.task, shots)
        except UserError as e:
            return "missing", str(e)
        if summary["metric"] != info.metric:
            return "missing", f"evaluated with metric {summary['metric']}, not {info.metric}"
        # What a summary does not name was at its default; another rule needs no model.
        wanted, made = (_plain(p) for p in (info.protocol, Protocol()))
        made |= summary.get("protocol", {}) | {"rule": info.protocol.rule}
        other = [name for name in wanted if wanted[name] != made[name]]
        if other:
            return "missing", f"evaluated with another {other[0]}"
        reason = changed(summary)
        return ("missing", reason) if reason else ("done", "")

    def summary(self, task: str, shots: int) -> dict[str, Any]:
        """The summary of a finished task."""
        return self.read(task, shots)[1]

    def read(self, task: str, shots: int) -> tuple[list[Record], dict[str, Any]]:
        """The records of a finished task, in order, and its summary."""
        file = self._file(task, shots, "jsonl")
        try:
            # Not splitlines: an answer may hold U+2028 and its kin.
            *lines, last = regular_file(file).read_text("utf-8").removesuffix("\n").split("\n")
            last = json.loads(last)
            summary, checksum = last.pop("summary"), last.pop("checksum")
            if last or checksum != _checksum(lines, summary):
                raise ValueError("it is not as it was written")
            records = [Record.from_json(json.loads(line)) for line in lines]
        except FileNotFoundError as e:
            raise UserError(f"no records of task {task} at {shots} shots: {file}") from e
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as e:
            raise UserError(f"{file} is damaged ({e}); run `optiml evaluate` again") from e
        return records, summary

    def restamp(self, task: str, shots: int, source: Mapping[str, Any]) -> None:
        """Replaces what a finished task's summary says of where its examples come from."""
        records, summary = self.read(task, shots)
        self.write(task, shots, records, {**summary, "source": source})

    def prompts(self, task: str, shots: int) -> dict[str, str]:
        """The texts of the prompts of a finished task by their keys; {}: they were not stored."""
        file = self._file(task, shots, "prompts.jsonl.gz")
        try:
            text = gzip.decompress(regular_file(file).read_bytes()).decode("utf-8")
            rows = [json.loads(line) for line in text.split("\n") if line]
            return {row["prompt"]: row["text"] for row in rows}
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError, TypeError, OSError, EOFError, zlib.error) as e:
            raise UserError(f"{file} is damaged ({e!r}); delete it to do without prompts") from e
