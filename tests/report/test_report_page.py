"""The page of `optiml report` in a real browser: plots as long as the numbers, marks, tables."""

import json

import paper_run
import pytest
from browser import Browser, find_browser

from optiml_jax.evaluate.records import TaskInfo
from optiml_jax.evaluate.rollup import MEAN, Key
from optiml_jax.report.report_page import write_page
from optiml_jax.report.run_tables import evidence, report
from optiml_jax.report.tables import Table

HOSTILE = "<img src=x onerror='window.hacked=1'></script><!--"
TASKS = [
    TaskInfo("b/held", "b", "Entailment", "fully_held_out", "rougeL", shots=(0, 5)),
    TaskInfo("b/odd", "b", HOSTILE, "fully_held_out", "rougeL", shots=(0, 5)),
    TaskInfo("b/taught", "b", "Arithmetic", "fully_supervised", "rougeL", shots=(0, 5)),
]


@pytest.fixture(scope="module")
def browser():
    path = find_browser()
    if path is None:
        pytest.skip("no Chromium or Chrome in PATH; name one in OPTIML_BROWSER")
    browser = Browser(path)
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return {
        "small": paper_run.write_run(root / "a", TASKS),
        "middle": paper_run.write_run(root / "b", TASKS, gain=0.1, fail=[("b/odd", 5)]),
        HOSTILE: paper_run.write_run(root / "c", TASKS, gain=0.2),
    }


@pytest.fixture(scope="module")
def found(runs):
    return evidence(runs, replicates=200)


@pytest.fixture(scope="module")
def page(tmp_path_factory, runs, found):
    path = tmp_path_factory.mktemp("page") / "report.html"
    paper = [Table("Table 9: of a paper", ("column", "printed", "ours"), (("CB", "1.0", "2.0†"),))]
    write_page(path, runs, found, report(runs, found), paper, "training tasks", (16, 64, 1024))
    return path


@pytest.fixture
def opened(browser, page):
    browser.open(page)
    yield browser
    assert browser.errors == []
    assert browser.requests == [page.as_uri()]  # self-contained
    assert not browser.evaluate("window.hacked")


def marks(browser, selector, *also):
    """(row, run, value, further attributes of their geometry) of drawn marks."""
    parts = ", ".join(["e.dataset.row", "e.dataset.run", "e.dataset.value", *also])
    found = browser.evaluate(
        f"[...document.querySelectorAll({json.dumps(selector)})].map(e => [{parts}])"
    )
    return {(row, run): [float(value), *more] for row, run, value, *more in found}


def test_bars_are_as_long_as_the_scores(opened, runs):
    bars = marks(opened, "#view-scores rect", "e.getBoundingClientRect().width")
    assert len(bars) == 3 * (1 + 2 + 3)
    lengths = {length / value for value, length in bars.values()}
    assert max(lengths) == pytest.approx(min(lengths), rel=0.01)
    for i, tree in enumerate(runs.values()):
        assert bars["all categories", str(i)][0] == pytest.approx(tree.cells[Key(MEAN)].value)
        held = tree.cells[Key(MEAN, "fully_held_out", "Entailment")].value
        assert bars["Entailment", str(i)][0] == pytest.approx(held)


def test_an_average_that_lacks_a_task_is_marked_and_says_which(opened):
    opened.choose("#shots", "5-shot")
    assert opened.texts("#view-scores h2") == ["Scores, 5-shot"]
    average = opened.texts("#view-scores .bar-row:first-child text")
    assert [text.endswith("†") for text in average] == [False, True, False]
    titles = opened.evaluate("[...document.querySelectorAll('title')].map(e => e.textContent)")
    assert any("b/odd at 5 shots: file cut in half" in title for title in titles)
    assert "missing†" in opened.texts("#view-scores text")
    opened.choose("#shots", "0-shot")
    assert not any("†" in text for text in opened.texts("#view-scores text"))
    assert "2 task x shots" not in opened.texts("#summary")[0]
    assert "1 task x shots failed or missing" in opened.texts("#summary")[0]


def test_lines_go_over_the_given_positions(opened):
    opened.click("#tab-lines")
    opened.wait("document.querySelectorAll('#view-lines circle').length == 9")
    points = opened.evaluate(
        "[...document.querySelectorAll('#view-lines circle')]"
        ".filter(e => e.dataset.row == 'all categories').map(e => +e.getAttribute('cx'))"
    )
    assert points[1] - points[0] == pytest.approx((points[2] - points[0]) / 3)  # 16, 64, 1024
    assert "training tasks (logarithmic)" in opened.texts("#view-lines text")
    hollow = opened.evaluate(
        "[...document.querySelectorAll('#view-lines circle')]"
        ".filter(e => e.style.fill == 'var(--card)').map(e => e.dataset.row)"
    )
    assert hollow == ["all categories", "fully held-out"]


def test_gains_are_those_of_the_paired_comparison(opened, found):
    opened.click("#tab-gains")
    opened.wait("document.querySelectorAll('#view-gains circle').length > 0")
    points = marks(opened, "#view-gains circle", "parseFloat(e.getAttribute('cx'))")
    for i, gains in enumerate(found.gains.values(), 1):
        assert points["all categories", str(i)][0] == pytest.approx(gains[Key(MEAN)].delta)
    # On one scale: equal differences are equally far apart.
    a, b = points["all categories", "1"], points["Arithmetic", "2"]
    c = points["Entailment", "2"]
    assert (b[1] - a[1]) * (c[0] - a[0]) == pytest.approx((c[1] - a[1]) * (b[0] - a[0]), abs=0.1)


def test_runs_can_be_left_out(opened):
    opened.click("#runs [data-run='1']")
    opened.wait("document.querySelectorAll('#view-scores rect').length == 12")
    assert opened.texts("#runs [aria-pressed=false]") == ["middle"]


def test_hostile_names_are_shown_and_not_run(opened):
    assert HOSTILE in opened.texts("#runs button")
    assert any(HOSTILE in text for text in opened.texts("#view-scores .bar-row > div"))
    assert opened.evaluate("document.querySelectorAll('main img, main script').length") == 0


def test_tables_are_there_beside_the_plots(opened):
    opened.click("#tab-paper")
    opened.wait("!document.querySelector('#view-paper').hidden")
    assert opened.texts("#view-paper h3") == ["Table 9: of a paper"]
    assert opened.texts("#view-paper td") == ["CB", "1.0", "2.0†"]
    assert opened.texts("#controls") == []
    opened.click("#tab-tables")
    opened.wait("!document.querySelector('#view-tables').hidden")
    titles = opened.texts("#view-tables h3")
    assert titles[0] == "Failed or missing"
    assert "Levels" in titles


def test_one_run_has_neither_lines_nor_gains(browser, tmp_path, runs):
    one = {"small": runs["small"]}
    found = evidence(one, replicates=50)
    write_page(tmp_path / "one.html", one, found, report(one, found), [], "training step", ())
    browser.open(tmp_path / "one.html")
    assert browser.texts("nav button") == ["Scores", "Tables"]
    assert browser.errors == []


def test_it_fits_a_phone_in_the_dark(browser, page):
    emulated = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
    browser.call("Emulation.setDeviceMetricsOverride", **emulated)
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    browser.call("Emulation.setEmulatedMedia", features=dark)
    browser.open(page)
    for tab in ("scores", "lines", "gains", "paper", "tables"):
        browser.open(page, f"#{tab}")
        assert browser.evaluate("document.documentElement.scrollWidth") <= 360, tab
    assert browser.evaluate("document.documentElement.dataset.theme") == "dark"
    browser.call("Emulation.clearDeviceMetricsOverride")
    browser.call("Emulation.setEmulatedMedia", features=[])
    assert browser.errors == []
