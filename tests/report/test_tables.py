"""The tables: what they must show, and that their formats can be read back."""

import csv
import dataclasses
import io
import shutil
import subprocess

import pytest

from optiml_jax.evaluate.records import Record, RunFolder, TaskInfo
from optiml_jax.evaluate.rollup import rollup
from optiml_jax.report.run_tables import cells_table, evidence, report
from optiml_jax.report.tables import MARK, Table, latex, render

FH, FS = "fully_held_out", "fully_supervised"
TASKS = [
    TaskInfo("b/odd|name", "b", "Word Games", FH, "rougeL", shots=(0, 2)),
    TaskInfo("b/left", "b", "Entailment", FH, "acc_rank", "sides", shots=(0, 2)),
    TaskInfo("b/right", "b", "Entailment", FH, "acc_rank", "sides", shots=(0, 2)),
    TaskInfo("b/taught", "b", "Arithmetic", FS, "acc_rank", shots=(0, 2)),
]


def summary(info, shots, **more):
    return {
        "metric": info.metric,
        "num_instances": 10,
        "best_constant": {"answer": "a", "score": 0.3},
        "effective_shots": {"mean": float(shots), "min": shots},
        "num_truncated": 0,
        "num_ties": 0,
        "num_unfinished": 0,
        "metrics": {},
    } | more


def write_run(path, gain=0.0, fail=(), **more):
    folder = RunFolder(path)
    folder.open({"delimiter": "A:"}, TASKS)
    for info in TASKS:
        for shots in info.shots:
            if (info.task, shots) in fail:
                folder.fail(info.task, shots, "file cut in half")
                continue
            records = [
                Record(f"e{i}", "p", f"{info.task}:{i}", ("a",), "a", min(1.0, i / 20 + gain))
                for i in range(10)
            ]
            folder.write(info.task, shots, records, summary(info, shots, **more))
    return rollup(path)


@pytest.fixture
def before(tmp_path):
    return write_run(tmp_path / "before")


@pytest.fixture
def after(tmp_path):
    return write_run(tmp_path / "after", gain=0.25, fail=[("b/odd|name", 2)])


def report_of(runs, replicates):
    return report(runs, evidence(runs, replicates))


def text_of(runs):
    return "\n".join(render(table, "terminal") for table in report_of(runs, 50))


def by_title(tables):
    return {t.title: t for t in tables}


def row(table, *start):
    (found,) = [r for r in table.rows if r[: len(start)] == start]
    return dict(zip(table.columns, found, strict=True))


def test_a_report_of_two_runs_shows_scores_gains_and_the_best_constant(before, after):
    tables = by_title(report_of({"before": before, "after": after}, 300))
    levels = row(tables["Levels"], "fully supervised")
    assert levels["baseline"] == "30.0"
    assert (levels["before 0-shot"], levels["after mean"]) == ("22.5", "47.5")
    gain = row(tables["Gain of after over before"], "fully supervised", "mean")
    assert (gain["before"], gain["after"], gain["gain"]) == ("22.5", "47.5", "+25.0")
    assert gain["95 % CI"] == "[+25.0, +25.0]"
    shown = [r[1] for r in tables["Gain of after over before"].rows if r[0] == "fully supervised"]
    assert shown == ["0-shot", "2-shot", "mean"]
    by_category = tables["Gain of after over before by category"]
    assert row(by_category, "fully supervised", "Arithmetic")["gain"] == "+25.0"
    assert any("demonstrations in them on average, acc_rank" in n for n in by_category.notes)
    assert gain["baseline"] == "30.0"
    assert (gain["tasks"], gain["examples"], gain["w/t/l"]) == ("1", "10", "1/0/0")


def test_a_comparison_of_two_precisions_is_marked(before, after):
    in_half = {"dtype": "bfloat16", "params_dtype": "bfloat16"}
    whole = dataclasses.replace(before, run=before.run | dict.fromkeys(in_half, "float32"))
    half = dataclasses.replace(after, run=after.run | in_half)
    marked = "\n".join(
        render(t, "terminal") for t in report_of({"before": whole, "after": half}, 50)
    )
    said = "before computed in float32 with weights in float32, after computed in bfloat16"
    assert f"{MARK} two precisions: {said} with weights in bfloat16" in marked
    assert "after: delimiter 'A:'" in marked
    assert "two precisions" not in text_of({"before": half, "after": half})


def test_a_comparison_on_other_examples_is_said(tmp_path, before):
    runs = {
        name: write_run(tmp_path / name, source={"examples": examples})
        for name, examples in (("a", "h1"), ("b", "h1"), ("c", "h2"))
    }
    assert "not the same data: 8 task x shots" in text_of(runs)
    for same in ({"a": runs["a"], "b": runs["b"]}, {"old": before, "a": runs["a"]}):
        assert "not the same data" not in text_of(same)


def test_a_failed_task_is_marked_in_its_row_and_in_every_average(before, after):
    tables = by_title(report_of({"before": before, "after": after}, 300))
    task = row(tables["Tasks"], "fully held-out", "Word Games", "b/odd|name")
    assert (task["after 0-shot"], task["after 2-shot"]) == ("47.5", "failed")
    for title, start in (
        ("Categories", ("all categories",)),
        ("Levels", ("fully held-out",)),
        ("Levels", ("all categories",)),
    ):
        found = row(tables[title], *start)
        assert found["after 2-shot"].endswith(MARK)
        assert not found["before 2-shot"].endswith(MARK)
        assert not found["after 0-shot"].endswith(MARK)
    note = f"{MARK} without after: b/odd|name at 2 shots: file cut in half"
    assert note in tables["Levels"].notes
    gain = row(tables["Gain of after over before"], "fully held-out", "2-shot")
    assert gain["gain"].endswith(MARK)


def test_sub_tasks_stand_below_their_task(before):
    table = by_title(report_of({"run": before}, 300))["Tasks"]
    names = [r[2] for r in table.rows]
    start = names.index("sides")
    assert names[start : start + 3] == ["sides", "  b/left", "  b/right"]


def test_one_run_gets_intervals(before):
    table = by_title(report_of({"run": before}, 300))["Levels with intervals"]
    found = row(table, "fully held-out", "0-shot")
    low, high = (float(x) for x in found["95 % CI"].strip("[]").split(", "))
    assert low < 22.5 < high
    assert found["score"] == "22.5"


def test_metrics_are_shown_apart_when_they_are_mixed(before):
    table = by_title(report_of({"run": before}, 300))["Levels by metric"]
    assert row(table, "rougeL", "fully held-out")["tasks"] == "1"
    assert row(table, "acc_rank", "all categories")["0-shot"] == "22.5"


def test_what_was_cut_tied_or_left_unfinished_is_shown(tmp_path):
    tree = write_run(
        tmp_path,
        effective_shots={"mean": 1.5, "min": 1},
        num_truncated=3,
        num_ties=2,
        num_unfinished=7,
        metrics={"num_empty_references": 4.0},
    )
    table = by_title(report_of({"run": tree}, 300))["What was run"]
    assert len(table.rows) == 8
    found = row(table, "run", "b/taught", "acc_rank", "a", "2")
    assert found["demonstrations"] == "1.5 (least 1)"
    assert [found[k] for k in ("truncated", "ties", "without end", "blank references")] == [
        *("3", "2", "7", "4")
    ]
    assert "delimiter 'A:'" in table.notes[0]


def test_markdown_keeps_its_columns_when_a_name_holds_a_bar(before):
    table = by_title(report_of({"run": before}, 300))["Tasks"]
    lines = [x for x in render(table, "markdown").splitlines() if x.startswith("|")]
    bars = {line.replace("\\|", "").count("|") for line in lines}
    assert bars == {len(table.columns) + 1}
    assert "b/odd\\|name" in render(table, "markdown")


def test_terminal_output_aligns_every_row(before):
    text = render(by_title(report_of({"run": before}, 300))["Levels"], "terminal")
    body = text.splitlines()[2:]
    header, rule = body[0], body[1]
    assert set(rule) == {"-", " "}
    assert len(header) <= len(rule)
    assert any(line.startswith("fully held-out") for line in body)


def test_csv_reads_back_as_the_table(before, after):
    table = cells_table({"before": before, "after": after})
    header, *rows = csv.reader(io.StringIO(render(table, "csv")))
    assert tuple(header) == table.columns
    assert [tuple(r) for r in rows] == list(table.rows)
    cells = [dict(zip(header, r, strict=True)) for r in rows]
    (failed,) = [
        c
        for c in cells
        if c["run"] == "after" and c["subtask"] == "b/odd|name" and c["shots"] == "2"
    ]
    assert failed["score"] == ""
    assert "file cut in half" in failed["missing"]


def test_an_empty_table_still_renders():
    assert "name" in render(Table("T", ("name",), ()), "terminal")


HOSTILE = Table(
    '50 % of {a_b} & $x^2$ ~ \\input{x} <i> "q"',
    ("na|me", "[x]", "*n"),
    (("a_b", "[1]", "*2"), ("猫\x1b[31m", "é\tü", f"–{MARK} … ± ×")),
    notes=("note # 1", "two\nlines"),
)


def test_control_characters_of_a_name_do_not_reach_the_terminal():
    for form in ("terminal", "markdown"):
        text = render(HOSTILE, form)
        assert "\x1b" not in text
        assert "two lines" in text
    assert "&lt;i>" in render(HOSTILE, "markdown")


def test_latex_escapes_what_it_would_read():
    text = latex([HOSTILE])
    assert r"\caption{50 \% of \{a\_b\} \& \$x\textasciicircum{}2\$" in text
    assert r"\textbackslash{}input\{x\} \textless{}i\textgreater{}" in text
    assert r"{[U+732B] [31m} & {é ü} & {--\textdagger{} \dots{} $\pm$ $\times$} \\" in text
    assert r"\begin{longtable}{lrr}" in text
    assert r"\toprule" in text


def test_latex_compiles(tmp_path, before, after):
    if shutil.which("pdflatex") is None:
        pytest.skip("no pdflatex in PATH")
    tables = [HOSTILE, Table("Empty", ("a", "b"), ())]
    tables += report_of({"before": before, "after": after}, 100)
    (tmp_path / "report.tex").write_text(latex(tables), "utf-8")
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "report.tex"]
    made = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert made.returncode == 0, made.stdout[-2000:]
    assert (tmp_path / "report.pdf").stat().st_size > 10_000


def test_what_failed_stands_in_a_table_of_its_own_and_marks_every_format(before, after):
    tables = report_of({"before": before, "after": after}, 100)
    assert tables[0].title == "Failed or missing"
    assert tables[0].rows == (("after", "b/odd|name", "2", "file cut in half"),)
    assert "Failed or missing" not in by_title(report_of({"before": before}, 100))
    levels = by_title(tables)["Levels"]
    for form in ("terminal", "markdown", "csv"):
        assert MARK in render(levels, form)
    assert r"\textdagger{} without after: b/odd\textbar{}name at 2 shots" in latex([levels])
