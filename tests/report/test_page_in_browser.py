"""The page of `optiml inspect` in a real browser: it loads, filters, renders and draws."""

import pytest
from inspect_bench import HOSTILE, write_page


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return write_page(tmp_path_factory.mktemp("page") / "page.html")


@pytest.fixture
def opened(browser, page):
    """The browser with the page loaded; afterwards nothing must have gone wrong."""
    browser.open(page)
    yield browser
    assert browser.errors == []
    assert browser.requests == [page.as_uri()]  # self-contained
    assert not browser.evaluate("window.hacked")


def names(browser) -> list[str]:
    return browser.texts("#list b")


def test_all_tasks_are_listed_and_the_first_is_shown(opened):
    assert opened.texts("h1") == ["small: tasks and mixture"]
    assert names(opened) == ["ordinary_task", "hostile", "unreadable"]
    assert opened.texts("#detail h2") == ["alpha/ordinary_task"]
    assert "role train" in opened.texts(".chips span")


def test_search_looks_into_names_and_prompts(opened):
    opened.type("#search", "HOST")
    assert names(opened) == ["hostile"]
    opened.type("#search", "pick text")  # words of a prompt, in any order
    assert names(opened) == ["ordinary_task"]
    opened.type("#search", "read")  # a prompt of the first task, the name of the last
    assert names(opened) == ["unreadable", "ordinary_task"]
    opened.type("#search", "nothing like it")
    assert names(opened) == []
    assert opened.texts("#count") == ["0 of 3 tasks"]


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"benchmark": "beta"}, ["hostile", "unreadable"]),
        ({"category": "Question Answering"}, ["ordinary_task"]),
        ({"level": "fully_held_out"}, ["hostile"]),
        ({"role": "test"}, ["ordinary_task", "hostile"]),
        ({"benchmark": "beta", "role": "train"}, ["unreadable"]),
    ],
)
def test_filters(opened, filters, expected):
    for name, value in filters.items():
        opened.choose(f"#{name}", value)
    assert names(opened) == expected


def test_an_example_is_rendered_with_its_parts_and_lengths(opened):
    # A token is a character here; the demonstration is the other example of the task.
    prompt = (
        "Instructions: Read it. Pick one.\n\n\nInput: text 1\nOPTIONS:\n- yes\n- no\nAnswer: yes"
        "\n\n\nInput: text 0\nOPTIONS:\n- yes\n- no\nAnswer: yes</s>"
    )
    assert "".join(opened.texts(".prompt span")) == prompt
    assert opened.texts(".prompt .loss") == [" yes</s>"]
    assert opened.texts(".prompt .answer") == [" yes"]
    assert opened.texts("#detail .small b") == [f"{len(prompt) - 8} + 5 tokens"]
    opened.click('[data-choice="0"]')
    assert "".join(opened.texts(".prompt span")).startswith(
        "Instructions: Read it. Pick one.\nInput: text 0"
    )
    assert opened.texts(".prompt .loss") == []
    opened.click('[data-choice="second"]')
    assert "text 1" in "".join(opened.texts(".prompt span"))
    assert "3 more prompts of this task left out" in opened.texts("#detail p")[0]


def test_hostile_text_is_shown_and_not_run(opened):
    opened.click('[data-task="beta/hostile"]')
    opened.wait("document.querySelector('#detail h2').textContent == 'beta/hostile'")
    assert f"Input: {HOSTILE} 0" in opened.texts(".prompt span")
    assert opened.evaluate("document.querySelectorAll('main img, main script').length") == 0


def test_a_task_that_cannot_be_read_says_why(opened):
    opened.click('[data-task="beta/unreadable"]')
    opened.wait("document.querySelector('#detail h2').textContent == 'beta/unreadable'")
    assert opened.texts("#detail p") == ["damaged: x"]


def test_bars_are_as_long_as_the_shares(opened):
    opened.click("#tab-mixture")
    opened.wait("!document.querySelector('#view-mixture').hidden")
    bars = opened.evaluate(
        "[...document.querySelectorAll('[data-group=benchmark] rect')].map(r => "
        "[r.dataset.name, r.dataset.series, r.getBoundingClientRect().width])"
    )
    widths = {(name, series): width for name, series, width in bars}
    assert len(widths) == 3 * 4
    expected = {"all": 0.9, "capped": 0.5, "asked": 0.6, "planned": 0.62}
    scale = widths["alpha", "all"] / 0.9
    assert scale > 300
    for series, share in expected.items():
        assert widths["alpha", series] == pytest.approx(share * scale, abs=1)
    assert opened.texts("[data-group=benchmark] .bar-row:first-child text") == [
        *("90.0 %", "50.0 %", "60.0 %", "62.0 %")
    ]
    assert opened.texts("#view-mixture h3")[0] == "By benchmark, as configured"


def test_the_keyboard_and_addresses_lead_to_the_views(browser, page, opened):
    opened.evaluate("document.querySelector('#tab-mixture').focus()")
    opened.call("Input.dispatchKeyEvent", type="keyDown", key="ArrowRight", code="ArrowRight")
    opened.wait("!document.querySelector('#view-table1').hidden")
    assert opened.texts("#view-table1 td") == ["alpha", HOSTILE]
    browser.open(page, "#tasks/beta%2Fhostile")
    assert browser.texts("#detail h2") == ["beta/hostile"]


def test_it_fits_a_phone_in_the_dark(browser, page):
    emulated = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
    browser.call("Emulation.setDeviceMetricsOverride", **emulated)
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    browser.call("Emulation.setEmulatedMedia", features=dark)
    browser.open(page)
    for tab in ("tasks", "mixture", "table1"):
        browser.click(f"#tab-{tab}")
        assert browser.evaluate("document.documentElement.scrollWidth") <= 360
    assert browser.evaluate("document.documentElement.dataset.theme") == "dark"
    browser.click("#theme")
    assert browser.evaluate("document.documentElement.dataset.theme") == "light"
    browser.call("Emulation.clearDeviceMetricsOverride")
    browser.call("Emulation.setEmulatedMedia", features=[])
    assert browser.errors == []
