"""One task of FLAN: its rows, shown with its templates, as Examples.

Which rows and templates a task has is decided in `reader.py`; what a row gives in `facts.py`;
drawing templates is in `tasks/templates/pooling.py`.
"""

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from optiml_jax.data.example import Drops, Example, TaskSource
from optiml_jax.data.identity import row_identity, source_identity
from optiml_jax.data.sampling import RowSample
from optiml_jax.data.training_prompts import fill
from tasks.files.rows import Split
from tasks.files.text_files import RecordFilter, clean, demonstration_pool, hashed_id
from tasks.flan.facts import PARTS, Extractor, Record, TaskFacts, rows_range, split_name
from tasks.flan.fields import UnusableError
from tasks.flan.prompts_v2 import ANSWER, PromptsV2
from tasks.flan.templates import OPTION_SLOTS, Template
from tasks.templates.pooling import pooled

READER_VERSION = 1  # raise it when the same files give other Examples: caches are then redone
NUM_VALIDATION = 250  # items of the pool; OPT-IML paper, section 4.1

_ID_FIELDS = ("id", "idx", "uid", "gem_id", "question_id", "query_id")


@dataclasses.dataclass(frozen=True)
class FlanTask:
    """One task and the facts that decide what is read from it.

    Attributes:
      name: `<benchmark>/<task>`.
      category: of every Example.
      facts: for the form in which the rows are there.
      templates: those that are used; of FLAN v2 those of evaluations.
      prompts: of FLAN v2 the training prompts.
      splits: the splits of the rows by name.
      parts: those of "train", "validation" and "test" that have rows.
      pooled_test: "test" is a draw of at most `NUM_VALIDATION` pairs, as for the paper's validation
        tasks; otherwise it is every row with every template.
      num_test: "test" has the first `num_test` rows only; None: all.
      ranked: the metric needs options.
      seed: of the draws.
    """

    name: str
    category: str
    facts: TaskFacts
    templates: tuple[Template, ...]
    prompts: PromptsV2 | None
    splits: dict[str, Split]
    parts: tuple[str, ...]
    pooled_test: bool
    num_test: int | None
    ranked: bool
    seed: int

    def source(self) -> TaskSource:
        """The description of the task for everything that follows."""
        settings = {
            key: getattr(self, key)
            for key in ("category", "pooled_test", "num_test", "ranked", "seed")
        }
        settings |= {
            "facts": repr(self.facts),
            "templates": [_as_list(template) for template in self.templates],
            "reader": READER_VERSION,
        }
        if self.prompts is not None:
            settings["v2"] = self.prompts.fingerprint
        if self.facts.turns is not None:
            settings["dialog"] = repr((self.facts.dialog, self.facts.turns))
        return TaskSource(
            name=self.name,
            splits=self.parts,
            files=tuple(file for split in self.splits.values() for file in split.files),
            read=self.read,
            demonstrations=self.demonstrations,
            instruction_level="instance",
            settings=settings,
            samples_rows=True,
        )

    def read(self, part: str, drops: Drops, sample: RowSample | None = None) -> Iterator[Example]:
        """Streams the Examples of a part; counts what is left out by reason.

        "train" draws N of the N x P pairs of rows and templates (of FLAN v2 shows each row once),
        "validation" at most `NUM_VALIDATION` of them; "test": see `pooled_test`.

        Raises:
          UserError: the rows are damaged; the message names the file.
        """
        yield from self._read(part, drops, sample, self.prompts if part == "train" else None)

    def demonstrations(self) -> list[Example]:
        """The first Examples of "train", each row with the templates that were drawn for it.

        They are an evaluation's, so of FLAN v2 they have its zero-shot templates with options.
        """
        if "train" not in self.parts:
            return []
        return demonstration_pool(self._read("train", Drops(), None, None))

    def _read(
        self, part: str, drops: Drops, sample: RowSample | None, prompts: PromptsV2 | None
    ) -> Iterator[Example]:
        extract = Extractor(self.facts, self.name)
        keep = RecordFilter(keep_repeated=part != "train")
        for split, row, positions in self._draws(part, sample, once=prompts is not None):
            if not positions or row is None:
                continue
            identifier = _row_id(split, row)
            try:
                record = extract(row, f"{self.seed}\0{self.name}\0{identifier}")
            except UnusableError as e:
                drops[str(e)] += 1
                continue
            same = {"split": part, "example_id": identifier}
            about = source_identity(record.dialog) if record.dialog else row_identity(row)
            same["source_id"] = about
            for position in positions:
                if prompts is not None:
                    example = self._in_v2(prompts, record, identifier, keep, drops)
                else:
                    example = self._example(self.templates[position], record, keep, drops)
                if example is not None:
                    yield dataclasses.replace(example, **same)

    def _draws(
        self, part: str, sample: RowSample | None, once: bool
    ) -> Iterator[tuple[str, dict[str, Any] | None, Sequence[int]]]:
        """Of each row of a part its split, the row, and the templates it is shown with."""
        split = self.splits[split_name(self.facts.splits[part])]
        own, free = self._rows(part, split)
        count = sum(map(free, own))
        if part == "test":
            count = min(count, self.num_test or count)
        num_templates = len(self.templates)
        if once or (part == "test" and not self.pooled_test):
            drawn = itertools.repeat(range(1 if once else num_templates), count)
        else:
            items = count if part == "train" else NUM_VALIDATION
            drawn = pooled(count, num_templates, items, f"{self.seed}\0{self.name}\0{part}")
        rows = enumerate(itertools.islice(split.read(sample), own.start, own.stop), own.start)
        rows = (row for position, row in rows if free(position))
        for chosen, row in zip(drawn, rows, strict=False):  # rows after `num_test` are left
            yield split.name, row, chosen

    def _rows(self, part: str, split: Split) -> tuple[range, Callable[[int], bool]]:
        """The positions of a part's rows, and whether no later part takes the row at one."""
        count = split.count()
        ranges = {
            p: rows_range(self.facts.splits[p], count)
            for p in PARTS[PARTS.index(part) :]
            if p in self.facts.splits and self._split_of(p) is split
        }
        own = ranges.pop(part)
        return own, lambda position: not any(position in r for r in ranges.values())

    def _split_of(self, part: str) -> Split | None:
        return self.splits.get(split_name(self.facts.splits[part]))

    def _in_v2(
        self,
        prompts: PromptsV2,
        record: Record,
        identifier: str,
        keep: RecordFilter,
        drops: Drops,
    ) -> Example | None:
        """A training example in one of FLAN v2's templates."""
        key = f"{self.seed}\0{self.name}\0{identifier}"
        options = tuple(map(clean, record.options or ()))
        slots = record.slots
        if options and ANSWER in slots:
            slots = slots | {ANSWER: clean(slots[ANSWER])}
            if slots[ANSWER] not in options:
                drops["warning: target not among options"] += 1
        template = prompts.drawn(key, slots)
        fields = prompts.shown(template, slots, options, self.name, key, turns=record.shown)
        kept = keep(fields["input"], fields["references"], drops)
        return None if kept is None else Example(**self._common(), **(fields | kept))

    def _example(
        self, template: Template, record: Record, keep: RecordFilter, drops: Drops
    ) -> Example | None:
        block = clean("OPTIONS:\n- " + "\n- ".join(record.options)) if record.options else ""
        slots = record.slots | dict.fromkeys(OPTION_SLOTS, block)
        target = fill(template.target, slots)
        fields = keep(fill(template.source, slots), (target, *record.answers), drops)
        if fields is None:
            return None
        options = tuple(dict.fromkeys(o for option in record.options or () if (o := clean(option))))
        if options and fields["target"] not in options:
            drops["warning: target not among options"] += 1
        if fields["target"] not in options:
            options = ()
            if self.ranked:
                drops["no options"] += 1
                return None
        return Example(
            **self._common(),
            prompt_id=template.id,
            instruction="",
            options=options or None,
            options_text=block if block and fields["input"].count(block) == 1 else "",
            form=template.form,
            **fields,
        )

    def _common(self) -> dict[str, Any]:
        """What all Examples of the task have in common."""
        return {
            "benchmark": self.name.split("/", 1)[0],
            "task": self.name,
            "category": self.category,
            "split": "",
            "source_dataset": self.facts.tfds.partition(":")[0] or self.facts.name,
            "meta": {"metric": self.facts.metric},
        }


def _as_list(template: Template) -> list[Any]:
    """A template as JSON; FLAN 2021's as it always was, so that caches stay."""
    values = [template.pattern, template.index, template.source, template.target]
    form = template.form and dataclasses.asdict(template.form)
    return [*values, template.kind, form] if template.kind else values


def _row_id(split: str, row: Mapping[str, Any]) -> str:
    """Upstream's id within the split; a hash of the row if there is none."""
    for name in _ID_FIELDS:
        value = row.get(name)
        if isinstance(value, Mapping):
            value = "-".join(f"{key}{part}" for key, part in sorted(value.items()))
        if type(value) is int or (isinstance(value, str) and value):
            return f"{split}-{value}"
    return hashed_id(json.dumps(row, sort_keys=True, default=str))
