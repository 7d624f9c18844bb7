import csv
import pickle

import pytest

from optiml_jax.data.example import Drops, TaskSource
from optiml_jax.data.prompts import PromptConfig, render
from optiml_jax.errors import UserError
from tasks.reasoning.reader import find_tasks, question_text, target_text
from tasks.splits import Manifest, category
from tasks.templates.instructions import instructions

MANIFEST = Manifest.load()


def only(folder) -> TaskSource:
    (source,) = find_tasks(folder, MANIFEST)
    return source


def write(folder, name, *rows) -> None:
    lines = "".join("\t".join(row) + "\n" for row in rows)
    (folder / f"{name}_train.tsv").write_text(lines, "utf-8")


def test_a_row_becomes_an_example_in_the_form_of_table_6(tmp_path):
    row = (r"Which is heavier?\nOptions:\n- feather\n- brick", "brick", "A brick is dense")
    write(tmp_path, "ecqa", row)
    source = only(tmp_path)
    (example,) = source.read("train", Drops())
    assert (source.name, source.splits, source.instruction_level) == (
        "reasoning/ecqa",
        ("train",),
        "instance",
    )
    assert example.input == "Which is heavier?\nfeather, brick"
    assert example.target == "A brick is dense. The answer is brick"
    assert (example.references, example.options) == ((example.target,), None)
    assert example.category == category(source) == "Reasoning"
    assert tuple(example.meta.values()) == row
    prompt = render(example, [example], "instance", PromptConfig(delimiter="Output:"))
    shown = f"{instructions('reasoning')['ecqa']}\nWhich is heavier?\nfeather, brick Output:"
    assert prompt.query == shown
    assert prompt.source() == f"{shown} A brick is dense. The answer is brick\n\n\n{shown}"


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("Q?\nOptions:\n(A) 3\n(B) 5,000", "Q?\n(A) 3, (B) 5,000"),
        ("Q?\nOptions:\n- (A) DNA\n- (B) sex", "Q?\n(A) DNA, (B) sex"),
        ("Q?\nOptions:\n- yes\n- no\n", "Q?\nyes, no"),
        ("Q?\nOptions:\nfree text", "Q?\nOptions:\nfree text"),
        ("Options: are there any?", "Options: are there any?"),
    ],
)
def test_options_stand_on_one_line_whatever_their_markers(question, expected):
    assert question_text(question) == expected


@pytest.mark.parametrize(
    ("rationale", "answer", "expected"),
    [
        ("It is.", "yes", "It is. The answer is yes"),
        ("Is it?", "no.", "Is it? The answer is no"),
        ("2 + 3 = 5 ", " 5", "2 + 3 = 5. The answer is 5"),
    ],
)
def test_the_target_ends_the_rationale_with_a_stop_and_the_answer_without(
    rationale, answer, expected
):
    assert target_text(rationale, answer) == expected


def test_a_held_out_set_keeps_its_first_rows_for_evaluation(tmp_path):
    write(tmp_path, "gsm8k", *[(f"q{i}", str(i), f"r{i}.") for i in range(300)])
    source = only(tmp_path)
    assert source.splits == ("train", "test")
    assert [e.input for e in source.read("test", Drops())] == [f"q{i}" for i in range(250)]
    assert [e.input for e in source.demonstrations()] == [f"q{i}" for i in range(250, 300)]


def test_damaged_rows_are_counted_once_and_named(tmp_path, caplog):
    good = ("q", "a", "r")
    write(tmp_path, "gsm8k", good, ("q", "a"), ("", "a", "r"), ("q2", "", "r"), ("q3", "a", ""))
    source = only(tmp_path)
    drops = Drops()
    for split in source.splits:
        list(source.read(split, drops))
    assert drops == {"wrong number of columns": 1, "empty input": 1, "empty target": 2}
    assert "gsm8k_train.tsv, line 2 dropped: wrong number of columns (2 columns)" in caplog.text


def test_bad_folders_and_files_are_one_line(tmp_path):
    with pytest.raises(UserError, match=r"folder not found: .*nowhere"):
        find_tasks(tmp_path / "nowhere", MANIFEST)
    with pytest.raises(UserError, match=r"no <name>_train\.tsv of benchmark 'reasoning' in"):
        find_tasks(tmp_path, MANIFEST)
    write(tmp_path, "qed", ("only", "two"))
    with pytest.raises(UserError, match=r"no usable row in .*qed_train.tsv \(1 wrong number"):
        list(only(tmp_path).read("train", Drops()))
    write(tmp_path, "riddles", ("q", "a", "r"))
    with pytest.raises(UserError, match=r"no instruction sentence for .*riddles_train\.tsv; known"):
        find_tasks(tmp_path, MANIFEST)


def test_every_row_of_the_real_files_is_read(real_data):
    sources = find_tasks(real_data / "reasoning", MANIFEST)
    counts, drops = {}, Drops()
    for source in sources:
        examples = [e for s in source.splits for e in source.read(s, drops)]
        counts[source.name.split("/")[1]] = len(examples)
        assert len({(e.split, e.example_id) for e in examples}) == len(examples)
        assert not any("Options:" in e.input for e in examples)
    assert counts == {
        "aqua": 2728,
        "creak": 6915,
        "ecqa": 7112,
        "gsm8k": 7473,
        "qasc": 1084,
        "sensemaking": 6070,
        "strategyqa": 2061,
    }
    assert sum(counts.values()) == 33_443
    assert not drops
    copy = pickle.loads(pickle.dumps(sources[0]))
    assert list(copy.read("train", Drops())) == list(sources[0].read("train", Drops()))


def test_cells_are_the_bytes_of_the_file_where_a_csv_reader_changes_them(real_data):
    (source,) = [s for s in find_tasks(real_data / "reasoning", MANIFEST) if "creak" in s.name]
    with open(source.files[0], "rb") as f:
        lines = [line.decode("utf-8").removesuffix("\n") for line in f]
    ours = ["\t".join(e.meta.values()) for e in source.read("train", Drops())]
    assert ours == lines
    with open(source.files[0], encoding="utf-8", newline="") as f:
        theirs = ["\t".join(row) for row in csv.reader(f, delimiter="\t")]
    changed = set(lines) - set(theirs)
    assert len(changed) == 975
