"""Generation with a cache of keys and values: token arrays in, token lists out.

Rows are slots: a prompt is run once (what it shares with others only once for all of them), its
keys and values are put into a free slot, and all slots go on together, a few tokens at a time; a
slot that has finished is given to a waiting prompt. So one long answer does not hold up a batch.

Nothing of a prompt enters the answer of another, but the shapes of the programs that run it decide
how its logits are rounded. In bfloat16 that does change answers (2 of 8 texts of a small model);
for answers that do not depend on the batch set `model_config.dtype` and
`Evaluate.params_dtype` to float32, where only tokens as likely as each other to six digits can
change places (docs/evaluation.md).
"""

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, struct

from optiml_jax.evaluate.batching import Engine, batch_sizes, cut, pad_rows
from optiml_jax.evaluate.prefixes import run_prefix, shared_prefixes
from optiml_jax.model.attention import DocumentMask
from optiml_jax.model.axes import constrain, everywhere
from optiml_jax.model.config import DecoderConfig
from optiml_jax.model.kv_cache import KVCache

_STEPS = 16  # tokens between two looks at what has finished


@dataclasses.dataclass(frozen=True)
class Prompt:
    """What to continue.

    Attributes:
      tokens: ids without specials.
      max_new_tokens: the most new tokens, eos included.
      stop: given all new tokens so far, whether to generate no more; asked every few tokens, so
        that the answer may go on for a while after it could have stopped.
      seed: of sampling; the sample depends on it and on the prompt alone.
    """

    tokens: Sequence[int]
    max_new_tokens: int
    stop: Callable[[Sequence[int]], bool] | None = None
    seed: int = 0


class Sampling(NamedTuple):
    """How the next token is chosen.

    Attributes:
      temperature: 0 takes the token of the largest float32 logit, the lowest id of equals; else
        tokens are drawn from the softmax of logits / temperature.
      top_p: of these, only the most probable that together reach this probability (nucleus
        sampling, arXiv:1904.09751); 1: all.
    """

    temperature: float = 0.0
    top_p: float = 1.0


@dataclasses.dataclass(frozen=True)
class Generated:
    """A continuation.

    Attributes:
      tokens: the new tokens without eos.
      num_tokens: the new tokens, eos included.
      finished: eos, or the prompt's `stop`, ended them.
      logprob: sum of the log-probabilities of the new tokens, eos included.
    """

    tokens: list[int]
    num_tokens: int
    finished: bool
    logprob: float


@struct.dataclass
class Slots:
    """The device's part of the slots.

    Attributes:
      cache: of all tokens but the last of each slot.
      token: int32[B], the last token of each slot, not yet read by the model.
      seed: uint32[B], of sampling.
    """

    cache: KVCache
    token: jax.Array
    seed: jax.Array


@dataclasses.dataclass
class _Request:
    """The host's part of a slot: a prompt and what was generated for it."""

    index: int
    prompt: Prompt
    row: list[int]
    new: list[int] = dataclasses.field(default_factory=list)
    logprob: float = 0.0
    stopped: bool = False

    def extend(
        self, tokens: Sequence[int], logprobs: Sequence[float], eos_ids: Sequence[int]
    ) -> None:
        self.new += tokens
        self.logprob += float(np.sum(logprobs, dtype=np.float64))
        self.stopped = self.new[-1] in eos_ids or bool(
            self.prompt.stop and self.prompt.stop(self.new)
        )

    @property
    def left(self) -> int:
        """The number of tokens that may still come."""
        return 0 if self.stopped else self.prompt.max_new_tokens - len(self.new)

    def result(self, eos_ids: Sequence[int]) -> Generated:
        tokens = self.new[:-1] if self.new[-1] in eos_ids else self.new
        return Generated(tokens, len(self.new), self.stopped, self.logprob)


def generate(
    engine: Engine,
    prompts: Sequence[Prompt],
    temperature: float = 0.0,
    top_p: float = 1.0,
    watch: Callable[[int, Sequence[int]], object] = lambda prompt, tokens: None,
) -> list[Generated]:
    """The continuation of every prompt, in the order of the prompts.

    Args:
      engine: the model.
      prompts: what to continue.
      temperature, top_p: see `Sampling`.
      watch: called every few tokens with the number of a prompt and all its new tokens so far.

    Raises:
      UserError: a prompt and its new tokens are longer than the model's positions.
    """
    by_capacity: dict[int, list[_Request]] = collections.defaultdict(list)
    for i, prompt in enumerate(prompts):
        if prompt.max_new_tokens < 1:
            raise ValueError(f"a prompt asks for {prompt.max_new_tokens} new tokens")
        request = _Request(i, prompt, engine.row(prompt.tokens))
        # The last new token is never read.
        capacity = engine.capacity(len(request.row) + prompt.max_new_tokens - 1)
        by_capacity[capacity].append(request)
    results: list[Any] = [None] * len(prompts)
    for capacity, requests in sorted(by_capacity.items(), reverse=True):
        sampling = Sampling(temperature, top_p)
        decoder = _Decoder(engine, capacity, sampling, len(requests), watch)
        for request in decoder.run(requests):
            results[request.index] = request.result(engine.config.eos_ids)
            engine.progress(1)
    return results


class _Decoder:
    """The slots of one capacity, and the requests that are in them."""

    def __init__(
        self,
        engine: Engine,
        capacity: int,
        sampling: Sampling,
        num_requests: int,
        watch: Callable[[int, Sequence[int]], object],
    ):
        self.engine, self.sampling, self.watch = engine, sampling, watch
        most = engine.num_answers(capacity)
        sizes = batch_sizes(most, engine.row_parts)
        self.num_slots = min([n for n in sizes if n >= num_requests], default=most)
        self.requests: list[_Request | None] = [None] * self.num_slots
        stacked = engine.model_of_steps[0] is engine.graphdef
        with engine.activations():
            self.slots = _jit_empty(engine.config, self.num_slots, capacity, stacked)

    def run(self, requests: Sequence[_Request]) -> Iterator[_Request]:
        """The requests as they are finished."""
        batches = self.batches(requests)
        waiting = next(batches, None)
        while waiting or any(self.requests):
            # Not for every single slot: running a few prompts costs nearly as much as many.
            while waiting and len(free := self.free()) >= self.enough(waiting[1]):
                prefix, batch = waiting
                places, num_rows = self.places(free[: len(batch)])
                later = batch[len(places) :]
                self.fill(places, num_rows, batch[: len(places)], prefix)
                waiting = (prefix, later) if later else next(batches, None)
            yield from self.finished()
            if any(self.requests):
                self.step()
                yield from self.finished()

    def enough(self, waiting: Sequence[_Request]) -> int:
        """The number of free slots for which prompts are run."""
        return min(len(waiting), self.num_slots // 4 + 1)

    def batches(
        self, requests: Sequence[_Request]
    ) -> Iterator[tuple[KVCache | None, list[_Request]]]:
        """The requests of each shared prefix, long ones first, and the cache of the prefix."""
        for group in shared_prefixes([request.row for request in requests]):
            members = [requests[i] for i in group.members]
            members.sort(key=lambda request: len(request.row), reverse=True)
            shared = members[0].row[: group.length]
            yield (run_prefix(self.engine, shared) if shared else None), members

    def finished(self) -> Iterator[_Request]:
        for i, request in enumerate(self.requests):
            if request is not None and not request.left:
                self.requests[i] = None
                yield request

    def fill(
        self,
        places: Sequence[tuple[int, int]],
        num_rows: int,
        batch: Sequence[_Request],
        prefix: KVCache | None,
    ) -> None:
        """Runs the prompts and puts them, each with its first new token, into free slots.

        Args:
          places: the row in which each prompt is read, and its slot.
          num_rows: the number of rows with padding.
        """
        engine = self.engine
        start = 0 if prefix is None else int(np.asarray(prefix.index)[0])
        rows: list[list[int]] = [[]] * num_rows
        lengths, seeds = np.ones(num_rows, np.int32), np.zeros(num_rows, np.uint32)
        into = np.full(num_rows, self.num_slots, np.int32)  # no such slot: not kept
        for (place, slot), request in zip(places, batch, strict=True):
            rows[place] = request.row[start:]
            lengths[place], seeds[place] = len(rows[place]), request.prompt.seed % 2**32
            into[place] = slot
        length = engine.bucket(max(map(len, rows)))
        tokens = pad_rows(rows, num_rows, length, engine.config.pad_id)
        with engine.activations():
            lengths, seeds = engine.put(lengths), engine.put(seeds)
            cache, first, logprobs = _jit_read(
                engine.graphdef,
                engine.params,
                engine.config,
                self.sampling,
                prefix,
                engine.put(tokens),
                lengths,
                seeds,
            )
            self.slots = _jit_put(
                engine.row_parts, self.slots, engine.put(into), cache, prefix, first, seeds
            )
        first, logprobs = np.asarray(first), np.asarray(logprobs)
        for (place, slot), request in zip(places, batch, strict=True):
            self.requests[slot] = request
            one = slice(place, place + 1)
            request.extend(first[one].tolist(), logprobs[one], engine.config.eos_ids)
            self.watch(request.index, request.new)

    def free(self) -> list[int]:
        """The free slots, alternating between the parts of the mesh."""
        slots_of_part = self.num_slots // self.engine.row_parts
        free = [i for i, request in enumerate(self.requests) if request is None]
        return sorted(free, key=lambda slot: (slot % slots_of_part, slot))

    def places(self, free: Sequence[int]) -> tuple[list[tuple[int, int]], int]:
        """(row, slot) of a batch that reads prompts for some of these slots, and its rows.

        A prompt is read by the devices that hold its slot, so that no keys and values move.
        """
        parts = self.engine.row_parts
        slots_of_part = self.num_slots // parts
        slots: dict[int, list[int]] = collections.defaultdict(list)
        for slot in free:
            slots[slot // slots_of_part].append(slot)
        number, rows_of_part = next(cut(max(map(len, slots.values())), slots_of_part))
        places = [
            (part * rows_of_part + i, slot)
            for part, its in sorted(slots.items())
            for i, slot in enumerate(its[:number])
        ]
        return places, rows_of_part * parts

    def step(self) -> None:
        """At most `_STEPS` more tokens for every slot that is not free."""
        engine = self.engine
        left = np.array([0 if r is None else r.left for r in self.requests], np.int32)
        with engine.activations():
            self.slots, *said = _jit_step(
                *engine.model_of_steps, engine.config, self.sampling, self.slots, engine.put(left)
            )
        tokens, logprobs, counts = map(np.asarray, said)
        for request, row, row_logprobs, n in zip(
            self.requests, tokens, logprobs, counts, strict=True
        ):
            if request is not None:
                request.extend(row[:n].tolist(), row_logprobs[:n], engine.config.eos_ids)
                self.watch(request.index, request.new)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _jit_empty(config: DecoderConfig, num_slots: int, capacity: int, stacked: bool) -> Slots:
    slots = empty_slots(config, num_slots, capacity)
    return slots if stacked else slots.replace(cache=slots.cache.unstacked())


def empty_slots(config: DecoderConfig, num_slots: int, capacity: int) -> Slots:
    """Empty slots; sharded where they are made inside `jax.jit`."""
    cache = KVCache.empty(config, num_slots, capacity).replace(fresh=False)
    zeros = constrain(jnp.zeros((num_slots,), jnp.int32), "batch")
    return Slots(cache, zeros, zeros.astype(jnp.uint32))


@functools.partial(jax.jit, static_argnums=(0, 2, 3))
def _jit_read(graphdef, params, config, sampling, *arrays):
    cache, *said = read(nnx.merge(graphdef, params), config, sampling, *arrays)
    return cache, *map(everywhere, said)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _jit_put(parts, slots, into, cache, prefix, token, seed):
    """Puts R rows that were read into slots; apart from reading, so that it compiles in no time."""
    return Slots(
        cache=slots.cache.with_rows(into, cache, prefix, parts),
        token=slots.token.at[into].set(token, mode="drop"),
        seed=slots.seed.at[into].set(seed, mode="drop"),
    )


@functools.partial(jax.jit, static_argnums=(0, 2, 3), donate_argnums=4)
def _jit_step(graphdef, params, config, sampling, *arrays):
    slots, *said = step(nnx.merge(graphdef, params), config, sampling, *arrays)
    return slots, *map(everywhere, said)


def read(
    model: Any,
    config: DecoderConfig,
    sampling: Sampling,
    prefix: KVCache | None,
    tokens: jax.Array,
    lengths: jax.Array,
    seeds: jax.Array,
) -> tuple[KVCache, jax.Array, jax.Array]:
    """Runs R prompts.

    Args:
      model: a `optiml_jax.model.decoder.Decoder`.
      prefix: what all of the prompts begin with, or None.
      tokens: int32[R, L], the rest of the prompts, padded on the right.
      lengths: int32[R], at least 1.
      seeds: uint32[R].

    Returns:
      The cache of the rest of the prompts, and int32[R] and float32[R], the first new tokens and
      their log-probabilities.
    """
    rows, length = tokens.shape
    start = 0 if prefix is None else prefix.index[0]
    index = jnp.broadcast_to(jnp.arange(length), tokens.shape)
    mask = DocumentMask((index < lengths[:, None]).astype(jnp.int32))
    cache = KVCache.empty(config, rows, length)
    hidden, cache = model.hidden(tokens, start + index, mask, cache, prefix=prefix)
    last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)
    return cache, *_choose(model, last, sampling, seeds, start + lengths)


def step(
    model: Any, config: DecoderConfig, sampling: Sampling, slots: Slots, left: jax.Array
) -> tuple[Slots, jax.Array, jax.Array, jax.Array]:
    """At most `_STEPS` more tokens for the unfinished slots.

    Args:
      model: a `optiml_jax.model.decoder.Decoder`.
      left: int32[B], the tokens each slot may still get; 0 leaves it as it is.

    Returns:
      The slots, int32[B, _STEPS] new tokens (eos included, then padding), float32[B, _STEPS] their
      log-probabilities, and int32[B] how many they are.
    """
    num_slots = len(left)

    def body(state: tuple) -> tuple:
        i, slots, left, new, logprobs = state
        active = left > 0
        # Slots that have ended are fed padding, which leaves their cache as it is.
        mask = DocumentMask(active.astype(jnp.int32)[:, None])
        position = slots.cache.index[:, None]
        hidden, cache = model.hidden(slots.token[:, None], position, mask, slots.cache)
        token, logprob = _choose(model, hidden, sampling, slots.seed, slots.cache.index + 1)
        new = new.at[:, i].set(jnp.where(active, token, config.pad_id))
        logprobs = logprobs.at[:, i].set(jnp.where(active, logprob, 0))
        token = jnp.where(active, token, slots.token)
        ended = jnp.isin(token, jnp.array(config.eos_ids))
        left = jnp.where(active & ~ended, left - 1, 0)
        return i + 1, Slots(cache, token, slots.seed), left, new, logprobs

    def goes_on(state: tuple) -> jax.Array:
        return (state[0] < _STEPS) & jnp.any(state[2] > 0)

    new = jnp.full((num_slots, _STEPS), config.pad_id, jnp.int32)
    state = (0, slots, left, new, jnp.zeros((num_slots, _STEPS), jnp.float32))
    _, after, _, new, logprobs = jax.lax.while_loop(goes_on, body, state)
    # One token was read for every new one.
    return after, new, logprobs, after.cache.index - slots.cache.index


def _choose(
    model: Any, hidden: jax.Array, sampling: Sampling, seeds: jax.Array, positions: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """int32[B] next tokens after `hidden` [B, 1, E], and float32[B] their log-probabilities.

    A draw depends on the row's seed and the token's position, not on the row.
    """
    logits = model.unembed(hidden)[:, 0].astype(jnp.float32)
    if sampling.temperature:
        scaled = logits / sampling.temperature
        if sampling.top_p < 1:
            scaled = _nucleus(scaled, sampling.top_p)

        def noise(seed: jax.Array, position: jax.Array) -> jax.Array:
            key = jax.random.fold_in(jax.random.key(seed), position)
            return jax.random.gumbel(key, logits.shape[1:])

        token = jnp.argmax(scaled + jax.vmap(noise)(seeds, positions), axis=-1)
    else:
        token = jnp.argmax(logits, axis=-1)
    chosen = jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0]
    return token.astype(jnp.int32), chosen - jax.nn.logsumexp(logits, axis=-1)


def _nucleus(logits: jax.Array, top_p: float) -> jax.Array:
    """[B, V] with -inf for all but the most probable that together reach `top_p`."""
    ordered = jnp.sort(logits, axis=-1, descending=True)
    reached = jnp.cumsum(jax.nn.softmax(ordered, axis=-1), axis=-1)
    # The last one kept is the first that reaches it.
    last = jnp.sum(reached < top_p, axis=-1, keepdims=True)
    least = jnp.take_along_axis(ordered, jnp.minimum(last, logits.shape[-1] - 1), axis=-1)
    return jnp.where(logits >= least, logits, -jnp.inf)
