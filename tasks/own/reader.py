"""Reader of a user's own tasks: a folder of YAML files, one task each, and no Python.

A file says where the rows are, how a prompt is made of a row (Jinja templates, in the sandbox that
runs PromptSource's), which options it has, and what the task is used for:

    rows: parity                     # a folder with splits, or {train: a.jsonl, test: b.csv}
    instruction: Odd or even?        # optional: stands once, before demonstrations
    prompt: "{{ number }}"
    target: "{{ answer }}"           # or several right answers, separated by |||
    options: [odd, even]             # ranked; or a template, "{{ choices | join('|||') }}"
    level: fully_held_out            # these, and category, metric, shots, stop, ... are keys of the
    role: [test]                     # split manifest; rows of SplitConfig.manifests win over them

docs/own_tasks.md has examples.
"""

import dataclasses
import logging
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jinja2

from optiml_jax.data.example import Drops, Example, TaskSource, check_unique_names
from optiml_jax.data.sampling import RowSample
from optiml_jax.errors import UserError
from optiml_jax.yaml_files import read_yaml
from tasks import taxonomy
from tasks.files.formats import Row, format_of
from tasks.files.rows import Split, SplitFiles, find_splits
from tasks.files.text_files import RecordFilter, data_folder, demonstration_pool
from tasks.files.values import text_of
from tasks.splits import SELECTORS, Manifest
from tasks.splits import Row as ManifestRow
from tasks.templates.budget import LimitError
from tasks.templates.sandbox import Choices, Environment

READER_VERSION = 2  # raise it when the same rows give other Examples: caches are then redone
SEPARATOR = "|||"
_SPLITS = ("train", "validation", "test")
# Name of a split -> ours.
_OURS = {split: split for split in _SPLITS} | dict.fromkeys(("dev", "valid", "val"), "validation")
_NAMES = "train, validation (or dev, valid, val), test"
_TEXTS = ("instruction", "prompt", "target")
_KNOWN = ("rows", "options", *_TEXTS)

logger = logging.getLogger(__name__)


def task_files(root: str | os.PathLike) -> list[pathlib.Path]:
    """The files of tasks in a folder."""
    return sorted(pathlib.Path(root).expanduser().glob("*.y*ml"))


def find_tasks(root: str | os.PathLike, manifest: Manifest, benchmark: str) -> list[TaskSource]:
    """The tasks of a folder of YAML files, by name: `<benchmark>/<file without .yaml>`.

    What a file says of level, role, metric, ... is declared to `manifest`.

    Raises:
      UserError: a file is no task, or what it names is not there; the message names file and key.
    """
    folder = data_folder(root, benchmark, "give a folder of task files (*.yaml)")
    sources = [_source(path, manifest, f"{benchmark}/{path.stem}") for path in task_files(folder)]
    if not sources:
        raise UserError(f"no task file (*.yaml) of benchmark {benchmark!r} in {folder}")
    check_unique_names([s.name for s in sources])
    return sources


def _source(path: pathlib.Path, manifest: Manifest, name: str) -> TaskSource:
    content = _content(path)
    own = {key: content[key] for key in _KNOWN if key in content}
    facts = {key: value for key, value in content.items() if key not in _KNOWN}
    facts.setdefault("metric", "acc_rank" if "options" in own else "rougeL")
    manifest.declare(name, facts, str(path))
    row = manifest.lookup(name, None)
    parts = _parts(path, own["rows"], row)
    category = row.category or taxonomy.category(name.partition("/")[0], path.stem)
    task = OwnTask(name, category, str(path), own, parts)
    task.compile()
    files = [str(path), *(file for part in parts.values() for file in part.files)]
    return TaskSource(
        name=name,
        splits=tuple(split for split in _SPLITS if split in parts),
        files=tuple(dict.fromkeys(files)),
        read=task.read,
        demonstrations=task.demonstrations,
        instruction_level="task" if "instruction" in own else "instance",
        settings={"category": category, "task": own, "reader": READER_VERSION},
        samples_rows=True,
    )


def _content(path: pathlib.Path) -> dict[str, Any]:
    content = read_yaml(path, "the task file")
    for key in ("rows", "prompt", "target", "level", "role"):
        if key not in content:
            raise UserError(
                f"{path} has no `{key}`; a task needs rows, prompt, target, level, role"
            )
    for key in SELECTORS:
        if key in content:
            raise UserError(
                f"{path}: `{key}` is for rows of a split manifest, which choose tasks; a task file "
                "is one task: take the key out"
            )
    for key in _TEXTS:
        if not isinstance(content.get(key, ""), str):
            raise UserError(f"{path}: {key} must be text: put {content[key]!r} in quotation marks")
    options = content.get("options", "")
    if isinstance(options, list):
        if len(options) < 2 or not all(isinstance(o, str) and o.strip() for o in options):
            raise UserError(f"{path}: options must be at least two texts, in quotation marks")
    elif not isinstance(options, str):
        raise UserError(f"{path}: options must be a list of texts or a template")
    return content


def _parts(path: pathlib.Path, rows: Any, row: ManifestRow) -> dict[str, Split]:
    """Our split -> its rows."""
    place = path.parent / os.path.expandvars(rows) if isinstance(rows, str) else None
    if place and place.is_dir():
        found = find_splits(place)
        if unused := [split for split in found if split not in _OURS]:
            logger.warning(
                "%s: of the folder %s these are no split and not used: %s; known: %s",
                *(path, place, ", ".join(unused), _NAMES),
            )
    elif place:
        found = {"test": _file(path, rows)}
    elif isinstance(rows, dict):
        if unknown := [split for split in rows if split not in _OURS]:
            raise UserError(f"{path}: rows has the unknown split {unknown[0]!r}; known: {_NAMES}")
        found = {split: _file(path, file) for split, file in rows.items()}
    else:
        raise UserError(f"{path}: rows must be a folder, a file, or splits with their files")
    parts = _named_once(path, found)
    if not parts:
        raise UserError(f"{path}: rows has no split {' or '.join(_SPLITS)}: {rows!r}")
    for needed, use in (("train", row.trained), ("test", row.evaluated)):
        if use and needed not in parts:
            raise UserError(
                f"{path}: rows has no split {needed}, which a task of the role "
                f"{' and '.join(row.role)} needs; it has {', '.join(parts)}: {rows!r}"
            )
    return parts


def _named_once(path: pathlib.Path, found: Mapping[str, Split]) -> dict[str, Split]:
    """Splits by our names; a UserError where two names mean one of them."""
    names: dict[str, str] = {}
    for name in found:
        if name in _OURS:
            first = names.setdefault(_OURS[name], name)
            if first != name:
                raise UserError(
                    f"{path}: rows has the split {_OURS[name]} twice, as {first} and as {name}; "
                    "keep one of them"
                )
    return {ours: found[name] for ours, name in names.items()}


def _file(path: pathlib.Path, name: Any) -> SplitFiles:
    file = path.parent / os.path.expandvars(str(name))
    if not file.is_file():
        raise UserError(f"{path}: rows not found: {file}")
    if not format_of(file):
        raise UserError(f"{path}: {file} is in no known format (.jsonl, .csv, .parquet, ...)")
    return SplitFiles("", (str(file),))


@dataclasses.dataclass(frozen=True)
class OwnTask:
    """One task file.

    Attributes:
      path: the file.
      description: its keys rows, instruction, prompt, target, options.
      parts: split -> its rows.
    """

    name: str
    category: str
    path: str
    description: dict[str, Any]
    parts: dict[str, Split]

    def compile(self) -> "_Templates":
        """The templates; a UserError names the file and the key of one that is not allowed."""
        return _Templates(self.path, self.description)

    def read(self, split: str, drops: Drops, sample: RowSample | None = None) -> Iterator[Example]:
        """Streams a split.

        Raises:
          UserError: a file is missing or damaged, a template is not allowed, or no row is usable.
        """
        templates, keep, usable = self.compile(), RecordFilter(), False
        for number, row in enumerate(self.parts[split].read(sample), 1):
            if row is None:
                continue
            try:
                text, answers, options = templates.render(row)
            except _Unusable as e:
                drops[str(e)] += 1
                if drops[str(e)] == 1:
                    logger.warning("%s: row %d of %s: %s", self.path, number, split, e)
                continue
            fields = keep(text, answers, drops)
            if fields is None:
                continue
            usable = True
            yield Example(
                benchmark=self.name.split("/", 1)[0],
                task=self.name,
                category=self.category,
                prompt_id="own",
                split=split,
                instruction=self.description.get("instruction", ""),
                options=options,
                source_dataset=self.name,
                **fields,
            )
        if not usable:
            why = "; ".join(f"{n} {reason}" for reason, n in drops.items())
            raise UserError(f"no usable row of {split!r} of {self.path} ({why or 'it is empty'})")

    def demonstrations(self) -> list[Example]:
        """Examples of the training part, which is never scored."""
        if "train" not in self.parts:
            return []
        return demonstration_pool(self.read("train", Drops()))


class _Unusable(Exception):  # noqa: N818 - a reason to drop a row
    """A row that the templates do not fit."""


class _Templates:
    """The compiled templates of one file."""

    def __init__(self, path: str, description: Mapping[str, Any]):
        self._path = path
        self._environment = Environment(strict_undefined=True)
        self._options = description.get("options")
        self._compiled = {
            key: self._compile(key, text)
            for key in ("prompt", "target", "options")
            if isinstance(text := description.get(key), str)
        }

    def render(self, row: Row) -> tuple[str, list[str], tuple[str, ...] | None]:
        """Prompt, right answers and options of a row.

        Raises:
          _Unusable: the row lacks a column, has another kind of value there, or its answer is
            none of its options.
        """
        options = self._options
        if isinstance(options, str):
            options = self._texts("options", row)
        row = row | ({"options": list(options)} if options else {})
        prompt, answers = self._rendered("prompt", row), self._texts("target", row)
        if not options:
            return prompt, answers, None
        options = tuple(dict.fromkeys(o.strip() for o in options if o.strip()))
        if len(options) < 2:
            raise _Unusable("fewer than two options")
        if not answers or any(answer not in options for answer in answers):
            raise _Unusable("target is none of the options")
        return prompt, answers, options

    def _texts(self, key: str, row: Row) -> list[str]:
        return [part.strip() for part in self._rendered(key, row).split(SEPARATOR)]

    def _rendered(self, key: str, row: Row) -> str:
        size = sum(len(str(value)) for value in row.values())
        row = {name: _shown(value) for name, value in row.items()}
        try:
            return self._environment.render(self._compiled[key], row, Choices(""), size)
        except (LimitError, jinja2.exceptions.SecurityError, RecursionError, MemoryError) as e:
            raise self._refused(key, e) from e
        except Exception as e:
            raise _Unusable(f"{key}: {type(e).__name__}: {e}") from e

    def _compile(self, key: str, text: str) -> jinja2.Template:
        try:
            return self._environment.compile_text(text)
        except (
            jinja2.TemplateSyntaxError,
            jinja2.exceptions.SecurityError,
            *(LimitError, RecursionError, MemoryError, SyntaxError),
        ) as e:
            raise self._refused(key, e) from e

    def _refused(self, key: str, error: BaseException) -> UserError:
        reason = " ".join(str(error).split())
        return UserError(f"{self._path}: the template {key} is refused: {reason}; repair it")


class _Missing(jinja2.StrictUndefined):
    """A value that is None, NaN or infinite: as if the row did not have it."""


def _shown(value: Any) -> Any:
    """The value for templates: numbers as they are spelled, what is missing as undefined."""
    if value is None:
        return _Missing("value is missing")
    return text_of(value) if isinstance(value, float) else value
