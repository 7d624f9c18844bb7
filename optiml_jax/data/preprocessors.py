"""From Examples to token records: in batches for the cache, and as a live SeqIO task.

Both ways go through the same pure functions of `prompts.py`, so a live task and its cache hold
equal records. Writing caches, rates and packing live elsewhere.
"""

import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from optiml_jax.data.example import Drops, Example, TaskSource
from optiml_jax.data.prompts import (
    PromptConfig,
    RenderedPrompt,
    fit_example,
    passthrough_features,
    render,
    sample_pool,
    select_demonstrations,
)
from optiml_jax.data.text_vocabulary import TextVocabulary
from optiml_jax.data.training_prompts import render_for_training
from optiml_jax.data.vocabulary import encode_batch
from optiml_jax.data.vocabulary_tf import as_seqio
from optiml_jax.errors import UserError

# TensorFlow would take the whole memory of a GPU that JAX wants.
tf.config.set_visible_devices([], "GPU")

CANDIDATE = "candidate"
PASSTHROUGH = ("task", "example_id", "prompt_id", "references", "options")
# Feature -> dtype of a record: source ids, target ids with the final `</s>`, and strings.
ENCODED_FEATURES = {"inputs": "int32", "targets": "int32", **dict.fromkeys(PASSTHROUGH, "string")}

# The fields of a RenderedPrompt that a record of `prompt_source` has.
_PARTS = {
    "head": tf.TensorSpec([], tf.string),
    "demonstrations": tf.TensorSpec([None], tf.string),
    "query": tf.TensorSpec([], tf.string),
    "target": tf.TensorSpec([], tf.string),
    "separator": tf.TensorSpec([], tf.string),
    "head_end": tf.TensorSpec([], tf.string),
    "suffix_start": tf.TensorSpec([], tf.int32),
    "frame": tf.TensorSpec([2], tf.string),
    "head_joint": tf.TensorSpec([], tf.string),
}

_BATCH = 256  # examples encoded in one call


def training_pool(source: TaskSource, config: PromptConfig) -> Sequence[Example]:
    """The examples that training prompts of a task may show; () when none shows any."""
    if len(config.shots) == 1:
        return ()
    if config.demonstrations != "train":
        return source.demonstrations()
    examples = source.read("train", Drops()) if "train" in source.splits else ()
    return sample_pool(examples, config)


def encode_examples(
    examples: Iterable[Example],
    source: TaskSource,
    vocabulary: TextVocabulary,
    config: PromptConfig,
    sequence_length: int,
    drops: Drops,
    pool: Sequence[Example] | None = None,
) -> Iterator[dict[str, Any]]:
    """The records of training prompts, in order; the features are those of `ENCODED_FEATURES`.

    Args:
      examples: of the task.
      source: the task, for its instruction level and demonstrations.
      vocabulary: encodes in batches on all cores; its `eos_id` ends the targets.
      config: how prompts are rendered.
      sequence_length: tokens of source and target together, `</s>` included.
      drops: counts "target too long".
      pool: what `training_pool` gives, when it is there already.
    """
    pool = training_pool(source, config) if pool is None else pool
    examples = iter(examples)
    while batch := list(itertools.islice(examples, _BATCH)):
        prompts = [render_for_training(e, pool, source.instruction_level, config) for e in batch]
        texts = [prompt.without_and_with_loss() for prompt in prompts]
        ids = encode_batch(vocabulary, list(itertools.chain.from_iterable(texts)))
        for i, (example, prompt) in enumerate(zip(batch, prompts, strict=True)):
            pair = fit_example(
                prompt,
                ids[2 * i],
                ids[2 * i + 1],
                sequence_length,
                vocabulary.eos_id,
                vocabulary.encode,
            )
            if pair is None:
                drops["target too long"] += 1
                continue
            yield {"inputs": pair[0], "targets": pair[1], **passthrough_features(example)}


def output_features(vocabulary: TextVocabulary | seqio.Vocabulary) -> dict[str, seqio.Feature]:
    """SeqIO features of every task: source ids, and target ids with the final `</s>`."""
    vocabulary = as_seqio(vocabulary)
    return {
        "inputs": seqio.Feature(vocabulary, add_eos=False, required=False),
        "targets": seqio.Feature(vocabulary, add_eos=True),
    }


def prompt_source(
    source: TaskSource,
    config: PromptConfig,
    shots: int | None = None,
    by_candidate: bool = False,
) -> seqio.FunctionDataSource:
    """A SeqIO source of rendered prompts, read again at every pass over the data.

    Args:
      source: the task.
      config: how prompts are rendered.
      shots: demonstrations of every prompt; None draws a training prompt's from `config.shots`.
      by_candidate: a record for each candidate of an example, with a feature `candidate` that says
        which: item, number, whether it is right, text, group (JSON). Of a training task so is its
        split "test" alone, without demonstrations.

    Returns:
      A source of records with the features of `_PARTS` (of a RenderedPrompt) and the strings of
      `PASSTHROUGH`.
    """
    level = source.instruction_level

    def prompts(split: str) -> Iterator[tuple[Example, RenderedPrompt]]:
        if shots is None:
            pool = training_pool(source, config)
            for example in source.read(split, Drops()):
                yield example, render_for_training(example, pool, level, config)
            return
        shown = config.for_evaluation()
        pool = source.demonstrations() if shots else ()
        for example in source.read(split, Drops()):
            chosen = select_demonstrations(example, pool, shots, shown)
            yield example, render(example, chosen, level, shown)

    def candidates(split: str) -> Iterator[dict[str, Any]]:
        shown = config.for_evaluation()
        pool = source.demonstrations() if shots else ()
        for item, example in enumerate(source.read(split, Drops())):
            chosen = select_demonstrations(example, pool, shots or 0, shown)
            for row, asked in _by_candidate(item, example):
                prompt = render(asked, chosen, level, shown)
                parts = {name: getattr(prompt, name) for name in _PARTS}
                yield {**parts, **passthrough_features(example), CANDIDATE: json.dumps(row)}

    def records(split: str) -> Iterator[dict[str, Any]]:
        for example, prompt in prompts(split):
            parts = {name: getattr(prompt, name) for name in _PARTS}
            yield {**parts, **passthrough_features(example)}

    def dataset_fn(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
        del shuffle_files, seed  # one file per task
        apart = by_candidate and (shots is not None or split == "test")
        names = (*PASSTHROUGH, CANDIDATE) if apart else PASSTHROUGH
        strings = dict.fromkeys(names, tf.TensorSpec([], tf.string))
        return tf.data.Dataset.from_generator(
            lambda: (candidates if apart else records)(split),
            output_signature=_PARTS | strings,
        )

    return seqio.FunctionDataSource(dataset_fn, splits=source.splits)


def _by_candidate(item: int, example: Example) -> Iterator[tuple[list[Any], Example]]:
    """The rows of an example's candidates (see `prompt_source`), each with what it asks for."""
    options = list(dict.fromkeys(o.strip() for o in example.options or ()))
    right = {r.strip() for r in example.references}
    group = f"{example.prompt_id}\0{example.meta.get('group') or example.example_id}"
    for i, option in enumerate(options):
        row = [item, i, option in right, option, group]
        if example.contexts:
            yield row, dataclasses.replace(example, input=example.contexts[i])
        else:
            # The target keeps the space that it starts with where its task wants one.
            lead = example.target[: len(example.target) - len(example.target.lstrip())]
            yield row, dataclasses.replace(example, target=lead + option)


def tokenize_and_fit(
    dataset: tf.data.Dataset, vocabulary: TextVocabulary | seqio.Vocabulary, max_tokens: int
) -> tf.data.Dataset:
    """Encodes records of `prompt_source`, drops demonstrations and cuts the source on the left.

    Args:
      dataset: records of `prompt_source`.
      vocabulary: encodes; its `eos_id` ends the targets.
      max_tokens: of source and target together, `</s>` included. (SeqIO would fill in a parameter
        called sequence_length by itself.)

    Returns:
      Records with the features of `ENCODED_FEATURES`, without those whose target alone is too long.
    """

    def encode(*parts: bytes | np.ndarray | np.int32) -> tuple[np.ndarray, np.ndarray]:
        fields = {name: _plain(part) for name, part in zip(_PARTS, parts, strict=True)}
        prompt = RenderedPrompt(**fields)
        ids = map(vocabulary.encode, prompt.without_and_with_loss())
        fitted = fit_example(prompt, *ids, max_tokens, vocabulary.eos_id, vocabulary.encode)
        inputs, targets = fitted or ([], [])
        return np.array(inputs, np.int32), np.array(targets, np.int32)

    def convert(record: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        parts = [record[name] for name in _PARTS]
        inputs, targets = tf.numpy_function(encode, parts, [tf.int32, tf.int32])
        return {
            "inputs": tf.ensure_shape(inputs, [None]),
            "targets": tf.ensure_shape(targets, [None]),
            **{name: record[name] for name in record if name not in _PARTS},
        }

    encoded = dataset.map(convert, num_parallel_calls=tf.data.AUTOTUNE)
    return encoded.filter(lambda record: tf.size(record["targets"]) > 0)


def seqio_task(
    name: str,
    source: TaskSource,
    vocabulary: TextVocabulary | seqio.Vocabulary,
    config: PromptConfig,
    sequence_length: int,
    metric_fns: Sequence[Callable] = (),
    shots: int | None = None,
    by_candidate: bool = False,
) -> seqio.Task:
    """The SeqIO Task of a source, not registered.

    Nothing follows the cache placeholder: a cached record is read back as it is.

    Args:
      name: SeqIO's name of the task.
      source: the task.
      vocabulary: of both features.
      config: how prompts are rendered.
      sequence_length: tokens of source and target together, `</s>` included.
      metric_fns: SeqIO metric functions.
      shots: demonstrations of every prompt; None makes training prompts.
      by_candidate: a record for each candidate, for metrics of `(targets, scores)`; of a training
        task in its split "test", as it is read live.
    """
    return seqio.Task(
        name,
        source=prompt_source(source, config, shots, by_candidate),
        preprocessors=[
            functools.partial(
                tokenize_and_fit,
                vocabulary=vocabulary,
                max_tokens=sequence_length,
            ),
            seqio.CacheDatasetPlaceholder(),
        ],
        output_features=output_features(vocabulary),
        postprocess_fn=functools.partial(_targets, task=name, by_candidate=by_candidate),
        metric_fns=list(metric_fns),
    )


def _targets(
    output: Any,
    example: Mapping[str, Any] | None = None,
    is_target: bool = False,
    *,
    task: str,
    by_candidate: bool,
) -> Any:
    """What SeqIO's Evaluator hands to metrics: every reference as target, answers as they are.

    Of a candidate its row is the target.

    Raises:
      UserError: the task ranks candidates, but its record is none.
    """
    if not is_target:
        return output
    if by_candidate and CANDIDATE not in example:
        raise UserError(
            f"{task} ranks candidates, which only its split 'test' has that is read live: evaluate "
            "it with eval_split='test' and use_cached=False, or register it with a number of shots"
        )
    return json.loads(example[CANDIDATE if by_candidate else "references"])


def _plain(part: bytes | np.ndarray | np.int32) -> str | tuple[str, ...] | int:
    """The original field of a feature that TensorFlow passed to Python."""
    if isinstance(part, bytes):
        return part.decode("utf-8")
    return tuple(d.decode("utf-8") for d in part) if part.ndim else int(part)
