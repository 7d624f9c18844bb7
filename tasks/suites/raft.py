"""Reader of RAFT: the 50 labelled rows of each of its 11 subsets, cut and asked as HELM does.

The folder holds the data set's repository (ought/raft on Hugging Face: `data/<subset>/train.csv`),
or each subset as files/rows.py knows it; and `prompt_construction_settings.jsonl` of
oughtinc/raft-baselines, whose first line has the order of a subset's fields and whose second its
instructions. All rows of the real test set have no label, so HELM (`raft_scenario.py`) scores 40 of
the 50 and takes demonstrations from the other ten; table 14's figures are multiples of 1/440.
"""

import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Iterator

import numpy as np

from optiml_jax.data.example import Drops, Example, TaskSource
from optiml_jax.data.identity import source_identity
from optiml_jax.errors import UserError
from optiml_jax.files import read_text
from tasks.files.rows import Row, find_splits
from tasks.files.text_files import csv_records, data_folder
from tasks.files.values import Texts
from tasks.splits import Manifest
from tasks.templates.instructions import read_mapping

SETTINGS = "prompt_construction_settings.jsonl"
UPSTREAM = "https://github.com/oughtinc/raft-baselines (src/raft_baselines/data)"
LABELS_FILE = pathlib.Path(__file__).parent / "raft.yaml"
READER_VERSION = 1  # raise it when the same files give other Examples: caches are then redone
NUM_ROWS = 50
NUM_TEST = 40
SEED = 42


def find_tasks(
    root: str | os.PathLike, manifest: Manifest, benchmark: str = "raft"
) -> list[TaskSource]:
    """The subsets that the folder has, sorted by name. Opens only the settings of the prompts.

    Raises:
      UserError: the folder or the settings are missing or damaged, or there is no subset.
    """
    folder = data_folder(root, benchmark, "give a copy of ought/raft of Hugging Face")
    settings = folder / SETTINGS
    orders, instructions = _settings(settings)
    sources = []
    for subset, labels in labels_of_all().items():
        path = next((d / subset for d in (folder / "data", folder) if (d / subset).is_dir()), None)
        if path is None:
            continue
        name = f"{benchmark}/{subset}"
        if subset not in orders or subset not in instructions:
            raise UserError(f"{settings} has nothing on {subset}; get it from {UPSTREAM}")
        task = Subset(
            name=name,
            category=manifest.lookup(name, None).category or "RAFT",
            instruction=_instruction(instructions[subset], labels),
            fields=tuple(orders[subset]),
            labels=tuple(labels),
            folder=str(path),
        )
        sources.append(
            TaskSource(
                name=name,
                splits=("train", "test"),
                files=(str(settings), *task.files()),
                read=task.read,
                demonstrations=task.demonstrations,
                instruction_level="verbatim",
                settings={"category": task.category, "labels": labels, "reader": READER_VERSION},
            )
        )
    if not sources:
        known = ", ".join(labels_of_all())
        raise UserError(f"no subset of benchmark {benchmark!r} in {folder}; known: {known}")
    return sources


@functools.cache
def labels_of_all() -> dict[str, list[str]]:
    """The content of raft.yaml. Shared: do not change it."""
    return read_mapping(LABELS_FILE)


def _settings(path: pathlib.Path) -> tuple[dict[str, list[str]], dict[str, str]]:
    try:
        lines = read_text(path, f"the prompts of RAFT ({UPSTREAM})").strip().splitlines()
        orders, instructions = map(json.loads, lines)
    except ValueError as e:
        raise UserError(f"{path} is not two lines of JSON ({e}); get it from {UPSTREAM}") from e
    return orders, instructions


def _instruction(text: str, labels: list[str]) -> str:
    listed = [f"{i}. {label}" for i, label in enumerate(labels, 1)]
    return "\n".join([text.strip(), "Possible labels:", *listed])


@dataclasses.dataclass(frozen=True)
class Subset:
    """One subset.

    Attributes:
      name: `<benchmark>/<subset>`.
      category: of every Example.
      instruction: with the list of labels.
      fields: names of the columns that are shown, in order.
      labels: by number, from 1 on.
      folder: holds `train.csv`, or rows of a split "train".
    """

    name: str
    category: str
    instruction: str
    fields: tuple[str, ...]
    labels: tuple[str, ...]
    folder: str

    def files(self) -> tuple[str, ...]:
        """Those of the labelled rows."""
        path = pathlib.Path(self.folder, "train.csv")
        if path.is_file():
            return (str(path),)
        splits = find_splits(path.parent)
        if "train" not in splits:
            raise UserError(f"no labelled rows of {self.name}: {path} not found")
        return splits["train"].files

    def read(self, split: str, drops: Drops) -> Iterator[Example]:
        """The rows of HELM's cut; never any other.

        Raises:
          UserError: a file is damaged or has not 50 rows, or a row lacks a field or a label.
        """
        rows = list(self._rows())
        if len(rows) != NUM_ROWS:
            raise UserError(
                f"{self.files()[0]} has {len(rows)} rows, not the {NUM_ROWS} labelled ones of RAFT"
            )
        # As `train_test_split` of Hugging Face's data sets draws.
        order = np.random.default_rng(SEED).permutation(NUM_ROWS)
        for i in order[:NUM_TEST] if split == "test" else order[NUM_TEST:]:
            yield self._example(split, int(i), rows[i])

    def demonstrations(self) -> list[Example]:
        return list(self.read("train", Drops()))

    def _rows(self) -> Iterator[Row]:
        file = self.files()[0]
        if file.endswith("train.csv"):
            return (row for _, row in csv_records(file))
        return find_splits(pathlib.Path(self.folder))["train"].read()

    def _example(self, split: str, number: int, row: Row) -> Example:
        try:
            fields = Texts({f: "" if row[f] is None else row[f] for f in self.fields})
            texts = {field: fields[field].strip() for field in self.fields}
            label = row["Label"]
        except KeyError as e:
            raise UserError(f"{self.files()[0]}, row {number + 1}: no field {e}") from e
        except TypeError as e:
            raise UserError(f"{self.files()[0]}, row {number + 1}: {e}") from e
        if isinstance(label, int) and 1 <= label <= len(self.labels):
            label = self.labels[label - 1]
        if label not in self.labels:
            raise UserError(
                f"{self.files()[0]}, row {number + 1}: {label!r} is not a label of {self.name}; "
                f"known: {', '.join(self.labels[:5])}, ..."
            )
        shown = [f"{field}: {text}" for field, text in texts.items() if text]
        return Example(
            benchmark=self.name.split("/", 1)[0],
            task=self.name,
            category=self.category,
            prompt_id="raft_baselines",
            example_id=str(row.get("ID", number)),
            split=split,
            instruction=self.instruction,
            input="\n".join([*shown, "Label:"]),
            target=f" {label}",
            references=(label,),
            options=self.labels,
            source_dataset="raft",
            source_id=source_identity(texts.values()),
        )
