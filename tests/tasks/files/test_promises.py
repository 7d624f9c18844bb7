"""What a folder of data promises and does not hold is an error or named, whoever reads it."""

import gzip
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from optiml_jax.errors import UserError
from optiml_jax.fetch import provenance
from tasks.crossfit import reader as crossfit
from tasks.exmix import reader as exmix
from tasks.files.promises import check_folder
from tasks.files.rows import find_splits
from tasks.reasoning import reader as reasoning
from tasks.registry import BENCHMARKS, find_sources
from tasks.splits import Manifest
from tasks.superni import reader as superni
from tasks.text import dialogue, pretraining

MANIFEST = Manifest.load()


@pytest.mark.parametrize("benchmark", sorted(BENCHMARKS))
@pytest.mark.parametrize("name", ["glue", "tasks/task001.json", "datasets/glue/mrpc"])
def test_a_broken_link_anywhere_in_a_folder_of_data_is_refused(tmp_path, benchmark, name):
    link = tmp_path / name
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(tmp_path / "disk" / "unmounted")
    with pytest.raises(UserError, match=rf"broken link: .*{name} -> .*unmounted; fix or remove"):
        find_sources({benchmark: str(tmp_path)}, MANIFEST)


@pytest.mark.parametrize("benchmark", ["flan", "promptsource"])
def test_a_broken_link_in_the_folder_of_rows_beside_is_refused(tmp_path, benchmark):
    (tmp_path / benchmark / "templates").mkdir(parents=True)
    (tmp_path / benchmark / "templates.json").write_text("{}")
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "imdb").symlink_to("nowhere")
    with pytest.raises(UserError, match=r"broken link: .*datasets/imdb -> nowhere"):
        find_sources({benchmark: str(tmp_path / benchmark)}, MANIFEST)


def test_links_that_lead_back_or_into_each_other_end(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "hidden").symlink_to("nowhere")
    check_folder(tmp_path)
    outside = tmp_path / "a" / "linked"
    outside.mkdir()
    (outside / "x").symlink_to("y")
    (outside / "y").symlink_to("x")
    with pytest.raises(UserError, match=r"linked/x -> y \(and 1 more broken links\)"):
        check_folder(tmp_path)
    (tmp_path / "root").symlink_to("gone")
    with pytest.raises(UserError, match=r"broken link: .*root -> gone"):
        check_folder(tmp_path / "root")


def test_fetched_files_that_are_gone_or_cut_are_named(tmp_path, caplog):
    (tmp_path / "imdb").mkdir()
    for name in ("train", "test", "validation"):
        (tmp_path / "imdb" / f"{name}.jsonl").write_text('{"text": "a"}\n')
    files = provenance.describe(tmp_path, [f"imdb/{n}.jsonl" for n in ("train", "test")])
    provenance.record(tmp_path, "promptsource/imdb", {"licence": "mit", "files": files})
    check_folder(tmp_path)
    assert not caplog.text
    (tmp_path / "imdb" / "train.jsonl").unlink()
    (tmp_path / "imdb" / "test.jsonl").write_text("{")
    check_folder(tmp_path)
    assert "2 of 2 files of promptsource/imdb are not as they were fetched" in caplog.text
    assert "imdb/test.jsonl (truncated), imdb/train.jsonl (missing)" in caplog.text


def test_pipes_folders_and_empty_files_in_the_place_of_data_are_named(tmp_path, caplog):
    (tmp_path / "glue").mkdir()
    os.mkfifo(tmp_path / "glue" / "pipe.txt")
    (tmp_path / "glue" / "folder.jsonl").mkdir()
    (tmp_path / "glue" / "empty.parquet").touch()
    for name in ("empty.md", ".hidden.jsonl"):
        (tmp_path / "glue" / name).touch()
    check_folder(tmp_path)
    (message,) = caplog.messages
    named = message.partition("place of data: ")[2].split(", ")
    assert named == [f"{tmp_path}/glue/{x}" for x in ("empty.parquet", "folder.jsonl", "pipe.txt")]


def test_a_gap_in_the_numbers_of_converted_files_is_refused(tmp_path):
    (tmp_path / "train").mkdir()
    for number in (0, 2):
        pq.write_table(pa.table({"a": [number]}), tmp_path / "train" / f"000{number}.parquet")
    with pytest.raises(UserError, match=r"0001\.parquet is missing, but 0002\.parquet is there"):
        find_splits(tmp_path)


def test_a_data_set_s_folder_without_rows_is_named(tmp_path, caplog):
    for name in ("empty", "only_about"):
        (tmp_path / name).mkdir()
        (tmp_path / name / (".hidden" if name == "empty" else "README.md")).touch()
        assert find_splits(tmp_path / name) == {}
        assert str(tmp_path / name) in caplog.text
    caplog.clear()
    assert find_splits(tmp_path) == {}  # it holds the folders of configurations
    assert not caplog.text


def test_a_training_file_of_a_sample_that_is_empty_is_refused(tmp_path):
    folder = tmp_path / "ag_news"
    folder.mkdir()
    for seed in ("100", "13"):
        (folder / f"ag_news_16_{seed}_train.tsv").write_text("a\tb\n" * (seed == "13"))
    with pytest.raises(UserError, match=r"ag_news_16_100_train\.tsv is empty"):  # not seed 13's
        crossfit.find_tasks(tmp_path, MANIFEST)


def test_a_task_without_its_training_part_stays_for_the_plan_to_refuse(tmp_path, caplog):
    folder = tmp_path / "c" / "ag_news"
    folder.mkdir(parents=True)
    (folder / "ag_news_16_100_test.tsv").write_text("a\tb\nc\td\n")
    (source,) = crossfit.find_tasks(tmp_path / "c", MANIFEST)
    assert (source.splits, source.demonstrations()) == (("test",), [])


def test_what_a_split_lacks_is_named(tmp_path, caplog):
    outputs = tmp_path / "e" / "gpt-2-output-dataset"
    outputs.mkdir(parents=True)
    for split in ("train", "test"):
        for kind in ("webtext", "small-117M", "xl-1542M"):
            (outputs / f"{kind}.{split}.jsonl").touch()
    (outputs / "webtext.test.jsonl").unlink()
    (source,) = exmix.find_tasks(tmp_path / "e", MANIFEST)
    assert source.splits == ("train",)
    assert "gpt-2-output-dataset: split 'test' is left out: it has no files of" in caplog.text
    answers = tmp_path / "r" / "cos_e"
    (answers / "commonsenseqa").mkdir(parents=True)
    for path in ("commonsenseqa/train_rand_split.jsonl", "commonsenseqa/dev_rand_split.jsonl"):
        (answers / path).touch()
    (tmp_path / "r" / "gsm8k_train.tsv").write_text("a\tb\tc\n")
    assert [s.name for s in reasoning.find_tasks(tmp_path / "r", MANIFEST)] == ["reasoning/gsm8k"]
    assert "cos_e: split 'train' is left out: no **/cose_train_v1.11.jsonl" in caplog.text
    assert "cos_e holds no whole split of" in caplog.text


def test_tasks_of_the_split_lists_without_a_file_are_named(write_bench, caplog):
    root = write_bench({"task001_here": write_bench.content()})
    with (root / "splits/default/train_tasks.txt").open("a") as file:
        file.write("task002_lost\n")
    superni.find_tasks(root, MANIFEST)
    assert "1 superni tasks of splits/default have no file in tasks/: task002_lost" in caplog.text


@pytest.mark.parametrize(("reader", "kept"), [(pretraining, "text"), (dialogue, "turns")])
def test_files_in_a_form_that_is_not_read_are_named(tmp_path, caplog, reader, kept):
    line = json.dumps({kept: ["a", "b"] if kept == "turns" else "a"}) + "\n"
    (tmp_path / "one.jsonl").write_text(line)
    (tmp_path / "two.jsonl.gz").write_bytes(gzip.compress(line.encode()))
    (tmp_path / "README.md").touch()
    assert len(reader.find_tasks(tmp_path, MANIFEST)) == 1
    assert "1 files are in no form that is read: two.jsonl.gz" in caplog.text


def test_numbered_shards_of_a_corpus_are_one_task_and_must_be_whole(tmp_path):
    for number in (0, 1):
        (tmp_path / f"c4-0000{number}-of-00002.jsonl").write_text('{"text": "a"}\n')
    (source,) = pretraining.find_tasks(tmp_path, MANIFEST)
    assert (source.name, len(source.files)) == ("pretrain/c4", 2)
    (tmp_path / "c4-00000-of-00002.jsonl").unlink()
    with pytest.raises(UserError, match=r"c4 has 1 of its 2 shards; number 00000 is missing"):
        pretraining.find_tasks(tmp_path, MANIFEST)
