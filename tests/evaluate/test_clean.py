"""Scores over the clean subset, against plain means and a bootstrap written out here."""

import dataclasses

import numpy as np
import pytest

from optiml_jax.evaluate.clean import clean
from optiml_jax.evaluate.leaves import Key
from optiml_jax.evaluate.records import Record, RunFolder, TaskInfo
from optiml_jax.evaluate.rollup import rollup
from optiml_jax.report.clean_tables import clean_table

LEVEL = "fully_held_out"
RNG = np.random.default_rng(3)
SCORES = RNG.random(60)
OVERLAPS = RNG.random(60) < 0.4


def run_of(path, tasks, prompts="pooled"):
    """tasks: {name: (scores, overlaps)}; an overlap of None: not audited."""
    folder = RunFolder(path)
    infos = [TaskInfo(t, "b", "C", LEVEL, "rougeL", prompts=prompts) for t in tasks]
    folder.open({}, infos)
    for task, (scores, overlaps) in tasks.items():
        records = [
            Record(f"e{i}", "p", f"{task} e{i}", ("r",), "x", float(s), overlap=flag)
            for i, (s, flag) in enumerate(zip(scores, overlaps, strict=True))
        ]
        summary = {"metric": "rougeL", "best_constant": {"answer": "r", "score": 0.0}}
        summary["effective_shots"] = {"mean": 0.0, "min": 0}
        folder.write(task, 0, records, summary)
    return rollup(path)


def flags(values) -> list[bool]:
    return [bool(v) for v in values]


def test_the_difference_is_that_of_the_means(tmp_path):
    tree = run_of(tmp_path, {"b/a": (SCORES, flags(OVERLAPS)), "b/c": (SCORES[:20], [False] * 20)})
    found = clean(tree, n=200)
    own = 100 * (SCORES[~OVERLAPS].mean() - SCORES.mean())
    assert found.tree.cells[Key(0, LEVEL, "C", "b/a")].value == pytest.approx(own)
    assert found.tree.cells[Key(0, LEVEL, "C", "b/c")].value == pytest.approx(0)
    assert found.differences[Key(0, LEVEL)].value == pytest.approx(own / 2)
    assert found.units[Key(0, LEVEL, "C")] == (int(OVERLAPS.sum()), 80)
    assert (found.unaudited, found.unclean) == ((), ())


def test_the_interval_is_that_of_a_paired_bootstrap(tmp_path):
    found = clean(run_of(tmp_path, {"b/a": (SCORES, flags(OVERLAPS))}), n=4000)
    rng = np.random.default_rng(11)
    draws = rng.integers(60, size=(4000, 60))
    kept = ~OVERLAPS[draws]
    both = (SCORES[draws] * kept).sum(1) / kept.sum(1) - SCORES[draws].mean(1)
    low, high = 100 * np.percentile(both, [2.5, 97.5])
    interval = found.differences[Key(0, LEVEL)].fixed_tasks
    assert interval.low == pytest.approx(low, abs=0.5)
    assert interval.high == pytest.approx(high, abs=0.5)


def test_tasks_without_an_audit_or_without_a_clean_example_are_named(tmp_path):
    tasks = {
        "b/a": (SCORES, flags(OVERLAPS)),
        "b/none": (SCORES[:5], [None] * 5),
        "b/all": (SCORES[:5], [True] * 5),
    }
    found = clean(run_of(tmp_path / "x", tasks), n=100)
    assert (found.unaudited, found.unclean) == (("b/none",), ("b/all",))
    assert found.units[Key(0, LEVEL)] == (int(OVERLAPS.sum()), 60)
    rows = {row[1]: row[3:7] for row in clean_table("x", found).rows}
    score, cleaned = (f"{100 * s.mean():.1f}" for s in (SCORES, SCORES[~OVERLAPS]))
    assert set(rows) == {"", "C", "C / b/a"}
    assert set(rows.values()) == {("60", str(int(OVERLAPS.sum())), score, cleaned)}
    assert clean(run_of(tmp_path / "y", {"b/none": tasks["b/none"]})) is None


def test_the_flag_is_kept_in_the_record(tmp_path):
    record = Record("e", "p", "c", ("r",), "x", 1.0, overlap=True)
    folder = RunFolder(tmp_path)
    folder.open({}, [TaskInfo("b/a", "b", "C", LEVEL, "rougeL")])
    records = [record, dataclasses.replace(record, overlap=None)]
    folder.write("b/a", 0, records, {"metric": "rougeL"})
    assert folder.read("b/a", 0)[0] == records
