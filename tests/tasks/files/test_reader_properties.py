"""Readers give back every row that was written, and meet every other content with one line."""

import csv
import functools
import io
import json

from hypothesis import given, settings
from hypothesis import strategies as st

from optiml_jax.data.example import Drops
from optiml_jax.errors import UserError
from tasks.files.rows import find_splits
from tasks.files.text_files import csv_records, csv_rows, json_items, json_records, tsv_rows
from tasks.splits import Manifest
from tasks.text.dialogue import find_tasks

MANIFEST = Manifest.load()
QUICK = settings(max_examples=60, deadline=None, database=None, derandomize=True)
CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\t\r\n\x00\ufeff"))
TABLES = st.integers(1, 4).flatmap(
    lambda n: st.lists(st.lists(CELLS, min_size=n, max_size=n), min_size=1, max_size=8)
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(CELLS, inner, max_size=3),
    max_leaves=8,
)
# Whole files, pieces of such, and bytes.
CONTENTS = st.one_of(
    st.binary(max_size=200),
    st.text(st.sampled_from('{}[]",:\\ntaé0"\t\n'), max_size=200).map(str.encode),
    st.tuples(st.lists(VALUES, max_size=4), st.integers(0, 60)).map(
        lambda pair: "\n".join(map(json.dumps, pair[0])).encode()[: -pair[1] or None]
    ),
    st.lists(st.sampled_from(["text:a", "labels:b|c", "episode_done:True", "\n", "\t"])).map(
        lambda parts: "".join(parts).encode()
    ),
)


@QUICK
@given(rows=TABLES)
def test_tables_come_back_as_they_were_written(tmp_path_factory, rows):
    path = tmp_path_factory.getbasetemp() / "table.tsv"
    path.write_text("".join("\t".join(row) + "\n" for row in rows), "utf-8", newline="")
    shown = [row for row in rows if len(row) > 1 or row[0].strip()]
    found = [cells for _, cells in tsv_rows(str(path), (len(rows[0]),), Drops())]
    assert [r for r in found if len(r) > 1 or r[0].strip()] == shown

    text = io.StringIO(newline="")
    csv.writer(text, quoting=csv.QUOTE_ALL).writerows(rows)  # Python's own writer
    path = path.with_suffix(".csv")
    path.write_text(text.getvalue(), "utf-8", newline="")
    assert [cells for _, cells in csv_rows(str(path))] == rows


@QUICK
@given(rows=st.lists(st.dictionaries(CELLS, VALUES, max_size=4), min_size=1, max_size=6))
def test_json_comes_back_as_it_was_written(tmp_path_factory, rows):
    path = tmp_path_factory.getbasetemp() / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    assert [row for _, row in json_records(str(path), Drops())] == rows
    path = path.with_suffix(".json")
    path.write_text(json.dumps(rows, indent=1), "utf-8")
    assert list(json_items(str(path), Drops())) == rows


@QUICK
@given(content=CONTENTS)
def test_whatever_a_file_holds_is_read_counted_or_refused_in_one_line(tmp_path_factory, content):
    folder = tmp_path_factory.getbasetemp() / "anything"
    folder.mkdir(exist_ok=True)

    def written(name):
        for old in folder.iterdir():
            old.unlink()
        (folder / name).write_bytes(content)
        return str(folder / name)

    def rows(name):
        written(name)
        for part in find_splits(folder).values():
            list(part.read())

    def dialogue(name):
        written(name)
        for source in find_tasks(folder, MANIFEST):
            list(source.read("train", Drops()))

    readers = [
        lambda: list(tsv_rows(written("a.tsv"), (2,), Drops())),
        lambda: list(csv_rows(written("a.csv"))),
        lambda: list(csv_records(written("a.csv"))),
        lambda: list(json_records(written("a.jsonl"), Drops())),
        lambda: list(json_items(written("a.json"), Drops())),
        *(functools.partial(rows, f"train.{form}") for form in ("jsonl", "json", "csv", "tsv")),
        *(functools.partial(dialogue, name) for name in ("a.txt", "a.jsonl")),
    ]
    assert "\n" not in "".join(said_by(reader) for reader in readers)


def said_by(reader):
    """The message of the UserError that the reader raises; "": it reads everything."""
    try:
        reader()
    except UserError as e:
        return str(e)
    return ""
