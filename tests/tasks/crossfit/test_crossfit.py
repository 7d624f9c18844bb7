import dataclasses
import itertools
import json

import pytest

from optiml_jax.data.example import Drops, TaskSource
from optiml_jax.data.prompts import PromptConfig, render
from optiml_jax.errors import UserError
from tasks.crossfit.reader import answer_kinds, find_tasks, listed_options
from tasks.splits import Manifest, category
from tasks.templates.instructions import instructions

MANIFEST = Manifest.load()


@pytest.fixture
def write(tmp_path):
    """`write(task, sample, split=text)`: files of one sample below tmp_path/data."""

    def call(task: str, sample: str = "16_100", **splits: str):
        folder = tmp_path / "data" / task
        folder.mkdir(parents=True, exist_ok=True)
        for split, text in splits.items():
            (folder / f"{task}_{sample}_{split}.tsv").write_text(text, "utf-8")
        return tmp_path

    return call


def only(root, manifest=MANIFEST) -> TaskSource:
    (source,) = find_tasks(root, manifest)
    return source


def read(source: TaskSource, split="train", drops=None) -> list:
    return list(source.read(split, Drops() if drops is None else drops))


def test_a_row_becomes_an_example_behind_the_sentence_of_its_task(write):
    root = write(
        "superglue-copa", train="It rained. (A) The sun rose. (B) It is wet.\tIt is wet.\n"
    )
    source = only(root)
    (example,) = read(source)
    assert (source.name, source.instruction_level) == ("crossfit/superglue-copa", "instance")
    assert example.options == ("The sun rose.", "It is wet.")
    assert (example.target, example.references) == ("It is wet.", ("It is wet.",))
    assert example.category == category(source) == "Cause Effect Classification"
    assert render(example, [], "instance", PromptConfig(delimiter="\nAnswer:")).source() == (
        f"{instructions('crossfit')['superglue-copa']}\n"
        "It rained. (A) The sun rose. (B) It is wet.\nAnswer:"
    )


def test_upstreams_field_separator_becomes_a_newline_and_further_columns_references(write):
    root = write("duorc", train='question: who? [SEP] context: "Ann", he said\tAnn\t"Annie"\t\n')
    drops = Drops()
    (example,) = read(only(root), drops=drops)
    assert example.input == 'question: who?\ncontext: "Ann", he said'
    assert (example.target, example.references) == ("Ann", ("Ann", '"Annie"'))
    assert example.options is None
    assert drops == {"warning: empty reference left out": 1}


def test_classes_of_all_splits_are_the_options_of_every_row(write):
    root = write("superglue-cb", train="a\tyes\nb\tno\n", dev="c\tyes\n", test="d\tneutral\n")
    source = only(root)
    assert source.splits == ("train", "validation", "test")
    for split in source.splits:
        assert {e.options for e in read(source, split)} == {("neutral", "no", "yes")}


@pytest.mark.parametrize(
    ("text", "options", "block"),
    [
        ("Q? (A) x (B) y z", ("x", "y z"), "(A) x (B) y z"),
        ("Q? (1) x (2) y (3) z", ("x", "y", "z"), "(1) x (2) y (3) z"),
        ("Q? (A) x (B) y\nan article (A) with a marker", ("x", "y"), "(A) x (B) y"),
        ("Q? (A) x (B)  y  context: an article", ("x", "y"), "(A) x (B)  y"),
        ("Figure (A) shows this. Which? (A) x (B) y", ("x", "y"), "(A) x (B) y"),
        ("only (A) one", (), ""),
        ("(B) no (C) start", (), ""),
        ("f(A) x(B)", (), ""),
    ],
)
def test_options_are_the_last_run_of_consecutive_markers(text, options, block):
    assert listed_options(text) == (options, block)


def test_an_example_carries_the_list_that_a_prompt_may_show_in_another_order(write):
    rows = "Q? (A) yes (B) no (C) maybe\tno\ntwice (A) a (B) b [SEP] (A) a (B) b\tb\n"
    examples = read(only(write("codah", train=rows)))
    assert [e.options_text for e in examples] == ["(A) yes (B) no (C) maybe", ""]
    config = PromptConfig(delimiter="A:", option_order="shuffled")
    sources = {
        render(dataclasses.replace(examples[0], example_id=str(i)), [], "task", config).query
        for i in range(60)
    }
    expected = (
        f"Input: Q? (A) {a} (B) {b} (C) {c} A:"
        for a, b, c in itertools.permutations(("yes", "no", "maybe"))
    )
    assert sources == set(expected)


def test_a_target_that_is_no_option_is_generated_or_dropped_where_options_are_ranked(
    write, tmp_path
):
    root = write("sciq", train="Q? (A) x (B) y\tx\nQ2? (A) x (B) y\tz\n", test="Q (A) a (B) b\ta\n")
    drops = Drops()
    assert [e.options for e in read(only(root), drops=drops)] == [("x", "y"), None]
    assert drops == {"warning: target not among options": 1}
    path = tmp_path / "ranked.yaml"
    path.write_text(
        'rows:\n- {tasks: "*/*", level: train_only, role: [train], metric: acc_rank, src: paper}\n'
    )
    drops = Drops()
    assert len(read(only(root, Manifest.load(path)), drops=drops)) == 1
    assert drops["no options"] == 1


def test_a_closed_task_with_too_many_answers_is_generated(write):
    root = write("emo", train="".join(f"t{i}\tanswer {i}\n" for i in range(201)))
    assert {e.options for e in read(only(root))} == {None}


def test_a_task_of_the_users_own_needs_a_sentence_and_finds_its_labels(write):
    root = write("my_moods", train="so happy\tjoy\nso sad\tgrief\nwell\tjoy\n")
    write("my_stories", train="".join(f"t{i}\tfree answer {i}\n" for i in range(21)))
    sentences = 'my_moods: "Name the mood."\nmy_stories: "Answer."\nag_news: "Ours no more."\n'
    (root / "instructions.yaml").write_text(sentences)
    write("ag_news", train="a\tWorld\n")
    news, moods, stories = find_tasks(root, MANIFEST)
    assert [e.options for e in read(moods)] == [("grief", "joy")] * 3
    assert {e.options for e in read(stories)} == {None}
    assert {e.instruction for e in read(moods)} == {"Name the mood."}
    assert read(news)[0].instruction == "Ours no more."


def test_full_splits_are_preferred_then_more_shots_then_upstreams_first_seed(write):
    for sample in ("16_13", "16_100"):
        root = write("ag_news", sample, train=f"{sample}\tWorld\n")
    assert read(only(root))[0].input == "16_100"
    write("ag_news", "32_87", train="32_87\tWorld\n")
    assert read(only(root))[0].input == "32_87"
    write("ag_news", "full_42", train="full_42\tWorld\n")
    assert read(only(root))[0].input == "full_42"
    assert only(root).settings["sample"] == "full_42"


def test_full_splits_by_upstreams_generator_leave_an_empty_dev_file(write):
    root = write("ag_news", "1000000_100", train="a\tWorld\n", dev="", test="b\tWorld\n")
    assert only(root).splits == ("train", "test")


def test_the_folder_of_the_tasks_itself_is_a_root_too(write):
    root = write("ag_news", train="a\tWorld\n")
    assert only(root / "data").name == "crossfit/ag_news"


def test_damaged_and_repeated_rows_are_counted(write, caplog):
    text = "a\tWorld\na\tWorld\n\tWorld\nb\t\nhalf a row\nc\ufffd\tWorld\n"
    drops = Drops()
    assert len(read(only(write("ag_news", train=text)), drops=drops)) == 1
    assert drops == {
        "duplicate": 1,
        "empty input": 1,
        "empty target": 1,
        "wrong number of columns": 1,
        "NUL or U+FFFD": 1,
    }
    assert "ag_news_16_100_train.tsv, line 5 dropped: wrong number" in caplog.text


def test_bad_folders_are_one_line(write, tmp_path, caplog):
    with pytest.raises(UserError, match=r"folder not found: .*nowhere; give a clone of"):
        find_tasks(tmp_path / "nowhere", MANIFEST)
    root = write("my_own_task", train="a\tb\n")
    with pytest.raises(UserError, match=r"no task of benchmark 'crossfit' in .*data: there is no"):
        find_tasks(root, MANIFEST)
    write("ag_news", train="no tab\n")
    with pytest.raises(UserError, match=r"no usable row in .*ag_news_16_100_train.tsv \(1 wrong"):
        read(only(root))
    assert "1 folders" in caplog.text
    assert "my_own_task" in caplog.text


def test_every_one_of_the_160_tasks_has_a_category_and_a_sentence_of_its_own(real_data):
    path = real_data / "crossfit" / "dataloader" / "custom_tasks_splits" / "random.json"
    names = json.loads(path.read_text("utf-8"))["all"]
    sentences = instructions("crossfit")
    assert len(names) == 160
    assert set(names) == set(sentences) == set(answer_kinds())
    assert len(set(sentences.values())) == 160
    assert all(len(s.split()) >= 6 and s[-1] in ".?!:" for s in sentences.values())
    assert set(answer_kinds().values()) == {"closed", "text"}


def test_the_real_tasks_are_read_whole_and_every_one_has_options(real_data):
    counts, drops = {}, Drops()
    for source in find_tasks(real_data / "crossfit", MANIFEST):
        examples = {split: read(source, split, drops) for split in source.splits}
        counts[source.name] = [len(part) for part in examples.values()]
        for part in examples.values():
            assert all(e.target in e.options for e in part)
    assert counts == {
        "crossfit/ag_news": [64, 64, 200],
        "crossfit/dbpedia_14": [224, 224, 140],
        "crossfit/superglue-cb": [48, 32, 56],
        "crossfit/superglue-copa": [32, 32, 100],
        "crossfit/superglue-rte": [32, 32, 277],
    }
    assert not drops
