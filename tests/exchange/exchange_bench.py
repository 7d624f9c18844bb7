"""Vocabularies and tiny models of two kinds, tasks of every way to ask, for tests of exchange."""

import dataclasses
import functools
import pathlib
import tempfile

import tokenizers
import transformers

from optiml_jax.data.example import Example
from optiml_jax.data.prompts import PromptConfig
from optiml_jax.data.vocabulary import encode_batch, load_vocabulary, padded_size
from optiml_jax.evaluate.config import EvalConfig
from optiml_jax.evaluate.evaluator import EvalTask
from optiml_jax.evaluate.metrics import METRICS
from optiml_jax.evaluate.protocol import Protocol
from optiml_jax.evaluate.records import TaskInfo
from optiml_jax.exchange.requests import Tokens
from optiml_jax.model.architectures import config_from_dict
from optiml_jax.model.decoder import init_params

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


DECODERS = {
    "opt": {"bos_id": 2},  # its vocabulary has another token for that, which OPT does not use
    "llama": {"architecture": "llama", "num_kv_heads": 2, "tied": False, "rope_theta": 5e5},
}


def _texts() -> list[str]:
    return [f"Instructions: say {a}.\nInput: {a} {b} 12\nOutput: {b}" for a in WORDS for b in WORDS]


def _write_opt(folder: pathlib.Path) -> None:
    """vocab.json and merges.txt, special ids as OPT's."""
    tokenizer = tokenizers.ByteLevelBPETokenizer()
    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer.train_from_iterator(_texts(), vocab_size=400, special_tokens=specials)
    tokenizer.save_model(str(folder))


def _write_llama(folder: pathlib.Path) -> None:
    """As Llama 3 has it: tokenizer.json that puts its own token in front, no padding token."""
    tokenizer = tokenizers.ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(_texts(), vocab_size=400)
    begin, end = "<|begin_of_text|>", "<|end_of_text|>"
    tokenizer.add_special_tokens([begin, end])  # behind the words
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{begin} $A",
        pair=f"{begin} $A {begin} $B",
        special_tokens=[(begin, tokenizer.token_to_id(begin))],
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer._tokenizer, bos_token=begin, eos_token=end
    ).save_pretrained(folder)


@functools.cache
def vocabulary_folder(decoder: str = "opt") -> pathlib.Path:
    """A folder with a tokenizer of the decoder's kind."""
    folder = pathlib.Path(tempfile.mkdtemp())
    {"opt": _write_opt, "llama": _write_llama}[decoder](folder)
    return folder


@functools.cache
def vocabulary(decoder: str = "opt"):
    kind = {"opt": "opt", "llama": "huggingface"}[decoder]
    return load_vocabulary(f"{kind}:{vocabulary_folder(decoder)}")


def tokens(positions: int = POSITIONS, decoder: str = "opt") -> Tokens:
    return Tokens(
        functools.partial(encode_batch, vocabulary(decoder)),
        vocabulary(decoder).spell,
        positions,
    )


@functools.cache
def model(decoder: str = "opt"):
    """(configuration, graph, parameters); its weights are large, so that answers differ."""
    words = vocabulary(decoder)
    size = {"d_model": 32, "num_layers": 2, "num_heads": 4, "init_std": 0.3}
    size |= {"vocab_size": padded_size(words), "max_positions": POSITIONS}
    ids = {name: getattr(words, name) for name in ("bos_id", "eos_id", "pad_id")}
    config = config_from_dict(size | ids | DECODERS[decoder])
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
