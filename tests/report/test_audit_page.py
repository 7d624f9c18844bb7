"""The report of an audit in a real browser: what is marked is shown, and nothing leaves its box."""

import pytest

from optiml_jax.audit.words import AuditWords
from optiml_jax.report.audit_report import Example, Section, marked, write_report
from optiml_jax.report.tables import Table

HOSTILE = "<img src=x onerror='window.hacked=1'></script><!--"
LONG = "https://data.example/" + "a" * 300  # nothing in it to break a line at
SPAN = "one two three four five six seven eight nine ten eleven twelve thirteen"
TASK = "superni/task1344_glue_entailment_classification_of_a_task_with_a_long_name"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audit")
    texts = (f"{HOSTILE} {SPAN}, {LONG}", f"{LONG}\n{SPAN.upper()} | {HOSTILE}")
    example = Example(LONG, "e1", *(marked(text, SPAN, AuditWords()) for text in texts))
    facts = (("state", "undecided"), ("data", HOSTILE), ("reason", LONG))
    sections = [Section(f"{TASK} \u2192 {HOSTILE}", facts, (example,) * 3)]
    sections += [Section(f"{LONG} \u2192 {TASK}", facts, ())]
    columns = ("training task", "evaluation task", "state", "data", "train", "eval", "% content")
    row = (TASK, LONG, "undecided", HOSTILE, "1,000", "100", "12.0")
    tables = [Table("Pairs", columns, (row,) * 5, text_columns=4, notes=(LONG,))]
    paths = write_report(folder, [f"3 of 100 examples. {HOSTILE}", LONG], tables, sections)
    return next(path for path in paths if path.suffix == ".html")


@pytest.fixture
def opened(browser, page):
    browser.resize(1280)
    browser.open(page)
    yield browser
    assert browser.errors == []
    assert browser.requests == [page.as_uri()]  # self-contained
    assert not browser.evaluate("window.hacked")
    browser.resize(1280)


def test_examples_stand_side_by_side_with_the_span_marked(opened):
    assert opened.texts("mark") == [f"{SPAN},", SPAN.upper()] * 3
    assert len(opened.texts(".pair > div")) == 6
    left, right = opened.evaluate(
        "[...document.querySelectorAll('.pair > div')].slice(0, 2)"
        ".map(e => { const r = e.getBoundingClientRect(); return [r.top, r.left]; })"
    )
    assert left[0] == right[0]
    assert left[1] < right[1]
    assert opened.texts("h3")[0].endswith(HOSTILE)
    assert opened.evaluate("document.querySelectorAll('main img, main script').length") == 0
    assert len(opened.texts("tbody tr, table tr")) == 6


OUTSIDE = """(() => {
  const found = [];
  const page = document.documentElement;
  if (page.scrollWidth > innerWidth) found.push(`the page is ${page.scrollWidth} wide`);
  for (const e of document.querySelectorAll("main *")) {
    if (e.closest(".wide") && !e.matches(".wide")) continue;  // its table scrolls
    const box = (e.closest(".pair > div") || e.closest("main")).getBoundingClientRect();
    for (const r of e.getClientRects())
      if (r.left < box.left - .5 || r.right > box.right + .5)
        found.push(`${e.tagName} ${e.textContent.slice(0, 40)}: ${r.left} to ${r.right}`);
  }
  return found;
})()"""


@pytest.mark.parametrize("width", [1280, 820, 390, 320])
def test_nothing_leaves_its_box_on_any_screen(opened, page, width):
    opened.resize(width)
    opened.open(page)
    assert opened.evaluate(OUTSIDE) == []
    tops = opened.evaluate(
        "[...document.querySelectorAll('.pair > div')].slice(0, 2)"
        ".map(e => e.getBoundingClientRect().top)"
    )
    assert (tops[0] == tops[1]) == (width > 800)  # one below the other on a phone
