"""Answers that were made elsewhere, read from files.

Three forms of a line of JSON are known by their fields:

    {"id": ..., "text": ...}  {"id": ..., "texts": [...]}  {"id": ..., "logprobs": [...], ...}
    {"custom_id": ..., "response": {"body": {"choices": [...]}}}        OpenAI's batch output
    {"doc": {"id": ...}, "filtered_resps": [...], ...}                  lm-eval --log_samples
"""

import collections
import dataclasses
import glob
import hashlib
import json
import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from optiml_jax.errors import UserError
from optiml_jax.files import JSONDecoder, regular_file


@dataclasses.dataclass(frozen=True)
class StoredAnswer:
    """The answer to one request: texts, or a log-probability for every candidate.

    Attributes:
      texts: the answer, or the samples of self-consistency.
      logprobs: natural log of the probability of each candidate's text after the prompt.
      uncond_logprobs: the same after "Answer:" alone; () if it is not known, as the two below.
      eos_logprobs: of the end of text after each candidate.
      n_tokens: of each candidate.
      is_greedy: whether every token of the candidate was the model's first choice.
      failure: why there is no answer.
    """

    texts: tuple[str, ...] = ()
    logprobs: tuple[float, ...] = ()
    uncond_logprobs: tuple[float, ...] = ()
    eos_logprobs: tuple[float, ...] = ()
    n_tokens: tuple[int, ...] = ()
    is_greedy: tuple[bool, ...] = ()
    failure: str = ""


COMPONENTS = ("logprobs", "uncond_logprobs", "eos_logprobs", "n_tokens", "is_greedy")


@dataclasses.dataclass(frozen=True)
class AnswerFiles:
    """All answers of some files.

    Attributes:
      paths: the files.
      sha256: of their bytes.
      answers: by request id; where an id is there twice, the first that did not fail.
      doubles: ids that are there more than once -> whether two that did not fail differ.
    """

    paths: tuple[str, ...]
    sha256: str
    answers: dict[str, StoredAnswer]
    doubles: dict[str, bool]


def find_files(place: str) -> list[pathlib.Path]:
    """The files that a path means: a file, a glob, or all `*.jsonl` of a folder and those below it.

    In a folder of lm-evaluation-harness these are the newest `samples_*` of each task.

    Raises:
      UserError: there are none.
    """
    path = pathlib.Path(place)
    found = path.rglob("*.jsonl") if path.is_dir() else map(pathlib.Path, glob.glob(place))
    found = sorted(p for p in found if p.is_file())
    if not found:
        raise UserError(f"no answers at {place}: give a JSONL file, a folder of such, or a glob")
    newest: dict[tuple[pathlib.Path, str], pathlib.Path] = {}
    for file in found:  # samples_<task>_<time>.jsonl, times sort as texts
        stem = file.stem.rpartition("_")[0] if file.stem.startswith("samples_") else file.stem
        newest[file.parent, stem] = file
    return sorted(newest.values())


def model_name(files: AnswerFiles) -> str:
    """A name for whose answers these are: the folder of lm-evaluation-harness, else of the file."""
    first = pathlib.Path(files.paths[0]).absolute()
    return first.parent.name if len(files.paths) > 1 else first.stem


def read_answers(places: Sequence[str]) -> AnswerFiles:
    """Reads all answers.

    Raises:
      UserError: no file, or a line that is none of the known forms; names file and line.
    """
    files = [file for place in places for file in find_files(place)]
    digest, answers = hashlib.sha256(), {}
    doubles: dict[str, bool] = collections.defaultdict(bool)
    for file in files:
        for request_id, answer in _read(file, digest):
            known = answers.setdefault(request_id, answer)
            if known is not answer:
                failed = bool(known.failure or answer.failure)
                doubles[request_id] |= known != answer and not failed
                if known.failure and not answer.failure:  # asked again, and answered
                    answers[request_id] = answer
    return AnswerFiles(tuple(map(str, files)), digest.hexdigest(), answers, dict(doubles))


def _read(file: pathlib.Path, digest: Any) -> Iterator[tuple[str, StoredAnswer]]:
    with regular_file(file).open("rb") as lines:
        for number, line in enumerate(lines, 1):
            digest.update(line)
            if not line.strip():
                continue
            try:
                yield _parse(json.loads(line, cls=JSONDecoder))
            except (ValueError, KeyError, TypeError, IndexError, AttributeError) as e:
                raise UserError(
                    f"{file}, line {number}: no answer in a form that is known ({e!r}); "
                    "docs/exchange.md describes them"
                ) from e


def _parse(row: dict[str, Any]) -> tuple[str, StoredAnswer]:
    if "filtered_resps" in row:
        return row["doc"]["id"], _from_harness(row)
    if "custom_id" in row:
        return row["custom_id"], _from_openai(row)
    request_id = row["id"]
    if not isinstance(request_id, str):
        raise TypeError("id is not a string")
    if "logprobs" in row:
        values = {name: tuple(row[name]) for name in COMPONENTS if row.get(name) is not None}
        return request_id, _checked(StoredAnswer(**values))
    texts = row["texts"] if "texts" in row else [row["text"]]
    return request_id, _checked(StoredAnswer(texts=tuple(texts)))


def _from_openai(row: dict[str, Any]) -> StoredAnswer:
    response = row.get("response") or {}
    if row.get("error") or response.get("status_code", 200) != 200:
        return StoredAnswer(failure=str(row.get("error") or response.get("body"))[:200])
    choices = response["body"]["choices"]
    texts = [c["message"]["content"] if "message" in c else c["text"] for c in choices]
    return _checked(StoredAnswer(texts=tuple(text or "" for text in texts)))


def _from_harness(row: dict[str, Any]) -> StoredAnswer:
    responses = row["filtered_resps"]
    if "candidates" not in row["doc"]:
        first = responses[0]
        return _checked(StoredAnswer(texts=tuple(first if isinstance(first, list) else [first])))
    logprobs = tuple(float(pair[0]) for pair in responses)
    n = len(row["doc"]["candidates"])
    return _checked(
        StoredAnswer(
            logprobs=logprobs[:n],
            uncond_logprobs=logprobs[n:],
            is_greedy=tuple(str(pair[1]) == "True" for pair in responses[:n]),
        )
    )


def _checked(answer: StoredAnswer) -> StoredAnswer:
    if not answer.texts and not answer.logprobs:
        raise ValueError("neither texts nor logprobs")
    if not all(isinstance(text, str) for text in answer.texts):
        raise TypeError("a text is not a string")
    if any(math.isnan(x) for x in answer.logprobs):
        raise ValueError("a log-probability is not a number")
    return answer
