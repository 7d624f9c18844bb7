"""Reader of task files in the format of Super-NaturalInstructions (allenai/natural-instructions).

Reads official v2 files and both older shapes (`Definition` a string, instances without `id`,
`output` a string). Yields Examples without delimiters, demonstrations or tokens. What a task is
used for is in the split manifest; prompts, caching and mixtures are shared code elsewhere.
"""

import collections
import dataclasses
import functools
import hashlib
import json
import logging
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from optiml_jax.data.example import Drops, Example, TaskSource, check_unique_names
from optiml_jax.data.identity import source_identity
from optiml_jax.errors import UserError
from optiml_jax.files import read_text, regular_file
from tasks import taxonomy
from tasks.files.values import loads, text_of
from tasks.splits import Manifest, Row

UPSTREAM = "https://github.com/allenai/natural-instructions"
READER_VERSION = 2  # raise it when the same file gives other Examples: caches are then redone
NUM_TEST = 100  # the official test instances of a task are its first 100
MAX_LABELS = 20

_LISTS = ("train", "test", "excluded")
_HEADER_BYTES = 1 << 16
_CATEGORIES_FIELD = re.compile(r'"Categories"\s*:\s*(\[[^\]]*\]|"(?:[^"\\]|\\.)*")')
# NUL, the replacement character of broken encodings, and lone surrogates, which UTF-8 cannot hold.
_BAD_CHARACTERS = re.compile("[\x00\ufffd\ud800-\udfff]")


def find_tasks(
    root: str | os.PathLike, manifest: Manifest, benchmark: str = "superni"
) -> list[TaskSource]:
    """The tasks of a folder in the layout of natural-instructions, sorted by name.

    Args:
      root: holds `tasks/*.json` and `splits/default/{train,test}_tasks.txt`; categories come from
        `tasks/README.md`, else `categories.tsv`, else each file's own header, else are `Misc.`.
      manifest: says which tasks are trained on, which metric and label space they have.
      benchmark: first part of the task names.

    Task files are not opened, unless no table knows a task's category (then the header only).

    Raises:
      UserError: a folder or split list is missing, there is no task file, two files have one name,
        a task is in two split lists, or the manifest has no row for a task.
    """
    root = pathlib.Path(root).expanduser()
    paths = _task_files(root, benchmark)
    splits = _read_split_lists(root / "splits" / "default")
    table = _read_category_tables(root)
    sources, uncategorised, unlisted = [], [], []
    for stem, path in paths.items():
        upstream_split = splits.get(_spelling(stem))
        row = manifest.lookup(f"{benchmark}/{stem}", upstream_split)
        category = row.category or _category(table.get(_spelling(stem), ()), path)
        if category == taxonomy.MISC and category not in table.get(_spelling(stem), ()):
            uncategorised.append(stem)
        if upstream_split is None:
            unlisted.append(stem)
        sources.append(_source(f"{benchmark}/{stem}", path, upstream_split, row, category))
    check_unique_names([s.name for s in sources])
    _log_some("%d %s tasks without a known category count as Misc.: %s", benchmark, uncategorised)
    _log_some("%d %s tasks are in no list of splits/default: %s", benchmark, unlisted)
    there = set(map(_spelling, paths))
    missing = [t for t, split in splits.items() if split != "excluded" and t not in there]
    _log_some("%d %s tasks of splits/default have no file in tasks/: %s", benchmark, missing)
    return sources


def _source(
    name: str, path: pathlib.Path, upstream_split: str | None, row: Row, category: str
) -> TaskSource:
    if row.metric == "acc_rank" and row.options is None:
        raise UserError(
            f"the split manifest scores {name!r} by acc_rank without candidates: give it "
            "`options: labels`, or `options: listed` where each instance lists its own"
        )
    task = TaskFile(
        path=str(path),
        name=name,
        category=category,
        trained=row.trained,
        num_test=row.instances or NUM_TEST,
        labels=row.options == "labels",
        listed=row.options == "listed",
    )
    settings = {**dataclasses.asdict(task), "reader": READER_VERSION}
    del settings["path"], settings["name"]
    return TaskSource(
        name=name,
        splits=("train", "validation", "test") if row.trained else ("train", "test"),
        files=(str(path),),
        read=task.read,
        demonstrations=task.demonstrations,
        upstream_split=upstream_split,
        settings=settings,
    )


@dataclasses.dataclass(frozen=True)
class TaskFile:
    """One task file and the facts that decide what is read from it.

    Attributes:
      path: the JSON file.
      name: `<benchmark>/<stem>`.
      category: of every Example.
      trained: by position, the first h instances are "test", the next h "validation", the rest
        "train", h = min(num_test, n // 10). Otherwise the first `num_test` are "test" and the rest,
        "train", serve as demonstrations only.
      num_test: see above; 100 for the official test instances.
      labels: the distinct outputs of the task are the options of each Example.
      listed: each instance has options of its own, a list of texts under the key `options`.
    """

    path: str
    name: str
    category: str
    trained: bool
    num_test: int
    labels: bool
    listed: bool = False

    def read(self, split: str, drops: Drops) -> Iterator[Example]:
        """Streams the Examples of a split; counts dropped records of that split by reason.

        A training instance whose input is also one of test or validation is dropped.

        Raises:
          UserError: the file is missing, damaged, without definition or without one usable
            instance, or it has too many distinct outputs for a label space.
        """
        content = _load(self.path)
        template = self._template(content)
        seen: set[tuple[str, str]] = set()
        first_split: dict[str, str] = {}
        ids: set[str] = set()
        other = Drops()
        usable = 0
        for index, raw in enumerate(content["Instances"]):
            here = self._split_of(index, len(content["Instances"]))
            counts = drops if here == split else other
            fields = self._parsed(raw, counts)
            if fields is not None:
                if first_split.setdefault(fields["input"], here) != here:
                    counts["input also in test or validation"] += 1
                elif (fields["input"], fields["target"]) in seen:
                    counts["duplicate"] += 1
                else:
                    usable += 1
                    seen.add((fields["input"], fields["target"]))
                    example_id = _unique_id(raw, ids, counts)
                    if here == split:
                        yield dataclasses.replace(
                            template, split=split, example_id=example_id, **fields
                        )
        if not usable:
            why = "; ".join(f"{n} {reason}" for reason, n in (other + drops).items())
            raise UserError(
                f"no usable instance in {self.path} ({why or 'Instances is empty'}); "
                "repair the file or remove it"
            )

    def demonstrations(self) -> list[Example]:
        """The positive examples in upstream order, then the instances of "train".

        None has the input of a test or validation instance.
        """
        content = _load(self.path)
        template = self._template(content)
        positive = [
            dataclasses.replace(template, example_id=f"positive-{index}", **fields)
            for index, _, fields in self._positive(content)
        ]
        return positive + list(self.read("train", Drops()))

    def _positive(self, content: Mapping[str, Any]) -> Iterator[tuple[int, Any, dict[str, Any]]]:
        """Position, content and fields of the positive examples that may be shown."""
        total = len(content["Instances"])
        held_out = {
            fields["input"]
            for index, raw in enumerate(content["Instances"])
            if self._split_of(index, total) != "train"
            and (fields := _parse_instance(raw, Drops())) is not None
        }
        for index, raw in enumerate(content.get("Positive Examples") or []):
            fields = self._parsed(raw, Drops())
            if fields is not None and fields["input"] not in held_out:
                yield index, raw, fields

    def _explained(self, content: Mapping[str, Any]) -> tuple[str, str, str] | None:
        """Input, output and explanation of the first positive example, if there is one."""
        for _, raw, fields in self._positive(content):
            explanation = _clean(text_of(raw.get("explanation")) or "")
            return fields["input"], fields["target"], explanation
        return None

    def _parsed(self, raw: Any, counts: Drops) -> dict[str, Any] | None:
        """The fields of an instance, with its own options where the task has them."""
        fields = _parse_instance(raw, counts)
        if fields is None or not self.listed:
            return fields
        listed = raw.get("options")
        texts = [text_of(value) for value in listed] if isinstance(listed, list) else []
        options = tuple(dict.fromkeys(_clean(text) for text in texts if text))
        if len(options) < 2 or None in texts:
            counts["no list of options"] += 1
            return None
        if not set(fields["references"]) <= set(options):
            counts["output is none of the options"] += 1
            return None
        return {**fields, "options": options}

    def _split_of(self, index: int, total: int) -> str:
        held_out = min(self.num_test, total // 10) if self.trained else self.num_test
        if index < held_out:
            return "test"
        return "validation" if self.trained and index < 2 * held_out else "train"

    def _template(self, content: Mapping[str, Any]) -> Example:
        """What all Examples of the task have in common."""
        return Example(
            benchmark=self.name.split("/", 1)[0],
            task=self.name,
            category=self.category,
            prompt_id="definition",
            example_id="",
            split="train",
            instruction=content["Definition"],
            input="",
            target="",
            references=(),
            options=self._label_space(content["Instances"]) if self.labels else None,
            source_dataset=", ".join(_strings(content.get("Source"))),
            meta={
                "domains": _strings(content.get("Domains")),
                "input_language": _strings(content.get("Input_language")),
                "output_language": _strings(content.get("Output_language")),
                "explained": self._explained(content),
            },
        )

    def _label_space(self, instances: Sequence[Any]) -> tuple[str, ...]:
        parsed = (_parse_instance(raw, Drops()) for raw in instances)
        labels = {label for fields in parsed if fields for label in fields["references"]}
        if not 2 <= len(labels) <= MAX_LABELS:
            raise UserError(
                f"the split manifest has `options: labels` for {self.name!r}, but {self.path} has "
                f"{len(labels)} distinct outputs (2 to {MAX_LABELS} make a label space); score the "
                "task by em or rougeL"
            )
        return tuple(sorted(labels, key=_natural_order))


# --- one instance ---------------------------------------------------------------------------------


def _parse_instance(raw: Any, counts: Drops) -> dict[str, Any] | None:
    """The fields input, target and references of an instance; None if it is dropped (counted)."""
    text = raw.get("input") if isinstance(raw, dict) else None
    outputs = raw.get("output") if isinstance(raw, dict) else None
    alone = not isinstance(outputs, list)
    texts = [text_of(value) for value in (text, *([outputs] if alone else outputs))]
    if None in texts:
        counts["malformed instance"] += 1
        return None
    if any(not isinstance(output, str) for output in ([outputs] if alone else outputs)):
        counts["warning: output is a number"] += 1
    text, *outputs = map(_clean, texts)
    references = tuple(dict.fromkeys(output for output in outputs if output))
    if not text or not references:
        counts["empty target" if text else "empty input"] += 1
        return None
    if any(_BAD_CHARACTERS.search(t) for t in (text, *references)):
        counts["NUL or U+FFFD"] += 1
        return None
    if alone:
        counts["warning: output is a string"] += 1
    if "" in outputs:
        counts["warning: empty reference left out"] += 1
    return {
        "input": text,
        "target": references[0],
        "references": references,
        "source_id": source_identity([text]),
    }


def _clean(text: str) -> str:
    return text.replace("\r\n", "\n").strip()


def _unique_id(raw: Mapping[str, Any], ids: set[str], counts: Drops) -> str:
    """Upstream's id; a hash of the instance if there is none, or if it is taken."""
    key = json.dumps([raw["input"], raw["output"]])
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    example_id = raw.get("id")
    if not isinstance(example_id, str) or not example_id:
        example_id = digest
    elif example_id in ids:
        counts["warning: repeated id"] += 1
        example_id = f"{example_id}-{digest}"
    ids.add(example_id)
    return example_id


def _natural_order(label: str) -> tuple[tuple[bool, int, str], ...]:
    """Sorts "2" before "10" and "A" before "B"."""
    parts = re.findall(r"\d+|\D+", label, re.ASCII)
    return tuple((not p.isdecimal(), int(p) if p.isdecimal() else 0, p) for p in parts)


def _strings(value: Any) -> list[str]:
    """A field that is documented as a list of strings, but is a string in some copies."""
    values = value if isinstance(value, list) else [value]
    return [v for v in values if isinstance(v, str) and v]


# --- files ----------------------------------------------------------------------------------------


def _load(path: str) -> dict[str, Any]:
    try:
        stat = os.stat(path)
    except FileNotFoundError as e:
        raise UserError(f"task file not found: {path}") from e
    return _parse_file(path, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=1)  # the splits and demonstrations of one task are read in turn
def _parse_file(path: str, mtime_ns: int, size: int) -> dict[str, Any]:
    """The checked content of a task file, `Definition` as one string. Shared: do not change it."""
    try:
        text = regular_file(path).read_text("utf-8-sig")
        content = loads(text)
    except json.JSONDecodeError as e:
        at_end = e.pos >= len(text.rstrip()) or "Unterminated" in e.msg
        why = "the file is cut off" if at_end else "it is damaged"
        raise UserError(
            f"{path}, line {e.lineno}: not valid JSON ({e.msg}); {why}: download it again"
        ) from e
    except UnicodeDecodeError as e:
        raise UserError(f"{path} is not UTF-8 (byte {e.start}); download it again") from e
    if not isinstance(content, dict) or not isinstance(content.get("Instances"), list):
        raise UserError(f"{path} is no task file: it has no list of Instances; see {UPSTREAM}")
    definition = next(iter(_strings(content.get("Definition"))), "")
    if not _clean(definition):
        raise UserError(f"{path} has an empty Definition; add one or remove the file")
    if _BAD_CHARACTERS.search(definition):
        raise UserError(f"the Definition of {path} has a NUL or U+FFFD; repair it")
    return {**content, "Definition": _clean(definition)}


def _task_files(root: pathlib.Path, benchmark: str) -> dict[str, pathlib.Path]:
    """Stem -> path, sorted. Only the last suffix goes: stems contain dots."""
    folder = root / "tasks"
    if not folder.is_dir():
        raise UserError(
            f"no data of benchmark {benchmark!r}: folder not found: {folder}; "
            f"give the root of a clone of {UPSTREAM} (or of a bench in its layout)"
        )
    paths = {path.name.removesuffix(".json"): path for path in sorted(folder.glob("*.json"))}
    if not paths:
        raise UserError(f"no task file (*.json) of benchmark {benchmark!r} in {folder}")
    return paths


def _spelling(stem: str) -> str:
    """Releases differ in `-` and `_`."""
    return stem.replace("-", "_")


def _read_split_lists(folder: pathlib.Path) -> dict[str, str]:
    """Task (in one spelling) -> the official list it is in."""
    splits: dict[str, str] = {}
    for split in _LISTS:
        path = folder / f"{split}_tasks.txt"
        if not path.is_file():
            if split == "excluded":
                continue
            raise UserError(f"split list not found: {path}; fetch splits/default of {UPSTREAM}")
        for line in read_text(path, "split list").split():
            task = _spelling(line.removesuffix(".json"))
            if splits.setdefault(task, split) != split:
                raise UserError(f"task {line!r} is both in {splits[task]}_tasks.txt and in {path}")
    return splits


def _read_category_tables(root: pathlib.Path) -> dict[str, list[str]]:
    """Task (in one spelling) -> names that tasks/README.md and categories.tsv give, best first."""
    table: dict[str, list[str]] = collections.defaultdict(list)
    readme, tsv = root / "tasks" / "README.md", root / "categories.tsv"
    if readme.is_file():
        width, column = 6, 2
        for line in read_text(readme).splitlines():
            cells = [cell.strip().strip("`") for cell in line.strip().strip("|").split("|")]
            if "Category" in cells:
                width, column = len(cells), cells.index("Category")
            elif cells[0].startswith("task") and len(cells) >= width:
                # Counted from the right: a summary may contain the column separator.
                table[_spelling(cells[0])] += cells[column - width].split(", ")
    if tsv.is_file():
        for line in read_text(tsv).splitlines():
            cells = line.split("\t")
            if len(cells) >= 2:
                table[_spelling(cells[0])].append(cells[1])
    return dict(table)


def _category(names: Sequence[str], path: pathlib.Path) -> str:
    """The first of the 76 names among the tables' and the file's own; else Misc."""
    if known := _known_category(names):
        return known
    if not path.is_file():
        return taxonomy.MISC  # read() will name it
    with path.open("rb") as f:
        match = _CATEGORIES_FIELD.search(f.read(_HEADER_BYTES).decode("utf-8", "replace"))
    try:
        own = _strings(loads(match[1])) if match else []
    except json.JSONDecodeError:
        own = []  # read() will name the damaged file
    return _known_category(own) or taxonomy.MISC


def _known_category(names: Sequence[str]) -> str | None:
    """That of the first known name; "Misc." is one of the 76 too."""
    categories = {name: taxonomy.category("superni", "", name) for name in names}
    return next((c for name, c in categories.items() if c != taxonomy.MISC or name == c), None)


def _log_some(message: str, benchmark: str, stems: Sequence[str]) -> None:
    if stems:
        shown = ", ".join(stems[:5]) + (" ..." if len(stems) > 5 else "")
        logging.warning(message, len(stems), benchmark, shown)
