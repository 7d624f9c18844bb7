"""Chain-of-thought data in the form of the data sets' own releases.

For each set the files of its splits, and a function that streams (question, answer, rationale)
from them. What becomes of these texts is the reader's (`reader.py`). Texts are taken as they
stand: LaTeX's backslashes are no escapes here.
"""

import dataclasses
import logging
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from optiml_jax.data.example import Drops
from optiml_jax.files import read_json
from tasks.files.text_files import json_items, json_records
from tasks.files.values import as_text, text_of

logger = logging.getLogger(__name__)


class Record(NamedTuple):
    """One problem, its short answer, and the reasoning that leads to it."""

    question: str
    answer: str
    rationale: str


Files = tuple[tuple[str, ...], ...]  # for each pattern of a split, the files that match


@dataclasses.dataclass(frozen=True)
class Release:
    """The form of one data set.

    Attributes:
      source: where it comes from.
      patterns: "train", "test" -> globs below the set's folder; each must match.
      records: streams the records of a split; malformed ones are counted.
    """

    source: str
    patterns: dict[str, tuple[str, ...]]
    records: Callable[[Files, Drops], Iterator[Record]]

    def files(self, folder: pathlib.Path, split: str) -> Files | None:
        """The files of a split; None when some are not there."""
        patterns = self.patterns.get(split, ())
        found = tuple(tuple(sorted(map(str, folder.glob(pattern)))) for pattern in patterns)
        if any(found) and not all(found):
            lacking = [p for p, files in zip(patterns, found, strict=True) if not files]
            logger.warning("%s: split %r is left out: no %s", folder, split, ", ".join(lacking))
        return found if found and all(found) else None


def _math(files: Files, drops: Drops) -> Iterator[Record]:
    """`train/<subject>/<number>.json`, each one problem; the answer is in the last \\boxed{}."""
    for path in files[0]:
        item = read_json(pathlib.Path(path), "a problem of MATH")
        problem, solution = _texts(item, ("problem", "solution"), drops) or ("", "")
        answer = boxed(solution)
        if answer:
            yield Record(problem, answer, solution)
        elif problem:
            drops["no boxed answer"] += 1


def boxed(solution: str) -> str:
    """The content of the last \\boxed{} or \\fbox{} of a solution, or after "\\boxed ", or ""."""
    starts = [*re.finditer(r"\\(?:boxed|fbox)(?: (?=[^ {])|\s*\{)", solution)]
    if not starts:
        return ""
    rest = solution[starts[-1].end() :]
    if not starts[-1][0].endswith("{"):
        return re.split(r"[\s$]", rest, maxsplit=1)[0]
    depth = 1
    for mark in re.finditer(r"\\.|[{}]", rest, re.DOTALL):
        depth += {"{": 1, "}": -1}.get(mark[0], 0)
        if not depth:
            return rest[: mark.start()]
    return ""


def _cos_e(files: Files, drops: Drops) -> Iterator[Record]:
    """Explanations by id (some 10,000, kept in memory) for the questions of CommonsenseQA."""
    explanations: dict[Any, str] = {}
    for path in files[1]:
        for _, item in json_records(path, drops):
            explanation = item.get("explanation")
            if isinstance(explanation, dict):
                explanations[item.get("id")] = explanation.get("open-ended")
    for path in files[0]:
        for _, item in json_records(path, drops):
            explanation = explanations.get(item.get("id"))
            if not isinstance(explanation, str):
                drops["no explanation"] += 1
                continue
            try:
                choices = {c["label"]: as_text(c["text"]) for c in item["question"]["choices"]}
                stem, answer = as_text(item["question"]["stem"]), choices[item["answerKey"]]
            except (KeyError, TypeError):
                drops["malformed record"] += 1
                continue
            yield Record(f"{stem}\n{', '.join(choices.values())}", answer, explanation)


def _coqa(files: Files, drops: Drops) -> Iterator[Record]:
    """A story and a conversation about it: one record per turn, the turns before it shown."""
    for path in files[0]:
        for item in json_items(path, drops, key="data"):
            try:
                turns = [
                    (
                        as_text(question["input_text"]),
                        as_text(answer["input_text"]),
                        as_text(answer["span_text"]),
                    )
                    for question, answer in zip(item["questions"], item["answers"], strict=True)
                ]
                text = as_text(item["story"]) + "\n"
                for question, answer, span in turns:
                    text += f"\nQ: {question}"
                    if span == "unknown":
                        drops["no rationale"] += 1
                    else:
                        yield Record(text, answer, span)
                    text += f"\nA: {answer}"
            except (KeyError, TypeError, ValueError):
                drops["malformed record"] += 1


def _gsm8k(files: Files, drops: Drops) -> Iterator[Record]:
    """Solutions without the calculator's notes, `<<48/2=24>>`; the answer follows `####`.

    In the form of FLAN's file: steps on one line, numbers without thousands separators.
    """
    for path in files[0]:
        for _, item in json_records(path, drops):
            question, solution = _texts(item, ("question", "answer"), drops) or ("", "")
            steps, mark, answer = solution.partition("####")
            if mark:
                lines = re.sub("<<[^<>]*>>", "", steps).strip().split("\n")
                ended = (
                    line if line[-1:] in ".!?" else f"{line}." for line in map(str.strip, lines)
                )
                yield Record(question, answer.strip().replace(",", ""), " ".join(ended))
            elif question:
                drops["malformed record"] += 1


def _proofwriter(files: Files, drops: Drops) -> Iterator[Record]:
    """Theories with statements that a proof shows to be true or false: one record for each.

    Statements that nothing decides have no proof and are left out.
    """
    for path in files[0]:
        for _, item in json_records(path, drops):
            try:
                parts = {k: v["text"] for k, v in {**item["triples"], **item["rules"]}.items()}
                questions = list(item["questions"].values())
            except (KeyError, TypeError, AttributeError):
                drops["malformed record"] += 1
                continue
            for question in questions:
                try:
                    answer, proofs = question["answer"], question.get("proofsWithIntermediates")
                    if not proofs or not isinstance(answer, bool):
                        drops["no proof"] += 1
                        continue
                    yield Record(
                        f"{as_text(item['theory'])}\n{as_text(question['question'])}",
                        str(answer).lower(),
                        _proof(proofs[0], parts),
                    )
                except (KeyError, TypeError, AttributeError):
                    drops["malformed record"] += 1


def _proof(proof: dict[str, Any], parts: dict[str, str]) -> str:
    """A proof in words. "((triple2) -> (rule6 % int1))": the fact, the rule, so the conclusion."""
    conclusions = {k: v["text"] for k, v in dict(proof["intermediates"] or {}).items()}
    steps = []
    for name in re.findall(r"(?:triple|rule|int)\d+", proof["representation"]):
        if name in conclusions:
            steps.append(f"So {re.sub('^The ', 'the ', conclusions[name])}")
        else:
            steps.append(parts[name])
    return " ".join(dict.fromkeys(steps))


def _strategyqa(files: Files, drops: Drops) -> Iterator[Record]:
    for path in files[0]:
        for item in json_items(path, drops):
            question, answer, facts = (item.get(k) for k in ("question", "answer", "facts"))
            whole = isinstance(question, str) and isinstance(answer, bool)
            if whole and isinstance(facts, list) and all(isinstance(f, str) for f in facts):
                yield Record(question, "yes" if answer else "no", " ".join(facts))
            else:
                drops["malformed record"] += 1


def _winowhy(files: Files, drops: Drops) -> Iterator[Record]:
    """The reasons that people gave and others found valid, one record for each."""
    for path in files[0]:
        for item in json_items(path, drops):
            try:
                text, answers = item["text"], item["answers"]
                answer = answers["AB".index(item["correctAnswer"].strip(" ."))]
                first, pronoun, rest = (as_text(text[key]) for key in ("txt1", "pron", "txt2"))
                sentence = f"{first} {pronoun} {rest}"
                question = f'{sentence}\nWhat does "{pronoun.strip()}" refer to?'
                for reason, source, _, verdict in item["reasons"]:
                    if (source, verdict) == ("human", "Valid"):
                        yield Record(f"{question}\n{', '.join(answers)}", answer, reason)
            except (KeyError, TypeError, ValueError, AttributeError):
                drops["malformed record"] += 1


def _aqua(files: Files, drops: Drops) -> Iterator[Record]:
    """Problems with options "A)21", put as FLAN's file has them: "(A) 21", the answer "(A)"."""
    for path in files[0]:
        for _, item in json_records(path, drops):
            question, rationale, correct = _texts(
                item, ("question", "rationale", "correct"), drops
            ) or ("", "", "")
            options = item.get("options")
            found = [re.fullmatch(r"([A-E])\)(.*)", str(o), re.DOTALL) for o in options or ()]
            if question and found and all(found) and correct in {m[1] for m in found}:
                listed = "\n".join(f"({m[1]}) {m[2].strip()}" for m in found)
                yield Record(f"{question}\nOptions:\n{listed}", f"({correct})", rationale)
            elif question:
                drops["malformed record"] += 1


def _creak(files: Files, drops: Drops) -> Iterator[Record]:
    for path in files[0]:
        for _, item in json_records(path, drops):
            sentence, label, explanation = _texts(
                item, ("sentence", "label", "explanation"), drops
            ) or ("", "", "")
            if label in ("true", "false"):
                answer = "yes" if label == "true" else "no"
                yield Record(f"{sentence}\nIs that true?", answer, explanation)
            elif sentence:
                drops["unknown label"] += 1


def _qed(files: Files, drops: Drops) -> Iterator[Record]:
    """Passages with the sentence that answers, and what its words refer to in the question."""
    for path in files[0]:
        for _, item in json_records(path, drops):
            try:
                notes = item["annotation"]
                if notes["explanation_type"] != "single_sentence":
                    drops["no explanation by one sentence"] += 1
                    continue
                steps = [f'The sentence that answers is: "{notes["selected_sentence"]["string"]}".']
                for pair in notes["referential_equalities"]:
                    asked = pair["question_reference"]["string"]
                    said = pair["sentence_reference"]["string"]
                    if asked and said:
                        steps.append(f'"{said}" in it is "{asked}" of the question.')
                answer = ", ".join(a["paragraph_reference"]["string"] for a in notes["answer"])
                question = item["question_text"]
                title, paragraph = as_text(item["title_text"]), as_text(item["paragraph_text"])
                text = f"{title}\n{paragraph}\n{as_text(question)}"
            except (KeyError, TypeError):
                drops["malformed record"] += 1
                continue
            yield Record(text, answer, " ".join(steps))


def _texts(item: Any, keys: tuple[str, ...], drops: Drops) -> list[str] | None:
    """The texts of an object, or None (counted)."""
    texts = [text_of(item.get(key)) if isinstance(item, dict) else None for key in keys]
    if None not in texts:
        return texts
    drops["malformed record"] += 1
    return None


RELEASES = {
    "aqua": Release(
        "https://github.com/google-deepmind/AQuA",
        {"train": ("**/train.json",), "test": ("**/test.json",)},
        _aqua,
    ),
    "coqa": Release(
        "https://stanfordnlp.github.io/coqa",
        {"train": ("**/coqa-train-*.json",), "test": ("**/coqa-dev-*.json",)},
        _coqa,
    ),
    "cos_e": Release(
        "https://github.com/salesforce/cos-e, and CommonsenseQA 1.11 in a folder commonsenseqa",
        {
            "train": ("**/commonsenseqa/train_rand_split.jsonl", "**/cose_train_v1.11.jsonl"),
            "test": ("**/commonsenseqa/dev_rand_split.jsonl", "**/cose_dev_v1.11.jsonl"),
        },
        _cos_e,
    ),
    "creak": Release(
        "https://github.com/yasumasaonoe/creak",
        {"train": ("**/train.json",), "test": ("**/dev.json",)},
        _creak,
    ),
    "gsm8k": Release(
        "https://github.com/openai/grade-school-math",
        {"train": ("**/train.jsonl",), "test": ("**/test.jsonl",)},
        _gsm8k,
    ),
    "math": Release(
        "https://github.com/hendrycks/math",
        {"train": ("**/train/*/*.json",), "test": ("**/test/*/*.json",)},
        _math,
    ),
    "proofwriter": Release(
        "https://allenai.org/data/proofwriter",
        {
            "train": ("**/OWA/depth-5/meta-train.jsonl",),
            "test": ("**/OWA/depth-5/meta-test.jsonl",),
        },
        _proofwriter,
    ),
    "qed": Release(
        "https://github.com/google-research-datasets/QED",
        {"train": ("**/qed-train.jsonlines",), "test": ("**/qed-dev.jsonlines",)},
        _qed,
    ),
    "strategyqa": Release(
        "https://github.com/eladsegal/strategyqa",
        {"train": ("**/train.json",), "test": ("**/dev.json",)},
        _strategyqa,
    ),
    "winowhy": Release(
        "https://github.com/HKUST-KnowComp/WinoWhy", {"train": ("**/winowhy.json",)}, _winowhy
    ),
}
