"""Instances through the model: scores of their candidates, and answers as text.

The numbers come from scoring.py and decoding.py; what they mean for a task is said in evaluator.py.
"""

import collections
import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from optiml_jax.data.example import Example
from optiml_jax.data.text_vocabulary import TextVocabulary
from optiml_jax.data.vocabulary import decode, encode_batch, vocabulary_fingerprint
from optiml_jax.errors import UserError
from optiml_jax.evaluate import decoding, scoring
from optiml_jax.evaluate.batching import Engine
from optiml_jax.evaluate.instances import Instance
from optiml_jax.evaluate.records import Candidate
from optiml_jax.model.config import DecoderConfig

UNCONDITIONAL_CONTEXT = "Answer:"  # GPT-3 (section 2.4)


@dataclasses.dataclass(frozen=True)
class Request:
    """An instance to answer.

    Attributes:
      max_new_tokens: the most new tokens, eos included.
      stop: strings at which the answer ends.
      samples: answers to draw; 0: the greedy one.
      temperature: of the draws.
    """

    instance: Instance
    max_new_tokens: int
    stop: tuple[str, ...] = ()
    samples: int = 0
    temperature: float = 0.7


@dataclasses.dataclass(frozen=True)
class Answer:
    """A generated answer: its text without stop string, and as it was generated.

    `decoding.Generated` says the rest.
    """

    text: str
    num_tokens: int
    finished: bool
    logprob: float
    raw: str = ""


class Answerer(Protocol):
    """Who answers the instances of an evaluation: a model here, or answers made elsewhere.

    Attributes:
      max_positions: of its rows, leading token and new tokens included.
    """

    max_positions: int

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Texts to ids."""

    def decode(self, ids: Sequence[int]) -> str:
        """Ids of a prompt to text, special tokens by their names."""

    def watch(self, progress: Callable[[int], None]) -> None:
        """`progress` is called with the number of rows done, from now on."""

    def check(self, instances: Sequence[Instance]) -> None:
        """Raises a UserError if the instances of a task cannot be answered."""

    def score(self, instances: Sequence[Instance]) -> list[tuple[Candidate, ...]]:
        """The scores of every candidate of every instance."""

    def generate(self, requests: Sequence[Request]) -> list[list[Answer]]:
        """The one greedy answer, or the samples, of every request."""


def check_vocabulary(
    vocabulary: TextVocabulary, model_config: DecoderConfig, metadata: Mapping[str, Any] | None
) -> None:
    """Raises a UserError if the checkpoint was trained with another vocabulary.

    Args:
      metadata: the checkpoint's; its `vocabulary` may be absent (weights from elsewhere), then only
        the size is compared.
    """
    trained = (metadata or {}).get("vocabulary") or {}
    if "fingerprint" in trained:
        found = vocabulary_fingerprint(vocabulary)
        if trained["fingerprint"] != found:
            raise UserError(
                f"the checkpoint was trained with vocabulary {trained.get('spec', '(unnamed)')} "
                f"(fingerprint {trained['fingerprint']}), this one has fingerprint {found}; "
                "give the vocabulary of the training run"
            )
    if vocabulary.vocab_size > model_config.vocab_size:
        raise UserError(
            f"the vocabulary has {vocabulary.vocab_size} entries, the model only "
            f"{model_config.vocab_size} rows; give the vocabulary of the training run"
        )


class Runner:
    """A model and its vocabulary; remembers the scores of candidates without their prompt."""

    def __init__(self, engine: Engine, vocabulary: TextVocabulary, seed: int):
        self.engine, self.vocabulary, self.seed = engine, vocabulary, seed
        self.unconditional: dict[tuple[int, ...], float] = {}
        (self.context,) = self.encode([UNCONDITIONAL_CONTEXT])

    def decode(self, ids: Sequence[int]) -> str:
        return self.vocabulary.spell(ids)

    @property
    def max_positions(self) -> int:
        return self.engine.config.max_positions

    def watch(self, progress: Callable[[int], None]) -> None:
        self.engine = dataclasses.replace(self.engine, progress=progress)

    def check(self, instances: Sequence[Instance]) -> None:
        """A model answers everything that fits, and instances do."""

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return encode_batch(self.vocabulary, texts)

    def score(self, instances: Sequence[Instance]) -> list[tuple[Candidate, ...]]:
        """The scores of every candidate of every instance."""
        self._score_unconditionally(instances)
        items = []
        for instance in instances:
            if instance.contexts:
                pairs = zip(instance.contexts, instance.candidate_ids, strict=True)
                items += [scoring.ScoreItem(context, [ids]) for context, ids in pairs]
            else:
                items.append(scoring.ScoreItem(instance.prompt, instance.candidate_ids))
        results = iter(scoring.score(self.engine, items))
        return [
            self._candidates(
                instance,
                [next(results)[0] for _ in instance.contexts]
                if instance.contexts
                else next(results),
            )
            for instance in instances
        ]

    def _candidates(
        self, instance: Instance, scores: Sequence[scoring.TokenScore]
    ) -> tuple[Candidate, ...]:
        return tuple(
            Candidate(
                text=text,
                sum_logprob=score.sum_logprob,
                n_tokens=len(ids),
                n_chars=len(scored),
                n_bytes=len(scored.encode("utf-8")),
                logprob_eos_after=score.logprob_eos_after,
                uncond_logprob=self.unconditional[tuple(ids)],
                is_greedy=score.is_greedy,
                n_prompt_tokens_dropped=instance.n_prompt_tokens_dropped,
            )
            for text, scored, ids, score in zip(
                instance.candidates, instance.scored, instance.candidate_ids, scores, strict=True
            )
        )

    def generate(self, requests: Sequence[Request]) -> list[list[Answer]]:
        """The one greedy answer, or the samples, of every request."""
        by_temperature: dict[float, list[int]] = collections.defaultdict(list)
        for i, request in enumerate(requests):
            by_temperature[request.temperature if request.samples else 0.0].append(i)
        results: list[list[Answer]] = [[] for _ in requests]
        for temperature, members in by_temperature.items():
            prompts = [
                decoding.Prompt(
                    tokens=requests[i].instance.prompt,
                    max_new_tokens=requests[i].max_new_tokens,
                    stop=stopper(self.vocabulary, requests[i].stop),
                    seed=_sample_seed(self.seed, requests[i].instance.example, sample),
                )
                for i in members
                for sample in range(requests[i].samples or 1)
            ]
            generated = iter(decoding.generate(self.engine, prompts, temperature))
            for i in members:
                for _ in range(requests[i].samples or 1):
                    results[i].append(self._answer(next(generated), requests[i].stop))
        return results

    def _answer(self, generated: decoding.Generated, stop: Sequence[str]) -> Answer:
        raw = decode(self.vocabulary, generated.tokens)
        text = cut_at(raw, stop).strip()
        return Answer(text, generated.num_tokens, generated.finished, generated.logprob, raw)

    def _score_unconditionally(self, instances: Iterable[Instance]) -> None:
        """Scores every candidate that was not seen yet after "Answer:" alone."""
        distinct = dict.fromkeys(tuple(c) for i in instances for c in i.candidate_ids)
        new = [c for c in distinct if c not in self.unconditional]
        limit = self.engine.config.max_positions - 1
        items = [
            scoring.ScoreItem(self.context[max(0, len(self.context) + len(c) - limit) :], [c])
            for c in new
        ]
        for candidate, (result,) in zip(new, scoring.score(self.engine, items), strict=True):
            self.unconditional[candidate] = result.sum_logprob


def stopper(
    vocabulary: TextVocabulary, stop: Sequence[str]
) -> Callable[[Sequence[int]], bool] | None:
    """Whether an answer holds one of the strings; in its text, not among its tokens."""
    if not stop:
        return None

    def stopped(tokens: Sequence[int]) -> bool:
        text = decode(vocabulary, tokens)
        return any(string in text for string in stop)

    return stopped


def cut_at(text: str, stop: Sequence[str]) -> str:
    """The text before the first of the strings."""
    places = [at for string in stop if (at := text.find(string)) >= 0]
    return text[: min(places)] if places else text


def _sample_seed(seed: int, example: Example, sample: int) -> int:
    """Of one sample of one (example, prompt) pair, wherever it stands."""
    key = f"{seed}\0{example.task}\0{example.prompt_id}\0{example.example_id}\0{sample}"
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big")
