"""Reader of BIG-Bench Hard: 27 files of problems, each with three demonstrations of its own.

The root is a clone: `bbh/<task>.json` holds `examples` of `input` and `target`,
`cot-prompts/<task>.txt` a description and demonstrations with their reasoning, below a notice (with
a canary) that never becomes part of a prompt. There are two ways to ask, each a benchmark: `bbh`
shows the answers alone, as upstream's answer-only prompts do, `bbh_cot` (and `bbh_cot_sc`, with
self-consistency) the reasoning too.
"""

import functools
import os
import re
from collections.abc import Iterator

from optiml_jax.data.example import Drops, TaskSource
from optiml_jax.errors import UserError
from optiml_jax.evaluate.answers import bbh_answer
from optiml_jax.files import read_text
from tasks.files.text_files import data_folder, json_items
from tasks.files.values import text_of
from tasks.splits import Manifest
from tasks.suites.suite import Prompt, Record, Suite

UPSTREAM = "https://github.com/suzgunmirac/BIG-Bench-Hard"
READER_VERSION = 1  # raise it when the same file gives other Examples

_NOTICE = re.compile(r"\A.*canary.*\n-+\n")
_ANSWER = "\nA:"
_TRIGGER = " Let's think step by step."
_LISTED = re.compile(r"^(\([A-Z]\)) ", re.MULTILINE)


def find_tasks(
    root: str | os.PathLike, manifest: Manifest, benchmark: str = "bbh"
) -> list[TaskSource]:
    """The tasks of a clone, sorted by name; opens no file.

    Raises:
      UserError: the folder is missing, has no problems, or lacks the prompts of some.
    """
    folder = data_folder(root, benchmark, f"give a clone of {UPSTREAM}")
    files = sorted((folder / "bbh").glob("*.json"))
    if not files:
        raise UserError(f"no bbh/*.json of benchmark {benchmark!r} in {folder}; clone {UPSTREAM}")
    prompts = {path.stem: folder / "cot-prompts" / f"{path.stem}.txt" for path in files}
    if missing := [str(path) for path in prompts.values() if not path.is_file()]:
        raise UserError(f"{len(missing)} prompt files of {UPSTREAM} missing, first: {missing[0]}")
    chain_of_thought = "_cot" in benchmark
    sources = []
    for path in files:
        name, prompt = f"{benchmark}/{path.stem}", str(prompts[path.stem])
        suite = Suite(
            name=name,
            category=manifest.lookup(name, None).category or "BBH",
            style="chain of thought" if chain_of_thought else "direct",
            records=functools.partial(_records, str(path)),
            prompt=functools.partial(read_prompt, prompt, chain_of_thought),
        )
        sources.append(suite.source((str(path), prompt), READER_VERSION))
    return sources


def _records(path: str, drops: Drops) -> Iterator[Record]:
    for item in json_items(path, drops, key="examples"):
        question, answer = item.get("input"), item.get("target")
        question, answer = text_of(question), text_of(answer)
        if question is None or answer is None:
            drops["malformed record"] += 1
            continue
        listed = _LISTED.findall(question)
        if listed and answer not in listed:  # three of upstream, whose options have commas
            drops["warning: target is none of the options"] += 1
        yield Record(question, answer)


def read_prompt(path: str, chain_of_thought: bool) -> Prompt:
    """The prompt of a file, without its notice.

    Answer-only demonstrations end with what the reasoning calls the answer.

    Raises:
      UserError: it is no description followed by demonstrations with reasoning and answer.
    """
    text = _NOTICE.sub("", read_text(path))
    instruction, *demonstrations = text.split("\n\nQ: ")
    parts = [d.partition(_ANSWER + _TRIGGER) for d in demonstrations]
    answers = [bbh_answer(reasoning) for _, _, reasoning in parts]
    if not answers or not all(answers):
        raise UserError(
            f"{path} is not a whole prompt (a description, then `Q:`, `A:{_TRIGGER}` and `So the "
            "answer is` of each demonstration); download it again"
        )
    if chain_of_thought:
        pairs = [(f"Q: {asked}{cue}", reasoning) for asked, cue, reasoning in parts]
        return Prompt(instruction, "Q: ", _ANSWER + _TRIGGER, tuple(pairs))
    pairs = [
        (f"Q: {asked}{_ANSWER}", f" {answer}")
        for (asked, _, _), answer in zip(parts, answers, strict=True)
    ]
    return Prompt(instruction, "Q: ", _ANSWER, tuple(pairs))
