"""Reader of GSM8K and SVAMP: arithmetic word problems in English, with reasoning.

The root holds clones of both, or is one of them: `grade_school_math/data/{train,test}.jsonl` and
`SVAMP.json`. The first training problems of GSM8K are the demonstrations of both (SVAMP has no
solutions in words), with the notes of the calculator, `<<48/2=24>>`, taken out of their solutions.
"""

import functools
import itertools
import os
import re
from collections.abc import Iterator

from optiml_jax.data.example import Drops, TaskSource
from optiml_jax.errors import UserError
from tasks.files.text_files import data_folder, json_items, json_records
from tasks.files.values import text_of
from tasks.splits import Manifest
from tasks.suites.suite import Prompt, Record, Suite

UPSTREAM = "https://github.com/openai/grade-school-math or https://github.com/arkilpatel/SVAMP"
READER_VERSION = 2  # raise it when the same file gives other Examples
NUM_DEMONSTRATIONS = 100

_BEFORE, _AFTER = "Question: ", "\nAnswer:"
_FILES = {"gsm8k": "grade_school_math/data/test.jsonl", "svamp": "SVAMP.json"}
_TRAIN = "grade_school_math/data/train.jsonl"


def find_tasks(
    root: str | os.PathLike, manifest: Manifest, benchmark: str = "word_problems"
) -> list[TaskSource]:
    """The tasks `gsm8k` and `svamp`, as far as they are there; opens no file.

    Without GSM8K's training problems there are no demonstrations.

    Raises:
      UserError: the folder is missing or has neither.
    """
    folder = data_folder(root, benchmark, f"give a folder with clones of {UPSTREAM}")

    def find(place: str) -> list[str]:
        return sorted(map(str, (*folder.glob(place), *folder.glob(f"*/{place}"))))[:1]

    shown, sources = find(_TRAIN), []
    for task, place in _FILES.items():
        name = f"{benchmark}/{task}"
        for path in find(place):
            suite = Suite(
                name=name,
                category=manifest.lookup(name, None).category or "Mathematics",
                style="chain of thought",
                records=functools.partial(_RECORDS[task], path),
                prompt=functools.partial(_prompt, *shown),
            )
            sources.append(suite.source((path, *shown), READER_VERSION))
    if not sources:
        places = " or ".join(_FILES.values())
        raise UserError(f"no {places} of benchmark {benchmark!r} in {folder}; clone {UPSTREAM}")
    return sources


def _gsm8k(path: str, drops: Drops) -> Iterator[Record]:
    for number, question, solution in _solved(path, drops):
        answer = solution.rpartition("####")[2].strip()
        yield Record(question, answer, cluster=f"gsm8k test {number}")


def _svamp(path: str, drops: Drops) -> Iterator[Record]:
    for item in json_items(path, drops):
        body, question, answer = (item.get(key) for key in ("Body", "Question", "Answer"))
        texts = [text_of(value) for value in (body, question, answer)]
        if None in texts:
            drops["malformed record"] += 1
        else:
            body, question, answer = texts
            yield Record(f"{body.strip()} {question.strip()}", answer)


_RECORDS = {"gsm8k": _gsm8k, "svamp": _svamp}


def _prompt(train: str | None = None) -> Prompt:
    solved = itertools.islice(_solved(train, Drops()), NUM_DEMONSTRATIONS) if train else ()
    pairs = tuple(
        (_BEFORE + question.strip() + _AFTER, f" {re.sub('<<[^<>]*>>', '', solution).strip()}")
        for _, question, solution in solved
    )
    return Prompt("", _BEFORE, _AFTER, pairs)


def _solved(path: str, drops: Drops) -> Iterator[tuple[int, str, str]]:
    """Number, question and solution of the problems of GSM8K."""
    for number, item in json_records(path, drops):
        question, solution = item.get("question"), item.get("answer")
        if isinstance(question, str) and isinstance(solution, str) and "####" in solution:
            yield number, question, solution
        else:
            drops["malformed record"] += 1
