"""One task of PromptSource: its rows, rendered with its templates, as Examples.

Which rows and templates a task has is decided in `reader.py`; what a template gives for a row in
`templates.py`; drawing prompts is in `tasks/templates/pooling.py`.
"""

import dataclasses
import hashlib
import itertools
import json
import logging
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from optiml_jax.data.example import Drops, Example, TaskSource
from optiml_jax.data.identity import row_identity
from optiml_jax.data.sampling import RowSample
from optiml_jax.errors import UserError
from tasks.files.rows import Split
from tasks.files.text_files import demonstration_pool
from tasks.promptsource.templates import (
    PromptSourceConfig,
    Renderer,
    RenderError,
    Template,
    read_templates,
)
from tasks.templates.pooling import in_turn, pooled
from tasks.templates.sandbox import Choices

READER_VERSION = 2  # raise it when the same files give other Examples: caches are then redone
NUM_VALIDATION = 250  # items of the pool; OPT-IML paper, section 4.1
MAX_REFERENCES = 32
MAX_REMEMBERED = 1_000_000  # training texts of a task, to find duplicates

_ID_FIELDS = ("id", "idx", "guid")
_NOT_APPLICABLE = object()
_BAD_CHARACTERS = re.compile("[\x00\ufffd\ud800-\udfff]")


@dataclasses.dataclass(frozen=True)
class TemplateTask:
    """One data set (or one round of it) and the facts that decide what is read from it.

    Attributes:
      name: `<benchmark>/<dataset>[/<subset>][/<round>]`.
      category: of every Example.
      dataset: `<dataset>[/<subset>]`.
      templates_file: of the data set.
      prompts: ids of the templates that are used.
      parts: "train", "validation", "test" -> the splits that hold its rows.
      own_validation: the first rows of "train", at most a tenth, are "validation".
      pooled_test: "test" is a draw of at most `NUM_VALIDATION` pairs, as for the paper's validation
        tasks; otherwise it is every row with every prompt.
      num_test: "test" has the first `num_test` rows only; None: all.
      ranked: the metric needs options.
      config: of rendering.
    """

    name: str
    category: str
    dataset: str
    templates_file: str
    prompts: tuple[str, ...]
    parts: dict[str, tuple[Split, ...]]
    own_validation: bool
    pooled_test: bool
    num_test: int | None
    ranked: bool
    config: PromptSourceConfig

    def source(self) -> TaskSource:
        """The description of the task for everything that follows."""
        settings = {
            key: getattr(self, key)
            for key in ("category", "prompts", "own_validation", "pooled_test", "num_test")
        }
        settings |= {
            "parts": {part: [s.name for s in splits] for part, splits in self.parts.items()},
            "config": dataclasses.asdict(self.config),
            "ranked": self.ranked,
            "reader": READER_VERSION,
        }
        own = ("validation",) if self.own_validation else ()
        rows = [file for splits in self.parts.values() for s in splits for file in s.files]
        return TaskSource(
            name=self.name,
            splits=tuple(p for p in ("train", "validation", "test") if p in (*self.parts, *own)),
            files=(self.templates_file, *dict.fromkeys(rows)),
            read=self.read,
            demonstrations=self.demonstrations,
            instruction_level="instance",
            settings=settings,
            samples_rows=True,
        )

    def read(self, split: str, drops: Drops, sample: RowSample | None = None) -> Iterator[Example]:
        """Streams the Examples of a split; counts what is left out by reason.

        "train" draws N of the N x P pairs of rows and prompts, "validation" at most
        `NUM_VALIDATION` of them; "test": see `pooled_test`. In a draw, a prompt that does not apply
        to its row gives way to another one of the row.

        Raises:
          UserError: rows or templates are damaged, a template is refused, or it renders three parts
            or more; the message names file or template.
        """
        wanted = set(self.prompts)
        renderers = [
            _Prompt(Renderer(template, self.config))
            for template in read_templates(pathlib.Path(self.templates_file))
            if template.id in wanted
        ]
        seen: set[int] = set()
        for identifier, fields, positions, wanted_items in self._draws(
            split, len(renderers), sample
        ):
            if fields.get("label") == -1 and type(fields.get("label")) is int:
                drops["no label (-1)"] += 1
                continue
            for position in positions:
                if not wanted_items:
                    break
                rendered = self._render(renderers[position], identifier, fields, drops)
                wanted_items -= rendered is not _NOT_APPLICABLE
                if isinstance(rendered, Example):
                    if split == "train" and _seen(rendered, seen):
                        drops["duplicate"] += 1
                        continue
                    yield dataclasses.replace(rendered, split=split)

    def demonstrations(self) -> list[Example]:
        """The first Examples of "train", each row with the prompts that were drawn for it."""
        if "train" not in self.parts:
            return []
        return demonstration_pool(self.read("train", Drops()))

    def _draws(
        self, split: str, num_prompts: int, sample: RowSample | None
    ) -> Iterator[tuple[str, dict[str, Any], Sequence[int], int]]:
        """For each row: its id, its fields, prompts in order of preference, how many of them."""
        own = self.own_validation and split in ("train", "validation")
        splits = self.parts["train" if own else split]
        total = sum(s.count() for s in splits)
        first, last = 0, total
        if own:
            held_out = min(NUM_VALIDATION, total // 10)
            first, last = (0, held_out) if split == "validation" else (held_out, total)
        elif split == "test" and self.num_test is not None:
            last = min(total, self.num_test)
        rows = itertools.islice(self._rows(splits, sample), first, last)
        if split == "test" and not self.pooled_test:
            for identifier, fields in rows:
                yield identifier, fields, range(num_prompts), num_prompts
            return
        items = last - first if split == "train" else NUM_VALIDATION
        key = f"{self.config.seed}\0{self.name}\0{split}"
        for chosen, (identifier, fields) in zip(
            pooled(last - first, num_prompts, items, key), rows, strict=True
        ):
            if chosen and fields is not None:
                positions = in_turn(chosen, num_prompts, f"{key}\0{identifier}")
                yield identifier, fields, positions, len(chosen)

    def _rows(
        self, splits: Sequence[Split], sample: RowSample | None
    ) -> Iterator[tuple[str, dict[str, Any] | None]]:
        for split in splits:
            for row in split.read(sample):
                if row is None:
                    yield "", None
                    continue
                fields = {name.replace("-", "_"): value for name, value in row.items()}
                yield _row_id(split.name, fields), fields

    def _render(
        self, prompt: "_Prompt", identifier: str, fields: dict[str, Any], drops: Drops
    ) -> Any:
        """An Example, None (dropped, counted) or `_NOT_APPLICABLE`."""
        template = prompt.template
        key = f"{self.config.seed}\0{self.name}\0{template.id}\0{identifier}"
        choices = Choices(key)
        try:
            parts, options = prompt.render(fields, choices)
        except RenderError as e:
            prompt.failed(str(e))
            drops["template failed on the row"] += 1
            return None
        if len(parts) == 1:
            drops["template does not apply to the row"] += 1
            return _NOT_APPLICABLE
        if len(parts) > 2:
            raise UserError(
                f"{template} renders {len(parts)} parts instead of two on row {identifier} of "
                f"{self.dataset}; repair it or remove it from the file"
            )
        texts = [part.replace("\r\n", "\n") for part in parts]
        if not all(texts):
            drops["empty target" if texts[0] else "empty input"] += 1
            return None
        if any(_BAD_CHARACTERS.search(text) for text in texts):
            drops["NUL or U+FFFD"] += 1
            return None
        source, target = texts
        options = tuple(dict.fromkeys(o.replace("\r\n", "\n") for o in options or () if o))
        if target not in options:
            if options:
                prompt.generates(target)
            if self.ranked:
                drops["target is not among the options to rank"] += 1
                return None
        references = (target,)
        if choices.sizes:
            references = tuple(dict.fromkeys((target, *prompt.others(fields, key, choices, parts))))
        return Example(
            benchmark=self.name.split("/", 1)[0],
            task=self.name,
            category=self.category,
            prompt_id=template.id,
            example_id=identifier,
            split="",
            instruction="",
            input=source,
            target=target,
            references=references,
            options=options if target in options else None,
            source_dataset=self.dataset,
            source_id=row_identity(fields),
            meta={
                "template": template.name,
                "original_task": template.original_task,
                "choices_in_prompt": template.choices_in_prompt,
                "metrics": list(template.metrics),
                "languages": list(template.languages),
            },
        )


class _Prompt:
    """A template in use, with what is to be said once about it."""

    def __init__(self, renderer: Renderer):
        self.template: Template = renderer.template
        self.render = renderer.render
        self._failed = self._generates = False

    def failed(self, reason: str) -> None:
        if not self._failed:
            self._failed = True
            reason = " ".join(reason.split())
            logging.warning("%s does not fit some rows: %s", self.template, reason)

    def generates(self, target: str) -> None:
        if not self._generates:
            self._generates = True
            logging.info(
                "%s: targets such as %r are not among its options: generation",
                self.template,
                target[:40],
            )

    def others(
        self, fields: Mapping[str, Any], key: str, choices: Choices, parts: list[str]
    ) -> Iterator[str]:
        """Other targets that the template's random choices may give this very source.

        One choice at a time is made otherwise: all corrections of one sentence, for example.
        """
        drawn = dict(enumerate(choices.drawn))
        variants = [
            drawn | {position: index}
            for position, size in enumerate(choices.sizes)
            for index in range(size)
            if index != drawn[position]
        ]
        for forced in variants[: MAX_REFERENCES - 1]:
            try:
                other, _ = self.render(fields, Choices(key, forced))
            except RenderError:
                continue
            if len(other) == 2 and other[0] == parts[0] and other[1]:
                yield other[1].replace("\r\n", "\n")


def _seen(example: Example, seen: set[int]) -> bool:
    """Whether the text was there before; remembers so many that memory stays within 100 MB."""
    text = f"{example.input}\0{example.target}".encode()
    digest = int.from_bytes(hashlib.sha256(text).digest()[:7], "big")
    if digest in seen:
        return True
    if len(seen) < MAX_REMEMBERED:
        seen.add(digest)
    return False


def _row_id(split: str, fields: Mapping[str, Any]) -> str:
    """Upstream's id within the split; a hash of the row if there is none."""
    for name in _ID_FIELDS:
        value = fields.get(name)
        if type(value) is int or (isinstance(value, str) and value):
            return f"{split}-{value}"
    text = json.dumps(fields, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
