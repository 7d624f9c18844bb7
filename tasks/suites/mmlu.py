"""Reader of MMLU: `data/{dev,val,test}/<subject>_<split>.csv` of hendrycks/test.

A task per subject. Benchmark `mmlu` has the test files, `mmlu_val` the validation files; the five
rows of the dev file are the demonstrations of both. The prompt is upstream's (evaluate.py), the two
spaces in its first line too; the letters of the answers are ranked.
"""

import dataclasses
import os
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

from optiml_jax.data.example import Drops, Example, TaskSource
from optiml_jax.data.identity import source_identity
from optiml_jax.errors import UserError
from tasks.files.text_files import csv_rows, data_folder
from tasks.splits import Manifest

UPSTREAM = "https://github.com/hendrycks/test (data.tar)"
READER_VERSION = 1  # raise it when the same files give other Examples: caches are then redone

LETTERS = ("A", "B", "C", "D")


def find_tasks(
    root: str | os.PathLike, manifest: Manifest, benchmark: str = "mmlu"
) -> list[TaskSource]:
    """The tasks of a folder, or of the folder `data` in it, sorted by name. Opens no file.

    Raises:
      UserError: there is no folder of the split, or no subject in it.
    """
    split = "val" if benchmark.endswith("_val") else "test"
    files = subject_files(root, benchmark, split)
    return [_source(f"{benchmark}/{subject}", path, manifest) for subject, path in files.items()]


def subject_files(root: str | os.PathLike, benchmark: str, split: str) -> dict[str, pathlib.Path]:
    """Subject -> its file of a split, sorted; raises like `find_tasks`."""
    what = f"give the folder that holds dev, val and test, from {UPSTREAM}"
    folder = data_folder(root, benchmark, what)
    if (folder / "data").is_dir():
        folder = folder / "data"
    files = sorted((folder / split).glob(f"*_{split}.csv"))
    if not files:
        raise UserError(
            f"no task of benchmark {benchmark!r}: no {split}/<subject>_{split}.csv in {folder}; "
            f"{what}"
        )
    return {path.stem.removesuffix(f"_{split}"): path for path in files}


class Row(NamedTuple):
    """A row of a file: its question, four answers as they are, and the letter of the right one."""

    question: str
    answers: tuple[str, ...]
    letter: str

    @property
    def identity(self) -> str:
        return source_identity([self.question, *self.answers])


def rows(path: str) -> Iterator[Row]:
    """Streams the rows of a file.

    Raises:
      UserError: it is missing, damaged or empty, or a row is not question, four answers and a
        letter.
    """
    count = 0
    for number, cells in csv_rows(path):
        letter = cells[-1].strip()
        if len(cells) != 6 or letter not in LETTERS:
            raise UserError(
                f"{path}, line {number}: not a question, four answers and a letter from A to D "
                f"({len(cells)} cells); download the file again"
            )
        count += 1
        yield Row(cells[0], tuple(cells[1:5]), letter)
    if not count:
        raise UserError(f"{path} is empty; download the file again")


def _source(name: str, path: pathlib.Path, manifest: Manifest) -> TaskSource:
    subject = name.split("/", 1)[1]
    dev = path.parents[1] / "dev" / f"{subject}_dev.csv"
    files = {"test": str(path)} | ({"train": str(dev)} if dev.is_file() else {})
    task = Subject(name, manifest.lookup(name, None).category or "MMLU", files)
    return TaskSource(
        name=name,
        splits=tuple(files),
        files=tuple(files.values()),
        read=task.read,
        demonstrations=task.demonstrations,
        instruction_level="verbatim",
        settings={"category": task.category, "reader": READER_VERSION},
    )


@dataclasses.dataclass(frozen=True)
class Subject:
    """One subject.

    Attributes:
      name: `<benchmark>/<subject>`.
      category: of every Example.
      files: "train" (the dev file), "test" -> file.
    """

    name: str
    category: str
    files: dict[str, str]

    def read(self, split: str, drops: Drops) -> Iterator[Example]:
        """Streams a split, every row of it; raises like `rows`."""
        subject = self.name.split("/", 1)[1]
        for number, row in enumerate(rows(self.files[split]), 1):
            # The spaces around questions and answers stay, as upstream has them.
            answers = [f"{x}. {cell}" for x, cell in zip(LETTERS, row.answers, strict=True)]
            yield Example(
                benchmark=self.name.split("/", 1)[0],
                task=self.name,
                category=self.category,
                prompt_id="hendrycks",
                example_id=f"{split}-{number}",
                split=split,
                instruction=(
                    "The following are multiple choice questions (with answers) about  "
                    f"{subject.replace('_', ' ')}."
                ),
                input="\n".join([row.question, *answers, "Answer:"]).replace("\r\n", "\n"),
                target=f" {row.letter}",
                references=(row.letter,),
                options=LETTERS,
                source_dataset="mmlu",
                source_id=row.identity,
            )

    def demonstrations(self) -> list[Example]:
        """In the order of the file, which is that of the shots upstream."""
        return list(self.read("train", Drops())) if "train" in self.files else []
