"""The record every reader yields, and the description of a task that yields them.

Readers live in `tasks/`; they know files and formats. Everything after them (delimiters,
demonstrations, tokens, truncation, packing) is shared code that sees these two classes only.
"""

import collections
import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

from optiml_jax.errors import UserError

InstructionLevel = Literal["task", "instance", "verbatim"]
Drops = collections.Counter  # reason -> number of records dropped (or warned of) for that reason


@dataclasses.dataclass(frozen=True)
class PromptText:
    """How a template writes an input and its answer; `{slot}`s are filled with an example's slots.

    Attributes:
      source: the input.
      target: the answer.
      delimiter: between them.
    """

    source: str
    target: str
    delimiter: str


@dataclasses.dataclass(frozen=True)
class PromptForm:
    """The form of a training prompt, for a template that defines it.

    Attributes:
      delimiter: between the example's input and its answer.
      shots: numbers of demonstrations, equally likely; (): the prompt has none.
      texts: how demonstrations are written; one is drawn for each of them.
      separator: between demonstrations.
      head_end: after the instruction, which stands before all of them.
      family: demonstrations are taken from the task's examples of this family.
    """

    delimiter: str
    shots: tuple[int, ...] = ()
    texts: tuple[PromptText, ...] = ()
    separator: str = "\n\n\n"
    head_end: str = "\n\n"
    family: str = ""


@dataclasses.dataclass(frozen=True)
class Example:
    """One (example, prompt) pair, rendered but without delimiter, demonstrations or tokens.

    Attributes:
      task: globally unique, `<benchmark>/<upstream id>`.
      category: name in the project's taxonomy, e.g. "Textual Entailment".
      prompt_id: stable id of the template, definition or sentence that rendered the example.
      example_id: upstream's id where there is one, else a hash of the untemplated fields.
      split: "train", "validation" or "test".
      instruction: task-level text; empty for instance-level benchmarks.
      input: the rendered instance without its target.
      target: the string trained on; one of `references`.
      references: every accepted answer, at least one.
      options: candidates of rank classification; None means generation.
      options_text: the part of `input` that lists the options, all of them in their order, exactly
        as it stands there, once; empty when the prompt lists none (or not so).
      contexts: for partial scoring (Winograd schemas): the whole source text with each of the
        options filled in; `target`, the rest of the text, is then scored after each of them, and
        the references are the right options. Empty: the options are scored after the source.
      source_dataset: the underlying data source, used by leakage filters.
      source_id: identity of the source example (`identity.py`), equal in all tasks and collections
        that hold it; "": none is known.
      form: of its training prompt; None: as `PromptConfig` says.
      slots: of an example with a form, the texts by name that fill the texts of other forms.
      meta: raw upstream metadata; `group`: examples of one group count together where the metric
        says so (the answers to one question).
    """

    benchmark: str
    task: str
    category: str
    prompt_id: str
    example_id: str
    split: str
    instruction: str
    input: str
    target: str
    references: tuple[str, ...]
    options: tuple[str, ...] | None = None
    options_text: str = ""
    contexts: tuple[str, ...] = ()
    source_dataset: str = ""
    source_id: str = ""
    form: PromptForm | None = None
    slots: dict[str, str] = dataclasses.field(default_factory=dict)
    meta: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class TaskSource:
    """One task: where its data is and how to read it. Picklable; creating one is cheap.

    Attributes:
      name: `<benchmark>/<upstream id>`.
      splits: the splits that `read` knows.
      files: the input files; their bytes enter the cache's fingerprint.
      read: `read(split, drops)` streams Examples and counts every dropped record by reason.
      demonstrations: `demonstrations()` lists the Examples that may be shown as demonstrations, in
        order of preference; never one of a held-out split.
      instruction_level: "task" puts demonstrations between definition and instance, "instance" puts
        whole rendered pairs before it (paper, section 2.4); "verbatim" adds nothing to the texts of
        a suite with prompts of its own (see `prompts.render`).
      upstream_split: the official split that the upstream release puts the task in, if any.
      samples_rows: `read(split, drops, sample)` takes a `RowSample`; other rows are not read.
      settings: `category`, and everything else that changes what `read` yields (JSON-able;
        fingerprinted).
      metric: how its answers are scored, a name of `evaluate/metrics.py`; "": not said.
    """

    name: str
    splits: tuple[str, ...]
    files: tuple[str, ...]
    read: Callable[[str, Drops], Iterator[Example]]
    demonstrations: Callable[[], Sequence[Example]]
    instruction_level: InstructionLevel = "task"
    upstream_split: str | None = None
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    metric: str = ""
    samples_rows: bool = False

    @property
    def benchmark(self) -> str:
        return self.name.split("/", 1)[0]


def seqio_name(task: str) -> str:
    """The SeqIO name (and cache folder) of a task: `superni/task1-a b` -> `superni.task1_a_b`."""
    return re.sub(r"[^\w.]", "_", task.replace("/", "."))


def check_unique_names(tasks: Sequence[str]) -> None:
    """Raises a UserError when two tasks have the same id or collapse to one SeqIO name."""
    seen: dict[str, str] = {}
    for task in tasks:
        # Case-folded: two names that differ by case alone share a folder on some file systems.
        key = seqio_name(task).casefold()
        if key in seen:
            raise UserError(
                f"tasks {seen[key]!r} and {task!r} have the same registered name {key!r}; "
                "remove or rename one of the two files"
            )
        seen[key] = task
