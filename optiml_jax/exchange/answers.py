"""An evaluation whose answers were made elsewhere: the same tasks, scores, records and tables."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

from optiml_jax.errors import UserError
from optiml_jax.evaluate.answers import normalize_tk_instruct
from optiml_jax.evaluate.instances import Instance
from optiml_jax.evaluate.records import Candidate
from optiml_jax.evaluate.runner import Answer, Request, cut_at
from optiml_jax.exchange.answer_files import COMPONENTS, AnswerFiles, StoredAnswer
from optiml_jax.exchange.requests import RequestIds, Tokens

MissingAnswers = Literal["fail", "wrong"]
IMPOSSIBLE = -1e9  # the log-probability of a candidate that an answer in words did not choose
_NAMED = 3  # ids that a message names


class StoredAnswers:
    """An `evaluate.runner.Answerer` that looks answers up by the ids of their requests.

    A ranked task may be answered by texts too: the candidate that the text names is the answer, and
    a text that names none is a wrong one.

    Args:
      files: the answers.
      tokens: how prompts are fitted; the same as when the requests were exported.
      missing: what a request without an answer is: "fail", its task is not evaluated; "wrong", an
        empty answer.
    """

    def __init__(self, files: AnswerFiles, tokens: Tokens, missing: MissingAnswers):
        self._files, self._tokens, self._missing = files, tokens, missing
        self.used: set[str] = set()
        self.missing: list[str] = []
        self.unmatched: list[str] = []
        self.other_votes: list[str] = []

    @property
    def max_positions(self) -> int:
        return self._tokens.positions

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return self._tokens.encode(texts)

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokens.decode(ids)

    def watch(self, progress: Callable[[int], None]) -> None:
        """Looking up takes no time."""

    def check(self, instances: Sequence[Instance]) -> None:
        """Raises a UserError that counts and names what a task lacks."""
        ids = RequestIds()
        asked = {ids(i): i for i in instances}
        found = {k: self._files.answers[k] for k in asked if k in self._files.answers}
        self.used |= found.keys()
        failed = {k: answer.failure for k, answer in found.items() if answer.failure}
        lacking = [k for k in asked if k not in found or k in failed]
        self.missing += lacking
        if lacking and self._missing == "fail":
            why = f"; one failed with: {next(iter(failed.values()))}" if failed else ""
            raise UserError(
                f"{len(lacking)} of {len(asked)} requests have no answer: {name_ids(lacking)}"
                f"{why}; --gin.Evaluate.missing_answers=wrong scores them as wrong"
            )
        if different := [k for k in asked if self._files.doubles.get(k)]:
            raise UserError(
                f"{len(different)} requests have two answers that differ: {name_ids(different)}"
            )
        for key, answer in found.items():
            if key not in failed:
                _check_form(key, answer, asked[key])

    def unknown(self) -> list[str]:
        """The ids in the files that no request had so far."""
        return [key for key in self._files.answers if key not in self.used]

    def score(self, instances: Sequence[Instance]) -> list[tuple[Candidate, ...]]:
        return [
            self._candidates(key, instance, self._answer(key))
            for key, instance in _with_ids(instances)
        ]

    def generate(self, requests: Sequence[Request]) -> list[list[Answer]]:
        answers = []
        keys = (key for key, _ in _with_ids([request.instance for request in requests]))
        for key, request in zip(keys, requests, strict=True):
            texts = self._answer(key).texts
            if request.samples not in (0, len(texts)) and texts != ("",):
                self.other_votes.append(key)
            answers.append([_generated(text, request.stop) for text in texts])
        return answers

    def _answer(self, key: str) -> StoredAnswer:
        answer = self._files.answers.get(key)
        return StoredAnswer(texts=("",)) if answer is None or answer.failure else answer

    def _candidates(
        self, key: str, instance: Instance, answer: StoredAnswer
    ) -> tuple[Candidate, ...]:
        if not answer.texts:
            return _scored(instance, answer)
        chosen = choice(answer.texts[0], instance.candidates)
        texts = instance.candidates
        if chosen is None:  # stands after the candidates as one that is never right
            if key in self.used and not self._files.answers[key].failure:
                self.unmatched.append(key)
            texts, chosen = (*texts, answer.texts[0].strip()), len(texts)
        logprobs = tuple(0.0 if i == chosen else IMPOSSIBLE for i in range(len(texts)))
        zeros = (0.0,) * len(texts)
        said = StoredAnswer(
            logprobs=logprobs,
            uncond_logprobs=zeros,
            eos_logprobs=zeros,
            n_tokens=(1,) * len(texts),
            is_greedy=tuple(p == 0.0 for p in logprobs),
        )
        return _scored(dataclasses.replace(instance, candidates=texts), said)

    def remarks(self) -> list[str]:
        """Mismatches, counted and named, one line each."""
        unknown, doubles = self.unknown(), [k for k in self._files.doubles if k in self.used]
        lines = {
            "requests have no answer": self.missing,
            "answers belong to no request of these tasks": unknown,
            "requests have an answer more than once": doubles,
            "answers name none of their candidates and count as wrong": self.unmatched,
            "answers have another number of texts than their task votes over": self.other_votes,
        }
        return [f"{len(ids)} {what}: {name_ids(ids)}" for what, ids in lines.items() if ids]

    def summary(self) -> dict[str, Any]:
        """A summary of the files after the evaluation, JSON-able."""
        unknown, doubles = self.unknown(), list(self._files.doubles)
        lists = {
            "missing": self.missing,
            "unknown": unknown,
            "double": doubles,
            "naming_no_candidate": self.unmatched,
            "other_number_of_texts": self.other_votes,
        }
        return {
            "files": list(self._files.paths),
            "sha256": self._files.sha256,
            "answers": len(self._files.answers),
            "used": len(self.used),
            **{name: {"number": len(ids), "ids": ids[:1000]} for name, ids in lists.items()},
        }


def choice(text: str, candidates: Sequence[str]) -> int | None:
    """The candidate that an answer in words names, or None.

    The answer is its first line that is not empty; it names a candidate when they are equal, else
    when they are equal in lower case without punctuation, and no other candidate is.
    """
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    if line in candidates:
        return candidates.index(line)
    plain = normalize_tk_instruct(line)
    equal = [i for i, c in enumerate(candidates) if plain and normalize_tk_instruct(c) == plain]
    return equal[0] if len(equal) == 1 else None


def name_ids(ids: Sequence[str]) -> str:
    """The first ids, for a message."""
    return ", ".join(ids[:_NAMED]) + (", ..." if len(ids) > _NAMED else "")


def _with_ids(instances: Iterable[Instance]) -> Iterable[tuple[str, Instance]]:
    for _, group in itertools.groupby(instances, key=lambda i: (i.example.task, i.shots)):
        ids = RequestIds()
        for instance in group:
            yield ids(instance), instance


def _check_form(key: str, answer: StoredAnswer, instance: Instance) -> None:
    wanted = len(instance.candidates)
    if not wanted and not answer.texts:
        raise UserError(f"answer {key} has log-probabilities, but its task needs a text")
    for field in COMPONENTS:
        found = len(getattr(answer, field))
        if wanted and found and found != wanted:
            raise UserError(f"answer {key} has {found} {field} for {wanted} candidates")
    if wanted and answer.texts and instance.contexts:
        raise UserError(f"answer {key} is a text, but partial scoring needs log-probabilities")


def _scored(instance: Instance, answer: StoredAnswer) -> tuple[Candidate, ...]:
    def part(values: Sequence[Any], i: int) -> Any:
        return values[i] if values else None

    return tuple(
        Candidate(
            text=text,
            sum_logprob=answer.logprobs[i],
            n_tokens=part(answer.n_tokens, i),
            n_chars=len(scored),
            n_bytes=len(scored.encode("utf-8")),
            logprob_eos_after=part(answer.eos_logprobs, i),
            uncond_logprob=part(answer.uncond_logprobs, i),
            is_greedy=part(answer.is_greedy, i),
            n_prompt_tokens_dropped=instance.n_prompt_tokens_dropped,
        )
        for i, (text, scored) in enumerate(zip(instance.candidates, instance.scored, strict=True))
    )


def _generated(text: str, stop: Sequence[str]) -> Answer:
    return Answer(cut_at(text, stop).strip(), 0, True, 0.0)
