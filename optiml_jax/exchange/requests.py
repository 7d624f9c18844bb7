"""The requests of an evaluation, as rows that any model can answer, each with its own id.

The rows are made by the evaluator's own rules from its tasks; where they are written to, and how
answers come back, is said in request_files.py, harness.py and answers.py.
"""

import collections
import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from optiml_jax.data import chat
from optiml_jax.data.prompts import PromptConfig
from optiml_jax.evaluate.config import EvalConfig
from optiml_jax.evaluate.evaluator import EvalTask, instance_builder, prompts_of_evaluation
from optiml_jax.evaluate.instances import EncodeBatch, Instance, subsample

_CHUNK = 512  # examples whose prompts are in memory at the same time


class RequestIds:
    """The ids of the instances of one task at one number of shots, given in their order.

    An id stands for task, shots, prompt, example and the whole text that is asked (all
    demonstrations, all candidates), so an answer to another text is never taken for it. It does not
    depend on a tokenizer.
    """

    def __init__(self):
        self._seen: collections.Counter = collections.Counter()

    def __call__(self, instance: Instance) -> str:
        example = instance.example
        key = (example.task, instance.shots, example.prompt_id, example.example_id)
        occurrence = self._seen[key]
        self._seen[key] += 1
        asked = [*key, occurrence, instance.full_texts, instance.candidates, instance.continuations]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:24]


@dataclasses.dataclass(frozen=True)
class Tokens:
    """How texts become tokens, and how many a prompt may have.

    Attributes:
      encode, decode: texts to ids, and ids to text with special tokens by their names.
      positions: of a row: leading token, prompt, and candidate or new tokens.
    """

    encode: EncodeBatch
    decode: Callable[[Sequence[int]], str]
    positions: int

    @classmethod
    def unlimited(cls) -> "Tokens":
        """Nothing is ever left out: every character is a token, and there is room for all."""
        return cls(
            encode=lambda texts: [list(map(ord, text)) for text in texts],
            decode=lambda ids: chat.shown("".join(map(chr, ids))),
            positions=2**62,
        )


def request_rows(
    task: EvalTask, shots: int, config: EvalConfig, prompts: PromptConfig, tokens: Tokens
) -> Iterator[dict[str, Any]]:
    """The requests of a task at one number of shots, in the evaluator's order.

    Args:
      prompts: of the run.
      tokens: prompts are fitted into its positions as the evaluator does it.

    Yields:
      JSON-able rows with the fields that docs/exchange.md describes.

    Raises:
      UserError: the task cannot be read or asked; the same cases as in an evaluation.
    """
    prompts = prompts_of_evaluation(prompts, config)
    builder = instance_builder(task, config, prompts, tokens.encode, tokens.positions)
    pool = task.demonstrations() if shots else ()
    examples = iter(subsample(task.examples(), config.max_examples, config.seed))
    ids = RequestIds()
    while chunk := list(itertools.islice(examples, _CHUNK)):
        for instance in builder.build(chunk, pool, shots, task.ranks):
            yield _row(task, config, instance, ids(instance), tokens)


def prompt_texts(instance: Instance, tokens: Tokens) -> tuple[str, ...]:
    """The prompt as the model sees it, or under partial scoring the prompt of each candidate."""
    if not instance.is_cut:
        return tuple(map(chat.shown, instance.texts))
    front = chat.shown(chat.front(instance.texts[0]))
    ids = instance.contexts or (instance.prompt,)
    texts = (tokens.decode(row).removeprefix(front) for row in ids)
    return tuple(front + text.lstrip("\ufffd") for text in texts)  # a cut may fall in a character


def _row(
    task: EvalTask, config: EvalConfig, instance: Instance, request_id: str, tokens: Tokens
) -> dict[str, Any]:
    info, protocol, example = task.info, task.protocol, instance.example
    prompts = prompt_texts(instance, tokens)
    row = {
        "id": request_id,
        "task": info.task,
        "shots": instance.shots,
        "prompt_id": example.prompt_id,
        "example_id": example.example_id,
        "group": str(example.meta.get("group", "")),
        "benchmark": info.benchmark,
        "category": info.category,
        "level": info.level,
        "metric": info.metric,
        "kind": "rank" if task.ranks else "generate",
        "prompt": prompts[0],
        "num_demonstrations": len(instance.demonstration_ids),
        "is_cut": instance.is_cut,
        "references": list(example.references),
    }
    if not task.ranks:
        return row | {
            "stop": list(protocol.stop),
            "max_new_tokens": task.max_new_tokens(config),
            "samples": protocol.samples,
            "temperature": protocol.temperature if protocol.samples else 0.0,
        }
    return row | {
        **({"prompts": list(prompts)} if instance.contexts else {}),
        "candidates": list(instance.candidates),
        "continuations": list(instance.continuations),
        "correct": list(instance.correct),
        "rule": protocol.rule,
    }
