"""Runs inside lm-evaluation-harness: reads exported requests and scores answers by our rules.

`optiml export` puts a copy of this file, and of our metrics as the package `optiml_scoring`, beside
the tasks, so that neither optiml_jax nor JAX needs to be installed where the tasks run.
"""

import collections
import json
import pathlib
import statistics
import sys

import datasets
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask

_FOLDER = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(_FOLDER))

# Beside this file.
from optiml_scoring.evaluate import answers  # noqa: E402
from optiml_scoring.evaluate.metrics import METRICS, unscored  # noqa: E402
from optiml_scoring.evaluate.records import Record  # noqa: E402

_ANSWER_CONTEXT = "Answer:"  # what the rule "unconditional" scores candidates after


def load(file, **ignored):
    """The requests of a task, in the form of lm-evaluation-harness's data sets."""
    with open(_FOLDER / file, encoding="utf-8") as lines:
        return {"test": datasets.Dataset.from_list([json.loads(line) for line in lines])}


class UnconditionalTask(ConfigurableTask):
    """Scores every candidate after "Answer:" alone too."""

    def __init__(self, config):
        super().__init__(config={key: value for key, value in config.items() if key != "class"})

    def construct_requests(self, doc, ctx, **kwargs):
        asked = super().construct_requests(doc, ctx, **kwargs)
        return asked + [
            Instance("loglikelihood", doc, (_ANSWER_CONTEXT, text), i, kwargs["metadata"])
            for i, text in enumerate(doc["continuations"], len(asked))
        ]


def process_ranked(doc, results):
    """The score of a rank classification; `results` are (log-likelihood, is greedy) pairs."""
    lengths = {"chars": len, "bytes": lambda text: len(text.encode("utf-8"))}
    texts, rule = doc["candidates"], doc["rule"]
    scores = [float(pair[0]) for pair in results]
    if rule == "unconditional":
        n = len(texts)
        scores = [a - b for a, b in zip(scores[:n], scores[n:], strict=True)]
    elif rule in lengths:
        scores = [s / lengths[rule](text) for s, text in zip(scores, texts, strict=True)]
    best = scores.index(max(scores))
    return _scored(doc, texts[best], float(best in doc["correct"]))


def process_generated(doc, results):
    """The score of a generated answer, or of the answer that most of the samples give."""
    texts = results[0] if isinstance(results[0], list) else [results[0]]
    metric = METRICS[doc["metric"]]
    best = answers.vote(texts, [0.0] * len(texts), metric.extract) if len(texts) > 1 else 0
    text = texts[best].strip()
    return _scored(doc, text, metric.score(doc["references"], text))


def _scored(doc, prediction, score):
    names = ("metric", "crossed", "example_id", "prompt_id", "group", "references")
    record = {name: doc[name] for name in names}
    if doc["kind"] == "rank":
        record |= {"candidates": doc["candidates"], "correct": doc["correct"]}
    return {"score": score, "task_score": record | {"prediction": prediction, "score": score}}


def task_mean(items):
    """The score of a task in [0, 1] by its metric; of several prompts the mean over them."""
    prompts = collections.defaultdict(list)
    for item in items:
        prompts[item["prompt_id"] if item["crossed"] else ""].append(_record(item))
    metric = METRICS[items[0]["metric"]]
    values = [metric.main.of(metric.units(records)) for records in prompts.values()]
    return statistics.fmean(values) / 100


def _record(item):
    return Record(
        example_id=item["example_id"],
        prompt_id=item["prompt_id"],
        cluster=item["example_id"],
        references=tuple(item["references"]),
        prediction=item["prediction"],
        score=item["score"],
        candidates=tuple(unscored(text) for text in item.get("candidates", ())),
        correct=tuple(item.get("correct", ())),
        group=item["group"],
    )
