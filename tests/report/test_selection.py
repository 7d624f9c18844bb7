"""Ranking of runs: three scores, paired differences, and what may not be compared."""

import dataclasses

import numpy as np
import pytest

from optiml_jax.evaluate.leaves import MEAN, Key
from optiml_jax.evaluate.records import Record, RunFolder, TaskInfo
from optiml_jax.evaluate.rollup import mean_of_seeds, rollup
from optiml_jax.evaluate.statistics import compare
from optiml_jax.report.run_tables import interval_text
from optiml_jax.report.seeds import joined_seeds
from optiml_jax.report.selection import NOISE, WORSE, WORSE_HERE, on_common_tasks, selection_table
from optiml_jax.report.tables import MARK

HELD, TAUGHT = "fully_held_out", "fully_supervised"
TASKS = [
    *(TaskInfo(f"b/{c}{i}", "b", c, HELD, "rougeL", shots=(0, 5)) for c in "xy" for i in range(4)),
    *(TaskInfo(f"b/z{i}", "b", "z", TAUGHT, "rougeL", shots=(0,)) for i in range(4)),
]
SUMMARY = {
    "metric": "rougeL",
    "best_constant": {"answer": "a", "score": 0.1},
    "effective_shots": {"mean": 0.0, "min": 0},
}


def write(path, scores, fail=()):
    """scores: (task, shots) -> scores of its 40 instances."""
    folder = RunFolder(path)
    folder.open({}, TASKS)
    for info in TASKS:
        for shots in info.shots:
            if (info.task, shots) in fail:
                folder.fail(info.task, shots, "out of memory")
                continue
            records = [
                Record(f"e{i}", "p", f"{info.task}:{i}", ("a",), "a", float(s))
                for i, s in enumerate(scores(info.task, shots))
            ]
            folder.write(info.task, shots, records, SUMMARY)
    return rollup(path)


def base(task, shots):
    rng = np.random.default_rng([*task.encode(), shots])
    return rng.uniform(0.3, 0.5, 40)


def by_run(table):
    return {row[1]: dict(zip(table.columns, row, strict=True)) for row in table.rows}


def test_runs_are_ranked_and_a_margin_within_noise_is_called_so(tmp_path):
    def noisy(task, shots):
        rng = np.random.default_rng([7, *task.encode(), shots])
        return base(task, shots) + rng.normal(0, 0.05, 40) - 0.0005

    runs = {
        "worse": write(tmp_path / "w", lambda t, k: base(t, k) - 0.1),
        "best": write(tmp_path / "b", base),
        "near": write(tmp_path / "n", noisy),
    }
    table = selection_table(runs, replicates=500)
    rows = by_run(table)
    assert sorted([r[1] for r in table.rows][:2]) == ["best", "near"]
    first = table.rows[0][1]
    second = table.rows[1][1]
    assert rows[first]["verdict"] == "best"
    assert rows[second]["verdict"] == NOISE
    assert rows["worse"]["rank"] == "3"
    assert rows["worse"]["verdict"] == WORSE
    gain = float(rows["worse"]["gain"]) + 10.0
    assert gain == pytest.approx(0.0, abs=1.0)
    assert f"its margin over {second} is within noise" in table.notes[0]


def test_scores_are_those_of_the_three_ways(tmp_path):
    values = {"x": {0: 0.2, 5: 0.4}, "y": {0: 0.4, 5: 0.6}, "z": {0: 0.9}}
    runs = {
        name: write(tmp_path / name, lambda t, k, g=g: np.full(40, values[t[2]][k] + g))
        for name, g in (("a", 0.0), ("b", -0.1))
    }
    rows = by_run(selection_table(runs, replicates=200))
    # 0 shots: (20+40+90)/3 = 50, 5 shots: 50; cells: 250/5; levels: (30+50)/2 = 40 and 90.
    assert rows["a"]["A"] == "50.0 (1)"
    assert rows["a"]["B"] == "50.0 (1)"
    assert rows["a"]["level means"] == "65.0 (1)"
    assert rows["b"]["A"] == "40.0 (2)"


def test_when_the_ways_disagree_the_table_says_so(tmp_path):
    def few_shot(task, shots):  # 5-shot counts for half in A, for two fifths in B
        return np.full(40, {0: 0.48, 5: 0.60}[shots])

    def zero_shot(task, shots):
        return np.full(40, {0: 0.52, 5: 0.55}[shots])

    runs = {"few": write(tmp_path / "f", few_shot), "zero": write(tmp_path / "z", zero_shot)}
    table = selection_table(runs, replicates=200)
    assert table.rows[0][1] == "few"
    assert "few is first under A, not under B, level means" in table.notes[0]


def test_a_task_that_failed_in_one_run_moves_no_rank(tmp_path):
    def hard(task, shots):
        return base(task, shots) * (0.1 if task == "b/x0" else 1.0)

    runs = {
        "all": write(tmp_path / "all", lambda t, k: hard(t, k) + 0.01),
        "lucky": write(tmp_path / "lucky", hard, fail=[("b/x0", 0), ("b/x0", 5)]),
    }
    assert runs["lucky"].selection["A"].value > runs["all"].selection["A"].value
    table = selection_table(runs, replicates=200)
    assert [row[1] for row in table.rows] == ["all", "lucky"]
    assert all(MARK in row[2] for row in table.rows)
    assert f"{MARK} without b/x0 at 0 shots: lucky: out of memory" in table.notes
    trees, left_out = on_common_tasks(runs)
    assert len(left_out) == 2
    assert not any(leaf.key.task == "b/x0" for tree in trees.values() for leaf in tree.leaves)


def test_a_gain_on_a_few_tasks_is_not_called_one_on_new_tasks(tmp_path):
    def one_task(task, shots):
        return base(task, shots) - (0.2 if task in ("b/x0", "b/y0", "b/z0") else 0.0)

    runs = {"best": write(tmp_path / "b", base), "other": write(tmp_path / "o", one_task)}
    assert by_run(selection_table(runs, replicates=1000))["other"]["verdict"] == WORSE_HERE


def test_runs_without_a_common_task_are_not_ranked(tmp_path):
    every = [(i.task, k) for i in TASKS for k in i.shots]
    runs = {
        "a": write(tmp_path / "a", base, fail=every[:10]),
        "b": write(tmp_path / "b", base, fail=every[10:]),
    }
    table = selection_table(runs)
    assert table.rows == ()
    assert "no task is in all runs" in table.notes[0]


def test_a_task_with_other_examples_in_one_run_is_not_compared(tmp_path):
    def short(task, shots):
        return base(task, shots)[: 20 if task == "b/y1" else 40]

    runs = {"all": write(tmp_path / "a", base), "short": write(tmp_path / "s", short)}
    table = selection_table(runs, replicates=100)
    assert f"{MARK} without b/y1 at 5 shots: the runs have different examples" in table.notes
    assert by_run(table)["short"]["gain"] in ("+0.0", "")


def test_the_spread_of_seeds_is_in_the_verdict(tmp_path):
    """Two configurations whose seeds are as far apart as they are."""
    runs = {
        name: mean_of_seeds(
            [
                write(tmp_path / name / str(s), lambda t, k, shift=s: base(t, k) + shift)
                for s in shifts
            ]
        )
        for name, shifts in {"better": (0.0, 0.2), "worse": (-0.1, 0.1)}.items()
    }
    table = selection_table(runs, replicates=500)
    row = by_run(table)["worse"]
    assert row["verdict"] == NOISE
    d = compare(runs["worse"], runs["better"], 500)[Key(MEAN)]
    assert row["95 % CI"] == interval_text(d.fixed_tasks)


def test_suites_of_several_prompt_seeds_are_no_seeds_of_a_configuration(tmp_path):
    tree = dataclasses.replace(
        write(tmp_path, base), run={"configuration": "c", "seed": 1, "prompt_seed": [0, 1]}
    )
    other = dataclasses.replace(tree, run=tree.run | {"seed": 2})
    assert list(joined_seeds({"one": tree})) == ["one"]
    assert list(joined_seeds({"one": tree, "two": other})) == ["* (2 seeds)"]
