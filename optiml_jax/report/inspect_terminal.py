"""Prompts and training rows as text: kinds of spans in the margin, coloured on a terminal.

What the spans are is decided in `inspect_prompts.py`. Without colour nothing is lost: the margin
names every span and marks what carries loss.
"""

import os
import re
from collections.abc import Iterable
from typing import IO

from optiml_jax.report.inspect_prompts import PromptView, Segment, Span, TaskFacts

LOSS = "*"
LEGEND = f"margin: what a piece of the prompt is; {LOSS}: carries loss; ⏎: a newline of the prompt"
_COLOURS = {
    "chat": "2",
    "cut": "2;9",  # dim, struck through
    "instruction": "36",
    "separator": "2",
    "demonstration": "34",
    "answer": "35",
    "options": "33",
    "delimiter": "1",
    "target": "1;32",
}
_WIDTH = max(map(len, _COLOURS)) + 2
# Control characters of a data set must not steer the terminal.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def colours_wanted(stream: IO[str]) -> bool:
    """Whether to colour what goes to `stream` (no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def prompt_text(view: PromptView, sequence_length: int, colour: bool) -> str:
    """One rendered example with its ids, length and answers."""
    e, (read, trained), (demonstrations, tokens) = view.example, view.tokens, view.dropped
    shown = view.demonstration_ids
    kind = "as trained" if view.shots is None else f"{view.shots}-shot evaluation"
    lines = [
        f"{e.split} example {e.example_id}, prompt {e.prompt_id}, {kind}",
        f"{read} + {trained} = {read + trained} of {sequence_length} tokens",
    ]
    if shown:
        lines.append(f"demonstrations: {', '.join(shown)}")
    if demonstrations or tokens:
        lines.append(f"did not fit: {demonstrations} demonstrations, {tokens} tokens cut left")
    if not view.fits:
        lines.append("the target alone is longer than a row: this example is not trained on")
    if e.options is not None:
        lines.append(f"options: {' | '.join(map(_visible, e.options))}")
    lines.append(f"references: {' | '.join(map(_visible, e.references))}")
    body = "\n".join(f"  {_safe(line)}" for line in lines)
    return f"{body}\n\n{spans_text(view.spans, colour)}\n"


def segment_text(segment: Segment, ids: tuple[str, str], number: int, colour: bool) -> str:
    """One segment of a packed row; `ids` are those of its example and prompt."""
    example, prompt = ids
    head = (
        f"  segment {number}: {segment.task}, example {example}, prompt {prompt} "
        f"(number {segment.index} in the cache): {segment.tokens[0]} tokens, {segment.tokens[1]} "
        "with loss"
    )
    return f"{_safe(head)}\n\n{spans_text(segment.spans, colour)}\n"


def task_heading(facts: TaskFacts, colour: bool) -> str:
    """The task's name, then what the split manifest says of it."""
    name = f"\033[1m{facts.task}\033[0m" if colour else facts.task
    shots = "/".join(map(str, facts.shots))
    return (
        f"{name}\n  {facts.category}; {facts.level.replace('_', ' ')}; role "
        f"{', '.join(facts.role)}; {facts.metric} at {shots} shots"
    )


def spans_text(spans: Iterable[Span], colour: bool) -> str:
    """The spans one below the other."""
    lines = []
    for span in spans:
        margin = f"{span.kind}{' ' + LOSS if span.loss else ''}"
        code = _COLOURS.get(span.kind) if colour else None
        text = _safe(span.text).replace("\n", "⏎\n").removesuffix("\n")
        for line in text.split("\n"):
            shown = f"\033[{code}m{line}\033[0m" if code and line else line
            lines.append(f"  {margin:>{_WIDTH}} │ {shown}")
            margin = ""
    return "\n".join(lines)


def _safe(text: str) -> str:
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def _visible(text: str) -> str:
    return text.replace("\n", "⏎")
