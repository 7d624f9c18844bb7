import json

import pytest

from optiml_jax.data.example import Drops
from optiml_jax.errors import UserError
from tasks.files import text_files
from tasks.files.formats import read_rows
from tasks.files.text_files import RecordFilter, csv_rows, json_items, json_records, tsv_rows


def write(path, content) -> str:
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return str(path)


def test_tsv_cells_keep_quotation_marks_and_foreign_line_separators(tmp_path):
    path = write(tmp_path / "a.tsv", 'a "b\t"c"\t\u2028d\x0be\r\n x \ty\tz\n')
    rows = list(tsv_rows(path, (3,), Drops()))
    assert rows == [(1, ['a "b', '"c"', "\u2028d\x0be"]), (2, [" x ", "y", "z"])]


def test_rows_of_another_width_are_counted_and_named_with_file_and_line(tmp_path, caplog):
    path = write(tmp_path / "a.tsv", "a\tb\nbroken\n\na\tb\tc\na\tb\n")
    drops = Drops()
    assert [number for number, _ in tsv_rows(path, (2,), drops)] == [1, 5]
    assert drops == {"wrong number of columns": 2, "empty line": 1}
    assert f"{path}, line 2 dropped: wrong number of columns (1 columns)" in caplog.text
    assert f"{path}, line 4 dropped: wrong number of columns (3 columns)" in caplog.text


def test_a_file_that_was_cut_inside_its_last_cell_is_named(tmp_path, caplog):
    path = write(tmp_path / "a.tsv", "a\tb\nc\tdefgh"[:-3])
    drops = Drops()
    assert [number for number, _ in tsv_rows(path, (2,), drops)] == [1]
    assert drops == {"last line without its end": 1}
    assert f"{path}, line 2 dropped: last line without its end (the file was cut" in caplog.text
    only = write(tmp_path / "only.tsv", "a\tb")  # nothing says that its lines have ends
    assert len(list(tsv_rows(only, (2,), Drops()))) == 1

    cut = write(tmp_path / "a.csv", "x,y\na,b\nc,d")
    assert len(list(csv_rows(cut))) == 3
    assert f"{cut}: its last line has no end" in caplog.text
    for name, read in (("a", lambda path: list(json_records(path, Drops()))), ("b", read_rows)):
        cut = write(tmp_path / f"{name}.jsonl", '{"x": 1}\n{"x": 2}')
        assert len(list(read(cut))) == 2
        assert f"{cut}: its last line has no end" in caplog.text
    caplog.clear()
    assert len(list(csv_rows(write(tmp_path / "b.csv", "x,y\na,b\n")))) == 2
    assert len(list(read_rows(write(tmp_path / "c.jsonl", '{"x": 1}\n{"x": 2}\n')))) == 2
    assert len(list(read_rows(write(tmp_path / "d.jsonl", '{"x": 1}')))) == 1
    assert not caplog.text


def test_a_tsv_line_that_is_not_utf8_is_named(tmp_path):
    path = write(tmp_path / "a.tsv", b"a\tb\ncaf\xe9\tb\n")
    with pytest.raises(UserError, match=r"a\.tsv, line 2 is not UTF-8 \(byte 3 of the line\)"):
        list(tsv_rows(path, (2,), Drops()))


@pytest.mark.parametrize("read", [csv_rows, read_rows])
def test_a_csv_line_that_is_not_utf8_is_named(tmp_path, read):
    path = write(tmp_path / "a.csv", b"x,y\na,b\ncaf\xe9,b\n")
    with pytest.raises(UserError, match=r"a\.csv, line 3 is not UTF-8 .*; convert the file"):
        list(read(path))


@pytest.mark.parametrize("read", [csv_rows, read_rows])
def test_a_csv_cell_may_be_as_long_as_a_book(tmp_path, read):
    text = "text, " * 50_000
    *_, last = read(write(tmp_path / "a.csv", f'x,y\n"{text}",b\n'))
    assert text in (last.values() if isinstance(last, dict) else last[1])


def test_a_missing_file_is_named(tmp_path):
    for reader in (lambda p: tsv_rows(p, (2,), Drops()), lambda p: json_items(p, Drops())):
        with pytest.raises(UserError, match=r"data file not found: .*nowhere"):
            list(reader(str(tmp_path / "nowhere")))


def test_bad_lines_of_jsonl_are_counted_and_the_others_read(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "MAX_LINE_BYTES", 40)
    lines = [b'{"a": 1}', b'{"a": ', b"[1]", b'{"a": "\xe9"}', b" ", b'{"a": "%s"}' % (b"x" * 99)]
    path = write(tmp_path / "a.jsonl", b"\n".join([*lines, b'{"a": 7}']))
    drops = Drops()
    assert list(json_records(path, drops)) == [(1, {"a": 1}), (7, {"a": 7})]
    assert drops == {"not JSON": 1, "not a JSON object": 1, "not UTF-8": 1, "line too long": 1}


def test_a_json_array_is_read_item_by_item(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "_CHUNK", 16)  # items reach over many chunks
    items = [{"a": "]{" * n, "b": [n]} for n in range(40)]
    drops = Drops()
    path = write(tmp_path / "a.json", json.dumps([*items, 5], indent=2))
    assert list(json_items(path, drops)) == items
    assert drops == {"not a JSON object": 1}


def test_a_long_json_array_is_not_held_in_memory(tmp_path):
    import tracemalloc

    path = write(tmp_path / "a.json", json.dumps([{"a": "x" * 1000}] * 8_000))
    tracemalloc.start()
    count = sum(1 for _ in json_items(path, Drops()))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 8_000
    assert peak < 6_000_000  # the file has 8 MB as a string, and as much in objects


@pytest.mark.parametrize("content", ['[{"a": 1}, {"a"', '{"a": 1}', "", b'[{"a": "\xe9"}]'])
def test_a_damaged_json_array_is_one_line(tmp_path, content):
    path = write(tmp_path / "a.json", content)
    with pytest.raises(UserError, match=r"a\.json is (not a JSON array|cut off|not UTF-8)"):
        list(json_items(path, Drops()))


def test_a_record_filter_cleans_counts_and_drops():
    drops = Drops()
    keep = RecordFilter()
    fields = keep(" a\r\nb ", [" yes ", "", "yes", "yep"], drops)
    assert fields["input"] == "a\nb"
    assert (fields["target"], fields["references"]) == ("yes", ("yes", "yep"))
    assert keep("a\nb", ["yes"], drops) is None
    assert keep("a\nb", ["no"], drops)["example_id"] != fields["example_id"]
    assert keep(" ", ["yes"], drops) is None
    assert keep("a", [" "], drops) is None
    assert keep("a\x00", ["yes"], drops) is None
    assert keep("a", ["caf\ufffd"], drops) is None
    assert drops == {
        "duplicate": 1,
        "empty input": 1,
        "empty target": 1,
        "NUL or U+FFFD": 2,
        "warning: empty reference left out": 1,
    }


def test_a_repeated_record_can_be_kept_under_an_id_of_its_own():
    drops = Drops()
    keep = RecordFilter(keep_repeated=True)
    first, second = keep("a", ["b"], drops), keep("a", ["b"], drops)
    assert second["example_id"] == first["example_id"] + "-2"
    assert drops == {"warning: repeated record": 1}
