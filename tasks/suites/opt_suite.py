"""Reader of the 14 tasks of the OPT paper (OPT-IML, table 9); the tasks are opt_suite.yaml.

A folder holds the data sets as Hugging Face names them (`piqa`, `super_glue/cb`, ...; see
files/rows.py), StoryCloze also as the CSV files of its own release. Prompts are taken verbatim: no
delimiter, no labels. Winograd, Winogrande and WSC are scored in part: each option is put into
the sentence, and what follows it there is what the model scores.
"""

import dataclasses
import functools
import heapq
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from optiml_jax.data.example import Drops, Example, TaskSource
from optiml_jax.data.identity import row_identity
from optiml_jax.errors import UserError
from tasks import taxonomy
from tasks.files.rows import Row, Split, find_splits
from tasks.files.text_files import (
    NUM_DEMONSTRATIONS,
    RecordFilter,
    clean,
    csv_records,
    data_folder,
    hashed_id,
)
from tasks.files.values import Texts
from tasks.splits import Manifest
from tasks.templates.instructions import read_mapping

FACTS_FILE = pathlib.Path(__file__).parent / "opt_suite.yaml"
READER_VERSION = 1  # raise it when the same rows give other Examples: caches are then redone

_DETERMINERS = ("a", "an", "the", "my", "his", "her", "our", "their")
_POSSESSIVE = ("my", "your", "his", "its", "our", "their")


def find_tasks(
    root: str | os.PathLike, manifest: Manifest, benchmark: str = "opt14"
) -> list[TaskSource]:
    """The tasks whose data set is in the folder, sorted by name. Opens no data file.

    Raises:
      UserError: the folder is missing or holds none of the data sets.
    """
    folder = data_folder(root, benchmark, "give a folder with data sets (piqa, super_glue/cb, ...)")
    sources = []
    for task_id, facts in sorted(facts_of_all().items()):
        splits = _splits(folder, facts)
        parts = {"train": facts.get("shots", "train"), "test": facts.get("test", "validation")}
        parts = {part: splits[split] for part, split in parts.items() if split in splits}
        if "test" in parts:
            sources.append(_source(f"{benchmark}/{task_id}", facts, parts, manifest))
        elif held := [folder / f for f in facts["folders"] if _holds_files(folder / f)]:
            raise UserError(
                f"{held[0]} is the data set of {benchmark}/{task_id}, but holds no split "
                f"{facts.get('test', 'validation')!r}"
                f"{' (it has ' + ', '.join(splits) + ')' if splits else ''}; rename its files to "
                "<split>.jsonl, .csv, .parquet, ..., with the columns that Hugging Face's copy has"
            )
    if not sources:
        known = ", ".join(facts["folders"][0] for facts in facts_of_all().values())
        raise UserError(f"no data set of benchmark {benchmark!r} in {folder}; known: {known}")
    return sources


def _holds_files(folder: pathlib.Path) -> bool:
    return folder.is_dir() and any(path.is_file() for path in folder.iterdir())


@functools.cache
def facts_of_all() -> dict[str, dict[str, Any]]:
    """The content of opt_suite.yaml. Shared: do not change it."""
    return read_mapping(FACTS_FILE)


@dataclasses.dataclass(frozen=True)
class CsvSplit:
    """A split in CSV files whose first row names the columns; `columns` renames them."""

    files: tuple[str, ...]
    columns: dict[str, str]

    def read(self) -> Iterator[Row]:
        for file in self.files:
            for number, fields in csv_records(file):
                if missing := self.columns.keys() - fields.keys():
                    raise UserError(f"{file}, line {number}: no column {sorted(missing)[0]!r}")
                yield {name: fields[column] for column, name in self.columns.items()}


def _splits(root: pathlib.Path, facts: dict[str, Any]) -> dict[str, Split | CsvSplit]:
    for name in facts["folders"]:
        if found := find_splits(root / name):
            return found
        files = {
            split: tuple(sorted(map(str, (root / name).glob(pattern))))
            for split, pattern in facts.get("csv", {}).items()
        }
        if any(files.values()):
            return {s: CsvSplit(f, facts["columns"]) for s, f in files.items() if f}
    return {}


def _source(
    name: str, facts: dict[str, Any], parts: dict[str, Split | CsvSplit], manifest: Manifest
) -> TaskSource:
    task_id = name.split("/", 1)[1]
    row = manifest.lookup(name, None)
    category = row.category or taxonomy.category("opt14", task_id)
    task = OptTask(name, category, facts, parts)
    return TaskSource(
        name=name,
        splits=tuple(parts),
        files=tuple(dict.fromkeys(file for split in parts.values() for file in split.files)),
        read=task.read,
        demonstrations=task.demonstrations,
        instruction_level="verbatim",
        settings={"category": category, "facts": facts, "reader": READER_VERSION},
    )


class Item(NamedTuple):
    """A row as it is asked.

    Attributes:
      text: the prompt; under partial scoring with the right option in it.
      options: the candidates.
      right: index of the right one.
      contexts, rest: under partial scoring the prompt for each option, and what is scored.
    """

    text: str
    options: Sequence[str]
    right: int
    contexts: Sequence[str] = ()
    rest: str = ""


@dataclasses.dataclass(frozen=True)
class OptTask:
    """One task.

    Attributes:
      name: `<benchmark>/<task>`.
      category: of every Example.
      facts: as opt_suite.yaml has them.
      parts: "train" (demonstrations), "test" -> where the rows are.
    """

    name: str
    category: str
    facts: dict[str, Any]
    parts: dict[str, Split | CsvSplit]

    def read(self, split: str, drops: Drops) -> Iterator[Example]:
        """Streams a split.

        Raises:
          UserError: a file is damaged, or no row is usable.
        """
        keep = RecordFilter(keep_repeated=True)
        usable = False
        for row, item in self._items(split, drops):
            options = [clean(option) for option in item.options]
            if len(set(options)) < max(2, len(item.contexts)) or "" in options:
                drops["options that are empty or the same"] += 1
                continue
            answer = options[item.right]
            fields = keep(item.text, [item.rest or answer], drops)
            if fields is None:
                continue
            usable = True
            group = [str(row[name]) for name in self.facts.get("group", ())]
            fields |= {"target": f" {fields['target']}", "references": (answer,)}
            fields["source_id"] = row_identity(row)
            yield Example(
                benchmark=self.name.split("/", 1)[0],
                task=self.name,
                category=self.category,
                prompt_id="gpt3",
                split=split,
                instruction=self.facts.get("instruction", ""),
                options=tuple(options),
                contexts=tuple(map(clean, item.contexts)),
                source_dataset=self.facts["folders"][0],
                meta={"group": hashed_id(*group)} if group else {},
                **fields,
            )
        if not usable:
            why = "; ".join(f"{n} {reason}" for reason, n in drops.items())
            files = ", ".join(self.parts[split].files)
            raise UserError(f"no usable row for {self.name} in {files} ({why or 'it is empty'})")

    def demonstrations(self) -> list[Example]:
        """In an order of hashes: neighbouring rows of some sets share a text or an answer."""
        if "train" not in self.parts:
            return []
        examples = self.read("train", Drops())
        return heapq.nsmallest(NUM_DEMONSTRATIONS, examples, key=lambda e: e.example_id)

    def _items(self, split: str, drops: Drops) -> Iterator[tuple[Row, Item]]:
        rows = self.parts[split].read()
        if self.facts["form"] == "span":
            rows = _joined_spans(rows, drops)
        for row in rows:
            try:
                item = _FORMS[self.facts["form"]](row, self.facts)
            except (KeyError, TypeError, ValueError, IndexError, AttributeError):
                drops["malformed row"] += 1
                continue
            if item is None:
                drops["no label"] += 1
            else:
                yield row, item


# --- forms ----------------------------------------------------------------------------------------


def _choices(row: Row, facts: dict[str, Any]) -> Item | None:
    fields = derived(row)
    prompt = facts["prompt"].format_map(Texts(fields))
    if "listed" in facts:
        texts, labels = (row["choices"][name] for name in facts["listed"])
        answer = row[facts["label"]]
        return Item(prompt, texts, labels.index(answer)) if answer else None
    options = [template.format_map(Texts(fields)) for template in facts["options"]]
    right = _right(row, facts, len(options))
    return None if right is None else Item(prompt, options, right)


def _blank(row: Row, facts: dict[str, Any]) -> Item | None:
    options = [template.format_map(Texts(row)) for template in facts["options"]]
    right = _right(row, facts, len(options))
    before, after = row["sentence"].split("_")
    return None if right is None else _partial(before, options, after, right)


def _pronoun(row: Row, _: dict[str, Any]) -> Item:
    start, pronoun = row["pronoun_loc"], row["pronoun"]
    text, right = row["text"], row["label"]
    if text[start : start + len(pronoun)] != pronoun or right not in range(len(row["options"])):
        raise ValueError
    before, after = text[:start], text[start + len(pronoun) :]
    options = [_in_place(option, pronoun, after) for option in row["options"]]
    return _partial(before, options, after, right)


def _span(row: Row, _: dict[str, Any]) -> Item:
    words, pronoun = row["text"].split(), row["span2_text"]
    place = row["span2_index"]
    size = len(pronoun.split(" "))
    # The word may carry a punctuation mark after the pronoun.
    tail = " ".join(words[place : place + size])
    if not tail.startswith(pronoun):
        raise ValueError
    after = " ".join([tail[len(pronoun) :], *words[place + size :]])
    options = [_in_place(option, pronoun, after) for option in row["options"]]
    before = " ".join(words[:place])
    return _partial(f"{before} " if before else "", options, after, row["right"])


_FORMS: dict[str, Callable[[Row, dict[str, Any]], Item | None]] = {
    "choices": _choices,
    "blank": _blank,
    "pronoun": _pronoun,
    "span": _span,
}


def _right(row: Row, facts: dict[str, Any], number: int) -> int | None:
    """The index of the right option; None where the row has no label."""
    label = row[facts.get("label", "label")]
    if label in ("", -1, None):
        return None
    right = int(label) - facts.get("first", 0)
    if right not in range(number):
        raise ValueError
    return right


def derived(row: Row) -> dict[str, Any]:
    """The fields of a row, and those that only templates of opt_suite.yaml have."""
    fields = {key: clean(value) if isinstance(value, str) else value for key, value in row.items()}
    if "hypothesis" in fields:  # CB, RTE
        fields["claim"] = fields["hypothesis"].rstrip(". ")
    if "passage" in fields:  # BoolQ
        fields["asked"] = fields["question"].rstrip("? ")
    if "choice1" in fields:  # COPA
        fields["stem"] = fields["premise"].rstrip(". ")
        fields["connective"] = {"cause": "because", "effect": "therefore"}[fields["question"]]
        for i in "12":
            fields[f"continued{i}"] = _lowered(fields[f"choice{i}"])
    return fields


def _lowered(sentence: str) -> str:
    """The text in the form it has after other words."""
    return sentence if re.match(r"I\b", sentence) else sentence[:1].lower() + sentence[1:]


# --- partial scoring ------------------------------------------------------------------------------


def _partial(before: str, options: Sequence[str], after: str, right: int) -> Item:
    """What is glued to the blank ("'s", a comma) belongs to the contexts, not to what is scored."""
    glued, rest = re.fullmatch(r"(\S*)(.*)", after, re.DOTALL).groups()
    if not rest.strip():
        glued, rest = "", glued
    contexts = [f"{before}{option}{glued}" for option in options]
    return Item(contexts[right], options, right, contexts, rest)


def _in_place(option: str, pronoun: str, after: str) -> str:
    """An option in the place of the pronoun."""
    first, space, others = option.partition(" ")
    if pronoun[:1].isupper():
        option = option[:1].upper() + option[1:]
    elif first.lower() in _DETERMINERS:
        option = first.lower() + space + others
    her = pronoun.lower() == "her" and re.match(r" \w", after)
    return f"{option}'s" if pronoun.lower() in _POSSESSIVE or her else option


def _joined_spans(rows: Iterator[Row], drops: Drops) -> Iterator[Row]:
    """WSC as a choice: the noun that the pronoun means against the others asked of in that text.

    Only texts that have both become items, as the scores of table 9 want it: they are multiples of
    1/37 on the 104 rows of the validation split. A split has some hundred rows.
    """
    texts: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        try:
            texts.setdefault((row["text"], row["span2_index"]), []).append(row)
        except (KeyError, TypeError):
            drops["malformed row"] += 1
    for group in texts.values():
        right = [row["span1_text"] for row in group if row["label"] == 1]
        options = list(dict.fromkeys(row["span1_text"] for row in group))
        if len(options) > 1 and len(set(right)) == 1:
            yield {**group[0], "options": options, "right": options.index(right[0])}
        else:
            drops["no noun to choose, or none to choose from"] += len(group)
