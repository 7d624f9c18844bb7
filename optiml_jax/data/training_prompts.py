"""Training prompts: how many demonstrations, which, and the forms that templates prescribe.

An example without a form has the prompt that `PromptConfig` describes. One with a form (FLAN v2's
templates) has the form's own texts around it; whatever other example is shown with it is written in
the same template, from its slots. As in `prompts.py` nothing depends on a random state.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence

from optiml_jax.data.example import Example, InstructionLevel
from optiml_jax.data.hashed_draws import choice, draw, shuffled
from optiml_jax.data.prompts import (
    PromptConfig,
    RenderedPrompt,
    draw_key,
    in_chat,
    normalised,
    render,
    select_demonstrations,
    target_text,
)
from optiml_jax.errors import UserError

_SLOT = re.compile(r"\{(\w*)\}")


def slots(text: str) -> list[str]:
    """The names of the slots of a template's text, in order; other braces are text."""
    return _SLOT.findall(text)


def fill(text: str, values: Mapping[str, str]) -> str:
    """The text with its slots filled; braces in the values mean nothing."""
    return _SLOT.sub(lambda match: values[match[1]], text)


def draw_shots(example: Example, config: PromptConfig) -> int:
    """The number of demonstrations of a training prompt, drawn from `config.shots`.

    An example with a form has a number that the form allows, and none where `config.shots` allows
    none.
    """
    if len(config.shots) == 1:
        return 0
    key = f"{config.seed}\0shots\0{draw_key(example)}"
    if example.form is not None:
        return choice(example.form.shots, key) if example.form.shots else 0
    point = draw(key) / 2**64
    for k, probability in enumerate(config.shots):
        point -= probability
        if point < 0:
            return k
    return len(config.shots) - 1


def training_prompt(
    example: Example, pool: Sequence[Example], level: InstructionLevel, config: PromptConfig
) -> tuple[RenderedPrompt, list[Example]]:
    """The training prompt of an example, and its demonstrations as they are written there.

    Args:
      example: of the task.
      pool: what `training_pool` gives.
      level: the task's.
      config: of the number of demonstrations, and of examples without a form.
    """
    number = draw_shots(example, config)
    if example.form is None:
        chosen = select_demonstrations(example, pool, number, config) if number else []
        return render(example, chosen, level, config), chosen
    if number and config.demonstrations != "train":
        raise UserError(
            f"{example.task} has few-shot templates of its own, whose demonstrations are training "
            f"examples: PromptConfig.demonstrations is {config.demonstrations!r}, set it to 'train'"
        )
    chosen = _written_alike(example, pool, number, config) if number else []
    return in_chat(_render_form(example, chosen, config), config), chosen


def render_for_training(
    example: Example, pool: Sequence[Example], level: InstructionLevel, config: PromptConfig
) -> RenderedPrompt:
    """The training prompt of an example: number of shots drawn, demonstrations chosen, rendered."""
    return training_prompt(example, pool, level, config)[0]


def _written_alike(
    example: Example, pool: Sequence[Example], number: int, config: PromptConfig
) -> list[Example]:
    """Demonstrations of the example's family, each in one of the texts that its form has for them.

    Never the example itself, an example with the same text, or two with the same text.
    """
    form, key = example.form, f"{config.seed}\0demonstrations\0{draw_key(example)}"
    family = [d for d in pool if d.form is not None and d.form.family == form.family]
    seen = {normalised(example.input)}
    chosen: list[Example] = []
    for candidate in shuffled(family, key):
        if len(chosen) >= number:
            break
        if candidate.example_id == example.example_id and candidate.task == example.task:
            continue
        text = choice(form.texts, f"{key}\0{candidate.example_id}")
        shown = dataclasses.replace(
            candidate,
            instruction="",
            input=fill(text.source, candidate.slots).strip(),
            target=fill(text.target, candidate.slots).strip(),
            form=dataclasses.replace(form, delimiter=text.delimiter),
        )
        if (written := normalised(shown.input)) not in seen:
            seen.add(written)
            chosen.append(shown)
    return chosen


def _render_form(
    example: Example, demonstrations: Sequence[Example], config: PromptConfig
) -> RenderedPrompt:
    sources = [_with_delimiter(e) for e in (example, *demonstrations)]
    return RenderedPrompt(
        head=example.instruction,
        demonstrations=tuple(
            source + target_text(source, d.target)
            for source, d in zip(sources[1:], demonstrations, strict=True)
        ),
        query=sources[0],
        target=example.target.strip(),
        separator=example.form.separator,
        demonstration_ids=tuple(d.example_id for d in demonstrations),
        head_end=example.form.head_end,
        suffix_start=len(sources[1]) if demonstrations and config.loss == "suffix" else 0,
        head_joint=example.form.head_end,
    )


def _with_delimiter(example: Example) -> str:
    return (example.input + example.form.delimiter).rstrip(" ")
