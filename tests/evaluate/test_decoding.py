"""Generation: budgets, stopping, sampling, and independence of the batch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
import tiny_models

from optiml_jax.errors import UserError
from optiml_jax.evaluate import decoding
from optiml_jax.evaluate.batching import Engine
from optiml_jax.evaluate.decoding import Prompt, Sampling, Slots, generate, step
from optiml_jax.model.decoder import abstract_model
from optiml_jax.model.kv_cache import KVCache
from optiml_jax.sharding.mesh import MeshConfig, make_mesh

GREEDY = Sampling()


class Script:
    """A model that says `script[number of new tokens so far]`, whatever it reads."""

    def __init__(self, script, prompt_lengths, unembed=lambda hidden: hidden):
        self.script = jnp.array(script)
        self.first = jnp.array(prompt_lengths)[:, None] - 1
        self.unembed = unembed

    def hidden(self, tokens, positions, mask, cache, prefix=None):
        step = jnp.clip(positions - self.first, 0, len(self.script) - 1)
        shape = (2, *tokens.shape[:1], 4, tokens.shape[1], 8)
        return jax.nn.one_hot(self.script[step], 16), cache.append(
            jnp.zeros(shape), jnp.zeros(shape), mask
        )


def run_script(script, left, **more):
    """What `read` and one call of `step` give two rows of unequal length."""
    tokens, lengths = jnp.array([[2, 5, 1, 1], [2, 5, 6, 8]]), [2, 4]
    model, config = Script(script, lengths, **more), tiny_models.PRE_NORM
    zeros = jnp.zeros((2,), jnp.int32)
    cache = KVCache.empty(config, 2, 64).replace(fresh=False)
    slots = Slots(cache, zeros, zeros.astype(jnp.uint32))
    seeds = jnp.ones((2,), jnp.uint32)
    prompts, first, _ = decoding.read(
        model, config, GREEDY, None, tokens, jnp.array(lengths), seeds
    )
    slots = decoding._jit_put(1, slots, jnp.arange(2), prompts, None, first, seeds)
    slots, new, _, counts = step(model, config, GREEDY, slots, jnp.array(left))
    assert slots.cache.index.tolist() == [n + c for n, c in zip(lengths, counts, strict=True)]
    return [[int(f), *row[:n].tolist()] for f, row, n in zip(first, new, counts, strict=True)]


def test_every_row_gets_its_own_number_of_new_tokens():
    assert run_script([7], [3, 3]) == [[7] * 4, [7] * 4]
    assert run_script([7], [0, 2]) == [[7], [7] * 3]
    assert run_script([7], [40, 1]) == [[7] * 17, [7] * 2]


def test_a_row_stops_at_eos_and_counts_it():
    assert run_script([7, 2, 9], [3, 3]) == [[7, 2], [7, 2]]


def test_equal_logits_give_the_lowest_id():
    def flat(hidden):
        return jnp.where(jnp.arange(16) < 3, -1.0, jnp.zeros_like(hidden))

    assert run_script([7], [1, 1], unembed=flat) == [[3, 3], [3, 3]]


def plain_greedy(config, prompt, budget):
    """One row, no cache: the whole text again for every token."""
    row = [2, *prompt]
    for _ in range(budget):
        row.append(int(tiny_models.logits(config, row)[-1].argmax()))
        if row[-1] == 2:
            break
    return row[1 + len(prompt) :]


def random_prompts(seed=0, number=6, longest=100):
    rng = np.random.default_rng(seed)
    return [
        Prompt(rng.integers(4, 96, rng.integers(0, longest)).tolist(), int(rng.integers(5, 12)))
        for _ in range(number)
    ]


@pytest.mark.parametrize("config", tiny_models.MODELS.values(), ids=tiny_models.MODELS)
def test_the_cache_gives_what_rereading_the_text_gives(config):
    prompts = random_prompts()
    for prompt, result in zip(prompts, generate(tiny_models.engine(config), prompts), strict=True):
        expected = plain_greedy(config, prompt.tokens, prompt.max_new_tokens)
        assert result.finished == (expected[-1] == 2)
        assert result.tokens == [t for t in expected if t != 2]
        rows = tiny_models.logits(config, [2, *prompt.tokens, *expected])
        logprobs = scipy.special.log_softmax(rows, axis=-1)
        places = range(len(prompt.tokens), len(rows) - 1)
        total = sum(logprobs[p, t] for p, t in zip(places, expected, strict=True))
        assert result.logprob == pytest.approx(total, abs=1e-3)


def test_any_end_of_text_token_ends_an_answer_and_is_left_out():
    config = tiny_models.GROUPED
    prompt = Prompt([5, 6, 7], 12)
    (plain,) = generate(tiny_models.engine(config, bos_id=None), [prompt])
    end = plain.tokens[-1]
    place = plain.tokens.index(end)
    more = dataclasses.replace(config, more_eos_ids=(end,))
    graphdef = abstract_model(more)[0]
    engine = Engine(graphdef, tiny_models.weights(config)[1], more, bos_id=None)
    (result,) = generate(engine, [prompt])
    assert result.tokens == plain.tokens[:place]
    assert (result.finished, result.num_tokens) == (True, place + 1)


def test_a_shared_beginning_is_run_once_and_changes_nothing(monkeypatch):
    calls = []
    run = decoding.run_prefix
    monkeypatch.setattr(
        decoding, "run_prefix", lambda engine, ids: calls.append(len(ids)) or run(engine, ids)
    )
    rng = np.random.default_rng(1)
    stem = rng.integers(4, 96, 70).tolist()
    prompts = [Prompt([*stem, *rng.integers(4, 96, 1 + i).tolist()], 9) for i in range(20)]
    prompts += random_prompts(seed=2, longest=60)
    results = generate(tiny_models.engine(), prompts)
    assert calls == [64]  # </s> and 70 tokens, in steps of 16
    for prompt, result in zip(prompts, results, strict=True):
        expected = plain_greedy(tiny_models.PRE_NORM, prompt.tokens, prompt.max_new_tokens)
        assert result.tokens == [t for t in expected if t != 2]


def test_a_finished_slot_is_given_to_the_next_prompt():
    """One long answer among short ones: fewer steps than a batch after the other would take."""
    prompts = [Prompt([5, 6 + i], 60 if i == 0 else 2) for i in range(40)]
    engine = tiny_models.engine(tokens_per_batch=4 * 128)
    steps = []
    original = decoding._Decoder.step

    def count(self):
        steps.append(sum(request is not None for request in self.requests))
        return original(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding._Decoder, "step", count)
        results = generate(engine, prompts)
    for prompt, result in zip(prompts, results, strict=True):
        expected = plain_greedy(tiny_models.PRE_NORM, prompt.tokens, prompt.max_new_tokens)
        assert result.tokens == [t for t in expected if t != 2]
    assert max(steps) <= 4
    assert len(steps) <= 20


def test_a_prompt_may_say_when_to_stop():
    (whole,) = generate(tiny_models.engine(), [Prompt([5, 6], 64)])
    assert len(whole.tokens) > 40
    wanted = whole.tokens[3]
    (result,) = generate(tiny_models.engine(), [Prompt([5, 6], 64, stop=lambda new: wanted in new)])
    assert result.finished
    assert wanted in result.tokens
    assert result.tokens == whole.tokens[: len(result.tokens)]
    assert len(result.tokens) <= 4 + decoding._STEPS


def test_samples_depend_on_their_seed_alone():
    prompts = [Prompt([5, 6, 7], 12, seed=i % 3) for i in range(9)]
    engine = tiny_models.engine(tokens_per_batch=2048)
    samples = [r.tokens for r in generate(engine, prompts, temperature=0.7)]
    assert samples[:3] == samples[3:6] == samples[6:]
    assert len(set(map(tuple, samples))) == 3
    alone = [generate(tiny_models.engine(), [p], temperature=0.7)[0].tokens for p in prompts[:3]]
    assert alone == samples[:3]


def test_first_tokens_are_drawn_from_the_softmax():
    """Against the model's own probabilities at temperature 0.5, chi-squared."""
    prompts = [Prompt([5, 6, 7], 1, seed=i) for i in range(2000)]
    results = generate(tiny_models.engine(tokens_per_batch=4096), prompts, temperature=0.5)
    tokens = [r.tokens[0] if r.tokens else 2 for r in results]
    expected = 2000 * scipy.special.softmax(
        2 * tiny_models.logits(tiny_models.PRE_NORM, [2, 5, 6, 7])[-1].astype(np.float64)
    )
    found = np.bincount(tokens, minlength=96).astype(float)
    often = expected > 5
    if (~often).any():
        expected = np.append(expected[often], expected[~often].sum())
        found = np.append(found[often], found[~often].sum())
    assert scipy.stats.chisquare(found, expected * found.sum() / expected.sum()).pvalue > 1e-4


def test_nucleus_sampling_draws_from_the_fewest_tokens_that_reach_its_probability():
    """Against the model's own probabilities, summed in their order."""
    prompts = [Prompt([5, 6, 7], 1, seed=i) for i in range(600)]
    engine = tiny_models.engine(tokens_per_batch=4096)
    results = generate(engine, prompts, temperature=0.5, top_p=0.8)
    logits = tiny_models.logits(tiny_models.PRE_NORM, [2, 5, 6, 7])[-1].astype(np.float64)
    probabilities = scipy.special.softmax(2 * logits)
    order = np.argsort(-probabilities)
    allowed = order[: 1 + np.searchsorted(np.cumsum(probabilities[order]), 0.8)]
    drawn = {r.tokens[0] if r.tokens else 2 for r in results}
    assert drawn <= set(allowed.tolist())
    assert len(drawn) > len(allowed) / 2 > 1
    one = generate(engine, prompts[:5], temperature=0.5, top_p=1e-6)
    assert [r.tokens for r in one] == [r.tokens for r in generate(engine, prompts[:5])]


def test_new_tokens_are_told_as_they_come():
    told = {0: [], 1: []}
    prompts = [Prompt([5, 6], 40), Prompt([7, 8, 9], 6)]
    engine = tiny_models.engine()
    results = generate(engine, prompts, watch=lambda i, new: told[i].append(list(new)))
    for i, result in enumerate(results):
        assert [t for t in told[i][-1] if t != 2] == result.tokens
        assert [len(new) for new in told[i]] == sorted({len(new) for new in told[i]})


def test_generation_does_not_depend_on_batch_size_order_or_devices():
    prompts = random_prompts(seed=3, number=10, longest=50)
    engine = tiny_models.engine(tokens_per_batch=80)
    expected = generate(engine, prompts)
    order = np.random.default_rng(0).permutation(len(prompts))
    for other in (
        dataclasses.replace(engine, tokens_per_batch=2048),
        dataclasses.replace(engine, mesh=make_mesh(MeshConfig(data=2, fsdp=4))),
    ):
        results = generate(other, [prompts[i] for i in order])
        assert [r.tokens for r in results] == [expected[i].tokens for i in order]
        assert [r.finished for r in results] == [expected[i].finished for i in order]


def test_the_longest_prompt_that_fits_is_generated_and_no_longer_one():
    engine = tiny_models.engine()
    (result,) = generate(engine, [Prompt([5] * 124, 4)])
    assert len(result.tokens) + result.finished >= 1
    assert result.tokens == [t for t in plain_greedy(tiny_models.PRE_NORM, [5] * 124, 4) if t != 2]
    with pytest.raises(UserError, match="128 positions"):
        generate(engine, [Prompt([5] * 125, 4)])
