"""Reader of T5's supervised tasks, through the task definitions of t5.data itself.

Rows lie in a folder `<dataset>[/<config>]` under TFDS's name of the data set, in any form that
`files/rows.py` reads, with the fields of TFDS or Hugging Face. They run through the text
preprocessors of the task's SeqIO definition (`t5.data.tasks`), all that come before tokenisation.
OPT-IML puts one manual sentence in the place of T5's keyword (paper, section 2.2); field names
stay. What upstream's definitions leave open is in tasks.yaml.

SQuAD and TriviaQA have spaces around every punctuation mark, in questions, contexts and answers:
kept as upstream has it, since the positions of the span task count these words.
"""

import dataclasses
import functools
import importlib.metadata
import itertools
import logging
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import gin

from optiml_jax.data.example import Drops, Example, TaskSource, check_unique_names
from optiml_jax.data.sampling import RowSample
from optiml_jax.errors import UserError
from tasks import taxonomy
from tasks.files.rows import Row, Split, find_splits
from tasks.files.text_files import RecordFilter, data_folder, demonstration_pool
from tasks.files.values import as_text
from tasks.splits import Manifest
from tasks.templates.instructions import instructions, read_mapping

FACTS_FILE = pathlib.Path(__file__).parent / "tasks.yaml"
READER_VERSION = 2  # raise it when the same rows give other Examples: caches are then redone
_BATCH = 256
SPLITS = {split: split for split in ("train", "validation", "test")}

logger = logging.getLogger(__name__)


def find_tasks(
    root: str | os.PathLike, manifest: Manifest, benchmark: str = "t5"
) -> list[TaskSource]:
    """The tasks whose data set is in the folder, sorted by name. Opens no JSONL or Parquet file.

    Args:
      root: holds a folder for each data set, as TFDS's data_dir does; `instructions.yaml` in it
        may replace sentences.
      manifest: the split manifest.
      benchmark: first part of the task names.

    Raises:
      UserError: the folder is missing, holds none of the data sets, or a sentence is for a task
        that t5.data does not know.
    """
    folder = data_folder(root, benchmark, "give a folder with data sets as TFDS names them (glue/)")
    sentences = instructions("t5", folder)
    sources = [
        source
        for task_id, sentence in sorted(sentences.items())
        if (source := _source(f"{benchmark}/{task_id}", sentence, folder, manifest))
    ]
    if not sources:
        raise UserError(
            f"no data set of benchmark {benchmark!r} in {folder}: there is neither a folder "
            f"{', '.join(list(facts()['sources'])[:3])}, ... with rows nor one of TFDS"
        )
    logger.info("%d of %d tasks of T5 have data in %s", len(sources), len(sentences), folder)
    check_unique_names([s.name for s in sources])
    return sources


@functools.cache
def facts() -> dict[str, Any]:
    """The content of tasks.yaml. Shared: do not change it."""
    return read_mapping(FACTS_FILE)


def upstream_task(task_id: str) -> Any:
    """The SeqIO task of t5.data."""
    import seqio  # here, since importing both takes seconds

    with gin.unlock_config():  # t5 has configurables of its own; a verb's settings are locked
        import t5.data.tasks  # noqa: F401 - fills SeqIO's registry

    if task_id not in seqio.TaskRegistry.names():
        raise UserError(f"instructions.yaml has a sentence for {task_id!r}: no task of t5.data")
    return seqio.TaskRegistry.get(task_id)


def _source(name: str, sentence: str, root: pathlib.Path, manifest: Manifest) -> TaskSource | None:
    task_id = name.split("/", 1)[1]
    upstream = upstream_task(task_id)
    dataset = upstream.source.tfds_dataset.name.split(":")[0]
    known = facts()["sources"].get(dataset)
    if known is None:
        raise UserError(f"task {task_id!r}: the fields of {dataset!r} are not in {FACTS_FILE}")
    found = find_splits(root / dataset) or find_splits(root / known.get("folder", dataset))
    wanted = facts()["only"].get(task_id, list(SPLITS))
    names = known.get("splits", SPLITS)
    parts = {part: found[names[part]] for part in wanted if names.get(part) in found}
    if not parts:
        return None
    row = manifest.lookup(name, None)
    labels = [getattr(p, "keywords", {}).get("label_names") for p in upstream.preprocessors]
    task = T5Task(
        name=name,
        category=row.category or taxonomy.category("t5", task_id),
        instruction=sentence,
        dataset=dataset,
        parts=parts,
        options=next((tuple(names) for names in labels if names), None),
    )
    return TaskSource(
        name=name,
        splits=tuple(parts),
        files=tuple(dict.fromkeys(file for split in parts.values() for file in split.files)),
        read=task.read,
        demonstrations=task.demonstrations,
        instruction_level="instance",
        samples_rows=True,
        settings={
            "category": task.category,
            "instruction": sentence,
            "options": task.options,
            "splits": {part: split.name for part, split in parts.items()},
            "t5": importlib.metadata.version("t5"),
            "reader": READER_VERSION,
        },
    )


@dataclasses.dataclass(frozen=True)
class T5Task:
    """One task.

    Attributes:
      name: `<benchmark>/<name of the SeqIO task>`.
      category: of every Example.
      instruction: the task's sentence.
      dataset: as TFDS names it.
      parts: "train", "validation", "test" -> where the rows are.
      options: names of the classes in the order of their numbers; None: generation.
    """

    name: str
    category: str
    instruction: str
    dataset: str
    parts: dict[str, Split]
    options: tuple[str, ...] | None

    def read(self, split: str, drops: Drops, sample: RowSample | None = None) -> Iterator[Example]:
        """Streams a split.

        Raises:
          UserError: a file is damaged, t5.data cannot read a row, or no record is usable.
        """
        keep = RecordFilter()
        task_id = self.name.split("/", 1)[1]
        last = task_id in facts()["sentence_last"]
        ids: set[str] = set()
        usable = False
        for output in self._through_upstream(self._rows(split, drops, sample)):
            if output.get("label", 1) != 1:  # WSC and WNLI as spans: the target is a wrong answer
                drops["target is a wrong answer"] += 1
                continue
            target = output["targets"].decode("utf-8")
            answers = [answer.decode("utf-8") for answer in output.get("answers", ())]
            references = [target, *answers] if target in answers else [target]  # not for positions
            fields = keep(self._text(output["inputs"].decode("utf-8"), target), references, drops)
            if fields is None:
                continue
            usable = True
            if last:
                fields["input"] += f"\n{self.instruction}"
            upstream_id = _upstream_id(output)
            if upstream_id and upstream_id not in ids:
                ids.add(upstream_id)
                fields["example_id"] = f"{split}-{upstream_id}"
            yield Example(
                benchmark=self.name.split("/", 1)[0],
                task=self.name,
                category=self.category,
                prompt_id="manual",
                split=split,
                instruction="" if last else self.instruction,
                options=self.options,
                source_dataset=self.dataset,
                **fields,
            )
        if not usable:
            why = "; ".join(f"{n} {reason}" for reason, n in drops.items())
            files = ", ".join(self.parts[split].files)
            raise UserError(f"no usable record for {task_id} in {files} ({why or 'it is empty'})")

    def demonstrations(self) -> list[Example]:
        if "train" not in self.parts:
            return []
        return demonstration_pool(self.read("train", Drops()))

    def _rows(self, split: str, drops: Drops, sample: RowSample | None) -> Iterator[Row]:
        """The fields that upstream reads, of the rows that are whole and have a label."""
        known = facts()["sources"][self.dataset]
        for row in self.parts[split].read(sample):
            if row is None:
                continue
            try:
                fields = _pick(row.get(known.get("inside"), row), known["fields"])
            except (KeyError, TypeError, ValueError):
                drops["malformed record"] += 1
                continue
            label = fields.get("label", 0)
            if label == -1:
                drops["no label (-1)"] += 1
            elif self.options and not 0 <= label < len(self.options):
                drops["unknown label"] += 1
            else:
                yield fields

    def _through_upstream(self, rows: Iterator[Row]) -> Iterator[dict[str, Any]]:
        """The rows as the task's own text preprocessors render them."""
        import seqio
        import tensorflow as tf

        failures: list[UserError] = []

        fields = facts()["sources"][self.dataset]["fields"]

        def generate() -> Iterator[Any]:
            try:
                while batch := list(itertools.islice(rows, _BATCH)):
                    yield _columns(batch, fields)
            except UserError as e:  # TensorFlow would hide it
                failures.append(e)

        signature = _signature(fields)
        dataset = tf.data.Dataset.from_generator(generate, output_signature=signature).unbatch()
        functions = upstream_task(self.name.split("/", 1)[1]).preprocessors
        for function in itertools.takewhile(
            lambda f: f is not seqio.preprocessors.tokenize, functions
        ):
            dataset = function(dataset)
        try:
            yield from dataset.as_numpy_iterator()
        except tf.errors.OpError as e:
            reason = " ".join(str(e.message).split())[:200]
            raise UserError(
                f"t5.data cannot read a row of {self.dataset} for task {self.name!r}: {reason}"
            ) from e
        if failures:
            raise failures[0]

    def _text(self, text: str, answer: str) -> str:
        """Upstream's input without its keyword, and with so much of the context as fits."""
        task_id = self.name.split("/", 1)[1]
        text = text.removeprefix(facts()["prefixes"].get(task_id, ""))
        limit = facts()["context_words"].get(task_id)
        return near_answer(text, answer, limit) if limit else text


def near_answer(text: str, answer: str, num_words: int) -> str:
    """Cuts what follows "context: " to some words around the first place of the answer.

    Upstream cuts by tokens of T5's vocabulary at a random place around the answer, and may so lose
    the question.
    """
    question, mark, context = text.partition(" context: ")
    place = context.lower().find(answer.lower().strip())
    words = context.split(" ")
    start = max(0, context[: max(0, place)].count(" ") - num_words // 2)
    return f"{question}{mark}{' '.join(words[start : start + num_words])}"


def _upstream_id(output: dict[str, Any]) -> str:
    """The parts of the row's own number, or ""."""
    parts = [output[key] for key in sorted(output) if key == "id" or key.startswith("idx")]
    return "-".join(p.decode("utf-8") if isinstance(p, bytes) else str(p) for p in parts)


def _pick(value: Any, kind: Any) -> Any:
    """The part of a value that a description in tasks.yaml asks for, checked; text as UTF-8.

    A number where text belongs is the text that spells it; a whole one, 1.0, is an int as well.
    """
    if isinstance(kind, dict):
        return {key: _pick(value[key], inner) for key, inner in kind.items()}
    if isinstance(kind, list):
        if not isinstance(value, list) or not (value or len(kind) > 1):
            raise ValueError
        return [_pick(item, kind[0]) for item in value]
    if kind == "text":
        return as_text(value).encode("utf-8")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError
    if kind == "int" and int(value) != value:
        raise ValueError
    return int(value) if kind == "int" else float(value)


def _columns(values: list[Any], kind: Any) -> Any:
    """Rows as columns: one call into Python for many rows."""
    import tensorflow as tf

    if isinstance(kind, dict):
        return {key: _columns([v[key] for v in values], inner) for key, inner in kind.items()}
    if isinstance(kind, list):
        items = tf.constant([item for value in values for item in value], _tensor_type(kind[0]))
        return tf.RaggedTensor.from_row_lengths(items, [len(value) for value in values])
    return values


def _signature(kind: Any) -> Any:
    """TensorFlow's description of `_columns`."""
    import tensorflow as tf

    if isinstance(kind, dict):
        return {key: _signature(inner) for key, inner in kind.items()}
    if isinstance(kind, list):
        return tf.RaggedTensorSpec([None, None], _tensor_type(kind[0]), ragged_rank=1)
    return tf.TensorSpec([None], _tensor_type(kind))


def _tensor_type(kind: str) -> Any:
    import tensorflow as tf

    # Numbers have TFDS's width, which upstream's code relies on.
    return {"text": tf.string, "int": tf.int32, "float": tf.float32}[kind]
