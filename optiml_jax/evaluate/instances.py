"""From Examples to token ids that fit the model: the text side of evaluation, before any model.

Prompts are rendered by `optiml_jax/data/prompts.py`; this module fits them into the model's
positions and turns options into candidates. Text becomes ids by a function that is passed in.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence

from optiml_jax.data.example import Example, InstructionLevel
from optiml_jax.data.prompts import (
    PromptConfig,
    RenderedPrompt,
    fit_source,
    render,
    select_demonstrations,
    target_text,
)
from optiml_jax.errors import UserError

EncodeBatch = Callable[[Sequence[str]], list[list[int]]]


@dataclasses.dataclass(frozen=True)
class Instance:
    """One (example, prompt) pair, ready for the model.

    Attributes:
      prompt: token ids without specials, cut to what fits.
      n_prompt_tokens_dropped: tokens of the full prompt (all demonstrations) that are not in it.
      demonstration_ids: of the demonstrations that are in it.
      candidates: texts of the distinct options in their order; empty for generation.
      candidate_ids: token ids of each candidate, with the space that joins it to the prompt.
      correct: indices of the candidates that are references.
    """

    example: Example
    prompt: list[int]
    n_prompt_tokens_dropped: int
    demonstration_ids: tuple[str, ...]
    candidates: tuple[str, ...] = ()
    candidate_ids: tuple[list[int], ...] = ()
    correct: tuple[int, ...] = ()


def build_instances(
    examples: Sequence[Example],
    pool: Sequence[Example],
    shots: int,
    *,
    rank: bool,
    level: InstructionLevel,
    prompts: PromptConfig,
    encode_batch: EncodeBatch,
    sequence_length: int,
    max_new_tokens: int,
) -> list[Instance]:
    """Renders, tokenises and fits the prompts of one task.

    Whole demonstrations are dropped first, then the prompt is cut on the left; candidates are never
    cut, and all candidates of an instance see the same prompt.

    Args:
      pool: the examples that may be demonstrations.
      shots: how many of them.
      rank: rank classification of the examples' options, else generation.
      sequence_length: positions of the model, leading token and new tokens included.
      max_new_tokens: positions kept free for generation.

    Raises:
      UserError: no examples; no demonstrations at all; an example without options, or none of whose
        options is right, under rank classification; a candidate that does not fit.
    """
    if not examples:
        raise UserError("no examples")
    rendered = [
        render(e, select_demonstrations(e, pool, shots, prompts), level, prompts) for e in examples
    ]
    if shots and not any(r.demonstrations for r in rendered):
        raise UserError(f"no demonstrations for {shots} shots")
    sources = [r.source() for r in rendered]
    ids = encode_batch(sources)
    candidates = [_candidates(e) if rank else () for e in examples]
    candidate_ids = _encode_candidates(sources, candidates, encode_batch)
    instances = []
    rows = zip(examples, rendered, sources, ids, candidates, strict=True)
    for example, prompt, source, full, texts in rows:
        own = tuple(candidate_ids[bool(source), text] for text in texts)
        room = sequence_length - 1 - (max(map(len, own)) if rank else max_new_tokens)
        if room < 0:
            raise UserError(
                f"example {example.example_id}: its longest candidate or the {max_new_tokens} new "
                f"tokens do not fit into {sequence_length} positions"
            )
        instances.append(_fit(example, prompt, full, room, encode_batch, texts, own))
    return instances


def _fit(
    example: Example,
    prompt: RenderedPrompt,
    full: list[int],
    room: int,
    encode_batch: EncodeBatch,
    candidates: tuple[str, ...],
    candidate_ids: tuple[list[int], ...],
) -> Instance:
    fitted = fit_source(prompt, full, room, lambda text: encode_batch([text])[0])
    references = {r.strip() for r in example.references}
    return Instance(
        example=example,
        prompt=fitted.ids,
        n_prompt_tokens_dropped=len(full) - len(fitted.ids),
        demonstration_ids=prompt.demonstration_ids[: fitted.shots],
        candidates=candidates,
        candidate_ids=candidate_ids,
        correct=tuple(i for i, text in enumerate(candidates) if text in references),
    )


def _candidates(example: Example) -> tuple[str, ...]:
    """The distinct options without outer whitespace, in their order."""
    options = tuple(dict.fromkeys(o.strip() for o in example.options or ()))
    if not options:
        raise UserError(
            f"example {example.example_id} has no options, but the metric ranks options"
        )
    if "" in options:
        raise UserError(f"example {example.example_id} has an empty option")
    if not {r.strip() for r in example.references} & set(options):
        raise UserError(
            f"example {example.example_id}: none of its references is among its options"
        )
    return options


def _encode_candidates(
    sources: Sequence[str], candidates: Sequence[tuple[str, ...]], encode_batch: EncodeBatch
) -> dict[tuple[bool, str], list[int]]:
    """Ids of each distinct candidate, with (True) or without (False) a source in front of it."""
    wanted = list(
        dict.fromkeys(
            (bool(source), text)
            for source, texts in zip(sources, candidates, strict=True)
            for text in texts
        )
    )
    texts = [target_text("x" if behind else "", text) for behind, text in wanted]
    return dict(zip(wanted, encode_batch(texts), strict=True)) if wanted else {}


def subsample(examples: Sequence[Example], limit: int | None, seed: int) -> list[Example]:
    """The `limit` (example, prompt) pairs with the lowest hash, in their order (None: all)."""
    if limit is None or len(examples) <= limit:
        return list(examples)

    def draw(i: int) -> bytes:
        e = examples[i]
        key = f"{seed}\0{e.task}\0{e.example_id}\0{e.prompt_id}"
        return hashlib.sha256(key.encode()).digest()

    return [examples[i] for i in sorted(sorted(range(len(examples)), key=draw)[:limit])]
