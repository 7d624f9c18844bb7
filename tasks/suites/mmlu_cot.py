"""Reader of MMLU asked for reasoning, with the demonstrations of Chung et al. (2022).

The root has MMLU's test files (`tasks/suites/mmlu.py`) and `mmlu-cot.json`, subject -> a prompt: an
instruction, then five demonstrations whose options lie in one line and whose reasoning ends with
"The answer is (B).". `mmlu_cot` is answered once, `mmlu_cot_sc` with self-consistency.
"""

import functools
import json
import os
from collections.abc import Iterator

from optiml_jax.data.example import Drops, TaskSource
from optiml_jax.errors import UserError
from optiml_jax.evaluate.answers import letter_answer
from optiml_jax.files import read_text
from tasks.splits import Manifest
from tasks.suites import mmlu
from tasks.suites.suite import Prompt, Record, Suite

UPSTREAM = "https://github.com/FranxYao/chain-of-thought-hub (MMLU/lib_prompt/mmlu-cot.json)"
READER_VERSION = 1  # raise it when the same files give other Examples

_FILE = "mmlu-cot.json"
_CUE = "\nA: Let's think step by step."


def find_tasks(
    root: str | os.PathLike, manifest: Manifest, benchmark: str = "mmlu_cot"
) -> list[TaskSource]:
    """The tasks of a folder, sorted by name. Opens no file.

    Raises:
      UserError: there are no subjects, or no file of prompts.
    """
    prompts = os.path.join(root, _FILE)
    subjects = mmlu.subject_files(root, benchmark, "test")
    if not os.path.isfile(prompts):
        raise UserError(f"no {_FILE} of benchmark {benchmark!r} in {root}; it is in {UPSTREAM}")
    sources = []
    for subject, path in subjects.items():
        name = f"{benchmark}/{subject}"
        suite = Suite(
            name=name,
            category=manifest.lookup(name, None).category or "MMLU (chain of thought)",
            style="chain of thought",
            records=functools.partial(_records, str(path)),
            prompt=functools.partial(read_prompt, prompts, subject),
        )
        sources.append(suite.source((str(path), prompts), READER_VERSION))
    return sources


def _records(path: str, drops: Drops) -> Iterator[Record]:
    for row in mmlu.rows(path):
        answers = zip(mmlu.LETTERS, row.answers, strict=True)
        options = " ".join(f"({letter}) {answer.strip()}" for letter, answer in answers)
        yield Record(f"{row.question.strip()}\n{options}", row.letter, cluster=row.identity)


def read_prompt(path: str, subject: str) -> Prompt:
    """The prompt of a subject.

    Raises:
      UserError: the file has none, or not in upstream's form.
    """
    try:
        text = json.loads(read_text(path))[subject]
        instruction, *demonstrations = text.strip().split("\n\nQ: ")
        parts = [d.partition(_CUE) for d in demonstrations]
        whole = bool(parts) and all(letter_answer(reasoning) for _, _, reasoning in parts)
    except (KeyError, TypeError, AttributeError, ValueError) as e:
        raise UserError(f"{path} has no prompt of {subject!r} ({e!r}); download it again") from e
    if not whole:
        raise UserError(
            f"{path}: the prompt of {subject!r} is not an instruction and demonstrations with "
            "`Q:`, `A: Let's think step by step.` and `The answer is`; download it again"
        )
    pairs = tuple((f"Q: {asked}{cue}", reasoning) for asked, cue, reasoning in parts)
    return Prompt(instruction, "Q: ", _CUE, pairs)
