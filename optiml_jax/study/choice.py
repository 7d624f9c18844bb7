"""Chooses among the variants of a study by the paper's rule, and writes the next study's base.

Section 4.1 of the paper: the combined average of all categories (or benchmarks) and shots.
"""

import dataclasses
import pathlib

from optiml_jax.errors import UserError
from optiml_jax.evaluate.leaves import MEAN, Key
from optiml_jax.evaluate.statistics import compare
from optiml_jax.files import atomic_path, disk_errors
from optiml_jax.report.selection import NOISE, WAYS, on_common_tasks, verdict
from optiml_jax.study.results import Results
from optiml_jax.study.runs import Plan
from optiml_jax.words import counted

CHOICE = "choice.gin"


@dataclasses.dataclass(frozen=True)
class Choice:
    """The variant chosen by a study.

    Attributes:
      score: its average, in percent.
      tied: variants whose paired difference from it is within noise, best first.
      sentence: the result in words.
    """

    variant: str
    score: float
    tied: tuple[str, ...]
    sentence: str


def choose(results: Results) -> Choice:
    """The best variant on the tasks and shots that all variants have.

    Raises:
      UserError: no variant is evaluated, or they have no tasks in common.
    """
    study = results.study
    if not results.trees:
        raise UserError(f"study {study.name!r}: no variant is evaluated yet")
    trees, left_out = on_common_tasks(results.trees)
    if not trees:
        raise UserError(f"study {study.name!r}: no task is in all variants with the same examples")
    ranked = sorted(trees, key=lambda name: -trees[name].selection["A"].value)
    best, others = ranked[0], ranked[1:]
    differences = {
        name: compare(trees[name], trees[best], study.replicates)[Key(MEAN)] for name in others
    }
    tied = tuple(name for name in others if verdict(differences[name]) == NOISE)
    score = trees[best].selection["A"].value
    parts = [
        f"Of {counted(len(trees), 'variant')} of {study.factor}, {best!r} has the highest average "
        f"over all {'categories' if study.by == 'category' else 'benchmarks'} and shots "
        f"({score:.1f})"
    ]
    if others:
        parts.append(
            f"; within noise of it: {', '.join(map(repr, tied))}"
            if tied
            else "; its margin over every other one exceeds noise"
        )
        by_others = [
            f"{max(trees, key=lambda n, w=way: trees[n].selection[w].value)!r} by {label}"
            for way, label in WAYS.items()
            if max(trees, key=lambda n, w=way: trees[n].selection[w].value) != best
        ]
        if by_others:
            parts.append(f"; other averages would choose {', '.join(by_others)}")
    sentence = "".join(parts) + "."
    if results.lacking:
        sentence += f" Not evaluated, so not compared: {'; '.join(results.lacking)}."
    if left_out:
        sentence += f" Left out, since not all variants have them: {len(left_out)} task x shots."
    return Choice(best, score, tied, sentence)


def write_choice(plan: Plan, choice: Choice) -> pathlib.Path:
    """Writes `choice.gin`: the chosen variant's changes to the base run, for the next study."""
    lines = [f"# {choice.sentence}\n"]
    lines += [f"{k} = {v!r}\n" for k, v in sorted(plan.changes[choice.variant].items())]
    path = plan.folder / CHOICE
    with disk_errors(path, "the choice"), atomic_path(path) as temporary:
        temporary.write_text("".join(lines), "utf-8")
    return path
