"""The page of `optiml report` in a real browser: plots as long as the numbers, marks, tables."""

import json

import paper_run
import pytest

from optiml_jax.evaluate.records import Candidate, Record, RunFolder, TaskInfo, prompt_key
from optiml_jax.evaluate.rollup import MEAN, Key
from optiml_jax.report.answers_data import answers_data
from optiml_jax.report.report_page import write_page
from optiml_jax.report.run_tables import evidence, report
from optiml_jax.report.tables import Table

HOSTILE = "<img src=x onerror='window.hacked=1'></script><!--"
TASKS = [
    TaskInfo("b/held", "b", "Entailment", "fully_held_out", "rougeL", shots=(0, 5)),
    TaskInfo("b/odd", "b", HOSTILE, "fully_held_out", "rougeL", shots=(0, 5)),
    TaskInfo("b/taught", "b", "Arithmetic", "fully_supervised", "rougeL", shots=(0, 5)),
]


def write_answers(folder, said):
    """A ranked task of four examples; `said`: the candidate that each is answered with."""
    run = RunFolder(folder)
    info = TaskInfo("c/ranked", "c", "Entailment", "fully_held_out", "acc_rank")
    run.open({"step": 0}, [info])
    records = [
        Record(
            example_id=f"e{i}",
            prompt_id="p",
            cluster=f"c/ranked:e{i}",
            references=("yes",),
            prediction=("no", "yes")[c],
            score=float(c),
            candidates=tuple(
                Candidate(text, -float(c != j), 1, 3, 3, 0.0, 0.0, False)
                for j, text in enumerate(("no", "yes"))
            ),
            correct=(1,),
            prompt=prompt_key(f"Is {i} even?\nAnswer:"),
        )
        for i, c in enumerate(said)
    ]
    prompts = {r.prompt: f"Is {i} even?\nAnswer:" for i, r in enumerate(records)}
    summary = paper_run.summary(info, len(records))
    run.write("c/ranked", 0, records, summary, prompts)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, root):
    return {
        "small": paper_run.write_run(root / "a", TASKS),
        "middle": paper_run.write_run(root / "b", TASKS, gain=0.1, fail=[("b/odd", 5)]),
        HOSTILE: paper_run.write_run(root / "c", TASKS, gain=0.2),
    }


@pytest.fixture(scope="module")
def found(runs):
    return evidence(runs, replicates=200)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def answers(runs, root):
    write_answers(root / "before", (0, 1, 0, 1))
    write_answers(root / "after", (1, 1, 0, 0))
    folders = {"before": [root / "a", root / "before"], "after": [root / "b", root / "after"]}
    return answers_data(folders, 100)


@pytest.fixture(scope="module")
def page(tmp_path_factory, runs, found, answers):
    path = tmp_path_factory.mktemp("page") / "report.html"
    paper = [Table("Table 9: of a paper", ("column", "printed", "ours"), (("CB", "1.0", "2.0†"),))]
    write_page(
        path, runs, found, report(runs, found), paper, "training tasks", (16, 64, 1024), answers
    )
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
    average = opened.texts("#view-scores .bar-row:nth-child(2) text")
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


OUTSIDE = """(() => {
  const found = [];
  for (const card of document.querySelectorAll("section.card")) {
    if (!card.getClientRects().length) continue;
    const box = card.getBoundingClientRect();
    const parts = "svg *, h2, h3, p, summary, pre, select, input, button, .answer";
    for (const e of card.querySelectorAll(parts)) {
      if (e.closest(".scroll") || e.tagName === "title" || !e.getClientRects().length) continue;
      const r = e.getBoundingClientRect();
      if (r.left < box.left - .5 || r.right > box.right + .5)
        found.push(`${e.tagName} ${e.textContent.slice(0, 40)}: ${r.left} to ${r.right}`);
    }
    if (box.right > innerWidth + .5) found.push("the card is wider than the window");
  }
  if (document.documentElement.scrollWidth > innerWidth) found.push("the page scrolls sideways");
  return found;
})()"""


@pytest.mark.parametrize("width", [1280, 820, 390, 320])
def test_nothing_leaves_its_card_on_any_screen(browser, page, width):
    browser.resize(width)
    for view in ("scores", "lines", "gains", "answers", "paper", "tables"):
        browser.open(page, f"#{view}")
        if view == "answers":
            browser.evaluate("document.querySelectorAll('details').forEach(e => e.open = true)")
        assert browser.evaluate(OUTSIDE) == [], view
        assert browser.errors == []
    browser.resize(1280)


def test_the_axis_covers_intervals_and_baselines(opened):
    ticks = [float(t) for t in opened.texts("#view-scores .ticks text")]
    rows = json.loads(opened.evaluate("JSON.stringify(data.rows)"))
    numbers = []
    for row in rows:
        for part in row["scores"][opened.evaluate("shots()")]:
            if part and part["value"] is not None:
                numbers += [part["value"], part["baseline"], *part["interval"]]
    assert ticks[0] <= min(0, *numbers)
    assert ticks[-1] >= max(numbers)
    assert len(ticks) >= 3
    width = "e.getBoundingClientRect()"
    ends = opened.evaluate(
        f"[...document.querySelectorAll('#view-scores .whisker')].map(e => {width}.right)"
    )
    marks = "document.querySelectorAll('#view-scores .ticks line')"
    last = max(opened.evaluate(f"[...{marks}].map(e => {width}.right)"))
    assert max(ends) <= last + 0.5


def test_single_answers_are_filtered_and_flips_shown_side_by_side(browser, page):
    browser.open(page, "#answers")
    browser.choose("#a-task", "c/ranked")
    assert len(browser.texts(".example summary")) == 4
    browser.choose("#a-kind", "wrong")  # of the last run, "after"
    assert [text.split(",")[2].split()[0] for text in browser.texts(".example summary")] in (
        ["e2", "e3"],
        ["e3", "e2"],
    )
    browser.choose("#a-kind", "flipped")
    assert {text.split(",")[2].split()[0] for text in browser.texts(".example summary")} == {
        "e0",
        "e3",
    }
    browser.evaluate("document.querySelectorAll('details').forEach(e => e.open = true)")
    prompts = browser.texts(".example pre")
    assert sorted(prompts) == ["Is 0 even?\nAnswer:", "Is 3 even?\nAnswer:"]
    assert sorted(browser.texts(".answer b")) == ["after", "after", "before", "before"]
    assert "0.00  yes" in browser.texts(".answer .best")
    browser.choose("#a-kind", "")
    browser.type("#a-text", "is 2 EVEN")
    assert len(browser.texts(".example summary")) == 1
    assert browser.errors == []


def test_tables_sort_and_filter_and_begin_with_scores(browser, page):
    browser.open(page, "#tables")
    titles = browser.texts("#view-tables h3")
    assert titles.index("Levels") < titles.index("What was run") == len(titles) - 1
    shown = "[...document.querySelectorAll('#view-tables table')]"
    which = f"{shown}.find(t => t.rows[0].cells[2].textContent === 'task')"  # "Tasks"
    column = f"[...{which}.tBodies[0].rows].filter(r => !r.hidden).map(r => r.cells[5].textContent)"
    browser.evaluate(f"{which}.rows[0].cells[5].querySelector('button').click()")
    values = [float(v.rstrip("†")) for v in browser.evaluate(column) if v[0].isdigit()]
    assert values == sorted(values, reverse=True)
    browser.evaluate(f"{which}.rows[0].cells[5].querySelector('button').click()")
    values = [float(v.rstrip("†")) for v in browser.evaluate(column) if v[0].isdigit()]
    assert values == sorted(values)
    field = "[...document.querySelectorAll('#view-tables .filter')].pop()"
    before = browser.evaluate(
        f"{field}.parentElement.querySelectorAll('tbody tr:not([hidden])').length"
    )
    browser.evaluate(f"{field}.value = 'taught'; {field}.dispatchEvent(new Event('input'))")
    after = browser.evaluate(
        f"{field}.parentElement.querySelectorAll('tbody tr:not([hidden])').length"
    )
    assert 0 < after < before
    assert browser.errors == []
