"""SeqIO's own Evaluator, fed by our scoring and decoding, finds the metrics that ours finds."""

import dataclasses

import numpy as np
import pytest
import seqio
import toy_evaluation as toy

from optiml_jax.data.example import TaskSource
from optiml_jax.data.prompts import PromptConfig
from optiml_jax.evaluate.batching import Engine
from optiml_jax.evaluate.decoding import Prompt, generate
from optiml_jax.evaluate.metrics import METRICS
from optiml_jax.evaluate.records import RunFolder
from optiml_jax.evaluate.scoring import ScoreItem, score
from tasks.registry import register

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


def source_of(task):
    return TaskSource(
        name=task.info.task,
        splits=("test",),
        files=(),
        read=lambda split, drops: iter(task.examples()),
        demonstrations=task.demonstrations,
        metric=task.info.metric,
    )


def judgement(task, i, split="test"):
    """Two answers per question, to be judged."""
    gold = ("True", "False")[i % 3 == 0]
    fields = {"target": gold, "references": (gold,), "options": ("False", "True")}
    return toy.example(task, i, split, meta={"group": f"question {i // 2}"}, **fields)


def number(task, i, split="test"):
    return toy.example(task, i, split, target=str(i), references=(str(i),))


MAKERS = {
    "acc_rank": toy.ranking_example,
    "macro_f1": toy.ranking_example,
    "matthews": judgement,
    "f1_positive": judgement,
    "multirc": judgement,
    "em_number": number,
    "correlation": number,
}


CASES = [(metric, 0) for metric in sorted(METRICS)] + [("acc_rank", 2), ("rougeL", 2)]
# Training tasks: the names that a mixture has.
CASES += [(metric, None) for metric in ("acc_rank", "multirc", "f1_positive", "em_number")]


@pytest.mark.parametrize(("metric", "shots"), CASES)
def test_seqios_evaluator_finds_our_numbers_on_registered_tasks(metric, shots, tmp_path):
    make = MAKERS.get(metric, toy.example)
    task = toy.eval_task("b/t", metric, shots=(shots or 0,), number=8, make=make)
    assert not toy.run([task], tmp_path)
    records, summary = RunFolder(tmp_path).read("b/t", shots or 0)
    registered = register(source_of(task), toy.vocabulary(), PROMPTS, 128, shots=shots)
    evaluator = seqio.Evaluator(
        registered.name,
        feature_converter=seqio.PrefixLMFeatureConverter(pack=False, bos_id=2),
        eval_split="test",
    )
    future, outputs = evaluator.evaluate(
        compute_metrics=True, step=0, predict_fn=predict_fn, score_fn=score_fn
    )
    assert future.result()[registered.name] == pytest.approx(summary["metrics"])
    if METRICS[metric].ranked:
        stored = [c.sum_logprob for r in records for c in r.candidates]
        (theirs,) = outputs[registered.name].values()
        np.testing.assert_allclose(theirs, stored, atol=1e-4)
        # The toy model is not to be right, or wrong, everywhere: that would prove nothing.
        assert 0 < summary["metrics"]["accuracy"] < 100
    else:
        (tokens,) = outputs[registered.name].values()
        ours = [r.prediction for r in records]
        assert [toy.vocabulary().decode(t).strip() for t in tokens] == ours
        assert len(set(ours)) > 1


def test_a_ranked_training_task_says_where_its_candidates_are():
    """SeqIO would skip a task without metrics, and nobody would know."""
    task = toy.eval_task("b/t", "acc_rank", number=8, make=toy.ranking_example)
    source = dataclasses.replace(source_of(task), splits=("train", "test"))
    registered = register(source, toy.vocabulary(), PROMPTS, 128)
    evaluator = seqio.Evaluator(
        registered.name,
        feature_converter=seqio.PrefixLMFeatureConverter(pack=False, bos_id=2),
        eval_split="train",
    )
    with pytest.raises(ValueError, match=r"b\.t ranks candidates, .* eval_split='test' and use"):
        evaluator.evaluate(compute_metrics=True, step=0, score_fn=score_fn)[0].result()
