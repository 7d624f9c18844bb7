"""The options that a prompt lists, in another order or another format.

Only the text changes: which options there are, their order in scoring and the target stay.
"""

import re
from collections.abc import Sequence

from optiml_jax.data.example import Example

# Name -> what stands before the options, how each is listed, what joins them. The forms are those
# that FLAN v2 varies (google-research/FLAN, flan/v2/preprocessors.py), and CrossFit's.
OPTION_FORMATS = {
    "dashes": ("OPTIONS:\n", "- {text}", "\n"),
    "parentheses": ("OPTIONS:\n", "({letter}) {text}", "\n"),
    "letters": ("Choose from:\n", "{letter}. {text}", "\n"),
    "numbers": ("Options:\n", "{number}. {text}", "\n"),
    "inline": ("", "({letter}) {text}", " "),
    "commas": ("Options: ", "{text}", ", "),
}

_NAME = re.compile(r"\(?\w\)?\.?")  # an option that is itself a letter or digit


def relist(example: Example, option_format: str, order: Sequence[int]) -> str:
    """The input of an example with its options listed in another format.

    Options that are single letters or digits name something else in the text, so they stay as they
    are, like an input that lists no options.

    Args:
      example: its `options_text` lists its `options`, all of them and in their order.
      option_format: one of `OPTION_FORMATS`, "given" for that of the input, or "none": the list is
        left out.
      order: `order[i]` is the option listed in place i.

    Raises:
      ValueError: the reader's `options_text` is not what it should be.
    """
    block, options = example.options_text, example.options or ()
    if not block or all(_NAME.fullmatch(option) for option in options):
        return example.input
    before, _, after = example.input.partition(block)
    listed = [options[i] for i in order]
    gaps = _gaps(block, options)
    if example.input.count(block) != 1 or gaps is None:
        raise ValueError(
            f"{example.task}, example {example.example_id}: options_text {block!r} must occur once "
            f"in the input and list {options!r}"
        )
    if option_format == "given":
        block = gaps[0] + "".join(o + gap for o, gap in zip(listed, gaps[1:], strict=True))
        return before + block + after
    if option_format == "none":
        return _without(before, after)
    opening, item, joiner = OPTION_FORMATS[option_format]
    block = opening + joiner.join(
        item.format(text=text, letter=_letter(i), number=i + 1) for i, text in enumerate(listed)
    )
    if joiner == "\n":  # not in the middle of a line
        before, after = before.rstrip(" "), after.lstrip(" ")
        before += "\n" if before and before[-1] != "\n" else ""
        after = "\n" + after if after and after[0] != "\n" else after
    return before + block + after


def _without(before: str, after: str) -> str:
    """The input without its list of options, and without a gap in its place."""
    if not before.strip() or not after.strip():
        return (before + after).strip()
    return before.rstrip() + ("\n" if "\n" in before[-1:] + after[:1] else " ") + after.lstrip()


def _gaps(block: str, options: Sequence[str]) -> tuple[str, ...] | None:
    """What stands before, between and after the options of a block; None if it lists others."""
    pattern = ""
    for i, option in enumerate(options):
        between = r"\W+" if i else ".*?"
        name = f"(?:{_letter(i)}|{_letter(i).lower()}|{i + 1})"
        pattern += rf"({between}(?:{name}\W+)?){re.escape(option)}"
    match = re.fullmatch(rf"{pattern}(\W*)", block, re.DOTALL)
    return match and match.groups()


def _letter(i: int) -> str:
    """A ... Z, AA, AB, ..."""
    return (chr(64 + i // 26) if i >= 26 else "") + chr(65 + i % 26)
