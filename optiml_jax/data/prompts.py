"""From an Example to the text of a prompt: delimiters, demonstrations, and fitting it into a row.

These are the rules that OPT-IML adds on top of every upstream format, as pure functions of their
arguments: nothing depends on a global random state, on batch order or on the number of workers.
Readers (which yield Examples) and tokenisers do not live here; token ids come in as arguments.
"""

import dataclasses
import heapq
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal

from optiml_jax.data import chat
from optiml_jax.data.example import Example, InstructionLevel
from optiml_jax.data.hashed_draws import choice, draw, shuffled
from optiml_jax.data.options import OPTION_FORMATS, relist
from optiml_jax.errors import UserError
from optiml_jax.settings import NotNegative, NotNegativeFloat, Probability, Seed, configurable

# OPT-IML paper, section 2.4, footnote 5. Lower-case ones exist only with a leading newline.
DELIMITERS = (
    "\nAnswer:",
    "Answer:",
    "\nA:",
    "A:",
    "\nOutput:",
    "Output:",
    "\nanswer:",
    "\noutput:",
)
TRAIN_POOL = 1000  # training examples of a task that MetaICL draws demonstrations from
_OPTION_FORMATS = ("given", *OPTION_FORMATS, "random")


@configurable
def zipf_shots(a: NotNegativeFloat, max_shots: NotNegative = 5) -> tuple[float, ...]:
    """`PromptConfig.shots` of MetaICL: P(k) ~ (k + 1)^-a for k = 0 ... max_shots.

    The paper (section 4.8) speaks of a Zipf draw clamped at 5, but its shares of zero-shot prompts
    (67.1 % for a = 2, 92.5 % for a = 4) are those of this law.
    """
    weights = [(k + 1) ** -a for k in range(max_shots + 1)]
    return tuple(w / sum(weights) for w in weights)


@configurable
@dataclasses.dataclass(frozen=True)
class PromptConfig:
    """How prompts are rendered; the same object serves caching, live tasks and evaluation.

    Attributes:
      seed: of every draw below.
      separator: between demonstrations; three newlines in the paper's MetaICL runs (section 4.8).
        Of several, one is drawn per (task, prompt_id, example_id); evaluation takes the first.
      delimiter: None draws one of `DELIMITERS` per (task, prompt_id, example_id); a string is used
        for every prompt ("" for none).
      shots: `shots[k]` is the probability that a training prompt has k demonstrations.
      demonstrations: "fixed" shows the first of the reader's pool, in the pool's order of
        preference, to every example; "per_instance" draws from that pool for each example; "train"
        draws for each training prompt from `TRAIN_POOL` examples of the task's training split
        (evaluation: "fixed").
      loss: "label" trains on the target alone; "suffix" on the label of the first demonstration and
        everything after it (paper, figure 6). Evaluation knows no loss.
      option_order: "shuffled" lists the options of each example in an order of its own.
      option_format: how options are listed: as the reader has them, one of `OPTION_FORMATS`, or
        "random", which draws one of these per prompt. See `options.relist`.
      without_options: benchmark -> the part of its training prompts that list no options.
      chat: what an instruct model was trained to see around a prompt, with `{prompt}` in its place;
        `@chat_frame()` makes it of the model's own template. The whole prompt, demonstrations too,
        is then one message of the user. Texts without a prompt and verbatim tasks stay as they are.
    """

    seed: Seed = 1234
    separator: str | tuple[str, ...] = "\n\n\n"
    delimiter: str | None = None
    shots: tuple[Probability, ...] = (1.0,)
    demonstrations: Literal["fixed", "per_instance", "train"] = "fixed"
    loss: Literal["label", "suffix"] = "label"
    option_order: Literal["given", "shuffled"] = "given"
    option_format: str = "given"
    without_options: Mapping[str, Probability] | None = None
    chat: str | None = None

    def __post_init__(self):
        if self.chat is not None:
            chat.check_frame(self.chat)
            if self.loss == "suffix":
                raise UserError(
                    "PromptConfig.loss = 'suffix' and PromptConfig.chat exclude each other"
                )
        if self.option_format not in _OPTION_FORMATS:
            raise UserError(
                f"PromptConfig.option_format is {self.option_format!r}; it must be one of "
                f"{', '.join(map(repr, _OPTION_FORMATS))}"
            )
        if not self.separator:
            raise UserError("PromptConfig.separator is empty; give a string or several")
        if not self.shots or abs(sum(self.shots) - 1) > 1e-6:
            raise UserError(
                f"PromptConfig.shots is {self.shots}; it must be the probabilities of 0, 1, 2, ... "
                "demonstrations, with sum 1"
            )

    def for_evaluation(self) -> "PromptConfig":
        """Without what only training prompts have."""
        pool = "fixed" if self.demonstrations == "train" else self.demonstrations
        separator = self.separator if isinstance(self.separator, str) else self.separator[0]
        return dataclasses.replace(
            self, loss="label", demonstrations=pool, separator=separator, without_options=None
        )


@dataclasses.dataclass(frozen=True)
class RenderedPrompt:
    """A prompt in parts, so that whole demonstrations can be left out when it is too long.

    Attributes:
      head: the task-level instruction, or "".
      demonstrations: rendered pairs, most preferred first.
      query: the instance with its delimiter; no trailing space.
      target: the text to train on, without outer whitespace.
      separator: stands before and after demonstrations.
      demonstration_ids: example ids of `demonstrations`.
      head_end: stands after the head when no demonstration does.
      head_joint: stands after the head when a demonstration does; "": the separator.
      suffix_start: under suffix loss the number of characters of the first demonstration that stand
        before its label; 0 under label loss.
      frame: what stands before and after all of them in a chat; see `chat.frame`.
    """

    head: str
    demonstrations: tuple[str, ...]
    query: str
    target: str
    separator: str
    demonstration_ids: tuple[str, ...] = ()
    head_end: str = "\n"
    suffix_start: int = 0
    frame: tuple[str, ...] = ("", "")
    head_joint: str = ""

    def source(self, keep: int | None = None) -> str:
        """The text before the target, with the first `keep` demonstrations (None: all)."""
        shown = self.demonstrations[:keep]
        before, after = self.frame
        head = self.head + self.after_head(bool(shown)) if self.head else ""
        return before + head + self.separator.join((*shown, self.query)) + after

    def after_head(self, shown: bool) -> str:
        """What stands after the head, `shown`: before a demonstration."""
        return (self.head_joint or self.separator) if shown else self.head_end

    def without_and_with_loss(self, keep: int | None = None) -> tuple[str, str]:
        """The text that is only read, and the text after it that is trained on.

        They meet at the space before a label, so their ids, concatenated, are those of the whole.
        """
        text = self.source(keep)
        start = len(text)
        text += target_text(text, self.target)
        if self.suffix_start and self.demonstrations[:keep]:
            start = self.suffix_start
            start += len(self.head) + len(self.after_head(True)) if self.head else 0
        return text[:start], text[start:]


def target_text(source: str, target: str) -> str:
    """The text of a target or candidate as it is encoded after `source`.

    One space joins both. The pre-tokeniser of GPT-2's BPE starts a new piece at that space, so the
    ids of `source` and of this text, concatenated, are the ids of the whole. Behind the frame of a
    chat there is no space.
    """
    return f" {target.strip()}" if source and source[-1] != chat.MARK else target.strip()


def render(
    example: Example,
    demonstrations: Sequence[Example],
    level: InstructionLevel,
    config: PromptConfig,
) -> RenderedPrompt:
    """Renders one example after the given demonstrations.

    "task" puts demonstrations between instruction and instance; "instance" puts whole rendered
    pairs before the instance (paper, section 2.4). An example without any source text (dialogue,
    plain text) gets neither demonstrations nor a delimiter.

    "verbatim" joins instruction, demonstrations and instance by the separator and adds no label and
    no delimiter; a demonstration is its input and its target as they are, with whatever white space
    the reader put between them. It has no chat.
    """
    prompt = _render(example, demonstrations, level, config)
    return prompt if level == "verbatim" else in_chat(prompt, config)


def in_chat(prompt: RenderedPrompt, config: PromptConfig) -> RenderedPrompt:
    """The prompt within the frame of `config.chat`, if there is one."""
    if config.chat is None or not prompt.query:
        return prompt
    return dataclasses.replace(
        prompt,
        head=chat.shown(prompt.head),  # no text of the data ends the frame
        demonstrations=tuple(map(chat.shown, prompt.demonstrations)),
        query=chat.shown(prompt.query),
        frame=chat.frame(config.chat),
    )


def _render(
    example: Example,
    demonstrations: Sequence[Example],
    level: InstructionLevel,
    config: PromptConfig,
) -> RenderedPrompt:
    separator, option_format = _separator(example, config), _option_format(example, config)
    if level == "verbatim":
        return RenderedPrompt(
            head=example.instruction,
            demonstrations=tuple(d.input + d.target for d in demonstrations),
            query=example.input,
            target=example.target.strip(),
            separator=separator,
            demonstration_ids=tuple(d.example_id for d in demonstrations),
            head_end=separator,
        )
    query, *bodies = (
        _body(_relisted(e, option_format, config), level) for e in (example, *demonstrations)
    )
    target = example.target.strip()
    if not query:
        return RenderedPrompt("", (), "", target, separator)
    delimiter = _delimiter(example, config)
    sources = [_attach(body, delimiter) for body in bodies]
    instruction = example.instruction.strip()
    return RenderedPrompt(
        head=f"Instructions: {instruction}" if level == "task" and instruction else "",
        demonstrations=tuple(
            source + target_text(source, d.target)
            for source, d in zip(sources, demonstrations, strict=True)
        ),
        query=_attach(query, delimiter),
        target=target,
        separator=separator,
        demonstration_ids=tuple(d.example_id for d in demonstrations),
        suffix_start=len(sources[0]) if sources and config.loss == "suffix" else 0,
    )


def sample_pool(examples: Iterable[Example], config: PromptConfig) -> list[Example]:
    """`TRAIN_POOL` of the examples that have a source text, the same in whatever order they come.

    Held in memory are those alone.
    """
    with_source = (e for e in examples if e.instruction or e.input)
    return heapq.nsmallest(
        TRAIN_POOL, with_source, key=lambda e: draw(f"{config.seed}\0pool\0{draw_key(e)}")
    )


def select_demonstrations(
    example: Example, pool: Sequence[Example], k: int, config: PromptConfig
) -> list[Example]:
    """At most k demonstrations for `example`, the first k of those for k + 1.

    Those with the prompt of the example come first. Never the example itself, an example with the
    same input, or two with the same input. Fewer than k come back when the pool has no more:
    callers report the number they got.
    """

    def in_order() -> Iterator[Example]:
        if config.demonstrations == "fixed":
            return iter(pool)
        return shuffled(pool, f"{config.seed}\0demonstrations\0{draw_key(example)}")

    def same_prompt(candidate: Example) -> bool:
        return candidate.prompt_id == example.prompt_id

    seen = {normalised(example.input)}
    chosen: list[Example] = []
    for candidate in itertools.chain(
        filter(same_prompt, in_order()), itertools.filterfalse(same_prompt, in_order())
    ):
        if len(chosen) >= k:
            break
        text = normalised(candidate.input)
        same = candidate.example_id == example.example_id and candidate.task == example.task
        if not same and text not in seen:
            seen.add(text)
            chosen.append(candidate)
    return chosen


@dataclasses.dataclass(frozen=True)
class FittedSource:
    """The ids of a source that fits, and what it cost.

    Attributes:
      ids: token ids of the source, no specials.
      shots: demonstrations left in it, all of them whole.
      dropped_tokens: tokens cut from the left after every demonstration was dropped.
    """

    ids: list[int]
    shots: int
    dropped_tokens: int


def fit_source(
    prompt: RenderedPrompt,
    source_ids: Sequence[int],
    budget: int,
    encode: Callable[[str], Sequence[int]],
) -> FittedSource:
    """Fits a source into `budget` tokens: drops whole demonstrations, last first, then cuts left.

    The frame of a chat is not cut.

    Args:
      prompt: the rendered prompt.
      source_ids: ids of `prompt.source()`, no specials.
      budget: tokens the source may have, >= 0. For training and scoring the row's length - 1 (the
        leading token) - the longest target; for generation also minus the tokens to generate.
      encode: text to ids; called only when demonstrations must be dropped.
    """
    if budget < 0:
        raise ValueError(f"budget {budget} is negative: the target alone does not fit")
    shots = len(prompt.demonstrations)
    while len(source_ids) > budget and shots:
        shots -= 1
        source_ids = encode(prompt.source(shots))
    dropped = max(0, len(source_ids) - budget)
    return FittedSource(cut_left(prompt.frame[0], source_ids, dropped, encode), shots, dropped)


def cut_left(
    front: str, source_ids: Sequence[int], dropped: int, encode: Callable[[str], Sequence[int]]
) -> list[int]:
    """The ids of a source without `dropped` ids on its left, after the `front` of a chat."""
    kept = front_length(front, len(source_ids) - dropped, encode) if dropped else 0
    return [*source_ids[:kept], *source_ids[kept + dropped :]]


def front_length(front: str, room: int, encode: Callable[[str], Sequence[int]]) -> int:
    """Number of ids of a chat's front, which are not cut; 0 where they do not fit."""
    length = len(encode(front)) if front else 0
    return length if length <= room else 0


def fit_example(
    prompt: RenderedPrompt,
    source_ids: Sequence[int],
    target_ids: Sequence[int],
    sequence_length: int,
    eos_id: int,
    encode: Callable[[str], Sequence[int]],
) -> tuple[list[int], list[int]] | None:
    """The (source, target + [eos]) ids of a training example, at most `sequence_length` together.

    Whole demonstrations are dropped, last first, then the source is cut on the left, as the paper
    (section 3.3) has it; the target is never cut. None when the target alone is too long (callers
    count it as "target too long").

    Args:
      prompt: the rendered prompt.
      source_ids, target_ids: ids of `prompt.without_and_with_loss()`, no specials.
      sequence_length: tokens in a row.
      eos_id: appended to the target.
      encode: text to ids; called only when demonstrations must be dropped.
    """
    shots = len(prompt.demonstrations)
    while len(source_ids) + len(target_ids) >= sequence_length and shots:
        shots -= 1
        source_ids, target_ids = map(encode, prompt.without_and_with_loss(shots))
    budget = sequence_length - len(target_ids) - 1
    if budget < 0:
        return None
    dropped = max(0, len(source_ids) - budget)
    return cut_left(prompt.frame[0], source_ids, dropped, encode), [*target_ids, eos_id]


def passthrough_features(example: Example) -> dict[str, str]:
    """What a cached or live record has besides its tokens; lists are JSON ("null": no options).

    The same strings in SeqIO's TFRecord cache and in live tasks, so that both give equal records.
    """
    return {
        "task": example.task,
        "example_id": example.example_id,
        "prompt_id": example.prompt_id,
        "references": json.dumps(list(example.references), ensure_ascii=False),
        "options": json.dumps(
            None if example.options is None else list(example.options), ensure_ascii=False
        ),
    }


def _body(example: Example, level: InstructionLevel) -> str:
    """The part of a prompt that is repeated for every demonstration, without its delimiter."""
    if level == "task":
        return f"Input: {example.input}" if example.input or example.instruction else ""
    return "\n".join(part for part in (example.instruction, example.input) if part)


def _attach(text: str, delimiter: str) -> str:
    """Appends the delimiter, unless the text already asks for its answer with a colon."""
    if delimiter and not text.rstrip().endswith(":"):
        joined = delimiter[0].isspace() or not text or text[-1].isspace()
        text += delimiter if joined else f" {delimiter}"
    return text.rstrip(" ")


def _delimiter(example: Example, config: PromptConfig) -> str:
    if config.delimiter is not None:
        return config.delimiter
    return choice(DELIMITERS, f"{config.seed}\0delimiter\0{draw_key(example)}")


def _separator(example: Example, config: PromptConfig) -> str:
    if isinstance(config.separator, str):
        return config.separator
    return choice(config.separator, f"{config.seed}\0separator\0{draw_key(example)}")


def _option_format(example: Example, config: PromptConfig) -> str:
    part = (config.without_options or {}).get(example.benchmark, 0.0)
    if part and draw(f"{config.seed}\0without options\0{draw_key(example)}") / 2**64 < part:
        return "none"
    if config.option_format != "random":
        return config.option_format
    return choice(tuple(OPTION_FORMATS), f"{config.seed}\0option format\0{draw_key(example)}")


def _relisted(example: Example, option_format: str, config: PromptConfig) -> Example:
    """The example with its options listed as the configuration has them."""
    order: Sequence[int] = range(len(example.options or ()))
    if config.option_order == "shuffled":
        key = f"{config.seed}\0option order\0{draw_key(example)}"
        order = sorted(order, key=lambda i: draw(f"{key}\0{i}"))
    elif option_format == "given":
        return example
    return dataclasses.replace(example, input=relist(example, option_format, order))


def draw_key(example: Example) -> str:
    """What tells the draws of an example from those of others."""
    return f"{example.task}\0{example.prompt_id}\0{example.example_id}"


def normalised(text: str) -> str:
    """The text with single spaces between its words."""
    return " ".join(text.split())
