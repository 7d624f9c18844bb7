"""Reader of MGSM: grade-school mathematics in eleven languages, asked in the language itself.

The root is the folder `mgsm` of a clone, or the clone: `mgsm_<language>.tsv` (question, answer),
and `exemplars.py`, or its constants as `exemplars.json`. The exemplars carry the words for
"Question:" and "Step-by-Step Answer:" of their language; questions get those of the first exemplar.
Rows of one number are one problem in all languages, that of GSM8K's test part.

`mgsm` (and `mgsm_sc`, with self-consistency) shows the reasoning of the exemplars, `mgsm_direct`
only the number at its end, after a word for "Answer:" that is not in upstream's files.
"""

import ast
import functools
import json
import os
import re
from collections.abc import Iterator
from typing import Any

from optiml_jax.data.example import Drops, TaskSource
from optiml_jax.errors import UserError
from optiml_jax.evaluate.answers import number_answer
from optiml_jax.files import read_text
from tasks.files.text_files import data_folder, tsv_rows
from tasks.splits import Manifest
from tasks.suites.suite import Prompt, Record, Suite

UPSTREAM = "https://github.com/google-research/url-nlp (mgsm)"
READER_VERSION = 2  # raise it when the same file gives other Examples

_CONSTANT = "MGSM_EXEMPLARS"
_LABEL = r"[^:：\n]+[:：]"
_COLON = r"\s*[:：]$"
_ANSWER = {
    "bn": "উত্তর",
    "de": "Antwort",
    "en": "Answer",
    "es": "Respuesta",
    "fr": "Réponse",
    "ja": "答え",
    "ru": "Ответ",
    "sw": "Jibu",
    "te": "సమాధానం",
    "th": "คำตอบ",
    "zh": "解答",
}


def find_tasks(
    root: str | os.PathLike, manifest: Manifest, benchmark: str = "mgsm"
) -> list[TaskSource]:
    """One task per language, sorted by name; opens no file.

    Raises:
      UserError: the folder is missing, or has no problems or no exemplars.
    """
    folder = data_folder(root, benchmark, f"give the folder of {UPSTREAM}")
    folder = folder / "mgsm" if (folder / "mgsm").is_dir() else folder
    files = sorted(folder.glob("mgsm_*.tsv"))
    found = [p for p in (folder / "exemplars.py", folder / "exemplars.json") if p.is_file()]
    if not files or not found:
        what = "mgsm_<language>.tsv" if not files else "exemplars.py"
        raise UserError(f"no {what} of benchmark {benchmark!r} in {folder}; clone {UPSTREAM}")
    exemplars, sources = str(found[0]), []
    direct = benchmark.endswith("_direct")
    for path in files:
        language = path.stem.removeprefix("mgsm_")
        name = f"{benchmark}/{language}"
        suite = Suite(
            name=name,
            category=manifest.lookup(name, None).category or "MGSM",
            style="direct" if direct else "chain of thought",
            records=functools.partial(_records, str(path)),
            prompt=functools.partial(read_prompt, exemplars, language, direct),
        )
        sources.append(suite.source((str(path), exemplars), READER_VERSION))
    return sources


def _records(path: str, drops: Drops) -> Iterator[Record]:
    for number, (question, answer) in tsv_rows(path, (2,), drops):
        yield Record(question, answer, cluster=f"gsm8k test {number}")


def read_prompt(path: str, language: str, direct: bool = False) -> Prompt:
    """The exemplars of a language; `direct`: with their numbers alone.

    Raises:
      UserError: the file holds none of that language, or not in upstream's form.
    """
    try:
        exemplars = _constant(path)[language]
        pairs = [(exemplars[key]["q"], exemplars[key]["a"]) for key in sorted(exemplars, key=int)]
        asked = re.match(rf"{_LABEL}\s*", pairs[0][0])[0]
        labels = [re.match(_LABEL, a)[0] for _, a in pairs]
        answers = [a.removeprefix(label) for (_, a), label in zip(pairs, labels, strict=True)]
        if direct:
            labels = [_ANSWER[language] + re.search(_COLON, label)[0] for label in labels]
            answers = [" " + number_answer(answer) for answer in answers]
    except (KeyError, IndexError, TypeError, ValueError, SyntaxError) as e:
        raise UserError(
            f"{path} has no {_CONSTANT}[{language!r}] with texts `q` and `a` that begin with a "
            f"label and a colon ({e!r}); download it again"
        ) from e
    return Prompt(
        instruction="",
        before=asked,
        after=f"\n{labels[0]}",
        demonstrations=tuple(
            (f"{q}\n{label}", answer)
            for (q, _), label, answer in zip(pairs, labels, answers, strict=True)
        ),
    )


def _constant(path: str) -> dict[str, Any]:
    """The exemplars of all languages; Python is parsed, not executed."""
    text = read_text(path)
    if path.endswith(".json"):
        return json.loads(text)[_CONSTANT]
    values = {
        target.id: node.value
        for node in ast.parse(text).body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    return ast.literal_eval(values[_CONSTANT])
