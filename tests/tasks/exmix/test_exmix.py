import json
import pickle

import pytest
import yaml

from optiml_jax.data.example import Drops, TaskSource
from optiml_jax.data.prompts import PromptConfig, render
from optiml_jax.data.sampling import RowSample
from optiml_jax.errors import UserError
from tasks import taxonomy
from tasks.exmix.reader import FACTS_FILE, find_tasks
from tasks.splits import Row
from tasks.templates.instructions import instructions


class TrainOnly:
    """A manifest that has every task trained on."""

    def lookup(self, task, upstream_split):
        return Row("train_only", ("train",))


MANIFEST = TrainOnly()


def write(root, name, *rows) -> None:
    """A JSONL file of mappings, or a file of the given lines."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines), "utf-8")


def own_task(root, text: str) -> None:
    (root / "tasks.yaml").write_text(f"tasks:\n  own: {text}\n", "utf-8")


def only(root) -> TaskSource:
    (source,) = find_tasks(root, MANIFEST)
    return source


def read(source, split="train", drops=None) -> list:
    return list(source.read(split, Drops() if drops is None else drops))


@pytest.fixture
def gpt2(tmp_path):
    """openai/gpt-2-output-dataset as it is on disk, with few rows."""
    for split in ("train", "valid", "test"):
        for name, n in (("webtext", 3), ("small-117M", 4), ("xl-1542M-k40", 4)):
            rows = [
                {"id": i, "ended": True, "length": 9, "text": f"{name} {split} {i}"}
                for i in range(n)
            ]
            write(tmp_path, f"gpt-2-output-dataset/{name}.{split}.jsonl", *rows)
    return tmp_path


def test_gpt2_texts_and_human_ones_come_by_turns_with_the_question_last(gpt2):
    source = only(gpt2)
    assert (source.name, source.splits) == (
        "exmix/gpt2_deepfake_detection",
        ("train", "validation", "test"),
    )
    examples = read(source, "validation")
    sentence = instructions("exmix")["gpt2_deepfake_detection"]
    assert [(e.input.split("\n")[0], e.target) for e in examples] == [
        ("webtext valid 0", "No"),
        ("small-117M valid 0", "Yes"),
        ("webtext valid 1", "No"),
        ("xl-1542M-k40 valid 0", "Yes"),
        ("webtext valid 2", "No"),
        ("small-117M valid 1", "Yes"),
    ]
    assert {e.options for e in examples} == {("No", "Yes")}
    assert {e.category for e in examples} == {"Machine-Generated Text Detection"}
    assert render(examples[0], [], "instance", PromptConfig(delimiter="\nA:")).source() == (
        f"webtext valid 0\n{sentence}\nA:"
    )
    assert len(source.files) == 9


def two_answers(root, **rows: int) -> None:
    """A task whose answer is the file, with so many rows in each file."""
    own_task(root, "{input: '{t}', instruction: Go., files: {a: [a*.jsonl], b: [b*.jsonl]}}")
    for name, number in rows.items():
        write(root, f"own/{name}.jsonl", *({"t": f"{name} {i}"} for i in range(number)))


def test_where_a_file_of_an_answer_ends_the_others_go_on(tmp_path):
    two_answers(tmp_path, a1=1, a2=4, b=5)
    drops = Drops()
    inputs = [e.input for e in read(only(tmp_path), drops=drops)]
    assert inputs == [
        *("a1 0", "b 0", "a2 0", "b 1", "a2 1", "b 2", "a2 2", "b 3", "a2 3", "b 4"),
    ]
    assert not drops


@pytest.mark.parametrize(("a", "b"), [(2, 7), (7, 2)])
def test_rows_of_an_answer_that_has_more_of_them_are_counted(tmp_path, a, b):
    two_answers(tmp_path, a=a, b=b)
    drops = Drops()
    targets = [e.target for e in read(only(tmp_path), drops=drops)]
    assert targets == ["a", "b"] * 2
    assert drops == {"more rows than another answer": 5}


def test_rows_that_a_sample_leaves_out_are_not_counted(tmp_path):
    two_answers(tmp_path, a=4, b=40)
    drops = Drops()
    examples = list(only(tmp_path).read("train", drops, RowSample("key", 6)))
    chosen = RowSample("key", 6).positions(40)
    assert len(examples) == 4 + sum(chosen < 4)
    assert drops == {"more rows than another answer": sum(chosen >= 4)}


def test_a_split_that_lacks_one_of_the_answers_is_left_out(gpt2):
    (gpt2 / "gpt-2-output-dataset" / "webtext.valid.jsonl").unlink()
    assert only(gpt2).splits == ("train", "test")


def test_a_file_of_tasks_without_its_key_is_named(tmp_path):
    path = tmp_path / "tasks.yaml"
    path.write_text('parity:\n  input: "{number}"\n  target: "{answer}"\n', "utf-8")
    write(tmp_path, "parity/train.jsonl", {"number": 14, "answer": "even"})
    with pytest.raises(UserError, match="has no key `tasks`: put the descriptions") as error:
        find_tasks(tmp_path, MANIFEST)
    assert str(path) in str(error.value)


def test_a_task_of_the_users_own_is_a_few_lines(tmp_path, caplog):
    (tmp_path / "tasks.yaml").write_text(
        "tasks:\n"
        "  parity:\n"
        '    instruction: "Is the number odd or even?"\n'
        '    input: "{number}"\n'
        '    target: "{answer}"\n'
        "    options: [odd, even]\n"
    )
    rows = [{"number": 14, "answer": "even"}, {"number": 3, "answer": "odd"}]
    write(tmp_path, "parity/train.jsonl", *rows, {"number": 4, "answer": "straight"})
    drops = Drops()
    with caplog.at_level("INFO"):
        source = only(tmp_path)
    examples = read(source, drops=drops)
    assert [(e.instruction, e.input, e.target, e.options) for e in examples] == [
        ("Is the number odd or even?", "14", "even", ("odd", "even")),
        ("Is the number odd or even?", "3", "odd", ("odd", "even")),
    ]
    assert drops == {"unknown label": 1}
    assert (source.splits, source.settings["category"]) == (("train",), "Misc.")
    assert "1 of 15 tasks of ExMix have rows in" in caplog.text
    assert read(pickle.loads(pickle.dumps(source))) == examples == source.demonstrations()


@pytest.mark.parametrize(
    ("task", "file", "lines", "expected"),
    [
        ("{input: '{a}: {b.c}', target: '{d}'}", "own/train.jsonl",
         ['{"a": "x", "b": {"c": ["u", 2]}, "d": ["y", "z"]}'], ("x: u\n2", ("y", "z"))),
        ("{input: '{a}', target: '{b}', columns: [a, b]}", "own/train.tsv",
         ['"quoted\tno'], ('"quoted', ("no",))),
        ("{input: '{a}', target: '{b}'}", "own/train.tsv",
         ["b\ta", "no\tyes"], ("yes", ("no",))),
        ("{input: '{a}', target: '{b}'}", "own/train.csv",
         ["a,b", '"one, two\nlines",no'], ("one, two\nlines", ("no",))),
        ("{input: '{a}', target: 'I say {b}.'}", "own/train.json",
         ['[{"a": "x", "b": true}]'], ("x", ("I say True.",))),
        ("{input: '{a}', target: '{b}', labels: {0: bad, 1: good}, splits: {train: tr}}",
         "own/tr.jsonl", ['{"a": "x", "b": 1.0}'], ("x", ("good",))),
        ("{input: '{a}', target: '{b}', folder: deep/er}", "deep/er/train.jsonl",
         ['{"a": "x", "b": 0.25}'], ("x", ("0.25",))),
    ],
)  # fmt: skip
def test_forms_of_files_and_templates(tmp_path, task, file, lines, expected):
    own_task(tmp_path, task)
    (tmp_path / "instructions.yaml").write_text("own: Do it.\n")
    write(tmp_path, file, *lines)
    (example,) = read(only(tmp_path))
    assert (example.input, example.references) == expected
    assert example.instruction == "Do it."


def test_rows_are_read_as_they_are_needed(gpt2):
    file = gpt2 / "gpt-2-output-dataset" / "webtext.test.jsonl"
    file.write_text('{"text": "one"}\n{cut off\n')
    examples = only(gpt2).read("test", Drops())
    assert [next(examples).target, next(examples).target] == ["No", "Yes"]
    with pytest.raises(UserError, match=r"webtext\.test\.jsonl, line 2: not valid JSON"):
        next(examples)


def test_damaged_unknown_and_repeated_rows_are_counted(tmp_path):
    own_task(tmp_path, "{input: '{a}', target: '{b}', labels: {0: bad}, instruction: Go.}")
    good = {"a": "x", "b": 0}
    write(
        *(tmp_path, "own/train.jsonl", good, good, {"a": "y"}, {"a": None, "b": 0}),
        *({"a": {"k": 1}, "b": 0}, {"a": "z", "b": -1}, {"a": " ", "b": 0}, {"a": "\0", "b": 0}),
    )
    drops = Drops()
    assert len(read(only(tmp_path), drops=drops)) == 1
    assert drops == {
        "duplicate": 1,
        "malformed record": 3,
        "unknown label": 1,
        "empty input": 1,
        "NUL or U+FFFD": 1,
    }
    (tmp_path / "own" / "train.jsonl").unlink()
    write(tmp_path, "own/train.csv", "a,b", "x,0", "x,0,1", "y")
    drops = Drops()
    assert len(read(only(tmp_path), drops=drops)) == 1
    assert drops == {"wrong number of columns": 1, "malformed record": 1}


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("{input: '{a}'}", "needs `input`, and either `target` or `files`"),
        ("{input: '{a}', target: '{b}', option: [x]}", r"option: \['x'\] is not right; known: in"),
        ("{input: '{a}', target: '{b}', options: [yes, no]}", "True must be text: put it in quo"),
        ("{input: '{a}', target: '{b}', question: middle}", "question must be first or last"),
        ("{input: '{a}', target: '{b}', splits: {dev: d}}", "split 'dev' must be one of train"),
        ("{input: '{a}', files: {'No': 'a.jsonl'}}", "files must be lists of patterns"),
        ("just text", "must be a name with a description"),
        ("!!python/object/apply:os.system [id]", r"tasks\.yaml is not YAML: .*, line 2"),
        ("{input: '{a}', target: '{b}'}", "'own' has no instruction: add one to"),
    ],
)
def test_wrong_descriptions_are_one_line(tmp_path, task, message):
    own_task(tmp_path, task)
    write(tmp_path, "own/train.jsonl", {"a": "x", "b": "y"})
    with pytest.raises(UserError, match=message):
        find_tasks(tmp_path, MANIFEST)


def test_bad_folders_and_files_are_one_line(tmp_path):
    with pytest.raises(UserError, match=r"folder not found: .*nowhere; give a folder as"):
        find_tasks(tmp_path / "nowhere", MANIFEST)
    with pytest.raises(UserError, match=r"no task of benchmark 'exmix' in .* big_patent/all, cfq"):
        find_tasks(tmp_path, MANIFEST)
    write(tmp_path, "hwu64/train.csv", "text,category", "x,")
    with pytest.raises(UserError, match=r"no usable row of 'train' of exmix/hwu64 \(1 empty tar"):
        read(only(tmp_path))
    (tmp_path / "hwu64" / "train.csv").write_bytes(b"text,category\n\xff,x\n")
    with pytest.raises(UserError, match=r"hwu64/train\.csv, line 2 is not UTF-8 .*convert"):
        read(only(tmp_path))
    write(tmp_path, "hwu64/train.jsonl", {"text": "x", "category": "y"})
    with pytest.raises(UserError, match=r"split 'train' is in .*hwu64 more than once"):
        find_tasks(tmp_path, MANIFEST)


def test_long_cells_of_csv_are_read(tmp_path):
    write(tmp_path, "hwu64/train.csv", "text,category", f"{'x' * 140_000},y")
    (example,) = read(only(tmp_path))
    assert len(example.input) == 140_000


def test_the_fourteen_tasks_have_a_category_and_a_sentence_of_their_own():
    tasks = yaml.safe_load(FACTS_FILE.read_text("utf-8"))["tasks"]
    assert len(tasks) == 14
    assert set(tasks) == set(instructions("exmix"))
    assert len(set(instructions("exmix").values())) == 14
    assert all(taxonomy.category("exmix", task) != taxonomy.MISC for task in tasks)


def test_the_releases_forms_of_listed_tasks_are_read(tmp_path):
    write(tmp_path, "go_emotions/train.tsv", "My favourite food.\t27\teebbqej", "Both\t2,10\tid2")
    write(tmp_path, "clinc150/val.csv", "text,category", '"set, please, an alarm",alarm')
    write(tmp_path, "top/eval.tsv", "go home\tgo home\t[IN:GET_DIRECTIONS go home ]")
    row = {"context": "Ann won.", "question": "Who?", "answers": ["Ann", "Ann B."], "qid": "1"}
    write(tmp_path, "mrqa/news_qa/train.jsonl", row)
    row = {"text": "You fool", "toxicity": 1.0, "insult": 1.0}
    write(tmp_path, "wikipedia_toxicity_subtypes/EnglishSubtypes/test.jsonl", row)
    drops = Drops()
    examples = [
        e for s in find_tasks(tmp_path, MANIFEST) for p in s.splits for e in read(s, p, drops)
    ]
    sentence = instructions("exmix")["newsqa"]
    assert [(e.input, e.target, e.references) for e in examples] == [
        ("set, please, an alarm", "alarm", ("alarm",)),
        ("My favourite food.", "neutral", ("neutral",)),
        (f"Ann won.\nQuestion: Who?\n{sentence}", "Ann", ("Ann", "Ann B.")),
        ("go home", "[IN:GET_DIRECTIONS go home ]", ("[IN:GET_DIRECTIONS go home ]",)),
        ("You fool", "toxic", ("toxic",)),
    ]
    assert drops == {"unknown label": 1}
