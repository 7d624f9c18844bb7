"""Reader of UnifiedSKG (HKUNLP/UnifiedSKG): questions and texts grounded in structured knowledge.

A task is a folder: the releases of DART, Spider and WikiTableQuestions as they are, every other
task as `train|dev|test.json` or `.jsonl` of UnifiedSKG's own records with the fields `text_in`,
`struct_in` and `seq_out`. The linear forms of the three releases are in `releases.py`.
Prompts are upstream's keyword prompts (utils/dataset.py) with the task's name before them.
"""

import dataclasses
import logging
import os
import pathlib
from collections.abc import Iterator

from optiml_jax.data.example import Drops, Example, TaskSource, check_unique_names
from optiml_jax.errors import UserError
from tasks import taxonomy
from tasks.files.text_files import RecordFilter, data_folder, demonstration_pool, json_items
from tasks.files.values import text_of
from tasks.splits import Manifest
from tasks.unifiedskg.releases import Record, dart_records, spider_records, wikitq_records

READER_VERSION = 3  # raise it when the same file gives other Examples: caches are then redone
TURN_SEPARATOR = " || "  # the last turn, then the older ones, newest first, divided by " | "

_SPLITS = {"train": "train", "dev": "validation", "test": "test"}
_RELEASE_FILES = {  # release -> split -> patterns of its files, the first that matches counts
    "dart": {split: (f"data/v*/dart-*-{split}*.json",) for split in _SPLITS},
    "spider": {"train": ("**/train_*.json",), "dev": ("**/dev.json",), "test": ("**/test.json",)},
    "wikitq": {
        "train": ("data/random-split-1-train.tsv",),
        "dev": ("data/random-split-1-dev.tsv",),
        "test": ("data/pristine-unseen-tables.tsv",),
    },
    "json": {split: (f"{split}.json", f"{split}.jsonl") for split in _SPLITS},
}

logger = logging.getLogger(__name__)


def find_tasks(
    root: str | os.PathLike, manifest: Manifest, benchmark: str = "unifiedskg"
) -> list[TaskSource]:
    """The tasks of a folder of task folders, sorted by name. Opens no data file.

    A task without a test file has its dev file as "test" (upstream's two-section tasks).

    Raises:
      UserError: the folder is missing or no folder in it has a file of a known form.
    """
    folder = data_folder(
        root, benchmark, "give a folder with one folder per task (dart, spider...)"
    )
    sources, uncategorised = [], []
    for path in sorted(p for p in folder.iterdir() if p.is_dir()):
        source = _source(f"{benchmark}/{path.name}", path, manifest)
        if source is None:
            logger.warning("%s holds no file of a known form; it is left out", path)
            continue
        if source.settings["category"] == taxonomy.MISC:
            uncategorised.append(path.name)
        sources.append(source)
    if not sources:
        raise UserError(
            f"no task of benchmark {benchmark!r} in {folder}: its folders hold neither a release "
            "of DART, Spider or WikiTableQuestions nor train.json, dev.json or test.json"
        )
    if uncategorised:
        logger.warning("tasks without a known category count as Misc.: %s", uncategorised)
    check_unique_names([s.name for s in sources])
    return sources


def _source(name: str, folder: pathlib.Path, manifest: Manifest) -> TaskSource | None:
    task_id = name.split("/", 1)[1]
    form, extra = task_id if task_id in _RELEASE_FILES else "json", []
    if form == "spider":
        extra = sorted(folder.rglob("tables.json"))[:1]
    elif form == "wikitq":
        extra = sorted(folder.glob("csv/*/*.csv"))
    files = _split_files(form, folder)
    if not files or (form in ("spider", "wikitq") and not extra):
        form, extra, files = "json", [], _split_files("json", folder)
    if not files:
        return None
    row = manifest.lookup(name, None)
    task = SkgTask(
        name=name,
        category=row.category or taxonomy.category("unifiedskg", task_id),
        form=form,
        folder=str(folder),
        files=files,
        tables=str(extra[0]) if form == "spider" else "",
    )
    return TaskSource(
        name=name,
        splits=tuple(files),
        files=tuple(str(p) for p in (*[f for fs in files.values() for f in fs], *extra)),
        read=task.read,
        demonstrations=task.demonstrations,
        instruction_level="instance",
        settings={
            "category": task.category,
            "form": form,
            "splits": {split: len(paths) for split, paths in files.items()},
            "reader": READER_VERSION,
        },
    )


def _split_files(form: str, folder: pathlib.Path) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for split, patterns in _RELEASE_FILES[form].items():
        for pattern in patterns:
            if paths := tuple(str(p) for p in sorted(folder.glob(pattern))):
                found.setdefault(_SPLITS[split], paths)
    if "validation" in found and "test" not in found:
        found["test"] = found.pop("validation")
    return found


@dataclasses.dataclass(frozen=True)
class SkgTask:
    """One task.

    Attributes:
      name: `<benchmark>/<task>`.
      category: of every Example.
      form: "dart", "spider", "wikitq" or "json".
      folder: of the task.
      files: split -> files.
      tables: Spider's tables.json, else "".
    """

    name: str
    category: str
    form: str
    folder: str
    files: dict[str, tuple[str, ...]]
    tables: str

    def read(self, split: str, drops: Drops) -> Iterator[Example]:
        """Streams a split.

        Raises:
          UserError: a file is missing or damaged, or the split has no usable record.
        """
        keep = RecordFilter()
        task_id = self.name.split("/", 1)[1]
        ids: set[str] = set()
        usable = False
        for path in self.files[split]:
            for record in self._records(path, split, drops):
                if not record.struct_in.strip() and not record.text_in.strip():
                    drops["empty input"] += 1
                    continue
                fields = keep(prompt_text(task_id, record), record.references, drops)
                if fields is None:
                    continue
                usable = True
                if record.record_id and record.record_id not in ids:
                    ids.add(record.record_id)
                    fields["example_id"] = record.record_id
                yield Example(
                    benchmark=self.name.split("/", 1)[0],
                    task=self.name,
                    category=self.category,
                    prompt_id="keywords",
                    split=split,
                    instruction="",
                    source_dataset=task_id,
                    meta={"text_in": record.text_in, "struct_in": record.struct_in},
                    **fields,
                )
        if not usable:
            why = "; ".join(f"{n} {reason}" for reason, n in drops.items())
            raise UserError(
                f"no usable record in {', '.join(self.files[split])} ({why or 'it is empty'})"
            )

    def demonstrations(self) -> list[Example]:
        """The training records; those of "validation", which is not scored, if there are none."""
        for split in ("train", "validation"):
            if split in self.files:
                return demonstration_pool(self.read(split, Drops()))
        return []

    def _records(self, path: str, split: str, drops: Drops) -> Iterator[Record]:
        if self.form == "dart":
            return dart_records(path, split, drops)
        if self.form == "spider":
            return spider_records(path, self.tables, drops)
        if self.form == "wikitq":
            return wikitq_records(path, self.folder, drops)
        return _own_records(path, drops)


def prompt_text(task_id: str, record: Record) -> str:
    """Upstream's keyword prompt (utils/dataset.py) after the name of the task."""
    request, conversation, older = record.text_in.partition(TURN_SEPARATOR)
    parts = [f"task: {task_id}"]
    if request:
        parts.append(request)
    parts.append(f"structured knowledge: {record.struct_in}")
    if conversation:
        parts.append(f"context: {older}")
    return " ; ".join(parts)


def _own_records(path: str, drops: Drops) -> Iterator[Record]:
    """Records with UnifiedSKG's fields; `seq_out` may be a list of references."""
    for item in json_items(path, drops):
        text, struct, out = (item.get(key) for key in ("text_in", "struct_in", "seq_out"))
        references = out if isinstance(out, list) else [out]
        text, struct, *references = map(
            text_of, ["" if text is None else text, struct, *references]
        )
        if None in (text, struct, *references):
            drops["malformed record"] += 1
            continue
        record_id = item.get("id")
        yield Record(
            text, struct, tuple(references), record_id if isinstance(record_id, str) else ""
        )
