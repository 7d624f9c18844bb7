"""Reader of chain-of-thought data: the TSV files of FLAN v2 (google-research/FLAN, v2/cot_data).

A file `<name>_train.tsv` has the columns question, answer, rationale, without header or quoting;
the two characters `\\n` in a cell are a newline. Prompts follow table 6 of the OPT-IML paper: an
instruction that asks for step-by-step reasoning, the question, its options on one line, and the
target `<rationale> The answer is <answer>`. FLAN's own templates are not used.
"""

import dataclasses
import os
import re
from collections.abc import Iterator

from optiml_jax.data.example import Drops, Example, TaskSource, check_unique_names
from optiml_jax.errors import UserError
from tasks import taxonomy
from tasks.instructions import instructions
from tasks.splits import Manifest
from tasks.text_files import RecordFilter, data_folder, tsv_rows

UPSTREAM = "https://github.com/google-research/FLAN (flan/v2/cot_data)"
READER_VERSION = 1  # raise it when the same file gives other Examples: caches are then redone
NUM_TEST = 250  # items of a validation task (paper, section 4.1)

_SUFFIX = "_train.tsv"
_OPTIONS = "\nOptions:\n"
_OPTION = re.compile(r"(?:- |(?=\([A-Z]\) ))(.+)")  # "- x", "- (A) x" or "(A) x"


def find_tasks(
    root: str | os.PathLike, manifest: Manifest, benchmark: str = "reasoning"
) -> list[TaskSource]:
    """The tasks of a folder of `<name>_train.tsv` files, sorted by name. Opens no file.

    Raises:
      UserError: the folder or every file is missing, or a file has no instruction sentence.
    """
    folder = data_folder(root, benchmark, f"give the folder of the TSV files of {UPSTREAM}")
    paths = {p.name.removesuffix(_SUFFIX): p for p in sorted(folder.glob(f"*{_SUFFIX}"))}
    if not paths:
        raise UserError(f"no <name>{_SUFFIX} of benchmark {benchmark!r} in {folder}")
    known = instructions("reasoning")
    sources = []
    for stem, path in paths.items():
        if stem not in known:
            raise UserError(
                f"no instruction sentence for {path}; known sets: {', '.join(known)}; "
                "rename or remove the file"
            )
        name = f"{benchmark}/{stem}"
        row = manifest.lookup(name, None)
        task = ReasoningFile(
            path=str(path),
            name=name,
            category=row.category or taxonomy.category("reasoning", stem),
            instruction=known[stem],
            num_test=0 if row.trained else row.instances or NUM_TEST,
        )
        settings = {**dataclasses.asdict(task), "reader": READER_VERSION}
        del settings["path"], settings["name"]
        sources.append(
            TaskSource(
                name=name,
                splits=("train", "test") if task.num_test else ("train",),
                files=(str(path),),
                read=task.read,
                demonstrations=task.demonstrations,
                instruction_level="task",
                settings=settings,
            )
        )
    check_unique_names([s.name for s in sources])
    return sources


@dataclasses.dataclass(frozen=True)
class ReasoningFile:
    """One TSV file.

    Attributes:
      path: the file.
      name: `<benchmark>/<set>`.
      category: of every Example.
      instruction: of every Example.
      num_test: the first rows are "test" (upstream has no other split in this form), the rest
        "train", which then serves as demonstrations only; 0 for a task that is trained on.
    """

    path: str
    name: str
    category: str
    instruction: str
    num_test: int

    def read(self, split: str, drops: Drops) -> Iterator[Example]:
        """Streams a split. Every well-formed row is kept, a repeated one too.

        Raises:
          UserError: the file is missing, not UTF-8, or has no usable row.
        """
        other, usable = Drops(), 0
        counts = {"train": other, "test": other, split: drops}
        keep = RecordFilter(keep_repeated=True)
        malformed = drops if split == "train" else Drops()  # counted once
        for number, cells in tsv_rows(self.path, (3,), malformed):
            here = "test" if number <= self.num_test else "train"
            question, answer, rationale = map(unescape, cells)
            complete = bool(answer.strip()) and bool(rationale.strip())
            target = target_text(rationale, answer) if complete else ""
            fields = keep(question_text(question), [target], counts[here])
            if fields is None:
                continue
            usable += 1
            if here == split:
                yield Example(
                    benchmark=self.name.split("/", 1)[0],
                    task=self.name,
                    category=self.category,
                    prompt_id="instruction",
                    split=split,
                    instruction=self.instruction,
                    source_dataset=self.name.split("/", 1)[1],
                    meta=dict(zip(("question", "answer", "rationale"), cells, strict=True)),
                    **fields,
                )
        if not usable:
            why = "; ".join(f"{n} {reason}" for reason, n in (other + drops).items())
            raise UserError(f"no usable row in {self.path} ({why or 'it is empty'})")

    def demonstrations(self) -> list[Example]:
        return list(self.read("train", Drops()))


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
