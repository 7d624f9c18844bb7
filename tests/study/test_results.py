"""What a study's report says: points, intervals, fit, choice, figures.

The fit is compared with numpy's, the choice with scores that were made so.
"""

import csv
import dataclasses
import json
import re

import gin
import numpy as np
import pytest
import yaml
from study_bench import LEVELS, finish, planned

from optiml_jax.cli.gin_files import read_settings
from optiml_jax.cli.printed import FIGURES, PUBLISHED, printed_results
from optiml_jax.errors import UserError
from optiml_jax.evaluate.records import RunFolder
from optiml_jax.study.choice import choose
from optiml_jax.study.report import write_report
from optiml_jax.study.results import results_of, rows_of, unknown_rows
from tasks.splits import Manifest

SCORES = {
    "10": dict(zip(LEVELS, (0.30, 0.50), strict=True)),
    "20": dict(zip(LEVELS, (0.34, 0.52), strict=True)),
    "40": dict(zip(LEVELS, (0.35, 0.60), strict=True)),
}
NUMERIC = {"positions": {"10": 10.0, "20": 20.0, "40": 40.0}, "logarithmic": True, "fit": True}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A finished study with two seeds, and its results."""
    from optiml_jax.study import state

    patch = pytest.MonkeyPatch()
    patch.setattr(state, "find_checkpoint", lambda place, items: place)
    plan = planned(tmp_path_factory.mktemp("studies"), seeds=(1, 2), **NUMERIC)
    finish(plan, SCORES)
    yield plan, results_of(plan), write_report(plan)
    patch.undo()


def test_points_are_means_of_the_seeds_with_intervals_around_them(study):
    rows = [r for r in rows_of(study[1]) if r["kind"] == "level" and r["shots"] == 0]
    for row in rows:
        expected = 100 * (SCORES[row["variant"]][row["level"]] + 0.015)
        assert row["score"] == pytest.approx(expected)
        assert row["low"] < expected < row["high"]
        assert row["high"] - row["low"] > 2  # seeds differ by a point: two of them know little
        assert row["seeds"] == 2
    assert len(rows) == 6


def test_the_slope_is_the_least_squares_one(study):
    x = np.log2([10, 20, 40])
    for fit in study[1].fits:
        if fit.category or fit.shots != 0 or not fit.level:
            continue
        y = [100 * (SCORES[v][fit.level] + 0.015) for v in SCORES]
        slope, intercept = np.polyfit(x, y, 1)
        assert fit.slope == pytest.approx(slope)
        assert fit.intercept == pytest.approx(intercept)
        assert fit.residual == pytest.approx(np.abs(y - (slope * x + intercept)).max())
        assert fit.interval.low < slope < fit.interval.high


def test_the_choice_names_what_is_within_noise_and_passes_on_what_it_changes(study, tmp_path):
    plan, results, (_, written) = study
    choice = choose(results)
    assert choice.variant == "40"
    assert written == choice
    assert "Of 3 variants of EPS, '40' has the highest average" in choice.sentence
    close = planned(tmp_path / "close", seeds=(1,), **NUMERIC)
    finish(close, SCORES | {"20": {level: s - 1e-4 for level, s in SCORES["40"].items()}})
    tied = choose(results_of(close))
    assert (tied.variant, tied.tied) == ("40", ("20",))
    assert "within noise of it: '20'" in tied.sentence
    gin.clear_config()
    assert read_settings([str(plan.folder / "choice.gin")], []) == {"Mixture.eps": 40}
    gin.clear_config()


def test_reports_of_the_same_runs_are_the_same_files(study):
    plan = study[0]
    folder = plan.folder / "report"
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    write_report(plan)
    assert first == {path.name: path.read_bytes() for path in folder.iterdir()}
    forms = {
        f"{name}.{form}" for name in ("levels", "categories") for form in ("svg", "pdf", "png")
    }
    assert forms | {"figures.json", "figures.csv", "report.html", "report.md"} < first.keys()
    data = json.loads((folder / "figures.json").read_text())
    with open(folder / "figures.csv", encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == len(data["points"])


def test_no_text_of_a_figure_is_cut_off(study):
    """Every glyph of the SVG lies in its view box."""
    plan = study[0]
    for name in ("levels", "categories"):
        text = (plan.folder / "report" / f"{name}.svg").read_text()
        width, height = map(float, re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text).groups())
        places = re.findall(r'<g style="[^"]*" transform="translate\(([\d.-]+) ([\d.-]+)\)', text)
        places += re.findall(r'<g transform="translate\(([\d.-]+) ([\d.-]+)\)', text)
        assert len(places) > 20
        assert all(0 <= float(x) <= width and 0 <= float(y) <= height for x, y in places)


def test_runs_without_a_score_are_named(tmp_path):
    plan = planned(tmp_path, seeds=(1,), **NUMERIC)
    assert write_report(plan) is None  # nothing is evaluated
    finish(plan, SCORES)
    run = plan.runs["20", 1]
    (run.evaluation / "tasks.json").rename(tmp_path / "gone.json")
    failed = RunFolder(plan.runs["10", 1].evaluation)
    for info in failed.load()[1]:
        for shots in info.shots:
            failed.fail(info.task, shots, "no usable row")
    _, choice = write_report(plan)
    assert choice.sentence.endswith(
        "Not evaluated, so not compared: 10, seed 1 (done, 8 task x shots failed: "
        "b/fully_held_out_1 at 0 shots: no usable row); 20, seed 1 (evaluate waiting)."
    )
    assert json.loads((plan.folder / "report/figures.json").read_text())["fits"] == []


def test_a_factor_that_changes_nothing_is_said(study, tmp_path):
    plan = planned(tmp_path, seeds=(1,), **NUMERIC)
    finish(plan, SCORES | {"40": SCORES["20"]})
    (levels, *_), _ = write_report(plan)
    assert levels.notes[-1].startswith("20, 40 have identical scores")
    (levels, *_), _ = study[2]
    assert not any("the same scores" in note for note in levels.notes)


@pytest.mark.parametrize(
    ("name", "number", "variant", "cell", "expected"),
    [  # the paper's text: (level, category, shots) -> number
        ("eps", 4, "512", ("fully_held_out", "Stereotype Detection", 0), 55.2),
        ("proportions", 5, "4/2/20/25/45/2/2", ("fully_held_out", "promptsource", 5), 85.0),
        ("dialogue", 7, "0.5 %", ("fully_held_out", "Word Analogy", 0), 10.4),
        ("metaicl", 8, "a=2, suffix loss", ("partially_held_out", "MMLU", 5), 38.0),
        ("tasks", "Figure 2", "all", ("fully_supervised", "Summarization", 0), 31.3),
        ("pretrain", "Figure 4", "0", ("fully_held_out", "Word Analogy", 5), 57.8),
        ("reasoning", "Figure 5", "0", ("partially_held_out", "Reasoning", 5), 21.3),
    ],
)
def test_the_papers_numbers_stand_beside(monkeypatch, name, number, variant, cell, expected):
    said = {"eps": "4,096 50 %", "tasks": "Word Analogy", "reasoning": "from 12.2 to 31.6"}
    from optiml_jax.cli.study import plan_of, read_studies

    monkeypatch.setenv("OPTIML_DATA", "/data")
    gin.clear_config()
    read_settings([f"gin/studies/{name}.gin"], [])
    ((study, _),) = read_studies()
    tables = printed_results([PUBLISHED, FIGURES], Manifest.load())
    assert study.published == number
    assert unknown_rows(study, tables) == []
    results = results_of(plan_of(study, ()), tables)
    assert said.get(name, "") in results.remark
    rows = rows_of(results)
    found = {
        (r["variant"], r["level"], r["category"], r["shots"]): r["score"]
        for r in rows
        if r["source"].startswith("Iyer et al., 2022")
    }
    assert found[variant, *cell] == expected
    gin.clear_config()


ROW = """  - {model: OPT-IML 30B, setting: "16", cells: [50.5/51.5, 86.1/87.5, 58.9/82.3, 17.2/57.8,
     2.6/20.4, 41.5/37.0, 69.3/58.9, 18.1/-, 60.0/70.0, 16.1/15.8,
     87.6/83.5, 31.3/-]}
"""
TABLE_21 = """- table: 21
  title: Separators
  roles: [dev]
  shots: [0, 5]
  columns:
  - {name: Cause Effect, level: fully_held_out, category: Cause Effect Classification}
  rows:
  - {model: OPT-IML 30B, setting: "newlines -> ###", cells: [61.5/62.5]}
"""


def test_rows_of_the_appendix_that_the_user_adds_need_no_other_change(monkeypatch, tmp_path):
    """The numbers of the rows are made up."""
    from optiml_jax.cli.study import plan_of, read_studies

    monkeypatch.setenv("OPTIML_DATA", "/data")
    file = tmp_path / "published_figures.yaml"
    before, rows, after = FIGURES.read_text("utf-8").partition("  rows:\n")  # Figure 2 is first
    file.write_text(before + rows + ROW + after + TABLE_21, "utf-8")
    tables = printed_results([PUBLISHED, file], Manifest.load())
    for name, variant, numbers in (
        ("tasks", "16", {0: 50.5, 5: 51.5}),
        ("tasks", "all", {0: 63.5, 5: 62.5}),
        ("separators", "newlines -> ###", {0: 61.5, 5: 62.5}),
    ):
        gin.clear_config()
        read_settings([f"gin/studies/{name}.gin"], [])
        ((study, _),) = read_studies()
        assert unknown_rows(study, tables) == []
        found = {
            r["shots"]: r["score"]
            for r in rows_of(results_of(plan_of(study, ()), tables))
            if (r["variant"], r["category"]) == (variant, "Cause Effect Classification")
        }
        assert numbers.items() <= found.items()
    gin.clear_config()


def test_an_added_row_stands_in_the_table_and_the_figure(study, tmp_path):
    plan, *_ = study
    own = dataclasses.replace(
        plan, study=dataclasses.replace(plan.study, published="Figure 9", unpublished=("10", "20"))
    )
    file = tmp_path / "figures.yaml"
    head = {"table": "Figure 9", "title": "EPS", "roles": ["dev"], "shots": [0, 2]}
    column = {"name": "C", "level": "fully_held_out", "category": "Word Analogy"}
    found = {}
    for setting in ("40", "20"):
        rows = [{"model": "OPT", "setting": "40", "cells": ["12.3/-"]}]
        rows += [{"model": "OPT", "setting": "20", "cells": ["77.7/-"]}] * (setting == "20")
        table = head | {"columns": [column], "rows": rows}
        file.write_text(yaml.safe_dump({"tables": [table], "source": "The paper"}), "utf-8")
        printed = printed_results([file], Manifest.load())
        assert unknown_rows(own.study, printed) == []
        write_report(own, printed)
        folder = plan.folder / "report"
        found[setting] = [(folder / n).read_text() for n in ("report.md", "levels.svg")]
        with (folder / "figures.csv").open() as data:
            points = [row for row in csv.DictReader(data) if row["source"].startswith("The paper")]
        theirs = {(r["variant"], r["score"]) for r in points if r["level"] == "fully_held_out"}
        assert theirs >= {("40", "12.3")} | ({("20", "77.7")} if setting == "20" else set())
    (one, figure), (both, larger) = found["40"], found["20"]
    assert "12.3" in one
    assert "77.7" not in one
    assert "77.7" in both
    assert figure != larger


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("levle: fully_held_out", "line 10, table 1 .Figure 9., column 2: unknown key 'levle'"),
        ("level: fully_heldout", "line 10, table 1 .* column 2: unknown level 'fully_heldout'; kn"),
        ("category: Word Analogie", "line 10, .* unknown category 'Word Analogie'; is 'Word Analo"),
        ("benchmark: promptsourc", "line 10, .* unknown benchmark 'promptsourc'; is 'promptsource"),
    ],
)
def test_a_misspelt_column_is_named_with_its_line(tmp_path, change, message):
    file = tmp_path / "figures.yaml"
    file.write_text(f"""# Points of the figures.
tables:
- table: Figure 9
  title: EPS
  roles: [dev]
  shots: [0]

  columns:
  - {{name: C}}
  - {{name: D, {change}}}
  rows:
  - {{model: OPT, cells: [1, 2]}}
""")
    with pytest.raises(UserError, match=f"{file}, {message}"):
        printed_results([file], Manifest.load())
