"""Reader of CrossFit's TSV files (INK-USC/CrossFit), full splits and few-shot samples.

`data/<task>/<task>_<size>_<seed>_<split>.tsv`, columns input, output and further accepted outputs,
without header or quoting; `<size>` is "full" or the number of shots. Every prompt is the project's
own instruction sentence of the task followed by CrossFit's keyword input.
"""

import collections
import dataclasses
import functools
import logging
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from optiml_jax.data.example import Drops, Example, TaskSource, check_unique_names
from optiml_jax.errors import UserError
from tasks import taxonomy
from tasks.files.text_files import RecordFilter, data_folder, demonstration_pool, tsv_rows
from tasks.splits import Manifest
from tasks.templates.instructions import instructions

UPSTREAM = "https://github.com/INK-USC/CrossFit"
FACTS_FILE = pathlib.Path(__file__).parent / "tasks.tsv"
READER_VERSION = 2  # raise it when the same file gives other Examples: caches are then redone
SEEDS = ("100", "13", "21", "42", "87")  # upstream's, in upstream's order
SPLITS = {"train": "train", "dev": "validation", "test": "test"}
MAX_LABELS = 200  # discovery has 174
MAX_OWN_LABELS = 20  # of a task of the user's own, whose answers may be free text
FIELD_SEPARATOR = " [SEP] "

_MARKER = re.compile(r"\(([A-H1-9])\) ")
_MARKERS = ("ABCDEFGH", "123456789")
_ANY_WIDTH = range(2, 1 << 16)

logger = logging.getLogger(__name__)


def find_tasks(
    root: str | os.PathLike, manifest: Manifest, benchmark: str = "crossfit"
) -> list[TaskSource]:
    """The tasks of a folder of CrossFit data, sorted by name. Opens no data file.

    Of a task that is there in several samples one is read: the full one, else the one with the
    most shots, and of these the first seed in upstream's order. A task that upstream does not have
    needs a sentence in `<root>/instructions.yaml`.

    Args:
      root: a clone of CrossFit in which `data/` was built, or a folder like that `data/`.
      manifest: says which tasks are trained on; with metric acc_rank examples without candidates
        are dropped.
      benchmark: first part of the task names.

    Raises:
      UserError: the folder is missing or holds no task of CrossFit.
    """
    folder = data_folder(root, benchmark, f"give a clone of {UPSTREAM} with its data built")
    sentences = instructions("crossfit", folder)
    folder = folder / "data" if (folder / "data").is_dir() else folder
    sources, unknown = [], []
    for path in sorted(p for p in folder.iterdir() if p.is_dir()):
        samples = _samples(path)
        if path.name not in sentences or not samples:
            unknown.append(path.name)
            continue
        sources.append(_source(f"{benchmark}/{path.name}", sentences[path.name], samples, manifest))
    if not sources:
        raise UserError(
            f"no task of benchmark {benchmark!r} in {folder}: there is no file "
            f"<task>/<task>_<shots>_<seed>_train.tsv; build them as {UPSTREAM} describes"
        )
    if unknown:
        logger.warning(
            "%d folders of %s hold no sample or are no task of CrossFit (one of your own wants a "
            "sentence in instructions.yaml): %s",
            len(unknown),
            folder,
            unknown,
        )
    check_unique_names([s.name for s in sources])
    return sources


@functools.cache
def answer_kinds() -> dict[str, str]:
    """Task of CrossFit -> "closed" (options exist) or "text". Shared: do not change it."""
    return dict(line.split("\t") for line in FACTS_FILE.read_text("utf-8").splitlines()[1:])


def _samples(folder: pathlib.Path) -> dict[tuple[str, str], dict[str, str]]:
    """(size, seed) -> split -> file, of the samples that have a training file if any has one.

    Upstream's generator with a number of shots above a task's size leaves an empty dev file: no
    split. Any other empty file is a UserError.
    """
    pattern = re.compile(rf"{re.escape(folder.name)}_(full|\d+)_(\d+)_(train|dev|test)\.tsv")
    found: dict[tuple[str, str], dict[str, str]] = collections.defaultdict(dict)
    for path in sorted(folder.iterdir()):
        if not (match := pattern.fullmatch(path.name)):
            continue
        if path.stat().st_size:
            found[match[1], match[2]][SPLITS[match[3]]] = str(path)
        elif match[3] != "dev":
            raise UserError(f"{path} is empty; build it again as {UPSTREAM} describes")
    trained = {sample: files for sample, files in found.items() if "train" in files}
    return trained or dict(found)


def _preference(sample: tuple[str, str]) -> tuple:
    size, seed = sample
    known = SEEDS.index(seed) if seed in SEEDS else len(SEEDS)
    return (size != "full", 0 if size == "full" else -int(size), known, int(seed))


def _source(
    name: str,
    instruction: str,
    samples: dict[tuple[str, str], dict[str, str]],
    manifest: Manifest,
) -> TaskSource:
    task_id = name.split("/", 1)[1]
    row = manifest.lookup(name, None)
    size, seed = min(samples, key=_preference)
    files = samples[size, seed]
    max_labels = {"text": 0, "closed": MAX_LABELS, "own": MAX_OWN_LABELS}
    task = CrossFitTask(
        name=name,
        category=row.category or taxonomy.category("crossfit", task_id),
        instruction=instruction,
        files=files,
        max_labels=max_labels[answer_kinds().get(task_id, "own")],
        ranked=row.metric == "acc_rank",
    )
    settings = {**dataclasses.asdict(task), "sample": f"{size}_{seed}", "reader": READER_VERSION}
    del settings["name"], settings["files"]
    return TaskSource(
        name=name,
        splits=tuple(split for split in SPLITS.values() if split in files),
        files=tuple(files.values()),
        read=task.read,
        demonstrations=task.demonstrations,
        instruction_level="instance",
        settings=settings,
    )


@dataclasses.dataclass(frozen=True)
class CrossFitTask:
    """One sample of one task.

    Attributes:
      name: `<benchmark>/<task>`.
      category: of every Example.
      instruction: the task's sentence.
      files: split -> TSV file.
      max_labels: 0: answers are free text. Else the answer is one of some candidates: those that
        the input lists with markers, `(A)`, else the distinct outputs of the task (the values of
        upstream's class attribute `label`) if they are no more than this.
      ranked: evaluation ranks candidates, so that an example without any is of no use.
    """

    name: str
    category: str
    instruction: str
    files: dict[str, str]
    max_labels: int
    ranked: bool

    def read(self, split: str, drops: Drops) -> Iterator[Example]:
        """Streams a split.

        Raises:
          UserError: a file is missing, not UTF-8, or has no usable row.
        """
        keep = RecordFilter()
        labels = self._label_space() if self.max_labels else None
        usable = False
        for _, (text, *outputs) in tsv_rows(self.files[split], _ANY_WIDTH, drops):
            fields = keep(_fields_on_lines(text), [_fields_on_lines(o) for o in outputs], drops)
            if fields is None:
                continue
            options, options_text = self._options(fields, labels, drops)
            if self.ranked and options is None:
                drops["no options"] += 1
                continue
            usable = True
            yield Example(
                benchmark=self.name.split("/", 1)[0],
                task=self.name,
                category=self.category,
                prompt_id="manual",
                split=split,
                instruction=self.instruction,
                options=options,
                options_text=options_text,
                source_dataset=self.name.split("/", 1)[1],
                **fields,
            )
        if not usable:
            why = "; ".join(f"{n} {reason}" for reason, n in drops.items())
            raise UserError(
                f"no usable row in {self.files[split]} ({why or 'it is empty'}); build it again"
            )

    def demonstrations(self) -> list[Example]:
        if "train" not in self.files:
            return []
        return demonstration_pool(self.read("train", Drops()))

    def _options(
        self, fields: dict[str, Any], labels: tuple[str, ...] | None, drops: Drops
    ) -> tuple[tuple[str, ...] | None, str]:
        """The candidates, and the part of the input that lists them."""
        if not self.max_labels:
            return None, ""
        listed, block = listed_options(fields["input"])
        if fields["target"] in listed:
            return listed, block if fields["input"].count(block) == 1 else ""
        if listed:
            drops["warning: target not among options"] += 1
            return None, ""
        return labels, ""

    def _label_space(self) -> tuple[str, ...] | None:
        """The distinct outputs of rows that list no options; None if they are too many."""
        labels: set[str] = set()
        for path in self.files.values():
            for _, (text, *outputs) in tsv_rows(path, _ANY_WIDTH, Drops()):
                if not listed_options(_fields_on_lines(text))[0]:
                    labels.update(o for output in outputs if (o := _fields_on_lines(output)))
                if len(labels) > self.max_labels:
                    return None
        return tuple(sorted(labels))


def listed_options(text: str) -> tuple[tuple[str, ...], str]:
    """The candidates of an input `stem (A) x (B) y`, x and y, and the list itself, `(A) x (B) y`.

    The last list of at least two consecutive markers counts. Its last candidate ends with the line
    or before ` context: `, where some inputs go on with a passage.
    """
    markers = list(_MARKER.finditer(text))
    for first in reversed(range(len(markers))):
        alphabet: Sequence[str] = next((a for a in _MARKERS if a[0] == markers[first][1]), "")
        run = 0
        while (
            run < len(alphabet)
            and first + run < len(markers)
            and markers[first + run][1] == alphabet[run]
        ):
            run += 1
        if run >= 2:
            ends = [m.start() for m in markers[first + 1 : first + run]] + [len(text)]
            starts = [m.end() for m in markers[first : first + run]]
            texts = [text[a:b].strip() for a, b in zip(starts, ends, strict=True)]
            texts[-1] = re.split(r"\n| context: ", texts[-1], maxsplit=1)[0].strip()
            end = text.index(texts[-1], starts[-1]) + len(texts[-1])
            return tuple(texts), text[markers[first].start() : end]
    return (), ""


def _fields_on_lines(text: str) -> str:
    """CrossFit's field separator is a token of its models; here fields stand on lines."""
    return text.replace(FIELD_SEPARATOR, "\n").strip()
