"""The order of aggregation, on the worked example and on evaluations with holes."""

import dataclasses

import pytest

from optiml_jax.errors import UserError
from optiml_jax.evaluate.records import Candidate, Record, RunFolder, TaskInfo
from optiml_jax.evaluate.rollup import MEAN, Key, difference, from_columns, regroup, rollup

FH, PS, FS = "fully_held_out", "partially_held_out", "fully_supervised"

# level, category, aggregate, benchmark, subtasks {name: (0-shot, 5-shot)}
WORKED_EXAMPLE = [
    (FH, "Cause Effect", "copa", "flan", {"copa": (80, 82)}),
    (FH, "Cause Effect", "copa", "ps", {"copa": (70, 74)}),
    (FH, "Cause Effect", "copa", "superni", {"copa": (60, 66)}),
    (FH, "Cause Effect", None, "ps", {"b": (50, 58)}),
    (FH, "Stereotype", "winobias", "ps", {"p1": (60, 80), "p2": (40, 60)}),
    (FH, "Stereotype", "winobias", "ps", {"a1": (70, 90), "a2": (50, 70)}),
    (PS, "MMLU", "mmlu", "mmlu", {"x": (30, 32), "y": (40, 36), "z": (50, 46)}),
    (PS, "Summarisation", None, "ps", {"s": (20,)}),
    (FS, "QA", "squad", "flan", {"squad": (90, 88)}),
    (FS, "QA", "squad", "ps", {"squad": (80, 84)}),
    (FS, "QA", None, "ps", {"c": (65, 70)}),
]


def record(example, score, **more):
    fields = {
        "example_id": example,
        "prompt_id": "p",
        "cluster": example,
        "references": ("r",),
        "prediction": "x",
    }
    return Record(**(fields | {"score": score} | more))


def summary(metric="rougeL", constant=0.25):
    return {"metric": metric, "best_constant": {"answer": "r", "score": constant}}


def write_run(path, tasks, metric="rougeL"):
    """tasks: {TaskInfo: {shots: list of scores in [0, 1]}}."""
    folder = RunFolder(path)
    folder.open({}, list(tasks))
    for info, by_shots in tasks.items():
        for shots, scores in by_shots.items():
            records = [record(f"e{i}", s) for i, s in enumerate(scores)]
            folder.write(info.task, shots, records, summary(info.metric))
    return folder


def worked_example():
    tasks = {}
    for level, category, aggregate, benchmark, subtasks in WORKED_EXAMPLE:
        for name, values in subtasks.items():
            shots = (0, 5)[: len(values)]
            info = TaskInfo(
                f"{benchmark}/{name}", benchmark, category, level, "rougeL", aggregate, shots
            )
            tasks[info] = {k: [v / 100] for k, v in zip(shots, values, strict=True)}
    return tasks


def test_the_worked_example_gives_its_printed_numbers(tmp_path):
    write_run(tmp_path, worked_example())
    result = rollup(tmp_path)

    def value(*path, shots=0):
        return result.cells[Key(shots, *path)].value

    tasks = {
        (FH, "Cause Effect", "copa"): (70, 74),
        (FH, "Stereotype", "winobias"): (55, 75),
        (PS, "MMLU", "mmlu"): (40, 38),
        (FS, "QA", "squad"): (85, 86),
    }
    columns = {
        (FH, "Cause Effect"): (60, 66),
        (FH, "Stereotype"): (55, 75),
        (PS, "MMLU"): (40, 38),
        (FS, "QA"): (75, 78),
    }
    for path, (zero, five) in (tasks | columns).items():
        assert value(*path) == pytest.approx(zero)
        assert value(*path, shots=5) == pytest.approx(five)
    assert value(PS, "Summarisation") == pytest.approx(20)
    assert Key(5, PS, "Summarisation") not in result.cells
    assert value() == pytest.approx(50.0)
    assert value(shots=5) == pytest.approx(64.25)
    assert result.selection["A"].value == pytest.approx(57.125)
    assert result.selection["B"].value == pytest.approx(507 / 9)
    assert result.selection["levels"].value == pytest.approx(58.167, abs=5e-4)
    by_category = [value(*k.path, shots=MEAN) for k in result.keys(2, MEAN)]
    assert sum(by_category) / len(by_category) == pytest.approx(52.7)
    raw = [leaf.scores.mean() for leaf in result.leaves if leaf.key.shots == 0]
    assert sum(raw) / len(raw) == pytest.approx(57.0)  # what the average must not be
    assert result.cells[Key(0)].baseline == pytest.approx(25.0)


def test_by_benchmark_the_versions_of_a_task_stay_apart(tmp_path):
    write_run(tmp_path, worked_example())
    result = rollup(tmp_path, by="benchmark")
    assert result.cells[Key(0, FH, "flan")].value == pytest.approx(80)
    assert result.cells[Key(0, FH, "ps")].value == pytest.approx((70 + 50 + 55) / 3)


def test_a_failed_task_is_named_in_every_cell_above_it(tmp_path):
    good = TaskInfo("b/good", "b", "C", FH, "rougeL")
    bad = TaskInfo("b/bad", "b", "C", FH, "rougeL", shots=(0, 2))
    folder = write_run(tmp_path, {good: {0: [1.0]}, bad: {2: [0.5]}})
    folder.fail("b/bad", 0, "no file")
    result = rollup(tmp_path)
    assert result.failures == {("b/bad", 0): "no file"}
    for key in (Key(0, FH, "C"), Key(0, FH), Key(0), Key(MEAN)):
        assert result.cells[key].missing == ("b/bad at 0 shots: no file",)
    assert result.cells[Key(0, FH, "C")].value == 100.0
    assert result.cells[Key(0, FH, "C", "b/bad")].value is None
    assert result.cells[Key(2)].missing == ()


def test_a_task_that_was_not_reached_yet_counts_as_missing(tmp_path):
    info = TaskInfo("b/t", "b", "C", FH, "rougeL", shots=(0, 2))
    write_run(tmp_path, {info: {0: [1.0]}})
    assert rollup(tmp_path).cells[Key(2)].value is None
    assert "not evaluated yet" in rollup(tmp_path).cells[Key(2)].missing[0]


def test_crossed_prompts_are_averaged_per_prompt_first(tmp_path):
    records = [
        record("a", 1.0, prompt_id="p1"),
        record("b", 1.0, prompt_id="p1"),
        record("a", 0.0, prompt_id="p2"),
    ]
    for prompts, expected in (("crossed", 50.0), ("pooled", 200 / 3)):
        folder = RunFolder(tmp_path / prompts)
        info = TaskInfo("b/t", "b", "C", FH, "rougeL", prompts=prompts)
        folder.open({}, [info])
        folder.write("b/t", 0, records, summary())
        assert rollup(folder.path).cells[Key(0)].value == pytest.approx(expected)


def test_averages_per_metric_are_kept_apart(tmp_path):
    a = TaskInfo("b/a", "b", "C", FH, "acc_rank")
    b = TaskInfo("b/b", "b", "C", FH, "rougeL")
    write_run(tmp_path, {a: {0: [1.0, 0.0]}, b: {0: [0.2]}})
    result = rollup(tmp_path)
    assert result.cells[Key(0)].value == pytest.approx(35.0)
    assert result.by_metric["acc_rank"][Key(0)].value == pytest.approx(50.0)
    assert result.by_metric["rougeL"][Key(0, FH)].value == pytest.approx(20.0)


def test_another_score_rule_needs_no_second_model_pass(tmp_path):
    short = Candidate("a", -1.2, 1, 3, 3, -1.5, -1.0, False)
    long = Candidate("b", -1.5, 3, 5, 5, -0.1, -1.6, False)
    folder = RunFolder(tmp_path)
    info = TaskInfo("b/t", "b", "C", FH, "acc_rank")
    folder.open({}, [info])
    scored = record("e", 0.0, candidates=(short, long), correct=(1,), prediction="a")
    folder.write("b/t", 0, [scored], summary("acc_rank"))
    assert rollup(tmp_path).cells[Key(0)].value == 0.0
    assert rollup(tmp_path, rule="mean").cells[Key(0)].value == 100.0


def test_scalars_name_levels_categories_and_averages(tmp_path):
    write_run(tmp_path, worked_example())
    scalars = rollup(tmp_path).scalars()
    assert scalars["eval/average/0shot"] == pytest.approx(50.0)
    assert scalars["eval/level/fully_supervised/5shot"] == pytest.approx(78.0)
    assert scalars["eval/category/fully_held_out/Cause_Effect/all_shots"] == pytest.approx(63.0)


def test_a_difference_pairs_instances_and_names_what_has_no_partner(tmp_path):
    info = TaskInfo("b/t", "b", "C", FH, "rougeL", shots=(0, 2))
    write_run(tmp_path / "a", {info: {0: [1.0, 0.5, 0.5], 2: [1.0]}})
    write_run(tmp_path / "b", {info: {0: [0.5, 0.5], 2: [0.0]}})
    tree = difference(rollup(tmp_path / "a"), rollup(tmp_path / "b"))
    assert tree.cells[Key(0)].value == pytest.approx(25.0)
    assert tree.cells[Key(0)].missing == ("b/t at 0 shots: 1 instances are in one evaluation only",)
    assert tree.cells[Key(2)].missing == ()


def test_evaluations_without_a_common_instance_have_no_difference(tmp_path):
    write_run(tmp_path / "a", {TaskInfo("b/t", "b", "C", FH, "rougeL"): {0: [1.0]}})
    write_run(tmp_path / "b", {TaskInfo("b/u", "b", "C", FH, "rougeL"): {0: [1.0]}})
    with pytest.raises(UserError, match="in common"):
        difference(rollup(tmp_path / "a"), rollup(tmp_path / "b"))


def test_a_task_without_a_category_is_refused(tmp_path):
    info = TaskInfo("b/t", "b", "C", FH, "rougeL")
    write_run(tmp_path, {dataclasses.replace(info, category=""): {0: [1.0]}})
    with pytest.raises(UserError, match="b/t"):
        rollup(tmp_path)


def test_printed_columns_are_combined_like_evaluated_ones(tmp_path):
    write_run(tmp_path, worked_example())
    evaluated = rollup(tmp_path)
    columns = {
        k: c.value for k, c in evaluated.cells.items() if len(k.path) == 2 and k.shots != MEAN
    }
    assert len(columns) == 9
    printed = from_columns(columns)
    for key, cell in printed.cells.items():
        assert cell.value == pytest.approx(evaluated.cells[key].value), key
    for way, value in (("A", 57.125), ("B", 507 / 9), ("levels", 58.1667)):
        assert printed.selection[way].value == pytest.approx(value, abs=5e-4)


def test_regrouping_moves_instances_and_what_is_missing(tmp_path):
    tasks = worked_example()
    folder = write_run(tmp_path, tasks)
    (failing,) = (info for info in tasks if info.task == "ps/c")
    folder.fail("ps/c", 5, "no file")

    def by_benchmark(key):
        return None if key.category == "MMLU" else (key.level, key.benchmark)

    result = regroup(rollup(tmp_path), by_benchmark, {Key(0, PS, "new", "t", "new", "t"): "absent"})
    assert failing.level == FS
    expected = rollup(tmp_path, by="benchmark").cells
    for key in (Key(0, FH, "flan"), Key(0, FH, "ps"), Key(5, FS, "ps"), Key(0, FS)):
        assert result.cells[key].value == pytest.approx(expected[key].value)
    assert Key(0, PS, "mmlu") not in result.cells
    assert "ps/c at 5 shots: no file" in result.cells[Key(5, FS, "ps")].missing
    assert result.cells[Key(0, PS, "new")].value is None
    assert result.cells[Key(0, PS)].missing == ("absent",)
    assert result.cells[Key(0, PS)].value == pytest.approx(20)
