"""Reader of ExMix: a list of tasks as data (our tasks.yaml, and a `tasks.yaml` of the user's own).

A task names its files, and templates that make a prompt and an answer of the columns of a row;
the format is described at the head of tasks.yaml. Every prompt has one instruction sentence
(paper, section 2.2), before the text or, where texts are long, after it.
"""

import csv
import dataclasses
import itertools
import logging
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from optiml_jax.data.example import Drops, Example, TaskSource, check_unique_names
from optiml_jax.data.sampling import RowSample
from optiml_jax.errors import UserError
from optiml_jax.files import regular_file
from tasks import taxonomy
from tasks.files.rows import Row, Split, SplitFiles, find_splits
from tasks.files.text_files import (
    RecordFilter,
    data_folder,
    demonstration_pool,
    json_items,
    not_utf8,
    tsv_rows,
)
from tasks.files.values import text_of
from tasks.splits import Manifest
from tasks.templates.instructions import instructions, read_mapping

FACTS_FILE = pathlib.Path(__file__).parent / "tasks.yaml"
READER_VERSION = 3  # raise it when the same rows give other Examples: caches are then redone
SPLITS = {split: split for split in ("train", "validation", "test")}

_KINDS = {  # key of a task's description -> its type
    **dict.fromkeys(("input", "target", "instruction", "question", "category", "folder"), str),
    "columns": list,
    "options": (list, str),  # the same for all rows, or the slot of a column that lists them
    **dict.fromkeys(("labels", "splits", "files"), dict),
}
_OUTPUT_KEYS = ("input", "target", "options", "labels", "question", "columns")
_FORMATS = (".tsv", ".csv", ".json")  # beside those of rows.py
_ENDED = object()  # a file; None is a row
_SLOT = re.compile(r"\{([^{}]+)\}")

logger = logging.getLogger(__name__)


def find_tasks(
    root: str | os.PathLike, manifest: Manifest, benchmark: str = "exmix"
) -> list[TaskSource]:
    """The tasks of the list whose rows are in the folder, sorted by name. Opens no data file.

    Args:
      root: holds the tasks' folders; `tasks.yaml` and `instructions.yaml` in it are the user's own.
      manifest: the split manifest.
      benchmark: first part of the task names.

    Raises:
      UserError: the folder is missing or holds rows of no task, a task is described wrongly or has
        no sentence, or a split is there twice.
    """
    folder = data_folder(root, benchmark, f"give a folder as {FACTS_FILE} describes it")
    described = _descriptions(FACTS_FILE) | _descriptions(folder / "tasks.yaml")
    sentences = instructions("exmix", folder)
    sources = []
    for task_id, description in sorted(described.items()):
        if parts := _parts(folder, task_id, description):
            sentence = description.get("instruction") or sentences.get(task_id)
            if not sentence:
                raise UserError(
                    f"task {task_id!r} has no instruction: add one to {folder}/tasks.yaml"
                )
            name = f"{benchmark}/{task_id}"
            sources.append(_source(name, sentence, description, parts, manifest))
    if not sources:
        raise UserError(
            f"no task of benchmark {benchmark!r} in {folder}: it holds none of the folders "
            f"{', '.join(d.get('folder', t) for t, d in sorted(described.items()))}"
        )
    logger.info("%d of %d tasks of ExMix have rows in %s", len(sources), len(described), folder)
    check_unique_names([s.name for s in sources])
    return sources


def _descriptions(path: pathlib.Path) -> dict[str, dict[str, Any]]:
    """The checked tasks of a YAML file; none if it is not there."""
    content = read_mapping(path)
    if content and "tasks" not in content:
        raise UserError(f"{path} has no key `tasks`: put the descriptions of tasks below it")
    tasks = content.get("tasks", {})
    if not isinstance(tasks, dict):
        raise UserError(f"{path}: `tasks` must map names to descriptions")
    for name, task in tasks.items():
        where = f"{path}, task {name!r}"
        if not isinstance(name, str) or not isinstance(task, dict):
            raise UserError(f"{where}: must be a name with a description below it")
        for key, value in task.items():
            if key not in _KINDS or not isinstance(value, _KINDS[key]):
                known = ", ".join(f"{k} ({_kind_names(kind)})" for k, kind in _KINDS.items())
                raise UserError(f"{where}: {key}: {value!r} is not right; known: {known}")
        if "input" not in task or ("target" in task) == ("files" in task):
            raise UserError(f"{where}: needs `input`, and either `target` or `files`")
        if task.get("question", "last") not in ("first", "last"):
            raise UserError(f"{where}: question must be first or last, not {task['question']!r}")
        options = task.get("options", ())
        if isinstance(options, str) and not _SLOT.fullmatch(options):
            raise UserError(f"{where}: options must be a list, or the slot of one: '{{column}}'")
        answers = [*([] if isinstance(options, str) else options), *task.get("labels", {}).values()]
        for text in (*answers, *task.get("files", {}), *task.get("columns", ())):
            if not isinstance(text, str):
                raise UserError(f"{where}: {text!r} must be text: put it in quotation marks")
        if not all(isinstance(patterns, list) for patterns in task.get("files", {}).values()):
            raise UserError(f"{where}: files must be lists of patterns, [webtext.{{split}}.jsonl]")
        if unknown := [s for s in task.get("splits", ()) if s not in SPLITS]:
            raise UserError(f"{where}: split {unknown[0]!r} must be one of {', '.join(SPLITS)}")
    return tasks


Groups = dict[str, tuple[Split | str, ...]]  # answer ("": the rows tell it) -> splits or files


def _parts(root: pathlib.Path, task_id: str, task: Mapping[str, Any]) -> dict[str, Groups]:
    """Our split -> where its rows are, for the splits that are there."""
    folder = root / task.get("folder", task_id)
    names = task.get("splits", SPLITS)
    if "files" in task:
        found = {
            ours: {
                answer: tuple(
                    str(path)
                    for pattern in patterns
                    for path in sorted(folder.glob(pattern.replace("{split}", theirs)))
                )
                for answer, patterns in task["files"].items()
            }
            for ours, theirs in names.items()
        }
        for ours, groups in found.items():
            lacking = [answer for answer, files in groups.items() if not files]
            if lacking and len(lacking) < len(groups):
                logger.warning(
                    "%s: split %r is left out: it has no files of %s",
                    *(folder, ours, ", ".join(map(repr, lacking))),
                )
        return {ours: groups for ours, groups in found.items() if all(groups.values())}
    splits, parts = find_splits(folder), {}
    for ours, theirs in names.items():
        there = [p for s in _FORMATS if (p := folder / f"{theirs}{s}").is_file()]
        found = splits.get(theirs)
        beside = found is not None and found.files != tuple(map(str, there))
        sources = [*map(str, there), *([found] if beside else [])]
        if len(sources) > 1:
            raise UserError(f"split {theirs!r} is in {folder} more than once; keep one of them")
        if sources:
            parts[ours] = {"": tuple(sources)}
    return parts


def _source(
    name: str,
    sentence: str,
    description: dict[str, Any],
    parts: dict[str, Groups],
    manifest: Manifest,
) -> TaskSource:
    task_id = name.split("/", 1)[1]
    row = manifest.lookup(name, None)
    own = description.get("category") or taxonomy.category("exmix", task_id)
    task = ExMixTask(name, row.category or own, sentence, description, parts)
    sources = [s for groups in parts.values() for group in groups.values() for s in group]
    files = [file for s in sources for file in ([s] if isinstance(s, str) else s.files)]
    return TaskSource(
        name=name,
        splits=tuple(split for split in SPLITS if split in parts),
        files=tuple(dict.fromkeys(files)),
        read=task.read,
        demonstrations=task.demonstrations,
        instruction_level="instance",
        samples_rows=True,
        settings={
            **{key: description[key] for key in _OUTPUT_KEYS if key in description},
            "category": task.category,
            "instruction": sentence,
            "splits": {s: {a: len(g) for a, g in groups.items()} for s, groups in parts.items()},
            "reader": READER_VERSION,
        },
    )


@dataclasses.dataclass(frozen=True)
class ExMixTask:
    """One task.

    Attributes:
      name: `<benchmark>/<name in the list>`.
      category: of every Example.
      instruction: the task's sentence.
      description: as in tasks.yaml.
      parts: split -> where its rows are.
    """

    name: str
    category: str
    instruction: str
    description: dict[str, Any]
    parts: dict[str, Groups]

    def read(self, split: str, drops: Drops, sample: RowSample | None = None) -> Iterator[Example]:
        """Streams a split.

        Raises:
          UserError: a file is missing or damaged, or no row is usable.
        """
        keep = RecordFilter()
        last = self.description.get("question") == "last"
        usable = False
        for answer, row in self._rows(split, drops, sample):
            if row is None:
                continue
            try:
                text = filled(self.description["input"], row)
                answers = [answer] if answer else self._answers(row)
                options = self._options(row)
            except (KeyError, TypeError):
                drops["malformed record"] += 1
                continue
            if options and (not answers or answers[0] not in options):
                drops["unknown label"] += 1
                continue
            fields = keep(text, answers, drops)
            if fields is None:
                continue
            usable = True
            if last:
                fields["input"] += f"\n{self.instruction}"
            task_id = self.name.split("/", 1)[1]
            yield Example(
                benchmark=self.name.split("/", 1)[0],
                task=self.name,
                category=self.category,
                prompt_id="manual",
                split=split,
                instruction="" if last else self.instruction,
                options=options,
                source_dataset=self.description.get("folder", task_id),
                **fields,
            )
        if not usable:
            why = "; ".join(f"{n} {reason}" for reason, n in drops.items())
            raise UserError(f"no usable row of {split!r} of {self.name} ({why or 'it is empty'})")

    def demonstrations(self) -> list[Example]:
        if "train" not in self.parts:
            return []
        return demonstration_pool(self.read("train", Drops()))

    def _rows(
        self, split: str, drops: Drops, sample: RowSample | None
    ) -> Iterator[tuple[str, Row | None]]:
        """Answer and row, as many of each answer; the files of an answer take turns."""
        columns = self.description.get("columns")
        return _balanced(
            [
                zip(
                    itertools.repeat(answer),
                    _in_turn([_read(s, columns, drops, sample) for s in group]),
                )
                for answer, group in self.parts[split].items()
            ],
            drops,
        )

    def _answers(self, row: Row) -> list[str]:
        """The right answers of a row; none where its label is unknown."""
        template = self.description["target"]
        slot = _SLOT.fullmatch(template)
        value = _value(row, slot[1]) if slot else filled(template, row)
        items = value if isinstance(value, list) else [value]
        if "labels" in self.description:
            labels = {str(value): text for value, text in self.description["labels"].items()}
            return [labels[a] for item in items if (a := _label(item)) in labels]
        return [_shown(item) for item in items]

    def _options(self, row: Row) -> tuple[str, ...] | None:
        task = self.description
        if isinstance(slot := task.get("options"), str):
            listed = _value(row, slot[1:-1])
            if not isinstance(listed, list) or len(listed) < 2:
                raise TypeError
            return tuple(dict.fromkeys(_shown(option).strip() for option in listed))
        answers = task["labels"].values() if "labels" in task else task.get("files", ())
        return tuple(task.get("options") or dict.fromkeys(answers)) or None


def filled(template: str, row: Row) -> str:
    """The template with the columns of a row in its slots.

    Raises:
      KeyError: there is no such column.
      TypeError: a value is missing or no text, number or list.
    """
    return _SLOT.sub(lambda slot: _shown(_value(row, slot[1])), template)


def _value(row: Any, path: str) -> Any:
    for key in path.split("."):
        row = row[key]
    return row


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return "\n".join(map(_shown, value))
    if isinstance(value, bool):
        return str(value)
    if (text := text_of(value)) is None:
        raise TypeError
    return text


def _label(value: Any) -> str:
    """A label as descriptions spell it: 1 is the label 1.0 of a column that is read as numbers."""
    is_whole = isinstance(value, float) and value.is_integer()
    return str(int(value)) if is_whole else _shown(value).strip()


def _kind_names(kind: Any) -> str:
    return " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))


def _in_turn(files: list[Iterator[Row | None]]) -> Iterator[Row | None]:
    """The rows of files that take turns; where one ends, the others go on."""
    for turn in itertools.zip_longest(*files, fillvalue=_ENDED):
        yield from (row for row in turn if row is not _ENDED)


def _balanced(
    answers: list[Iterator[tuple[str, Row | None]]], drops: Drops
) -> Iterator[tuple[str, Row | None]]:
    """The rows of answers that take turns while all have some; what is left of others is counted.

    None stands for a row that a sample leaves out, which is no drop.
    """
    for turn in itertools.zip_longest(*answers):
        if None not in turn:
            yield from turn
            continue
        for _, row in filter(None, turn):
            if row is not None:
                drops["more rows than another answer"] += 1


# --- files


def _read(
    source: Split | str, columns: list[str] | None, drops: Drops, sample: RowSample | None
) -> Iterator[Row | None]:
    if not isinstance(source, str):
        return source.read(sample)
    suffix = pathlib.Path(source).suffix
    if suffix == ".json":
        return json_items(source, drops)
    if suffix in (".csv", ".tsv"):
        return (_read_csv if suffix == ".csv" else _read_tsv)(source, columns, drops)
    return SplitFiles("", (source,)).read(sample)


def _read_tsv(path: str, columns: list[str] | None, drops: Drops) -> Iterator[Row]:
    if columns is None:  # the first line names them
        _, columns = next(tsv_rows(path, range(1, 1 << 16), Drops()), (0, []))
        skipped = 1
    else:
        skipped = 0
    rows = tsv_rows(path, (len(columns),), drops)
    for _, cells in itertools.islice(rows, skipped, None):
        yield dict(zip(columns, cells, strict=True))


def _read_csv(path: str, columns: list[str] | None, drops: Drops) -> Iterator[Row]:
    try:
        with regular_file(path).open(encoding="utf-8-sig", newline="") as file:
            for row in csv.DictReader(file, columns, restkey=""):
                if "" in row:
                    drops["wrong number of columns"] += 1
                else:
                    yield row
    except UnicodeDecodeError as e:
        raise not_utf8(path, regular_file(path).open("rb")) from e
    except csv.Error as e:
        raise UserError(f"{path} is no CSV file ({e}); download it again") from e
    except FileNotFoundError as e:
        raise UserError(f"rows not found: {path}") from e
