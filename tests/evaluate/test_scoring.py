"""Candidate scores against the full logits of the same model."""

import dataclasses

import jax
import numpy as np
import pytest
import scipy.special
import tiny_models
from flax import nnx

from optiml_jax.errors import UserError
from optiml_jax.evaluate import scoring
from optiml_jax.evaluate.scoring import ScoreItem, score
from optiml_jax.sharding.mesh import MeshConfig, make_mesh


def random_items(seed=0, number=9, longest=100):
    rng = np.random.default_rng(seed)

    def ids(n):
        return rng.integers(4, 96, n).tolist()

    return [
        ScoreItem(
            ids(rng.integers(0, longest)), [ids(rng.integers(1, 14)) for _ in range(1 + i % 3)]
        )
        for i in range(number)
    ]


def plain_scores(config, prompt, candidate):
    """log p of every candidate token and of eos after it, from the logits of the whole row."""
    logprobs = scipy.special.log_softmax(
        tiny_models.logits(config, [2, *prompt, *candidate]), axis=-1
    )
    targets = [*candidate, 2]
    places = range(len(prompt), len(prompt) + len(targets))
    chosen = np.array([logprobs[p, t] for p, t in zip(places, targets, strict=True)])
    best = [int(logprobs[p].argmax()) == t for p, t in zip(places, candidate, strict=False)]
    return chosen, all(best)


@pytest.mark.parametrize("config", tiny_models.MODELS.values(), ids=tiny_models.MODELS)
def test_scores_are_the_log_softmax_of_the_whole_row(config):
    items = random_items()
    for item, results in zip(items, score(tiny_models.engine(config), items), strict=True):
        for candidate, result in zip(item.candidates, results, strict=True):
            expected, greedy = plain_scores(config, item.prompt, candidate)
            np.testing.assert_allclose(result.logprobs, expected[:-1], atol=1e-4)
            assert result.logprob_eos_after == pytest.approx(expected[-1], abs=1e-4)
            assert result.sum_logprob == pytest.approx(expected[:-1].sum(), abs=1e-4)
            assert result.is_greedy == greedy


def test_a_model_without_a_leading_token_scores_the_bare_text():
    config = tiny_models.GROUPED
    engine = tiny_models.engine(config, bos_id=None)
    (with_prompt,), (without,) = score(
        engine, [ScoreItem([5, 9, 11], [[7, 8]]), ScoreItem([], [[7, 8]])]
    )
    for row, result in (([5, 9, 11, 7, 8], with_prompt), ([config.eos_id, 7, 8], without)):
        logprobs = scipy.special.log_softmax(tiny_models.logits(config, row), axis=-1)
        expected = [logprobs[-3, 7], logprobs[-2, 8]]
        np.testing.assert_allclose(result.logprobs, expected, atol=1e-4)


def items_with_a_common_prompt(number=8, shared=90, seed=3):
    rng = np.random.default_rng(seed)
    stem = rng.integers(4, 96, shared).tolist()
    return [
        ScoreItem(
            [*stem, *rng.integers(4, 96, 1 + i % 5).tolist()],
            [rng.integers(4, 96, 1 + (i + c) % 6).tolist() for c in range(2 + i % 3)],
        )
        for i in range(number)
    ]


@pytest.mark.parametrize("config", tiny_models.MODELS.values(), ids=tiny_models.MODELS)
def test_a_shared_beginning_is_run_once_and_changes_nothing(config, monkeypatch):
    calls = []
    run = scoring.run_prefix
    monkeypatch.setattr(
        scoring, "run_prefix", lambda engine, ids: calls.append(len(ids)) or run(engine, ids)
    )
    items = items_with_a_common_prompt()
    results = score(tiny_models.engine(config), items)
    assert calls == [80]  # </s> and 90 tokens, in steps of 16
    for item, scores in zip(items, results, strict=True):
        for candidate, result in zip(item.candidates, scores, strict=True):
            expected, _ = plain_scores(config, item.prompt, candidate)
            np.testing.assert_allclose(result.logprobs, expected[:-1], atol=1e-4)
            assert result.logprob_eos_after == pytest.approx(expected[-1], abs=1e-4)


def test_branches_that_see_each_other_or_count_on_would_be_noticed(monkeypatch):
    """The two mistakes of shared prefixes: each moves scores by far more than rounding."""
    items = items_with_a_common_prompt()
    right = score(tiny_models.engine(), items)

    def moved(change):
        original = scoring._jit_score_places

        def changed(graphdef, params, prefix, tokens, positions, segments, branches, *wanted):
            positions, branches = change(positions, branches)
            return original(
                graphdef, params, prefix, tokens, positions, segments, branches, *wanted
            )

        monkeypatch.setattr(scoring, "_jit_score_places", changed)
        wrong = score(tiny_models.engine(), items)
        monkeypatch.undo()
        return max(
            abs(a.sum_logprob - b.sum_logprob)
            for x, y in zip(right, wrong, strict=True)
            for a, b in zip(x, y, strict=True)
        )

    assert moved(lambda positions, branches: (positions, branches * 0)) > 0.1
    assert moved(lambda positions, branches: (positions + (branches > 1), branches)) > 0.1
    assert moved(lambda positions, branches: (positions, branches)) == 0


def test_a_greedy_candidate_is_marked():
    prompt = [5, 6, 7]
    best = int(tiny_models.logits(tiny_models.PRE_NORM, [2, *prompt])[-1].argmax())
    items = [ScoreItem(prompt, [[best], [(best + 1) % 96]])]
    (results,) = score(tiny_models.engine(), items)
    assert [r.is_greedy for r in results] == [True, False]


def test_scores_do_not_depend_on_batch_size_or_order():
    items = random_items(seed=1, longest=40)
    first = score(tiny_models.engine(tokens_per_batch=64), items)
    order = np.random.default_rng(0).permutation(len(items))
    second = score(tiny_models.engine(tokens_per_batch=2048), [items[i] for i in order])
    for place, i in enumerate(order):
        for a, b in zip(first[i], second[place], strict=True):
            np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-5)
            assert a.is_greedy == b.is_greedy


def test_scores_are_the_same_on_eight_devices():
    engine = tiny_models.engine()
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    items = random_items(seed=2, number=4, longest=40)
    items += items_with_a_common_prompt()
    several = score(dataclasses.replace(engine, mesh=mesh), items)
    for a, b in zip(score(engine, items), several, strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_allclose(x.logprobs, y.logprobs, atol=1e-5)


def test_logits_in_chunks_are_the_logits_at_once(monkeypatch):
    model = nnx.merge(*tiny_models.weights(tiny_models.PRE_NORM))
    hidden = jax.random.normal(jax.random.key(0), (3, 7, 32))
    targets = jax.random.randint(jax.random.key(1), (3, 7), 0, 96)
    places = jax.random.randint(jax.random.key(2), (3, 7), 0, 7)
    whole = scoring.target_logprobs(model, hidden, places, targets, 7)
    logits = model.unembed(np.take_along_axis(hidden, places[..., None], axis=1))
    expected = scipy.special.log_softmax(logits, axis=-1)
    chosen = np.take_along_axis(expected, np.asarray(targets)[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(whole[0], chosen, atol=1e-5)
    monkeypatch.setattr(scoring, "_LOGIT_ROWS", 6)
    parts = scoring.target_logprobs(model, hidden, places, targets, 7)
    np.testing.assert_allclose(whole[0], parts[0], atol=1e-5)
    np.testing.assert_array_equal(whole[1], parts[1])
    some = scoring.target_logprobs(model, hidden, places, targets, 3)  # two chunks of two
    np.testing.assert_allclose(some[0][:, :4], whole[0][:, :4], atol=1e-5)
    assert not some[0][:, 4:].any()


def test_a_row_longer_than_the_model_is_refused():
    with pytest.raises(UserError, match="128 positions"):
        score(tiny_models.engine(), [ScoreItem([5] * 127, [[6]])])
    (results,) = score(tiny_models.engine(), [ScoreItem([5] * 126, [[6]])])
    assert np.isfinite(results[0].sum_logprob)


def test_a_candidate_without_tokens_is_refused():
    with pytest.raises(ValueError, match="no tokens"):
        score(tiny_models.engine(), [ScoreItem([5], [[]])])
