"""A vocabulary, examples and evaluation tasks small enough for tests."""

import functools
import tempfile

from optiml_jax.data.example import Example
from optiml_jax.data.vocabulary import load_vocabulary, padded_size, train_sentencepiece
from optiml_jax.evaluate.config import EvalConfig
from optiml_jax.evaluate.evaluator import EvalTask, evaluate
from optiml_jax.evaluate.metrics import METRICS
from optiml_jax.evaluate.records import TaskInfo
from optiml_jax.model.decoder import init_params
from optiml_jax.model.opt.config import OPTConfig

CONFIG = EvalConfig(max_new_tokens=6, tokens_per_batch=2048)
_WORDS = ["red", "blue", "green", "seven", "eight", "yes", "no", "cat", "dog", "Output", "Input"]


@functools.cache
def vocabulary():
    texts = [
        f"Instructions: name {a}.\nInput: {a} {b} 123\nOutput: {b}" for a in _WORDS for b in _WORDS
    ]
    path = f"{tempfile.mkdtemp()}/toy.model"
    train_sentencepiece(texts, path, 380)
    return load_vocabulary(f"sentencepiece:{path}")


@functools.cache
def model(max_positions=128):
    config = OPTConfig(
        vocab_size=padded_size(vocabulary()),
        d_model=16,
        num_layers=1,
        num_heads=2,
        max_positions=max_positions,
        init_std=0.4,
    )
    return config, *init_params(config, seed=1)


def example(task, i, split="test", **fields):
    word = _WORDS[i % len(_WORDS)]
    values = {
        "benchmark": "b",
        "task": task,
        "category": "C",
        "prompt_id": "p",
        "example_id": f"{split}{i}",
        "split": split,
        "instruction": "Say it.",
        "input": f"{word} {split} {i}",
        "target": word,
        "references": (word, f"{word} 1"),
    }
    return Example(**(values | fields))


def ranking_example(task, i, split="test"):
    options = ("yes", "no", "blue seven")
    answer = options[i % 3]
    return example(task, i, split, target=answer, references=(answer,), options=options)


def eval_task(name="b/gen", metric="rougeL", shots=(0,), number=5, make=None, **fields):
    make = make or (ranking_example if metric == "acc_rank" else example)
    info = {
        "task": name,
        "benchmark": "b",
        "category": "C",
        "level": "fully_held_out",
        "metric": metric,
        "shots": shots,
    }
    return EvalTask(
        info=TaskInfo(**(info | fields)),
        examples=lambda: [make(name, i) for i in range(number)],
        demonstrations=lambda: [make(name, i, "train") for i in range(20)],
        metric_fns=[METRICS[metric].fn],
    )


def run(tasks, out_dir, config=CONFIG, **more):
    model_config, graphdef, params = model()
    return evaluate(
        tasks, graphdef, params, model_config, vocabulary(), config, str(out_dir), **more
    )
