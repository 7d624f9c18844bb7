"""Interprets the pairs of an audit: which need a decision, and how their tasks are related."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Protocol

from optiml_jax.data.example import TaskSource
from tasks.decisions import Decision
from tasks.splits import PROTECTED, Manifest

STATES = (
    *("undecided", "decided", "not in the paper", "not trained on", "trained on by this mixture"),
    "seen in training",
)


class Overlap(Protocol):
    """A pair of tasks and the part of the evaluation examples that overlap."""

    train_task: str
    eval_task: str

    @property
    def share(self) -> float: ...


@dataclasses.dataclass(frozen=True)
class Judged:
    """A pair with its decision and the relation of its tasks.

    Attributes:
      overlap: the pair.
      decision: if there is one.
      state: of `STATES`; most say why nothing is to be decided: "seen in training": the evaluation
        is of held-out instances of seen data; "not in the paper": its role is test_extra alone.
      relation: what the two tasks are made of, in words.
    """

    overlap: Overlap
    decision: Decision | None
    state: str
    relation: str


def judge(
    overlaps: Iterable[Overlap],
    sources: Mapping[str, TaskSource],
    manifest: Manifest,
    threshold: float,
    roles: Iterable[str] = ("train",),
) -> list[Judged]:
    """The pairs above the threshold.

    Args:
      sources: the tasks by name.
      threshold: share of the evaluation examples.
      roles: of the mixture.

    Raises:
      UserError: decisions that contradict each other.
    """
    judged = []
    for overlap in overlaps:
        if overlap.share <= threshold:
            continue
        train_row = manifest.row(sources[overlap.train_task])
        eval_row = manifest.row(sources[overlap.eval_task])
        decision = manifest.decisions.of(overlap.train_task, overlap.eval_task)
        if decision:
            state = "decided"
        elif not train_row.trained_by(roles):
            state = "not trained on"
        elif eval_row.level == "fully_supervised":
            state = "seen in training"
        elif eval_row.trained_by(roles):
            state = "trained on by this mixture"
        elif {*PROTECTED}.isdisjoint(eval_row.role):
            state = "not in the paper"
        else:
            state = "undecided"
        judged.append(Judged(overlap, decision, state, relation(overlap, manifest)))
    return sorted(judged, key=lambda j: STATES.index(j.state))  # stable: by share within a state


def relation(overlap: Overlap, manifest: Manifest) -> str:
    """The data sets of the two tasks by the provenance table, in words."""
    provenance = manifest.provenance
    own, its = map(provenance.items_of, (overlap.train_task, overlap.eval_task))
    common = [d for d in own if d in its]
    if common:
        return f"both of {common[0]}"
    shared = provenance.shared_context(overlap.train_task, overlap.eval_task)
    data = [
        " + ".join(provenance.origin(t).data) or "unknown"
        for t in (overlap.train_task, overlap.eval_task)
    ]
    text = f"{data[0]} | {data[1]}"
    return f"{text}; share texts of {', '.join(shared)}" if shared else text
