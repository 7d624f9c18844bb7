"""A vocabulary of OPT's kind, a tiny model and tasks of every way to ask, for tests of exchange."""

import dataclasses
import functools
import pathlib
import tempfile

import tokenizers

from optiml_jax.data.example import Example
from optiml_jax.data.prompts import PromptConfig
from optiml_jax.data.vocabulary import encode_batch, load_vocabulary, padded_size
from optiml_jax.evaluate.config import EvalConfig
from optiml_jax.evaluate.evaluator import EvalTask
from optiml_jax.evaluate.metrics import METRICS
from optiml_jax.evaluate.protocol import Protocol
from optiml_jax.evaluate.records import TaskInfo
from optiml_jax.exchange.requests import Tokens
from optiml_jax.model.decoder import init_params
from optiml_jax.model.opt.config import OPTConfig

WORDS = [
    "red",
    "blue",
    "green",
    "seven",
    "eight",
    "yes",
    "no",
    "cat",
    "dog",
    "naïve",
    "日本",
    "o'clock",
]
CONFIG = EvalConfig(max_new_tokens=6, tokens_per_batch=2048)
PROMPTS = PromptConfig()
POSITIONS = 160


@functools.cache
def vocabulary_folder() -> pathlib.Path:
    """A folder with vocab.json and merges.txt, special ids as OPT's."""
    folder = pathlib.Path(tempfile.mkdtemp())
    tokenizer = tokenizers.ByteLevelBPETokenizer()
    texts = [
        f"Instructions: say {a}.\nInput: {a} {b} 12\nOutput: {b}" for a in WORDS for b in WORDS
    ]
    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer.train_from_iterator(texts, vocab_size=400, special_tokens=specials)
    tokenizer.save_model(str(folder))
    return folder


@functools.cache
def vocabulary():
    return load_vocabulary(f"opt:{vocabulary_folder()}")


def tokens(positions: int = POSITIONS) -> Tokens:
    return Tokens(
        functools.partial(encode_batch, vocabulary()),
        vocabulary().spell,
        positions,
    )


@functools.cache
def model():
    """(configuration, graph, parameters); its weights are large, so that answers differ."""
    config = OPTConfig(
        vocab_size=padded_size(vocabulary()),
        d_model=32,
        num_layers=2,
        num_heads=4,
        max_positions=POSITIONS,
        init_std=0.3,
    )
    return config, *init_params(config, seed=3)


def example(task: str, i: int, split: str = "test", **fields) -> Example:
    word = WORDS[i % len(WORDS)]
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


def ranked(task: str, i: int, split: str = "test", **fields) -> Example:
    options = ("yes", "no", "blue seven", WORDS[i % len(WORDS)])
    answer = options[i % 3]
    return example(task, i, split, target=answer, references=(answer,), options=options, **fields)


def schema(task: str, i: int, split: str = "test") -> Example:
    """Partial scoring: the end of a sentence after each of two fillings."""
    names = ("The red cat", "The blue dog")
    return example(
        task,
        i,
        split,
        instruction="",
        target=f"was {WORDS[i]} again",
        options=names,
        references=(names[i % 2],),
        contexts=tuple(f"{name} number {i}" for name in names),
    )


def eval_task(name: str, metric: str, make=None, number: int = 6, level="task", **fields):
    make = make or (ranked if metric in ("acc_rank", "multirc") else example)
    info = {
        "task": name,
        "benchmark": "b",
        "category": "C, one",
        "level": "fully_held_out",
        "metric": metric,
    }
    return EvalTask(
        info=TaskInfo(**(info | fields)),
        examples=lambda: [make(name, i) for i in range(number)],
        demonstrations=lambda: [make(name, i, "train") for i in range(3)],
        metric_fns=[METRICS[metric].fn],
        instruction_level=level,
    )


def with_two_prompts(name: str, i: int, split: str = "test") -> Example:
    return ranked(name, i, split, prompt_id="p" if i % 3 else "q")


def of_questions(name: str, i: int, split: str = "test") -> Example:
    made = ranked(name, i, split)
    return dataclasses.replace(made, meta={"group": f"question {i // 2}"})


def tasks() -> list[EvalTask]:
    """One task for every way to ask and to score that the split manifest uses."""
    category = {"category": "Other", "level": "fully_supervised"}
    return [
        eval_task("b/sum", "acc_rank", shots=(0, 2)),
        eval_task("b/unconditional", "acc_rank", protocol=Protocol(rule="unconditional")),
        eval_task("b/chars", "acc_rank", protocol=Protocol(rule="chars", joiner="\n")),
        eval_task("b/schema", "acc_rank", schema, level="verbatim", shots=(0, 1)),
        eval_task("b/crossed", "acc_rank", with_two_prompts, number=8, prompts="crossed"),
        eval_task("b/questions", "multirc", of_questions, number=8, **category),
        eval_task("b/free", "rougeL", shots=(0, 2), **category),
        eval_task("b/stop", "em_squad", protocol=Protocol(stop=("e", "\n"), max_new_tokens=9)),
    ]
