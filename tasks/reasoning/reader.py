"""Reader of chain-of-thought data: TSV files of FLAN v2, and other sets' own releases.

A file `<name>_train.tsv` (google-research/FLAN, v2/cot_data) has the columns question, answer,
rationale, without header or quoting; the two characters `\\n` in a cell are a newline. A folder
with the name of a set holds its release (`releases.py`); of a set that has both, the TSV
file is "train" and the release gives "test".

Prompts follow table 6 of the OPT-IML paper: an instruction that asks for step-by-step reasoning,
the question, its options on one line, and the target `<rationale> The answer is <answer>`. Table 6
shows no labels before instruction and question; so the instruction is part of every instance,
demonstrations too, and FLAN's own templates are not used.
"""

import dataclasses
import itertools
import logging
import os
import pathlib
import re
from collections.abc import Iterator

from optiml_jax.data.example import Drops, Example, TaskSource, check_unique_names
from optiml_jax.errors import UserError
from tasks import taxonomy
from tasks.files.text_files import RecordFilter, data_folder, demonstration_pool, tsv_rows
from tasks.reasoning.releases import RELEASES, Files, Record
from tasks.splits import Manifest
from tasks.templates.instructions import instructions

UPSTREAM = "https://github.com/google-research/FLAN (flan/v2/cot_data)"
READER_VERSION = 4  # raise it when the same file gives other Examples: caches are then redone
NUM_TEST = 250  # items of a validation task (paper, section 4.1)

logger = logging.getLogger(__name__)

_SUFFIX = "_train.tsv"
_OPTIONS = "\nOptions:\n"
_OPTION = re.compile(r"(?:- |(?=\([A-Z]\) ))(.+)")  # "- x", "- (A) x" or "(A) x"


def find_tasks(
    root: str | os.PathLike, manifest: Manifest, benchmark: str = "reasoning"
) -> list[TaskSource]:
    """The tasks of a folder of `<name>_train.tsv` files and releases, sorted by name.

    Opens no data file. A task that is not trained on has at most `NUM_TEST` test items (or as many
    as the manifest says): of its release, else the first rows of its TSV file.

    Raises:
      UserError: the folder is missing or holds no set, or a file has no instruction sentence.
    """
    folder = data_folder(root, benchmark, f"give the folder of the TSV files of {UPSTREAM}")
    sentences = instructions("reasoning", folder)
    files = {p.name.removesuffix(_SUFFIX): p for p in folder.glob(f"*{_SUFFIX}")}
    for stem, path in files.items():
        if stem not in sentences:
            raise UserError(
                f"no instruction sentence for {path}; known sets: {', '.join(sentences)}; "
                f"rename or remove the file, or add the sentence to {folder}/instructions.yaml"
            )
    folders = {p.name.lower().replace("-", "_"): p for p in folder.iterdir() if p.is_dir()}
    sources = []
    for stem in sorted(files.keys() | (folders.keys() & RELEASES.keys())):
        if parts := _parts(stem, files.get(stem), folders.get(stem)):
            sources.append(_source(f"{benchmark}/{stem}", sentences[stem], parts, manifest))
        else:
            logger.warning("%s holds no whole split of %s", folders[stem], RELEASES[stem].source)
    if not sources:
        raise UserError(
            f"no <name>{_SUFFIX} of benchmark {benchmark!r} in {folder}, and no folder with the "
            f"release of one of {', '.join(RELEASES)}"
        )
    check_unique_names([s.name for s in sources])
    return sources


def _parts(
    stem: str, tsv: pathlib.Path | None, folder: pathlib.Path | None
) -> dict[str, tuple[str, Files]]:
    """Split -> (form, files)."""
    parts: dict[str, tuple[str, Files]] = {}
    for split in ("train", "test"):
        if split == "train" and tsv:
            parts[split] = ("tsv", ((str(tsv),),))
        elif folder and stem in RELEASES and (found := RELEASES[stem].files(folder, split)):
            parts[split] = (stem, found)
    return parts


def _source(
    name: str, sentence: str, parts: dict[str, tuple[str, Files]], manifest: Manifest
) -> TaskSource:
    stem = name.split("/", 1)[1]
    row = manifest.lookup(name, None)
    task = ReasoningSet(
        name=name,
        category=row.category or taxonomy.category("reasoning", stem),
        instruction=sentence,
        parts=parts,
        num_test=None if row.trained else row.instances or NUM_TEST,
    )
    own_test = "train" in parts and "test" not in parts and task.num_test is not None
    files = [f for _, groups in parts.values() for group in groups for f in group]
    return TaskSource(
        name=name,
        splits=(*parts, "test") if own_test else tuple(parts),
        files=tuple(dict.fromkeys(files)),
        read=task.read,
        demonstrations=task.demonstrations,
        instruction_level="instance",
        settings={
            "category": task.category,
            "instruction": sentence,
            "forms": {split: form for split, (form, _) in parts.items()},
            "num_test": task.num_test,
            "reader": READER_VERSION,
        },
    )


@dataclasses.dataclass(frozen=True)
class ReasoningSet:
    """One set.

    Attributes:
      name: `<benchmark>/<set>`.
      category: of every Example.
      instruction: of every Example.
      parts: "train", "test" -> form ("tsv", or the name of a release) and files.
      num_test: records of "test"; they are the first of "train" where there are no files of their
        own, and the rest of "train" then serves as demonstrations only. None: the task is trained
        on, with all that "train" has.
    """

    name: str
    category: str
    instruction: str
    parts: dict[str, tuple[str, Files]]
    num_test: int | None

    def read(self, split: str, drops: Drops) -> Iterator[Example]:
        """Streams a split. Every well-formed record is kept, a repeated one too.

        Raises:
          UserError: a file is missing or damaged, or has no usable record.
        """
        cut = "test" not in self.parts and self.num_test is not None
        form, files = self.parts["train" if cut else split]
        # Malformed records of a file that serves both splits are counted once.
        records = _records(form, files, Drops() if cut and split == "test" else drops)
        if split == "test":
            records = itertools.islice(records, self.num_test)
        elif cut:
            records = itertools.islice(records, self.num_test, None)
        keep = RecordFilter(keep_repeated=True)
        usable = cut and split == "train"  # there need not be more rows than those of "test"
        for record in records:
            question, answer, rationale = _texts(form, record)
            complete = bool(answer.strip()) and bool(rationale.strip())
            target = target_text(rationale, answer) if complete else ""
            fields = keep(question, [target], drops)
            if fields is None:
                continue
            usable = True
            yield Example(
                benchmark=self.name.split("/", 1)[0],
                task=self.name,
                category=self.category,
                prompt_id="instruction",
                split=split,
                instruction=self.instruction,
                source_dataset=self.name.split("/", 1)[1],
                meta=record._asdict(),
                **fields,
            )
        if not usable:
            why = "; ".join(f"{n} {reason}" for reason, n in drops.items())
            raise UserError(f"no usable row in {files[0][0]} ({why or 'it is empty'})")

    def demonstrations(self) -> list[Example]:
        if "train" not in self.parts:
            return []
        return demonstration_pool(self.read("train", Drops()))


def _records(form: str, files: Files, drops: Drops) -> Iterator[Record]:
    if form != "tsv":
        return RELEASES[form].records(files, drops)
    return (Record(*cells) for path in files[0] for _, cells in tsv_rows(path, (3,), drops))


def _texts(form: str, record: Record) -> tuple[str, str, str]:
    """Question, answer and rationale as they are shown."""
    if form != "tsv":
        return record
    question, answer, rationale = map(unescape, record)
    return question_text(question), answer, rationale


def unescape(cell: str) -> str:
    return cell.replace("\\n", "\n")


def question_text(question: str) -> str:
    """The question with its options, if it lists any, on one line, joined by ", " (table 6)."""
    head, listed, block = question.partition(_OPTIONS)
    lines = [_OPTION.fullmatch(line) for line in block.rstrip("\n").split("\n")]
    if not listed or not all(lines):
        return question
    return f"{head}\n{', '.join(line[1] for line in lines)}"


def target_text(rationale: str, answer: str) -> str:
    """`<rationale>. The answer is <answer>`, without a full stop at its end (table 6)."""
    rationale = rationale.strip()
    stop = "" if rationale[-1] in ".!?" else "."
    return f"{rationale}{stop} The answer is {answer.strip().removesuffix('.')}"
