"""Prompts and training rows divided into spans: what each is, and which carry loss.

Texts are rendered by `data/prompts.py` and rows laid out by `data/loader.py`; here both are only
cut into labelled spans. How a span looks is decided in `inspect_terminal.py` and `inspect.html`.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from optiml_jax.data import chat
from optiml_jax.data.example import Drops, Example, InstructionLevel, TaskSource
from optiml_jax.data.loader import read_rows
from optiml_jax.data.plan import Plan
from optiml_jax.data.preprocessors import training_pool
from optiml_jax.data.prompts import (
    PromptConfig,
    RenderedPrompt,
    front_length,
    render,
    select_demonstrations,
    target_text,
)
from optiml_jax.data.training_prompts import training_prompt

END = "</s>"
SCANNED = 200  # examples looked through for different prompts


@dataclasses.dataclass(frozen=True)
class TaskFacts:
    """What the split manifest says about a task.

    Attributes:
      trained: whether the mixture's roles make it a training task.
      evaluation: fields of PromptConfig that its evaluation sets.
    """

    task: str
    benchmark: str
    category: str
    level: str
    role: tuple[str, ...]
    trained: bool
    metric: str
    shots: tuple[int, ...]
    evaluation: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Span:
    """A piece of a prompt.

    Attributes:
      kind: "chat" (the frame of one), "cut" (does not fit the row), "instruction", "separator",
        "demonstration", "answer" (of a demonstration), "input", "options", "delimiter", "target";
        of a row "source" or "target".
    """

    kind: str
    text: str
    loss: bool = False


@dataclasses.dataclass(frozen=True)
class PromptView:
    """One rendered example.

    Attributes:
      shots: demonstrations of an evaluation prompt; None: a training prompt.
      spans: in order; together the source, the target and the end of text.
      demonstration_ids: of the demonstrations in `spans`.
      tokens: (before the target, target with the end of text) that are in a row; under suffix loss
        the target is all that carries loss.
      dropped: (demonstrations, tokens) that did not fit.
      fits: False when what carries loss is longer than a row: then the example is not trained on.
    """

    example: Example
    shots: int | None
    spans: tuple[Span, ...]
    demonstration_ids: tuple[str, ...]
    tokens: tuple[int, int]
    dropped: tuple[int, int]
    fits: bool


@dataclasses.dataclass(frozen=True)
class Renderer:
    """How examples become views.

    Attributes:
      config: of the prompts.
      encode, decode: text to ids and back, special tokens by their names.
      sequence_length: tokens of source and target together.
      end: how the end of text is shown.
    """

    config: PromptConfig
    encode: Callable[[str], list[int]]
    decode: Callable[[Sequence[int]], str]
    sequence_length: int
    end: str = END

    def views(
        self,
        source: TaskSource,
        examples: Sequence[Example],
        shots: Sequence[int | None],
        evaluation: Mapping[str, str] | None = None,
    ) -> Iterator[PromptView]:
        """Every example with each number of demonstrations.

        Args:
          source: the task.
          examples: of the task.
          shots: of evaluation prompts; None: the prompt of training.
          evaluation: see `TaskFacts`.
        """
        training = training_pool(source, self.config) if None in shots else ()
        others = source.demonstrations() if any(shots) else ()
        asked = dataclasses.replace(self.config.for_evaluation(), **(evaluation or {}))
        for example, k in itertools.product(examples, shots):
            level, config = source.instruction_level, self.config if k is None else asked
            if k is None:
                prompt, chosen = training_prompt(example, training, level, config)
            else:
                chosen = select_demonstrations(example, others, k, config) if k else []
                prompt = render(example, chosen, level, config)
            yield self._view(example, k, prompt, chosen, level, config)

    def _view(
        self,
        example: Example,
        shots: int | None,
        prompt: RenderedPrompt,
        demonstrations: Sequence[Example],
        level: InstructionLevel,
        config: PromptConfig,
    ) -> PromptView:
        """What `prompts.fit_example` makes of the example, as text."""
        kept = len(prompt.demonstrations)
        read, trained = map(self.encode, prompt.without_and_with_loss(kept))
        while len(read) + len(trained) >= self.sequence_length and kept:
            kept -= 1
            read, trained = map(self.encode, prompt.without_and_with_loss(kept))
        cut = max(0, len(read) + len(trained) + 1 - self.sequence_length)
        formed = shots is None and example.form is not None
        plain = dataclasses.replace(config, delimiter="")
        body = chat.shown(example.input) if formed else render(example, [], level, plain).query
        spans = _spans(prompt, example, demonstrations[:kept], level, len(body))
        spans.append(Span("target", target_text(prompt.source(), prompt.target) + self.end))
        before, after = _split(spans, len(chat.shown(prompt.without_and_with_loss(kept)[0])))
        stays = front_length(prompt.frame[0], len(read) - cut, self.encode) if cut else 0
        front, before = _split(before, len(chat.shown(prompt.frame[0])) if stays else 0)
        gone, before = _split(before, len(self.decode(read[stays : stays + cut])))
        return PromptView(
            example=example,
            shots=shots,
            spans=(
                *front,
                *(dataclasses.replace(span, kind="cut") for span in gone),
                *before,
                *(dataclasses.replace(span, loss=shots is None) for span in after),
            ),
            demonstration_ids=prompt.demonstration_ids[:kept],
            tokens=(max(0, len(read) - cut), len(trained) + 1),
            dropped=(len(prompt.demonstrations) - kept, cut),
            fits=cut <= len(read),
        )


def _spans(
    prompt: RenderedPrompt,
    example: Example,
    demonstrations: Sequence[Example],
    level: InstructionLevel,
    length: int,
) -> list[Span]:
    """The spans of the source, with the first `demonstrations`; `length`: of the query's body."""
    before, after = map(chat.shown, prompt.frame)
    spans = [Span("instruction", prompt.head)] if prompt.head else []
    for text, demonstration in zip(prompt.demonstrations, demonstrations, strict=False):
        answer = demonstration.target
        if level != "verbatim":
            answer = target_text(text, answer)
        if spans:
            first = len(spans) == 1 and prompt.head
            spans.append(Span("separator", prompt.after_head(True) if first else prompt.separator))
        spans += [Span("demonstration", text.removesuffix(answer)), Span("answer", answer)]
    if spans:
        spans.append(Span("separator", prompt.separator if demonstrations else prompt.head_end))
    body, delimiter = prompt.query[:length], prompt.query[length:]
    if level == "instance" and example.instruction and body.startswith(example.instruction):
        spans.append(Span("instruction", example.instruction))
        body = body[len(example.instruction) :]
    spans += [*_input_spans(body, example), Span("delimiter", delimiter)]
    spans = [Span("chat", before), *spans, Span("chat", after)]
    return [span for span in spans if span.text]


def _input_spans(body: str, example: Example) -> list[Span]:
    """The input with its options, wherever and however they are listed."""
    before, block, after = (
        part.strip() for part in example.input.partition(example.options_text or "\0")
    )
    if not block or before not in body or not body.endswith(after):
        return [Span("input", body)]
    start, end = body.index(before) + len(before), len(body) - len(after)
    return [Span("input", body[:start]), Span("options", body[start:end]), Span("input", after)]


def _split(spans: Sequence[Span], length: int) -> tuple[list[Span], list[Span]]:
    """The spans of the first `length` characters, and those of the others."""
    before, after = [], []
    for span in spans:
        for side, text in ((before, span.text[:length]), (after, span.text[length:])):
            if text:
                side.append(dataclasses.replace(span, text=text))
        length = max(0, length - len(span.text))
    return before, after


def first_per_prompt(
    source: TaskSource, split: str, per_prompt: int, most_prompts: int
) -> tuple[list[Example], int]:
    """The first examples of each prompt among the first `SCANNED` of a split.

    Returns:
      The examples, prompt after prompt, and the number of prompts that were left out.
    """
    by_prompt: dict[str, list[Example]] = {}
    for example in itertools.islice(source.read(split, Drops()), SCANNED):
        by_prompt.setdefault(example.prompt_id, []).append(example)
    shown = itertools.islice(by_prompt.values(), most_prompts)
    examples = [e for group in shown for e in group[:per_prompt]]
    return examples, max(0, len(by_prompt) - most_prompts)


@dataclasses.dataclass(frozen=True)
class Segment:
    """One example in a packed row.

    Attributes:
      task: its task.
      index: of the example in the task's cached split.
      spans: "source" without and "target" with loss, in order.
      tokens: (all, those with loss).
    """

    task: str
    index: int
    spans: tuple[Span, ...]
    tokens: tuple[int, int]


def row_segments(plan: Plan, row: int, spell: Callable[[Sequence[int]], str]) -> list[Segment]:
    """The contents of one row of a plan, decoded from the arrays that training gets."""
    batch = {name: array[0] for name, array in read_rows(plan, [row]).items()}
    segments = []
    for number, (task, index) in enumerate(plan.row(row), 1):
        here = batch["segment_ids"] == number
        ids, weights = batch["targets"][here], batch["loss_weights"][here]
        if plan.config.bos_id is None:  # nothing predicts the first token: see `loader.assemble`
            ids, weights = batch["tokens"][here], np.roll(weights, 1)
        spans = tuple(_runs(ids, weights, spell))
        segments.append(Segment(task, index, spans, (len(ids), int(np.count_nonzero(weights)))))
    return segments


def _runs(
    ids: np.ndarray, weights: np.ndarray, spell: Callable[[Sequence[int]], str]
) -> Iterator[Span]:
    """Runs of tokens with and without loss, as text."""
    for part in np.split(np.arange(len(ids)), np.flatnonzero(np.diff(weights > 0)) + 1):
        loss = bool(weights[part[0]] > 0)
        yield Span("target" if loss else "source", spell(ids[part].tolist()), loss)
