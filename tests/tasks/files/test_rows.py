import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from optiml_jax.errors import UserError
from tasks.files import rows

ROWS = [
    {"idx": i, "text": f"t{i}", "answers": {"text": ["a", "b"], "start": [i, 2]}, "label": i % 2}
    for i in range(2500)
]


def write_jsonl(path, content):
    path.write_text("".join(json.dumps(r) + "\n" for r in content), "utf-8")


def write_arrow_stream(path, content):
    table = pa.Table.from_pylist(content)
    with pa.OSFile(str(path), "wb") as f, pa.ipc.new_stream(f, table.schema) as writer:
        writer.write_table(table, max_chunksize=700)


def write_arrow_file(path, content):
    table = pa.Table.from_pylist(content)
    with pa.OSFile(str(path), "wb") as f, pa.ipc.new_file(f, table.schema) as writer:
        writer.write_table(table)


def write_parquet(path, content):
    pq.write_table(pa.Table.from_pylist(content), path)


def only(folder, name="train"):
    splits = rows.find_splits(folder)
    assert list(splits) == [name]
    return splits[name]


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("train.jsonl", write_jsonl),
        ("train.parquet", write_parquet),
        ("train.arrow", write_arrow_stream),
        ("train.arrow", write_arrow_file),
        ("some_dataset-train.arrow", write_arrow_stream),
        ("data/train-00000-of-00001.parquet", write_parquet),
    ],
)
def test_every_format_gives_the_same_rows_and_their_number(tmp_path, name, write):
    (tmp_path / "data").mkdir()
    write(tmp_path / name, ROWS)
    split = only(tmp_path)
    assert list(split.read()) == ROWS
    assert split.count() == len(ROWS)


def test_shards_are_read_in_order(tmp_path):
    for i in (2, 0, 1):
        part = ROWS[i * 1000 : (i + 1) * 1000]
        write_parquet(tmp_path / f"x-validation_matched-0000{i}-of-00003.parquet", part)
    split = only(tmp_path, "validation_matched")
    assert list(split.read()) == ROWS
    assert split.count() == len(ROWS)


def test_a_saved_data_set_is_read_as_its_state_lists_it(tmp_path):
    folder = tmp_path / "train"
    folder.mkdir()
    names = ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"]
    write_arrow_stream(folder / names[0], ROWS[:1500])
    write_arrow_stream(folder / names[1], ROWS[1500:])
    state = {"_data_files": [{"filename": name} for name in names], "_split": "train"}
    (folder / "state.json").write_text(json.dumps(state))
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train"]}')
    assert list(only(tmp_path).read()) == ROWS
    (folder / "state.json").write_text("{}")
    with pytest.raises(UserError, match=r"state.json does not list the Arrow files"):
        rows.find_splits(tmp_path)


def test_rows_are_streamed(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text('{"a": 1}\n\n{"a": 2}\nnot JSON\n')
    stream = only(tmp_path).read()
    assert [next(stream), next(stream)] == [{"a": 1}, {"a": 2}]
    with pytest.raises(UserError, match=r"train.jsonl, line 4: not valid JSON"):
        next(stream)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.jsonl", b'{"a": 1}\n[2]\n', "train.jsonl, line 2: a row must be a JSON object"),
        ("train.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', "train.jsonl, line 2: not UTF-8"),
        ("train.parquet", b"PAR1 cut", "train.parquet is damaged"),
        ("train.arrow", b"ARROW1 cut", "train.arrow is damaged"),
        ("train.arrow", b"stream cut off", "train.arrow is damaged"),
    ],
)
def test_damaged_files_are_one_line_with_the_file(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    split = only(tmp_path)
    with pytest.raises(UserError, match=message) as e:
        list(split.read())
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("name", ["train.jsonl", "train.parquet", "train.arrow"])
def test_a_file_that_is_gone_is_named(tmp_path, name):
    split = rows.SplitFiles("train", (str(tmp_path / name),))
    for use in (split.count, lambda: list(split.read())):
        with pytest.raises(UserError, match=f"rows not found: .*{name}"):
            use()


def test_a_split_in_two_formats_is_refused(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", ROWS[:2])
    write_parquet(tmp_path / "train.parquet", ROWS[:2])
    with pytest.raises(UserError, match=r"split 'train' is in .* more than once"):
        rows.find_splits(tmp_path)
    (tmp_path / "train.parquet").rename(tmp_path / "other-train.jsonl")
    with pytest.raises(UserError, match="more than once"):
        rows.find_splits(tmp_path)


@pytest.mark.parametrize("first", ["jsonl", "parquet"])
def test_splits_of_a_folder_may_be_of_different_formats(tmp_path, first):
    (write_jsonl if first == "jsonl" else write_parquet)(tmp_path / f"train.{first}", ROWS[:2])
    write_jsonl(tmp_path / "notes.jsonl", ROWS[:1])
    for name in ("test.csv", "about.csv", "train.csv"):
        (tmp_path / name).write_text("text\nfrom a table\n")
    (tmp_path / "validation.json").write_text(json.dumps(ROWS[:1]))
    splits = rows.find_splits(tmp_path)
    assert list(splits) == ["notes", "test", "train", "validation"]
    assert list(splits["test"].read()) == [{"text": "from a table"}]
    assert list(splits["train"].read()) == ROWS[:2]  # these formats come first, as ever


def test_other_files_and_missing_folders_are_no_rows(tmp_path):
    (tmp_path / "dataset_info.json").write_text("{}")
    assert rows.find_splits(tmp_path) == {}
    assert rows.find_splits(tmp_path / "none") == {}


def test_a_tfds_builder_is_read_by_name(tmp_path):
    import tensorflow_datasets as tfds

    class SmallRows(tfds.core.GeneratorBasedBuilder):
        """Three rows with text, a label and lists."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "sentence": tfds.features.Text(),
                "label": tfds.features.ClassLabel(names=["no", "yes"]),
                "spans": tfds.features.Sequence({"start": np.int32}),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i in range(3):
                yield (
                    i,
                    {"sentence": f"zwölf {i}", "label": i % 2, "spans": {"start": list(range(i))}},
                )

    folder = tmp_path / "set"
    folder.mkdir()
    about = {"name": "small_rows", "data_dir": str(tmp_path), "fields": {"sentence": "text"}}
    (folder / "tfds.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match="small_rows"):
        rows.find_splits(folder)
    SmallRows(data_dir=str(tmp_path)).download_and_prepare()
    split = only(folder)
    assert split.count() == 3
    assert sorted(split.read(), key=lambda r: r["text"]) == [
        {"text": "zwölf 0", "label": 0, "spans": {"start": []}},
        {"text": "zwölf 1", "label": 1, "spans": {"start": [0]}},
        {"text": "zwölf 2", "label": 0, "spans": {"start": [0, 1]}},
    ]
    assert str(folder / "tfds.json") in split.files
    prepared = only(tmp_path / "small_rows")  # TFDS's own folder, named by nobody
    assert [r["sentence"] for r in prepared.read()] == [r["text"] for r in split.read()]
    assert prepared.count() == 3
