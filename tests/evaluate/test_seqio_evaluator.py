"""SeqIO's own Evaluator, fed by our scoring and decoding, finds the metrics that ours finds."""

import json

import numpy as np
import pytest
import seqio
import tensorflow as tf
import toy_evaluation as toy

from optiml_jax.data.example import TaskSource
from optiml_jax.data.preprocessors import output_features, prompt_source, tokenize_and_fit
from optiml_jax.data.prompts import PromptConfig, render, target_text
from optiml_jax.evaluate.batching import Engine
from optiml_jax.evaluate.decoding import Prompt, generate
from optiml_jax.evaluate.records import RunFolder
from optiml_jax.evaluate.scoring import ScoreItem, score

PROMPTS = PromptConfig(delimiter=toy.CONFIG.delimiter)
PAD = 2  # predictions of unequal length are padded with eos, at which decoding stops


def engine():
    config, graphdef, params = toy.model()
    return Engine(graphdef, params, config, tokens_per_batch=2048)


def rows_of(dataset):
    """(index, source ids, target ids without eos) of the rows of PrefixLMFeatureConverter."""
    for index, row in dataset.as_numpy_iterator():
        tokens = row["decoder_target_tokens"]
        start = int(row["decoder_loss_weights"].argmax())
        end = int(np.count_nonzero(tokens))
        assert row["decoder_input_tokens"][0] == 2
        yield int(index), tokens[:start].tolist(), tokens[start : end - 1].tolist()


def predict_fn(dataset):
    indices, sources, _ = zip(*rows_of(dataset), strict=True)
    limit = toy.CONFIG.max_new_tokens
    answers = generate(engine(), [Prompt(source, limit) for source in sources])
    padded = [(a.tokens + [PAD] * limit)[:limit] for a in answers]
    return list(zip(indices, padded, strict=True))


def score_fn(dataset):
    indices, sources, targets = zip(*rows_of(dataset), strict=True)
    items = [ScoreItem(s, [t]) for s, t in zip(sources, targets, strict=True)]
    return [(i, s.sum_logprob) for i, (s,) in zip(indices, score(engine(), items), strict=True)]


def generation_task(task):
    """The registered form of a task: rendered prompts, tokens, references beside them."""
    source = TaskSource(
        task.info.task, ("test",), (), lambda split, drops: iter(task.examples()), list
    )

    def postprocess(text, example, is_target):
        return json.loads(example["references"]) if is_target else text

    return seqio.Task(
        "toy_gen",
        source=prompt_source(source, PROMPTS, shots=0),
        preprocessors=[
            lambda ds: tokenize_and_fit(ds, toy.vocabulary(), 128),
        ],
        output_features=output_features(toy.vocabulary()),
        postprocess_fn=postprocess,
        metric_fns=list(task.metric_fns),
    )


def ranking_task(task):
    """One row per candidate; the target is (item, candidate, whether it is right)."""

    def rows():
        for i, example in enumerate(task.examples()):
            source = render(example, (), "task", PROMPTS).source()
            for c, option in enumerate(example.options):
                yield {
                    "inputs": toy.vocabulary().encode(source),
                    "targets": [*toy.vocabulary().encode(target_text(source, option)), 2],
                    "row": [i, c, option in example.references],
                }

    def dataset_fn(split, shuffle_files, seed=None):
        spec = tf.TensorSpec([None], tf.int32)
        signature = dict.fromkeys(("inputs", "targets", "row"), spec)
        return tf.data.Dataset.from_generator(rows, output_signature=signature)

    return seqio.Task(
        "toy_rank",
        source=seqio.FunctionDataSource(dataset_fn, splits=["test"]),
        preprocessors=[],
        output_features=output_features(toy.vocabulary()),
        postprocess_fn=lambda text, example, is_target: tuple(example["row"]),
        metric_fns=list(task.metric_fns),
    )


@pytest.mark.parametrize(
    ("metric", "register"),
    [("rougeL", generation_task), ("em", generation_task), ("acc_rank", ranking_task)],
)
def test_seqio_and_our_evaluator_find_the_same_metrics(metric, register, tmp_path):
    task = toy.eval_task("b/t", metric, number=7)
    toy.run([task], tmp_path)
    records, summary = RunFolder(tmp_path).read("b/t", 0)
    seqio_task = register(task)
    seqio.TaskRegistry.remove(seqio_task.name)
    seqio.TaskRegistry.add_provider(seqio_task.name, seqio_task)
    evaluator = seqio.Evaluator(
        seqio_task.name,
        feature_converter=seqio.PrefixLMFeatureConverter(pack=False, bos_id=2),
        eval_split="test",
    )
    future, outputs = evaluator.evaluate(
        compute_metrics=True, step=0, predict_fn=predict_fn, score_fn=score_fn
    )
    assert future.result()[seqio_task.name] == pytest.approx(summary["metrics"])
    ours = [r.prediction for r in records]
    if metric == "acc_rank":
        stored = [c.sum_logprob for r in records for c in r.candidates]
        (theirs,) = outputs[seqio_task.name].values()
        np.testing.assert_allclose(theirs, stored, atol=1e-4)
        # The toy model is not to be right, or wrong, everywhere: that would prove nothing.
        assert 0 < summary["metrics"]["accuracy"] < 100
    else:
        (tokens,) = outputs[seqio_task.name].values()
        assert [toy.vocabulary().decode(t).strip() for t in tokens] == ours
        assert len(set(ours)) > 1
