"""Rows in every form that users have, whole or refused.

Files are written by the libraries that write them for users: datasets, pyarrow, gzip, csv.
"""

import csv
import gzip
import json
import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from optiml_jax.data.example import Drops
from optiml_jax.data.sampling import RowSample, keep_random
from optiml_jax.errors import UserError
from tasks.files import rows, text_files, values

ROWS = [{"id": i, "text": f"zwölf, {i}\n", "list": [str(i)]} for i in range(2500)]
TEXTS = [{"id": str(i), "text": f"zwölf, {i}"} for i in range(50)]


def jsonl(these, opener=open, mark="") -> bytes:
    return (mark + "".join(json.dumps(r) + "\n" for r in these)).encode()


def only(folder, name="train") -> rows.SplitFiles:
    splits = rows.find_splits(folder)
    assert list(splits) == [name]
    return splits[name]


def parquet(path: pathlib.Path, these) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(these), path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train.jsonl", jsonl(TEXTS, mark="\ufeff")),
        ("train.jsonl.gz", gzip.compress(jsonl(TEXTS))),
        ("train.jsonl.zst", pa.compress(jsonl(TEXTS), "zstd", asbytes=True)),
        ("train.json", json.dumps(TEXTS, indent=1).encode()),
        ("train.json", b"\xef\xbb\xbf" + json.dumps(TEXTS).encode()),
        ("train.json.gz", gzip.compress(json.dumps(TEXTS).encode())),
        ("train.json", jsonl(TEXTS)),  # one row a line, as many are called .json
    ],
)
def test_json_in_its_forms(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    (tmp_path / "dataset_info.json").write_text("{}")
    split = only(tmp_path)
    assert list(split.read()) == TEXTS
    assert split.count() == 50


@pytest.mark.parametrize(("suffix", "dialect"), [(".csv", "excel"), (".tsv", "excel-tab")])
def test_tables_whose_first_line_names_the_columns(tmp_path, suffix, dialect):
    with open(tmp_path / f"train{suffix}", "w", encoding="utf-8-sig", newline="") as f:
        writer = csv.DictWriter(f, ["id", "text"], dialect=dialect)
        writer.writeheader()
        writer.writerows(TEXTS)
    assert list(only(tmp_path).read()) == TEXTS
    (tmp_path / f"train{suffix}").write_text("a,b\n1\n" if suffix == ".csv" else "a\tb\n1\n")
    with pytest.raises(UserError, match=f"train{suffix}, line 2: 1 cells for 2 columns"):
        list(only(tmp_path).read())


def test_compressed_csv_that_is_cut_or_not_utf8_is_named(tmp_path):
    (tmp_path / "train.csv.gz").write_bytes(gzip.compress(b"x,y\na,b\n\xff,b\n"))
    with pytest.raises(UserError, match=r"train\.csv\.gz, line 3 is not UTF-8 .*; convert"):
        list(only(tmp_path).read())
    (tmp_path / "train.csv.gz").write_bytes(gzip.compress(b"x,y\na,b\n" * 9)[:-9])
    with pytest.raises(UserError, match=r"train\.csv\.gz is damaged after line"):
        list(only(tmp_path).read())


@pytest.mark.parametrize(
    "place",
    [
        "default/train-00000-of-00001.parquet",
        "plain_text/train-00000-of-00001.parquet",
        "data/train-00000-of-00001.parquet",
        "snapshots/0a1b/data/train-00000-of-00001.parquet",
        "snapshots/0a1b/train.parquet",
        "train/0000.parquet",
        "default/train/0000.parquet",
    ],
)
def test_a_data_set_of_the_hub_as_it_is_cloned_cached_or_converted(tmp_path, place):
    parquet(tmp_path / place, ROWS)
    assert list(only(tmp_path).read()) == ROWS


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_a_set_of_shards_that_is_not_whole_is_refused(tmp_path, suffix):
    for index in (0, 2):
        (tmp_path / f"train-0000{index}-of-00004{suffix}").write_bytes(b"")
    with pytest.raises(UserError, match=r"has 2 of its 4 files; number 00001 is missing"):
        rows.find_splits(tmp_path)


def test_a_broken_link_is_named(tmp_path):
    (tmp_path / "train.jsonl").symlink_to(tmp_path / "moved.jsonl")
    with pytest.raises(UserError, match=r"broken link: .*train.jsonl -> .*moved.jsonl"):
        rows.find_splits(tmp_path)


def test_files_that_are_no_split_are_named(tmp_path, caplog):
    (tmp_path / "questions.xlsx").write_bytes(b"")
    assert rows.find_splits(tmp_path) == {}
    assert "no split of a data set is recognised among its files: questions.xlsx" in caplog.text


def test_what_datasets_saves_is_read_as_it_was_chosen(tmp_path):
    datasets = pytest.importorskip("datasets")
    whole = datasets.Dataset.from_list(ROWS)
    chosen = whole.shuffle(seed=3).select(range(100))
    datasets.DatasetDict({"train": chosen}).save_to_disk(str(tmp_path / "dict"))
    chosen.save_to_disk(str(tmp_path / "one"))
    for folder in ("dict", "one"):
        split = only(tmp_path / folder)
        assert list(split.read()) == list(chosen)
        assert split.count() == 100


def test_indices_beside_saved_data_choose_among_its_rows(tmp_path):
    table = pa.Table.from_pylist(ROWS)
    with pa.ipc.new_stream(tmp_path / "data.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=700)
    order = pa.table({"indices": pa.array([2400, 3, 3, 900], pa.uint64())})
    with pa.ipc.new_stream(tmp_path / "indices.arrow", order.schema) as writer:
        writer.write_table(order)
    state = {"_data_files": [{"filename": "data.arrow"}], "_split": "validation"}
    state["_indices_data_files"] = [{"filename": "indices.arrow"}]
    (tmp_path / "state.json").write_text(json.dumps(state))
    split = only(tmp_path, "validation")
    assert [row["id"] for row in split.read()] == [2400, 3, 3, 900]
    assert split.count() == 4
    assert len(split.files) == 2
    (tmp_path / "indices.arrow").unlink()
    with pytest.raises(UserError, match=r"state.json lists .*indices.arrow, which is not there"):
        rows.find_splits(tmp_path)


# --- values


def test_numbers_keep_their_spelling_and_the_missing_is_none(tmp_path):
    line = '{"a": 16777217.0, "b": 1.50, "c": 1e-3, "d": NaN, "e": [Infinity], "f": 007.0}\n'
    (tmp_path / "train.jsonl").write_text(line.replace("007.0", "12345678901234567890"))
    (row,) = only(tmp_path).read()
    assert [values.text_of(v) for v in row.values()] == [
        *("16777217.0", "1.50", "1e-3", None, None, "12345678901234567890")
    ]
    assert row["e"] == [None]
    parquet(tmp_path / "p/train.parquet", [{"a": 16777217.0, "b": float("nan"), "c": [0.1]}])
    assert list(only(tmp_path / "p").read()) == [{"a": 16777217.0, "b": None, "c": [0.1]}]


@pytest.mark.parametrize("value", [None, True, [1], {"a": 1}, float("nan"), float("inf"), b"x"])
def test_what_is_no_text_is_dropped_and_counted(value):
    drops = Drops()
    keep = text_files.RecordFilter()
    assert keep(value, ["x"], drops) is None
    assert keep("x", [value], drops) is None
    assert drops == {"not a text": 2}
    assert keep(1.5, [2], drops)["references"] == ("2",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[{"a": 1}, {"a"', "is cut off"),
        (b'[{"a": 1}, {"a": x}]', "is damaged"),
        (b'{"a": 1}', "is not a JSON array"),
    ],
)
def test_only_a_file_that_is_cut_off_is_called_so(tmp_path, content, message):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        list(text_files.json_items(str(path), Drops()))


@pytest.mark.parametrize("reader", ["json_records", "json_items", "tsv_rows"])
def test_byte_order_marks_are_no_text(tmp_path, reader):
    path = tmp_path / "x.jsonl"
    line = "a\tb\n" if reader == "tsv_rows" else '{"a": 1}\n'
    path.write_text("\ufeff" + line, "utf-8")
    arguments = ([2], Drops()) if reader == "tsv_rows" else (Drops(),)
    (found,) = getattr(text_files, reader)(str(path), *arguments)
    assert found in ((1, ["a", "b"]), (1, {"a": 1}), {"a": 1})


# --- samples


@pytest.mark.parametrize("form", ["jsonl", "parquet", "csv", "shards"])
def test_a_sample_is_the_same_rows_in_every_form_in_their_places(tmp_path, form):
    if form == "jsonl":
        (tmp_path / "train.jsonl").write_bytes(jsonl(TEXTS))
    elif form == "parquet":
        parquet(tmp_path / "train.parquet", TEXTS)
    elif form == "shards":
        for i in range(2):
            name = f"train-0000{i}-of-00002.parquet"
            parquet(tmp_path / name, TEXTS[25 * i : 25 * i + 25])
    else:
        lines = "".join(f'{r["id"]},"{r["text"]}"\n' for r in TEXTS)
        (tmp_path / "train.csv").write_text("id,text\n" + lines)
    sample = RowSample("1234\0task", 7)
    found = list(only(tmp_path).read(sample))
    expected = sorted(RowSample("1234\0task", 7).positions(50).tolist())
    assert sample.cut
    assert len(found) == 50
    assert [i for i, row in enumerate(found) if row] == expected
    assert [row for row in found if row] == [TEXTS[i] for i in expected]


def test_samples_are_nested_random_and_even():
    draws = [RowSample(str(k), 100).positions(1000) for k in range(200)]
    assert all(len(set(d.tolist())) == 100 for d in draws)
    # 20,000 draws over ten tenths: a deviation of five standard errors is 5 * sqrt(1800) = 212.
    counts = np.bincount(np.concatenate(draws) // 100, minlength=10)
    assert abs(counts - 2000).max() < 212
    assert {*RowSample("a", 10).positions(1000)} < {*RowSample("a", 20).positions(1000)}
    assert RowSample("a", 1000).positions(1000) is None


def test_random_items_keep_their_order_and_those_of_a_smaller_cap():
    few, number = keep_random(iter(range(1000)), 10, "key")
    more, _ = keep_random(iter(range(1000)), 50, "key")
    assert (len(few), number, few) == (10, 1000, sorted(few))
    assert {*few} < {*more}
    assert keep_random(iter("abc"), 5, "key") == (["a", "b", "c"], 3)
