"""SeqIO metric functions called on records."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from optiml_jax.errors import UserError
from optiml_jax.evaluate import metrics
from optiml_jax.evaluate.records import RULES, Record

MetricFn = Callable[..., Mapping[str, Any]]


def call_metric_fns(
    metric_fns: Sequence[MetricFn], records: Sequence[Record], rule: str
) -> dict[str, float]:
    """Calls SeqIO metric functions on records, by their argument names as SeqIO does.

    `(targets, predictions)` gets the references and the text of every record; `(targets, scores)`
    one `CandidateRow` and one score under `rule` per candidate; the groups are (prompt, group).

    Raises:
      UserError: a function with other arguments, or two that return the same key.
    """
    results: dict[str, float] = {}
    for fn in metric_fns:
        arguments = tuple(
            name
            for name, p in inspect.signature(fn).parameters.items()
            if p.default is inspect.Parameter.empty and p.kind is p.POSITIONAL_OR_KEYWORD
        )
        if arguments == ("targets", "predictions"):
            values = fn([list(r.references) for r in records], [r.prediction for r in records])
        elif arguments == ("targets", "scores"):
            rows, scores = candidate_rows(records, rule)
            values = fn(rows, scores)
        else:
            raise UserError(
                f"metric function {fn!r} has arguments {arguments}; they must be "
                "(targets, predictions) or (targets, scores)"
            )
        twice = results.keys() & values.keys()
        if twice:
            raise UserError(f"two metric functions return {sorted(twice)[0]!r}")
        results |= {key: float(value) for key, value in values.items()}
    return results


def candidate_rows(
    records: Sequence[Record], rule: str
) -> tuple[list[metrics.CandidateRow], list[float]]:
    """The targets and scores of `(targets, scores)` metrics: one row per candidate."""
    rows, scores = [], []
    for i, record in enumerate(records):
        for c, candidate in enumerate(record.candidates):
            group = f"{record.prompt_id}\0{record.group or record.cluster}"
            right, offered = c in record.correct, c < len(record.offered)
            rows.append(metrics.CandidateRow(i, c, right, candidate.text, group, offered))
            scores.append(RULES[rule](candidate))
    return rows, scores
