"""Choosing one of several runs or checkpoints as in section 4.1 of the paper, with uncertainty.

All shots and categories are combined into one number in three ways; the paper's wording fits the
first two. Runs are ranked by the first, on what all of them have: a task that failed in one run
must not move its rank.
"""

import collections
from collections.abc import Mapping

from optiml_jax.evaluate.leaves import MEAN, Key
from optiml_jax.evaluate.resampling import NUM_REPLICATES
from optiml_jax.evaluate.rollup import Rollup, regroup
from optiml_jax.evaluate.statistics import Difference, compare
from optiml_jax.report.paper_tables import ABSENT
from optiml_jax.report.run_tables import (
    interval_text,
    missing_notes,
    new_tasks_text,
    number,
    p_text,
)
from optiml_jax.report.tables import MARK, Table

WAYS = {"A": "A", "B": "B", "levels": "level means"}
NOISE, WORSE_HERE, WORSE = "within noise", "worse on these tasks", "worse"


def selection_table(runs: Mapping[str, Rollup], replicates: int = NUM_REPLICATES) -> Table:
    """The runs, best first, with the paired difference of each to the best one.

    Args:
      runs: name -> evaluation.
      replicates: of the bootstrap.
    """
    trees, left_out = on_common_tasks(runs)
    columns = ("rank", "run", *WAYS.values(), "gain", "95 % CI", "new tasks", "p", "verdict")
    if not trees:
        return Table(
            "Model selection", columns, (), 2, ("no task is in all runs with the same examples",)
        )
    ranked = {
        way: sorted(trees, key=lambda name: -trees[name].selection[way].value) for way in WAYS
    }
    best, rows = ranked["A"][0], []
    verdicts = {}
    for i, name in enumerate(ranked["A"], 1):
        scores = [
            f"{number(trees[name].selection[way].value)}{MARK * bool(left_out)} "
            f"({ranked[way].index(name) + 1})"
            for way in WAYS
        ]
        compared = ("", "", "", "", "best")
        if name != best:
            d = compare(trees[name], trees[best], replicates)[Key(MEAN)]
            verdicts[name] = verdict(d)
            intervals = (interval_text(d.fixed_tasks), new_tasks_text(d.new_tasks))
            compared = (f"{d.delta:+.1f}", *intervals, p_text(d.p), verdicts[name])
        rows.append((str(i), name, *scores, *compared))
    notes = (
        _conclusion(best, ranked, verdicts),
        "A: mean of the averages over shots; B: mean of all category x shots cells; level means: "
        "mean of the levels; in brackets the rank by each",
        "gain: of A over the best run, paired by example; within noise: the 95 % CI over the "
        "examples of these tasks contains 0; worse on these tasks: that over new tasks contains 0, "
        "or there are too few tasks for one",
        *missing_notes(left_out),
    )
    return Table("Model selection", columns, tuple(rows), 2, notes)


def on_common_tasks(runs: Mapping[str, Rollup]) -> tuple[dict[str, Rollup], list[str]]:
    """The runs cut down to the (task, shots) of which all have the same examples; and the rest."""
    ids: dict[Key, dict[str, set]] = collections.defaultdict(dict)  # sub-task -> run -> its ids
    for name, tree in runs.items():
        for leaf in tree.leaves:
            ids[leaf.key].setdefault(name, set()).update(leaf.ids)
    common = {
        key
        for key, own in ids.items()
        if len(own) == len(runs) and len({*map(frozenset, own.values())}) == 1
    }
    known = {k for t in runs.values() for k in t.cells if len(k.path) == 5 and k.shots != MEAN}
    left_out = []
    for key in sorted(known - common, key=lambda k: (k.path, k.shots)):
        lacking = {n: t.failures for n, t in runs.items() if n not in ids.get(key, {})}
        reasons = [f"{n}: {f.get((key.subtask, key.shots), ABSENT)}" for n, f in lacking.items()]
        for reason in reasons or ["the runs have different examples"]:
            left_out.append(f"{key.subtask} at {key.shots} shots: {reason}")
    if not common:
        return {}, left_out

    def place(key: Key) -> tuple[str, str] | None:
        return (key.level, key.category) if key in common else None

    return {name: regroup(tree, place) for name, tree in runs.items()}, left_out


def verdict(difference: Difference) -> str:
    """The conclusion from a paired difference to the best run."""
    fixed, new = difference.fixed_tasks, difference.new_tasks
    if fixed.low <= 0 <= fixed.high:
        return NOISE
    return WORSE_HERE if new is None or new.low <= 0 <= new.high else WORSE


def _conclusion(best: str, ranked: Mapping[str, list[str]], verdicts: Mapping[str, str]) -> str:
    agreeing = [label for way, label in WAYS.items() if ranked[way][0] == best]
    text = f"{best} is first under {', '.join(agreeing)}"
    if len(agreeing) < len(WAYS):
        text += f", not under {', '.join(x for x in WAYS.values() if x not in agreeing)}"
    noisy = [name for name in ranked["A"] if verdicts.get(name) == NOISE]
    if noisy:
        return f"{text}; its margin over {', '.join(noisy)} is within noise"
    return f"{text}; its margin over every other run is more than noise" if verdicts else text
