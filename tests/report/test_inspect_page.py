"""The data of the page and the shares of a mixture, without a browser."""

import html.parser
import json

import pytest
from inspect_bench import HOSTILE, facts, parts, write_page
from test_inspect_prompts import example, renderer, source

from optiml_jax.report import page


class Reader(html.parser.HTMLParser):
    """Collects the elements of a page and the text of its data."""

    def __init__(self):
        super().__init__()
        self.tags, self.addresses, self.data, self._inside = [], [], "", False

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [v for name, v in attrs if name in ("src", "href")]
        self._inside = dict(attrs).get("id") == "data"

    def handle_data(self, data):
        if self._inside:
            self.data += data


@pytest.fixture(scope="module")
def read(tmp_path_factory) -> Reader:
    path = write_page(tmp_path_factory.mktemp("page") / "folder" / "page.html")
    reader = Reader()
    reader.feed(path.read_text("utf-8"))
    return reader


def test_text_of_the_data_cannot_become_markup(read):
    assert read.tags.count("script") == 2  # the data and the program
    assert "img" not in read.tags
    tasks = json.loads(read.data)["tasks"]
    assert any(HOSTILE in span[1] for span in tasks[1]["views"][0]["spans"])


def test_the_page_fetches_nothing(read):
    assert [a for a in read.addresses if not a.startswith("data:")] == []


def test_views_carry_what_the_page_shows(read):
    task, hostile, unreadable = json.loads(read.data)["tasks"]
    assert [(v["prompt"], v["shots"]) for v in task["views"]] == [
        *(("first", "as trained"), ("first", "0"), ("second", "as trained"), ("second", "0"))
    ]
    assert (task["left_out"], hostile["left_out"]) == (3, 0)
    assert task["views"][0]["spans"][-1] == ["target", " yes</s>", 1]
    assert task["views"][1]["spans"][-1] == ["target", " yes</s>", 0]
    assert unreadable["views"] == []
    assert unreadable["problem"] == "damaged: x"


def test_long_texts_lose_their_middle():
    long = example(0, input="a" * 5000 + "b" * 5000, options_text="")
    views = renderer(20000, delimiter="").views(source([long]), [long], [0])
    data = page.task_data(facts("b/t", "C", "train_only", "train"), views, 0)
    (text,) = [text for kind, text, _ in data["views"][0]["spans"] if kind == "input"]
    assert text.startswith("Input: aaa")
    assert text.endswith("bbb")
    assert "[…8,507 characters left out…]" in text  # "Input: " and 10,000, less 1,500


def test_shares_add_up_and_are_those_of_the_plan():
    groups = parts().groups
    shares = {part.name: part.shares for part in groups["benchmark"]}
    assert shares["alpha"] == pytest.approx(
        {"all": 0.9, "capped": 0.5, "asked": 0.6, "planned": 0.62}
    )
    for group in ("benchmark", "category"):
        for series in ("all", "capped", "asked", "planned"):
            assert sum(p.shares[series] for p in groups[group]) == pytest.approx(1)
    assert [p.name for p in groups["category"]] == ["Question Answering", "Summarization"]
    assert groups["category"][1].tasks == 2


def test_rows_of_their_own_are_compared_as_configured():
    configured = {p.name: p.shares for p in parts().groups["benchmark, as configured"]}
    assert configured["alpha"] == pytest.approx({"asked": 0.75, "planned": 62 / 80})
    assert configured["plain (of all rows)"] == {"asked": 0.05, "planned": 0.06}


def test_tables_hold_the_same_shares():
    table = parts().tables()[1]
    assert table.rows[0] == ("alpha", "1", "9,000", "1,000", "90.0", "50.0", "60.0", "62.0")
