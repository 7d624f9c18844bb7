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
      candidate_ids: token ids of each candidate, with what joins it to the prompt.
      correct: indices of the candidates that are references.
      contexts: under partial scoring the prompt of each candidate; `prompt` is the first of them.
      boundary_repaired: see `records.Record`.
      shots: the demonstrations that were asked for.
      texts: what `prompt` stands for, or each of `contexts`: the text with the demonstrations that
        are in it, before any token is cut on the left.
      full_texts: the same with all demonstrations.
      is_cut: tokens of `texts` were cut on the left.
      continuations: the text of `candidate_ids`, as it follows the prompt.
    """

    example: Example
    prompt: list[int]
    n_prompt_tokens_dropped: int
    demonstration_ids: tuple[str, ...]
    texts: tuple[str, ...]
    full_texts: tuple[str, ...]
    is_cut: bool
    candidates: tuple[str, ...] = ()
    candidate_ids: tuple[list[int], ...] = ()
    correct: tuple[int, ...] = ()
    contexts: tuple[list[int], ...] = ()
    continuations: tuple[str, ...] = ()
    boundary_repaired: bool = False
    shots: int = 0

    @property
    def scored(self) -> tuple[str, ...]:
        """The text whose probability is that of each candidate, without outer whitespace."""
        return tuple(t.strip() for t in self.continuations) if self.contexts else self.candidates


@dataclasses.dataclass(frozen=True)
class InstanceBuilder:
    """Builds the instances of one task at one number of shots.

    Whole demonstrations are dropped first, then the prompt is cut on the left; candidates are never
    cut, and all candidates of an instance see the same prompt.

    Attributes:
      level: see `prompts.render`.
      prompts: how prompts are rendered.
      encode: texts to ids.
      sequence_length: positions of the model, leading token and new tokens included.
      max_new_tokens: positions kept free for generation.
      joiner: between a prompt and its candidates.
    """

    level: InstructionLevel
    prompts: PromptConfig
    encode: EncodeBatch
    sequence_length: int
    max_new_tokens: int
    joiner: str = " "

    def build(
        self, examples: Sequence[Example], pool: Sequence[Example], shots: int, rank: bool
    ) -> list[Instance]:
        """The instances of `examples`, in their order.

        Args:
          pool: the examples that may be demonstrations.
          shots: how many of them.
          rank: rank classification of the examples' options, else generation.

        Raises:
          UserError: no examples; no demonstrations at all; an example without options, or none of
            whose options is right, under rank classification; a candidate that does not fit.
        """
        if not examples:
            raise UserError("no examples")
        shown = [select_demonstrations(e, pool, shots, self.prompts) for e in examples]
        if shots and not any(shown):
            raise UserError(f"no demonstrations for {shots} shots")
        pairs = list(zip(examples, shown, strict=True))
        built = self._build(pairs, rank)
        return [dataclasses.replace(i, shots=shots) for i in built] if shots else built

    def _build(self, pairs: Sequence[tuple[Example, list[Example]]], rank: bool) -> list[Instance]:
        if not rank:
            return self._to_generate(pairs)
        if any(e.contexts for e, _ in pairs):
            return [self._with_contexts(e, d) for e, d in pairs]
        in_chat = self.prompts.chat is not None and self.level != "verbatim"
        if self.joiner != " " and not in_chat:  # nothing joins after a chat's frame
            return [self._joined(e, d) for e, d in pairs]
        return self._to_rank(pairs)

    def _render(self, example: Example, shown: Sequence[Example]) -> RenderedPrompt:
        return render(example, shown, self.level, self.prompts)

    def _to_generate(self, pairs: Sequence[tuple[Example, list[Example]]]) -> list[Instance]:
        prompts = [self._render(*pair) for pair in pairs]
        ids = self.encode([prompt.source() for prompt in prompts])
        return [
            self._fit(e, prompt, full, self._room(e, self.max_new_tokens))
            for (e, _), prompt, full in zip(pairs, prompts, ids, strict=True)
        ]

    def _to_rank(self, pairs: Sequence[tuple[Example, list[Example]]]) -> list[Instance]:
        """The usual case: one space joins prompt and candidate, so their ids may be made apart.

        GPT-2's pre-tokeniser starts a new piece at that space, and SentencePiece a new word.
        """
        prompts = [self._render(*pair) for pair in pairs]
        sources = [prompt.source() for prompt in prompts]
        ids = self.encode(sources)
        candidates = [_candidates(e) for e, _ in pairs]
        wanted = list(
            dict.fromkeys(
                target_text(source, text)
                for source, texts in zip(sources, candidates, strict=True)
                for text in texts
            )
        )
        known = dict(zip(wanted, self.encode(wanted), strict=True))
        instances = []
        for (e, _), prompt, source, full, options in zip(
            pairs, prompts, sources, ids, candidates, strict=True
        ):
            continuations = tuple(target_text(source, text) for text in options)
            own = tuple(known[text] for text in continuations)
            room = self._room(e, max(map(len, own)))
            instances.append(_ranked(self._fit(e, prompt, full, room), options, own, continuations))
        return instances

    def _joined(self, example: Example, shown: Sequence[Example]) -> Instance:
        """Candidates that follow their prompt without a space, encoded together with it.

        Where the ids of the prompt are not the beginning of those of the whole, all candidates of
        the instance are cut at the last place that is common to all.
        """
        prompt, options = self._render(example, shown), _candidates(example)
        for shots in range(len(prompt.demonstrations), -1, -1):
            source = prompt.source(shots)
            alone, *wholes = self.encode([source, *(source + self.joiner + o for o in options)])
            cut = min(_common(alone, whole) for whole in wholes)
            own = tuple(whole[cut:] for whole in wholes)
            room = self._room(example, max(map(len, own)))
            if cut <= room:
                break
        full = self.encode([prompt.source()])[0]
        ids = alone[:cut][max(0, cut - room) :]
        instance = Instance(
            example=example,
            prompt=ids,
            n_prompt_tokens_dropped=len(full) - len(alone) + cut - len(ids),
            demonstration_ids=prompt.demonstration_ids[:shots],
            texts=(source,),
            full_texts=(prompt.source(),),
            is_cut=cut > room,
            boundary_repaired=cut < len(alone),
        )
        return _ranked(instance, options, own, tuple(self.joiner + o for o in options))

    def _with_contexts(self, example: Example, shown: Sequence[Example]) -> Instance:
        """Partial scoring: the same text after each context, after the same demonstrations."""
        options = _candidates(example)
        if len(options) != len(example.contexts):
            raise UserError(
                f"example {example.example_id} has {len(example.contexts)} contexts for "
                f"{len(options)} distinct options"
            )
        prompts = [
            self._render(dataclasses.replace(example, input=c), shown) for c in example.contexts
        ]
        full_texts = tuple(prompt.source() for prompt in prompts)
        continuation = target_text(full_texts[0], example.target)
        (scored,) = self.encode([continuation])
        room = self._room(example, len(scored))
        ids = self.encode(full_texts)
        fitted = [self._fit(example, *pair, room) for pair in zip(prompts, ids, strict=True)]
        shots = min(len(f.demonstration_ids) for f in fitted)
        prompts = [
            dataclasses.replace(
                prompt,
                demonstrations=prompt.demonstrations[:shots],
                demonstration_ids=prompt.demonstration_ids[:shots],
            )
            for prompt in prompts
        ]
        kept = self.encode([prompt.source() for prompt in prompts])
        fitted = [self._fit(example, *pair, room) for pair in zip(prompts, kept, strict=True)]
        first = dataclasses.replace(
            fitted[0],
            n_prompt_tokens_dropped=len(ids[0]) - len(fitted[0].prompt),
            contexts=tuple(f.prompt for f in fitted),
            texts=tuple(f.texts[0] for f in fitted),
            full_texts=full_texts,
            is_cut=any(f.is_cut for f in fitted),
        )
        return _ranked(first, options, (scored,) * len(options), (continuation,) * len(options))

    def _room(self, example: Example, needed: int) -> int:
        """Positions left for the prompt, the leading token aside."""
        room = self.sequence_length - 1 - needed
        if room < 0:
            raise UserError(
                f"example {example.example_id}: its longest candidate or the {self.max_new_tokens} "
                f"new tokens do not fit into {self.sequence_length} positions"
            )
        return room

    def _fit(
        self, example: Example, prompt: RenderedPrompt, full: list[int], room: int
    ) -> Instance:
        fitted = fit_source(prompt, full, room, lambda text: self.encode([text])[0])
        return Instance(
            example=example,
            prompt=fitted.ids,
            n_prompt_tokens_dropped=len(full) - len(fitted.ids),
            demonstration_ids=prompt.demonstration_ids[: fitted.shots],
            texts=(prompt.source(fitted.shots),),
            full_texts=(prompt.source(),),
            is_cut=fitted.dropped_tokens > 0,
        )


def _ranked(
    instance: Instance,
    options: tuple[str, ...],
    candidate_ids: tuple[list[int], ...],
    continuations: tuple[str, ...],
) -> Instance:
    references = {r.strip() for r in instance.example.references}
    return dataclasses.replace(
        instance,
        candidates=options,
        candidate_ids=candidate_ids,
        continuations=continuations,
        correct=tuple(i for i, text in enumerate(options) if text in references),
    )


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Number of ids that both begin with, less than all of `b`."""
    limit = min(len(a), len(b) - 1)
    return next((i for i in range(limit) if a[i] != b[i]), limit)


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


def subsample(examples: Sequence[Example], limit: int | None, seed: int) -> list[Example]:
    """The `limit` (example, prompt) pairs with the lowest hash, in their order (None: all).

    Examples of one group (the answers to one question) have one hash and so stay together: the last
    group is left out where the limit cuts it, the first one is kept whole.
    """
    if limit is None or len(examples) <= limit:
        return list(examples)

    def draw(i: int) -> bytes:
        e = examples[i]
        key = f"{seed}\0{e.task}\0{e.meta.get('group', e.example_id)}\0{e.prompt_id}"
        return hashlib.sha256(key.encode()).digest()

    hashes = [draw(i) for i in range(len(examples))]
    first, *_, cut = sorted(hashes)[: limit + 1]
    return [e for e, h in zip(examples, hashes, strict=True) if h < cut or h == first == cut]
