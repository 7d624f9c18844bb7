"""What a study's report says: points, intervals, fit, choice, figures.

The fit is compared with numpy's, the choice with scores that were made so.
"""

import csv
import json
import re

import gin
import numpy as np
import pytest
from study_bench import LEVELS, finish, planned

from optiml_jax.cli.gin_files import read_settings
from optiml_jax.cli.study import FIGURES, PUBLISHED
from optiml_jax.evaluate.records import RunFolder
from optiml_jax.report.published import load_all
from optiml_jax.study.choice import choose
from optiml_jax.study.report import write_report
from optiml_jax.study.results import results_of, rows_of, unknown_rows

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
    tables = load_all([PUBLISHED, FIGURES])
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
