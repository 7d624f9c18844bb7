"""Prompts as text in, answers as text out: what `optiml generate` does with a model."""

import dataclasses
import json
import logging
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from optiml_jax.data import chat
from optiml_jax.data.prompts import cut_left
from optiml_jax.data.text_vocabulary import TextVocabulary
from optiml_jax.data.vocabulary import decode, encode_batch
from optiml_jax.errors import UserError
from optiml_jax.evaluate import decoding
from optiml_jax.evaluate.batching import Engine
from optiml_jax.evaluate.runner import cut_at, stopper
from optiml_jax.settings import NotNegative, Positive, convert
from optiml_jax.words import counted

logger = logging.getLogger(__name__)

_BATCH = 1024  # prompts of a file that are in memory at the same time


@dataclasses.dataclass(frozen=True)
class TextPrompt:
    """A prompt with its settings; see `cli.settings.Generate`."""

    text: str
    max_new_tokens: int
    stop: tuple[str, ...] = ()
    seed: int = 0
    id: str = ""


@dataclasses.dataclass(frozen=True)
class TextAnswer:
    """An answer.

    Attributes:
      text: without stop string.
      num_tokens: new tokens, the end of text included.
      finished: the end of text or a stop string ended it.
      logprob: of all its tokens, natural log.
      num_cut: tokens of the prompt that did not fit, cut on its left.
    """

    text: str
    num_tokens: int
    finished: bool
    logprob: float
    num_cut: int = 0


# What a line of a file of prompts may set of its own.
_FIELDS = {"max_new_tokens": Positive, "stop": tuple[str, ...], "seed": int}


class Generator:
    """A model that continues texts.

    Args:
      sampling: the same for all prompts.
    """

    def __init__(self, engine: Engine, vocabulary: TextVocabulary, sampling: decoding.Sampling):
        self._engine, self._vocabulary, self._sampling = engine, vocabulary, sampling

    def answers(
        self, prompts: Sequence[TextPrompt], watch: Callable[[str], object] | None = None
    ) -> list[TextAnswer]:
        """The answers to the prompts, in their order.

        Args:
          watch: called every few tokens with the text so far of the one prompt there is.

        Raises:
          UserError: a prompt leaves no room for itself beside its new tokens.
        """
        ids = encode_batch(self._vocabulary, [prompt.text for prompt in prompts])
        rooms = [self._room(prompt) for prompt in prompts]
        cut = [max(0, len(row) - room) for row, room in zip(ids, rooms, strict=True)]
        asked = [
            decoding.Prompt(
                tokens=cut_left(chat.front(prompt.text), row, n, self._vocabulary.encode),
                max_new_tokens=prompt.max_new_tokens,
                stop=stopper(self._vocabulary, prompt.stop),
                seed=prompt.seed,
            )
            for prompt, row, n in zip(prompts, ids, cut, strict=True)
        ]

        def tell(which: int, tokens: Sequence[int]) -> None:
            if watch is not None:
                watch(cut_at(decode(self._vocabulary, tokens), prompts[which].stop))

        generated = decoding.generate(self._engine, asked, *self._sampling, watch=tell)
        return [
            TextAnswer(
                text=cut_at(decode(self._vocabulary, answer.tokens), prompt.stop),
                num_tokens=answer.num_tokens,
                finished=answer.finished,
                logprob=answer.logprob,
                num_cut=n,
            )
            for prompt, answer, n in zip(prompts, generated, cut, strict=True)
        ]

    def _room(self, prompt: TextPrompt) -> int:
        room = self._engine.config.max_positions - 1 - prompt.max_new_tokens
        if room < 1:
            raise UserError(
                f"{prompt.max_new_tokens} new tokens leave no room for a prompt in the model's "
                f"{self._engine.config.max_positions} positions; lower max_new_tokens"
            )
        return room


def read_prompts(
    path: pathlib.Path, default: TextPrompt, frame: str | None = None
) -> Iterator[list[TextPrompt]]:
    """The prompts of a file of JSON lines, in batches; `default` fills in missing fields.

    Rows of ranked candidates, as `optiml export` writes them, are not prompts to continue. The
    special tokens of a prompt are read where it shows the `frame` of a chat, as exported ones do.

    Raises:
      UserError: no such file, or a line that is no prompt; names it.
    """
    batch: list[TextPrompt] = []
    several = 0
    try:
        with open(path, encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    prompt, samples = _prompt(f"{path}, line {number}", line, number, default)
                    several += samples > 1
                    message = chat.taken_out(frame, prompt.text)
                    if message is not None:
                        prompt = dataclasses.replace(prompt, text=chat.put_in(frame, message))
                    batch.append(prompt)
                if len(batch) == _BATCH:
                    yield batch
                    batch = []
    except OSError as e:
        raise UserError(f"cannot read the prompts in {path}: {e.strerror}") from e
    if several:
        logger.warning(
            "%s: %s for several samples; one answer is made for each: `optiml evaluate` votes",
            *(path, f"{counted(several, 'prompt')} ask{'s' * (several == 1)}"),
        )
    if batch:
        yield batch


def _prompt(where: str, line: str, number: int, default: TextPrompt) -> tuple[TextPrompt, int]:
    """The prompt of a line, and for how many samples it asks."""
    try:
        row: dict[str, Any] = json.loads(line)
        text = row["prompt"]
    except (ValueError, KeyError, TypeError) as e:
        raise UserError(f"{where}: a prompt is a JSON object with the field `prompt`") from e
    if row.get("kind") == "rank":
        raise UserError(f"{where}: candidates are ranked here; `optiml evaluate` does that")
    if not isinstance(text, str):
        raise UserError(f"{where}: `prompt` must be a string")
    usual = {
        "max_new_tokens": default.max_new_tokens,
        "stop": default.stop,
        "seed": default.seed + number - 1,
    }
    given = {name: row[name] for name in usual if row.get(name) is not None}
    own = {n: convert(v, _FIELDS[n], f"{where}: {n}") for n, v in (usual | given).items()}
    if "" in own["stop"]:
        raise UserError(f"{where}: an empty stop string would end every answer before it begins")
    samples = convert(row.get("samples") or 0, NotNegative, f"{where}: samples")
    return TextPrompt(text=text, id=str(row.get("id", number)), **own), samples
