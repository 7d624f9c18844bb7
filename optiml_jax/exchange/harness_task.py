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

from optiml_scoring import answers, metrics  # noqa: E402 - beside this file

_ANSWER_CONTEXT = "Answer:"  # what the rule "unconditional" scores candidates after


def load(file, **ignored):
    """The requests of a task, as lm-evaluation-harness wants its data sets."""
    with open(_FOLDER / file, encoding="utf-8") as lines:
        return {"test": datasets.Dataset.from_list([json.loads(line) for line in lines])}


class UnconditionalTask(ConfigurableTask):
    """Scores every candidate after "Answer:" alone too."""

    def construct_requests(self, doc, ctx, **kwargs):
        asked = super().construct_requests(doc, ctx, **kwargs)
        return asked + [
            Instance("loglikelihood", doc, (_ANSWER_CONTEXT, text), i, kwargs["metadata"])
            for i, text in enumerate(doc["continuations"], len(asked))
        ]


def process_ranked(doc, results):
    """The score of a rank classification; `results` are (log-likelihood, is greedy) pairs."""
    lengths = {"chars": len, "bytes": lambda text: len(text.encode("utf-8"))}
    scores = [float(pair[0]) for pair in results]
    n, rule = len(doc["candidates"]), doc["rule"]
    if rule == "unconditional":
        scores = [a - b for a, b in zip(scores[:n], scores[n:], strict=True)]
    elif rule in lengths:
        scores = [s / lengths[rule](c) for s, c in zip(scores, doc["candidates"], strict=True)]
    return _scored(doc, float(scores.index(max(scores)) in doc["correct"]))


def process_generated(doc, results):
    """The score of a generated answer, or of the answer that most of the samples give."""
    texts = results[0] if isinstance(results[0], list) else [results[0]]
    best = answers.vote(texts, [0.0] * len(texts), doc["metric"]) if len(texts) > 1 else 0
    score = metrics.ANSWER_SCORES[doc["metric"]](doc["references"], texts[best].strip())
    return _scored(doc, score)


def _scored(doc, score):
    return {"score": score, "task_score": (doc["prompt_group"], doc["question"], score)}


def task_mean(items):
    """The score of a task: a question counts by its worst part, a prompt by its questions' mean."""
    questions = collections.defaultdict(list)
    for prompt, question, score in items:
        questions[prompt, question].append(score)
    prompts = collections.defaultdict(list)
    for (prompt, _), scores in questions.items():
        prompts[prompt].append(min(scores))
    return statistics.fmean(map(statistics.fmean, prompts.values()))
