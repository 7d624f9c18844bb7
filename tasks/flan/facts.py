"""The tasks of FLAN 2021 as data: reading tasks.yaml and a user's task_config.yaml.

The form of both is explained at the head of tasks.yaml. Here it is checked, and the values of a
task are put together into what its templates need of a row.
"""

import dataclasses
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from optiml_jax.errors import UserError
from optiml_jax.yaml_files import read_yaml
from tasks.flan.dialogs import ANSWER, DIALOG, Turns, plain_dialog
from tasks.flan.fields import Row, UnusableError, Value, look_up
from tasks.flan.templates import OPTION_SLOTS

FACTS_FILE = pathlib.Path(__file__).parent / "tasks.yaml"
DIALOG_FACTS_FILE = pathlib.Path(__file__).parent / "dialog_tasks.yaml"
CONFIG_NAME = "task_config.yaml"
PARTS = ("train", "validation", "test")

_KEYS = (
    *("cluster", "pattern", "tfds", "splits", "fields", "options", "choices", "label", "targets"),
    *("filters", "fixed_fields", "metric", "files", "dialog", "turns"),
)
_FILE_KEYS = ("folder", "splits", "fields", "choices", "label", "filters", "dialog", "published")
_FILTERS = ("without", "num_options", "changed", "above")
_SLICE = re.compile(r"([\w.-]+)(?:\[(-?\d*):(-?\d*)\])?")


@dataclasses.dataclass(frozen=True)
class TaskFacts:
    """One task; see the head of tasks.yaml for the attributes that stand there.

    Attributes:
      splits: part -> rows, e.g. "train[:-200]".
      files: what differs in files, or None if rows in files cannot be used.
      dialog: of dialogues the value of a row's turns.
      turns: of dialogues which of them can be the one to predict.
    """

    name: str
    cluster: str
    pattern: str
    tfds: str
    splits: dict[str, str]
    fields: dict[str, Any]
    options: tuple[str, ...]
    choices: Any
    label: Any
    targets: tuple[str, ...]
    filters: dict[str, Any]
    fixed_fields: dict[str, Any]
    metric: str
    files: dict[str, Any] | None
    # Not in the text that a cache remembers of tasks without them.
    dialog: Any = dataclasses.field(default=None, repr=False)
    turns: Turns | None = dataclasses.field(default=None, repr=False)

    @property
    def has_options(self) -> bool:
        return bool(self.options) or self.choices is not None

    @property
    def answer_is_option(self) -> bool:
        """Whether the answer is not a field of its own, but the option that the label names."""
        return self.has_options and "answer" in self.targets and "answer" not in self.fields

    @property
    def slots(self) -> set[str]:
        """The slots that can be filled."""
        slots = set(self.fields) - {"answers"}
        slots |= {ANSWER} if self.answer_is_option else set()
        slots |= {DIALOG, ANSWER} if self.turns else set()
        return slots | set(OPTION_SLOTS) if self.has_options else slots

    @property
    def constants(self) -> set[str]:
        """The slots that are the same for every row."""
        return {slot for slot, value in self.fields.items() if isinstance(value, Mapping)}

    @property
    def folder(self) -> str:
        """Of rows in files, below the folder `datasets`."""
        return (self.files or {}).get("folder") or self.tfds.partition(":")[0] or self.name

    def for_files(self) -> "TaskFacts":
        """The facts for rows in files."""
        whole = ("choices", "label", "filters", "dialog")
        changes = {k: v for k, v in (self.files or {}).items() if k in whole}
        names = (self.files or {}).get("splits") or {}
        fields = self.fields | ((self.files or {}).get("fields") or {})
        return dataclasses.replace(
            self,
            fields={slot: value for slot, value in fields.items() if value is not None},
            splits={part: _renamed(rows, names) for part, rows in self.splits.items()},
            **changes,
        )

    def all_rows(self) -> "TaskFacts":
        """The facts with all rows of the training split; those of other parts stay theirs."""
        first = re.fullmatch(r"([\w.-]+)\[:\d+\]", self.splits.get("train", ""))
        train = {"train": first[1]} if first else {}
        return dataclasses.replace(self, splits={**self.splits, **train})

    def fixed(self) -> "TaskFacts":
        """The facts without upstream's slips."""
        return dataclasses.replace(self, fields=self.fields | self.fixed_fields)


@dataclasses.dataclass(frozen=True)
class Record:
    """What templates and scoring need of one row.

    Attributes:
      slots: texts by name.
      options: the candidates, or None.
      answers: further accepted answers.
      dialog: all turns of a dialogue.
      shown: those before the one to predict.
    """

    slots: dict[str, str]
    options: tuple[str, ...] | None
    answers: tuple[str, ...]
    dialog: tuple[str, ...] = ()
    shown: tuple[str, ...] = ()


class Extractor:
    """Makes the records of a task's rows.

    Raises:
      UserError: a value of the task is not well-formed; the message starts with `where`.
    """

    def __init__(self, facts: TaskFacts, where: str):
        self._facts = facts
        self._fields = {
            slot: Value(spec, f"{where}, field {slot!r}") for slot, spec in facts.fields.items()
        }
        self._choices = Value(facts.choices, f"{where}, choices") if facts.choices else None
        self._label = Value(facts.label, f"{where}, label")
        self._dialog = Value(facts.dialog, f"{where}, dialog") if facts.turns else None

    def __call__(self, row: Row, key: str = "") -> Record:
        """The record of a row; `key` names it, for the draw of a turn.

        Raises:
          UnusableError: the row lacks something, or a filter leaves it out.
        """
        self._check_columns(row)
        slots: dict[str, Any] = {}
        for slot, value in self._fields.items():
            slots[slot] = value(row, slots)
        answers = slots.pop("answers", [])
        if not isinstance(answers, list):
            raise UnusableError("answers are not a list")
        if any(isinstance(value, list | Mapping) for value in slots.values()):
            raise UnusableError("a slot's value is not a text")
        slots = {slot: str(value) for slot, value in slots.items()}
        options = self._options(row, slots)
        if self._facts.answer_is_option:
            slots[ANSWER] = self._right_option(row, slots, options)
        dialog, shown = self._turns(row, slots, key)
        if shown:
            slots |= {DIALOG: plain_dialog(shown), ANSWER: dialog[len(shown)]}
        self._check_slots(slots, options)
        return Record(slots, options, _as_texts(answers), dialog, shown)

    def _turns(
        self, row: Row, slots: Mapping[str, str], key: str
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The turns of a row's dialogue, and those before the one to predict."""
        if self._dialog is None:
            return (), ()
        dialog = self._dialog(row, slots)
        if not isinstance(dialog, list) or not all(isinstance(turn, str) for turn in dialog):
            raise UnusableError("a dialogue is no list of texts")
        return tuple(dialog), tuple(dialog[: self._facts.turns.drawn(dialog, key)])

    def _options(self, row: Row, slots: Mapping[str, str]) -> tuple[str, ...] | None:
        if self._choices is None:
            return self._facts.options or None
        options = self._choices(row, slots)
        if not isinstance(options, list) or not options:
            raise UnusableError("no list of options")
        return _as_texts(options)

    def _right_option(self, row: Row, slots: Mapping[str, str], options: tuple[str, ...]) -> str:
        label = self._label(row, slots)
        if not isinstance(label, int) or not 0 <= label < len(options):
            raise UnusableError("label names no option")
        return options[label]

    def _check_columns(self, row: Row) -> None:
        for column, texts in self._facts.filters.get("without", {}).items():
            if any(text in look_up(row, column) for text in texts):
                raise UnusableError(f"{column} holds {' or '.join(texts)}")
        for column, least in self._facts.filters.get("above", {}).items():
            if not isinstance(number := look_up(row, column), int | float):
                raise UnusableError(f"{column} is no number")
            if number <= least:
                raise UnusableError(f"{column} is not above {least}")

    def _check_slots(self, slots: Mapping[str, str], options: tuple[str, ...] | None) -> None:
        wanted = self._facts.filters.get("num_options")
        if wanted and len(options or ()) != wanted:
            raise UnusableError(f"not {wanted} options")
        pair = self._facts.filters.get("changed")
        if pair and slots[pair[0]] == slots[pair[1]]:
            raise UnusableError("source and target are the same")


# --- reading --------------------------------------------------------------------------------------


def read_facts(root: pathlib.Path) -> tuple[dict[str, TaskFacts], list[dict[str, Any]]]:
    """The tasks by name, those of `<root>/task_config.yaml` included, and the typos of templates.

    Raises:
      UserError: that file is not well-formed; the message names file and task.
    """
    ours = _load(FACTS_FILE)
    tasks = _tasks(ours, ours["splits"], FACTS_FILE)
    own = root / CONFIG_NAME
    if own.is_file():
        content = _load(own)
        tasks |= _tasks(content, ours["splits"] | (content.get("splits") or {}), own)
    return tasks, ours["typos"]


def read_dialog_facts() -> dict[str, TaskFacts]:
    """FLAN v2's sets of dialogues by name."""
    ours = _load(DIALOG_FACTS_FILE)
    return _tasks(ours, {}, DIALOG_FACTS_FILE)


def _load(path: pathlib.Path) -> dict[str, Any]:
    content = read_yaml(path, "the file of FLAN's tasks")
    if not isinstance(content.get("tasks"), dict):
        raise UserError(f"{path} has no mapping `tasks` (name: facts)")
    return content


def _tasks(content: dict, splits: dict[str, Any], path: pathlib.Path) -> dict[str, TaskFacts]:
    return {
        name: _task(name, facts, splits, f"{path}, task {name!r}")
        for name, facts in content["tasks"].items()
    }


def _task(name: Any, facts: Any, named_splits: Mapping[str, Any], where: str) -> TaskFacts:
    _expect(isinstance(name, str) and isinstance(facts, dict), where, "must be a mapping of facts")
    _expect_keys(facts, _KEYS, where)
    _expect(isinstance(facts.get("cluster"), str), where, "needs a cluster")
    splits = facts.get("splits", {part: part for part in PARTS})
    if isinstance(splits, str):
        splits = named_splits.get(splits)
    _expect(isinstance(splits, dict) and splits, where, "splits must be a mapping or a known name")
    for part, rows in splits.items():
        good = part in PARTS and isinstance(rows, str) and _SLICE.fullmatch(rows)
        _expect(good, where, f"{part}: {rows!r} is no part with rows like train[:-200]")
    options = facts.get("options", [])
    texts = isinstance(options, list) and all(isinstance(o, str) for o in options)
    _expect(texts, where, f'options must be a list of texts (quote "yes" and "no"): {options}')
    filters, files = facts.get("filters", {}), facts.get("files", {})
    _expect(isinstance(filters, dict), where, "filters must be a mapping")
    _expect_keys(filters, _FILTERS, f"{where}, filters")
    _expect(isinstance(files, dict) or files is False, where, "files must be a mapping or false")
    _expect_keys(files or {}, _FILE_KEYS, f"{where}, files")
    turns = facts.get("turns")
    _expect((turns is None) == ("dialog" not in facts), where, "dialog and turns go together")
    _expect(turns is None or _is_turns(turns), where, "turns must be {step: n, most: n}, from 1")
    for key in ("fields", "fixed_fields"):
        _expect(isinstance(facts.get(key, {}), dict), where, f"{key} must be a mapping")
    task = TaskFacts(
        name=name,
        cluster=facts["cluster"],
        pattern=facts.get("pattern", name),
        tfds=facts.get("tfds", ""),
        splits=splits,
        fields=facts.get("fields", {}),
        options=tuple(options),
        choices=facts.get("choices"),
        label=facts.get("label", "label"),
        targets=tuple(facts.get("targets", ["answer"])),
        filters=filters,
        fixed_fields=facts.get("fixed_fields", {}),
        metric=facts.get("metric", "accuracy" if options else "rouge"),
        files=None if files is False else files,
        dialog=facts.get("dialog"),
        turns=Turns(**turns) if turns else None,
    )
    for variant in (task, task.for_files(), task.fixed()):
        Extractor(variant, where)
        unknown = {*variant.targets, *filters.get("changed", ())} - variant.slots
        _expect(not unknown, where, f"there is no field {', '.join(sorted(unknown))}")
    return task


def _is_turns(value: Any) -> bool:
    known = isinstance(value, Mapping) and value.keys() == {"step", "most"}
    return known and all(type(n) is int and n > 0 for n in value.values())


def rows_range(rows: str, count: int) -> range:
    """Positions of rows written as in the facts, of a split with `count` rows."""
    _, first, last = _SLICE.fullmatch(rows).groups()
    positions = slice(int(first) if first else None, int(last) if last else None)
    return range(*positions.indices(count))


def split_name(rows: str) -> str:
    """The split that holds the rows."""
    return _SLICE.fullmatch(rows)[1]


def _renamed(rows: str, names: Mapping[str, str]) -> str:
    split = split_name(rows)
    return names.get(split, split) + rows[len(split) :]


def _expect_keys(found: Mapping, known: tuple[str, ...], where: str) -> None:
    unknown = [key for key in found if key not in known]
    _expect(not unknown, where, f"unknown key {unknown[:1]}; known: {', '.join(known)}")


def _expect(good: Any, where: str, what: str) -> None:
    if not good:
        raise UserError(f"{where}: {what}")


def _as_texts(values: list[Any]) -> tuple[str, ...]:
    if any(value is None or isinstance(value, list | Mapping) for value in values):
        raise UnusableError("a list's value is no text")
    return tuple(map(str, values))
