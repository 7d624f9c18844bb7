"""Scores and greedy tokens equal those of Hugging Face's models, live where torch is installed."""

import dataclasses

import numpy as np
import pytest
import scipy.special
import tiny_models

from optiml_jax.checkpoint.huggingface import write_huggingface
from optiml_jax.evaluate.decoding import Prompt, generate
from optiml_jax.evaluate.scoring import ScoreItem, score

torch = pytest.importorskip("torch", reason="torch is not installed: no live comparison")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

PAD = 1
QWEN_2 = dataclasses.replace(
    tiny_models.GROUPED, family="qwen2", num_kv_heads=1, qkv_bias=True, tied=True
)
QWEN_3 = dataclasses.replace(tiny_models.GROUPED, family="qwen3", qk_norm=True, head_dim=16)
MODELS = tiny_models.MODELS | {"qwen_2": QWEN_2, "qwen_3": QWEN_3}


@pytest.fixture(scope="module", params=MODELS)
def models(request, tmp_path_factory):
    """(our engine, Hugging Face's model) with the same weights."""
    config = MODELS[request.param]
    folder = tmp_path_factory.mktemp("hf") / request.param
    write_huggingface(folder, config, tiny_models.weights(config)[1])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return tiny_models.engine(config), theirs


def prompts_of_unequal_length():
    rng = np.random.default_rng(4)
    return [rng.integers(4, 96, n).tolist() for n in (1, 3, 9, 20, 33, 47, 12)]


def test_candidate_scores_equal_torch(models):
    engine, theirs = models
    rng = np.random.default_rng(5)
    items = [
        ScoreItem(p, [rng.integers(4, 96, n).tolist() for n in (1, 3)])
        for p in prompts_of_unequal_length()
    ]
    for item, results in zip(items, score(engine, items), strict=True):
        for candidate, result in zip(item.candidates, results, strict=True):
            row = [2, *item.prompt, *candidate]
            with torch.no_grad():
                logits = theirs(torch.tensor([row])).logits[0].numpy()
            expected = scipy.special.log_softmax(logits, axis=-1)
            start = len(item.prompt)
            places = np.arange(start, start + len(candidate))
            np.testing.assert_allclose(result.logprobs, expected[places, candidate], atol=1e-4)
            assert result.logprob_eos_after == pytest.approx(float(expected[-1, 2]), abs=1e-4)


def test_greedy_tokens_equal_generate_for_prompts_of_unequal_length(models):
    engine, theirs = models
    prompts = prompts_of_unequal_length()
    width = 1 + max(map(len, prompts))
    ids = torch.full((len(prompts), width), PAD)
    for i, prompt in enumerate(prompts):
        ids[i, width - 1 - len(prompt) :] = torch.tensor([2, *prompt])
    with torch.no_grad():
        rows = theirs.generate(
            ids,
            attention_mask=(ids != PAD).long(),  # no prompt holds the pad id
            max_new_tokens=14,
            do_sample=False,
            num_beams=1,
            pad_token_id=PAD,
            eos_token_id=2,
        )[:, width:].tolist()
    expected = [row[: row.index(2)] if 2 in row else row for row in rows]
    results = generate(engine, [Prompt(p, 14) for p in prompts])
    assert [r.tokens for r in results] == expected
    assert [r.finished for r in results] == [2 in row for row in rows]
