"""Greedy decoding: budgets, stopping, and independence of the batch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models

from optiml_jax.errors import UserError
from optiml_jax.evaluate.decoding import Prompt, generate, greedy
from optiml_jax.sharding.mesh import MeshConfig, make_mesh


class Script:
    """A model that says `script[number of new tokens so far]`, whatever it reads."""

    def __init__(self, script, prompt_lengths):
        self.script = jnp.array(script)
        self.first = jnp.array(prompt_lengths)[:, None] - 1

    def hidden(self, tokens, positions, mask, cache):
        step = jnp.clip(positions - self.first, 0, len(self.script) - 1)
        return jax.nn.one_hot(self.script[step], 16), cache

    def unembed(self, hidden):
        return hidden


def run_script(script, budgets, max_new):
    tokens = jnp.array([[2, 5, 1, 1], [2, 5, 6, 8]])
    lengths = [2, 4]
    new, counts = greedy(
        Script(script, lengths),
        tiny_models.PRE_NORM,
        tokens,
        jnp.array(lengths),
        jnp.array(budgets),
        max_new,
    )
    return [row[:n].tolist() for row, n in zip(new, counts, strict=True)]


def test_every_row_gets_its_own_number_of_new_tokens():
    assert run_script([7], [4, 4], 4) == [[7] * 4, [7] * 4]
    assert run_script([7], [4, 4], 16) == [[7] * 4, [7] * 4]
    assert run_script([7], [1, 3], 4) == [[7], [7] * 3]
    assert run_script([7], [0, 2], 4) == [[], [7] * 2]


def test_a_row_stops_at_eos_and_counts_it():
    assert run_script([7, 2, 9], [4, 4], 4) == [[7, 2], [7, 2]]
    assert run_script([2], [4, 4], 4) == [[2], [2]]


def test_equal_logits_give_the_lowest_id():
    class Flat(Script):
        def unembed(self, hidden):
            return jnp.where(jnp.arange(16) < 3, -1.0, jnp.zeros_like(hidden))

    new, _ = greedy(
        Flat([7], [1]),
        tiny_models.PRE_NORM,
        jnp.array([[2]]),
        jnp.array([1]),
        jnp.array([2]),
        2,
    )
    assert new.tolist() == [[3, 3]]


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


@pytest.mark.parametrize("config", [tiny_models.PRE_NORM, tiny_models.POST_NORM])
def test_the_cache_gives_what_rereading_the_text_gives(config):
    prompts = random_prompts()
    for prompt, result in zip(prompts, generate(tiny_models.engine(config), prompts), strict=True):
        expected = plain_greedy(config, prompt.tokens, prompt.max_new_tokens)
        assert result.finished == (expected[-1] == 2)
        assert result.tokens == [t for t in expected if t != 2]


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
        assert results == [expected[i] for i in order]


def test_the_longest_prompt_that_fits_is_generated_and_no_longer_one():
    engine = tiny_models.engine()
    (result,) = generate(engine, [Prompt([5] * 124, 4)])
    assert len(result.tokens) + result.finished >= 1
    assert result.tokens == [t for t in plain_greedy(tiny_models.PRE_NORM, [5] * 124, 4) if t != 2]
    with pytest.raises(UserError, match="128 positions"):
        generate(engine, [Prompt([5] * 125, 4)])
