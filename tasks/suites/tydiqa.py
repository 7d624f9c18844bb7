"""Reader of TyDiQA-GoldP: `tydiqa-goldp-v1.1-{train,dev}.json`, in the form of SQuAD 1.1.

A task per language, which is the first part of a question's id. The dev file is scored, the first
questions of the train file are demonstrations. There is no prompt upstream; ours is the passage,
the question, and `Answer:`.
"""

import dataclasses
import os
from collections.abc import Iterator
from typing import NamedTuple

from optiml_jax.data.example import Drops, Example, TaskSource
from optiml_jax.errors import UserError
from tasks import taxonomy
from tasks.files.text_files import RecordFilter, data_folder, demonstration_pool, json_items
from tasks.splits import Manifest

UPSTREAM = "https://github.com/google-research-datasets/tydiqa (gold passage task)"
READER_VERSION = 1  # raise it when the same files give other Examples: caches are then redone

_LANGUAGES = (
    *("arabic", "bengali", "english", "finnish", "indonesian", "korean", "russian", "swahili"),
    "telugu",
)
_FILES = {"train": "tydiqa-goldp-v1.1-train.json", "test": "tydiqa-goldp-v1.1-dev.json"}


def find_tasks(
    root: str | os.PathLike, manifest: Manifest, benchmark: str = "tydiqa_goldp"
) -> list[TaskSource]:
    """One task per language. Opens no file.

    Raises:
      UserError: the folder or its dev file is missing.
    """
    what = f"give the folder of {_FILES['test']}, from {UPSTREAM}"
    folder = data_folder(root, benchmark, what)
    files = {s: str(folder / name) for s, name in _FILES.items() if (folder / name).is_file()}
    if "test" not in files:
        raise UserError(f"no data of benchmark {benchmark!r} in {folder}; {what}")
    sources = []
    for language in _LANGUAGES:
        name = f"{benchmark}/{language}"
        category = manifest.lookup(name, None).category or taxonomy.MISC
        task = Language(name, category, files)
        sources.append(
            TaskSource(
                name=name,
                splits=tuple(files),
                files=tuple(files.values()),
                read=task.read,
                demonstrations=task.demonstrations,
                instruction_level="verbatim",
                settings={"category": category, "reader": READER_VERSION},
            )
        )
    return sources


class Question(NamedTuple):
    """A question of any language."""

    id: str
    prompt: str
    answers: list[str]


@dataclasses.dataclass(frozen=True)
class Language:
    """One language.

    Attributes:
      name: `<benchmark>/<language>`.
      category: of every Example.
      files: "train" (demonstrations), "test" -> file.
    """

    name: str
    category: str
    files: dict[str, str]

    def read(self, split: str, drops: Drops) -> Iterator[Example]:
        """Streams the questions of the language.

        Raises:
          UserError: the file is damaged, or has no usable question in the language.
        """
        path, language = self.files[split], self.name.split("/", 1)[1]
        keep, usable = RecordFilter(keep_repeated=True), False
        for question in _questions(path, drops):
            if question.id.split("-")[0] != language:
                continue
            fields = keep(question.prompt, question.answers, drops)
            if fields is None:
                continue
            usable = True
            yield Example(
                benchmark=self.name.split("/", 1)[0],
                task=self.name,
                category=self.category,
                prompt_id="passage",
                split=split,
                instruction="",
                source_dataset="tydiqa",
                **fields | {"example_id": question.id, "target": f" {fields['target']}"},
            )
        if not usable and split == "test":  # without training questions it has no demonstrations
            raise UserError(f"no usable question of {language} in {path}; download it again")

    def demonstrations(self) -> list[Example]:
        if "train" not in self.files:
            return []
        return demonstration_pool(self.read("train", Drops()))


def _questions(path: str, drops: Drops) -> Iterator[Question]:
    """The questions of all languages, one article in memory at a time."""
    for number, article in enumerate(json_items(path, drops, "data"), 1):
        try:
            questions = [
                Question(
                    q["id"],
                    f"{p['context'].strip()}\nQuestion: {q['question'].strip()}\nAnswer:",
                    [answer["text"] for answer in q["answers"]],
                )
                for p in article["paragraphs"]
                for q in p["qas"]
            ]
        except (KeyError, TypeError, AttributeError) as e:
            raise UserError(
                f"{path}, article {number} has not the form of SQuAD 1.1 ({e!r}); get {UPSTREAM}"
            ) from e
        yield from questions
