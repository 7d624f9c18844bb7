"""Shared by the readers of evaluation suites: tasks whose prompts are upstream's, unchanged.

A suite has a test part and demonstrations of its own; nothing of it is trained on. A reader says
how records and prompts are found in its files.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from optiml_jax.data.example import Drops, Example, TaskSource
from tasks.files.text_files import RecordFilter, hashed_id


class Record(NamedTuple):
    """One problem.

    Attributes:
      cluster: names the problem across tasks that ask for the same one; "": it has no other form.
    """

    question: str
    answer: str
    cluster: str = ""


class Prompt(NamedTuple):
    """The texts around a question, all of them as they are in upstream's files.

    Attributes:
      instruction: stands at the beginning, "" for none.
      before, after: around the question.
      demonstrations: (text with question, what follows it), most preferred first.
    """

    instruction: str
    before: str
    after: str
    demonstrations: tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True)
class Suite:
    """A task of a suite.

    Attributes:
      name: `<benchmark>/<upstream id>`.
      category: of every Example.
      style: names the prompt, e.g. "direct".
      records: `records(drops)` streams the test part and counts malformed records.
      prompt: reads the prompt.
    """

    name: str
    category: str
    style: str
    records: Callable[[Drops], Iterator[Record]]
    prompt: Callable[[], Prompt]

    def source(self, files: tuple[str, ...], reader_version: int) -> TaskSource:
        settings = {"category": self.category, "style": self.style, "reader": reader_version}
        return TaskSource(
            name=self.name,
            splits=("test",),
            files=files,
            read=self.read,
            demonstrations=self.demonstrations,
            instruction_level="verbatim",
            settings=settings,
        )

    def read(self, split: str, drops: Drops) -> Iterator[Example]:
        """Streams the test part; a repeated problem counts twice, as in published scores."""
        prompt, keep = self.prompt(), RecordFilter(keep_repeated=True)
        for record in self.records(drops):
            fields = keep(record.question, [record.answer], drops)
            if fields is not None:
                text = prompt.before + fields.pop("input") + prompt.after
                fields["source_id"] = record.cluster or fields["source_id"]
                yield self._example(split, prompt, input=text, **fields)

    def demonstrations(self) -> list[Example]:
        prompt = self.prompt()
        return [
            self._example(
                "train",
                prompt,
                input=text,
                target=answer,
                references=(answer,),
                example_id=hashed_id(text, answer),
            )
            for text, answer in prompt.demonstrations
        ]

    def _example(self, split: str, prompt: Prompt, **fields: Any) -> Example:
        return Example(
            benchmark=self.name.split("/", 1)[0],
            task=self.name,
            category=self.category,
            prompt_id=self.style,
            split=split,
            instruction=prompt.instruction,
            source_dataset=self.name,
            **fields,
        )
