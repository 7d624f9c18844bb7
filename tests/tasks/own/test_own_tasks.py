"""Tasks, collections and decisions of a user's own, without a change of the package.

Expected examples are written by hand from the rows; ranking is checked by a whole evaluation.
"""

import csv
import dataclasses
import importlib.metadata
import json
import pathlib
import pickle
import re
import sys
import textwrap

import gin
import pytest

from optiml_jax.data.example import Drops
from optiml_jax.errors import UserError
from tasks import taxonomy
from tasks.registry import find_sources
from tasks.splits import Manifest, category

PARITY = """
rows: parity
instruction: Is the number odd or even?
prompt: "Number: {{ number }}"
target: "{{ answer }}"
options: [odd, even]
category: Mathematics
level: partially_held_out
role: [test]
shots: [0, 2]
"""
COLOURS = """
rows: {train: colours.csv, test: colours.jsonl}
prompt: "{{ question }}"
target: "{{ options[label] }}"
options: "{{ choices | join('|||') }}"
level: fully_supervised
role: [train, test]
"""


def write(path: pathlib.Path, *rows: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
    root = tmp_path / "mine"
    rows = [{"number": n, "answer": "even" if n % 2 == 0 else "odd"} for n in range(6)]
    write(root / "parity/test.jsonl", *rows, {"number": 7, "answer": "straight"}, {"number": 8})
    write(root / "parity/train.jsonl", {"number": 1.50, "answer": "odd"})
    (root / "parity.yaml").write_text(PARITY)
    return root


def source(folder, name="mine/parity"):
    manifest = Manifest.load()
    (found,) = [s for s in find_sources({"mine": str(folder)}, manifest) if s.name == name]
    return found, manifest.row(found)


def test_a_yaml_file_is_a_task(folder):
    found, row = source(folder)
    assert (row.level, row.role, row.metric, row.shots) == (
        "partially_held_out",
        ("test",),
        "acc_rank",
        (0, 2),
    )
    drops = Drops()
    examples = list(pickle.loads(pickle.dumps(found)).read("test", drops))
    assert [(e.input, e.target, e.options) for e in examples[:2]] == [
        ("Number: 0", "even", ("odd", "even")),
        ("Number: 1", "odd", ("odd", "even")),
    ]
    assert len(examples) == 6
    assert drops["target is none of the options"] == 1
    assert sum(drops.values()) == 2
    assert [e.input for e in found.demonstrations()] == ["Number: 1.5"]
    assert (examples[0].category, found.instruction_level) == ("Mathematics", "task")


def test_options_of_each_row_and_parts_in_files(folder):
    rows = [
        {"question": "grass?", "choices": ["red", "green"], "label": 1},
        {"question": "sea?", "choices": ["blue", "white", "pink"], "label": 0},
    ]
    write(folder / "colours.jsonl", *rows)
    (folder / "colours.csv").write_text("question,choices,label\nsnow?,x,0\n")
    (folder / "colours.yaml").write_text(COLOURS)
    found, row = source(folder, "mine/colours")
    assert [(e.target, e.options) for e in found.read("test", Drops())] == [
        ("green", ("red", "green")),
        ("blue", ("blue", "white", "pink")),
    ]
    assert row.trained
    assert found.instruction_level == "instance"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("rows: parity", "rows: nowhere", "parity.yaml: rows not found: .*nowhere"),
        ("level: partially_held_out", "level: somewhere", "parity.yaml: unknown level 'somewhere'"),
        ("shots: [0, 2]", "shoots: [0]", "parity.yaml: unknown key 'shoots'"),
        ("shots: [0, 2]", "stop: 5", r"parity.yaml: Protocol.stop = 5 \(int\) must be"),
        ("shots: [0, 2]", "tasks: mine/*", "parity.yaml: `tasks` is for rows of a split manifest"),
        ("shots: [0, 2]", "upstream_split: x", "parity.yaml: `upstream_split` is for rows"),
        ("shots: [0, 2]", "only_with: bbh_23", "parity.yaml: `only_with` is for rows"),
        ("category: Mathematics", "category: [a]", "parity.yaml: category must be text"),
        ("{{ answer }}", "{{ answer", "parity.yaml: the template target is refused"),
        ("{{ answer }}", "{{ answer.__class__ }}", "the template target is refused"),
        ("[odd, even]", "[odd]", "options must be at least two texts"),
        ("[odd, even]", "[yes, no]", "options must be at least two texts, in quotation marks"),
        ("role: [test]", "role: [train]", "has no row|no split train|validation"),
        ('prompt: "Number: {{ number }}"\n', "", "parity.yaml has no `prompt`"),
        ("rows: parity", "rows: [", "the task file is not YAML: .*parity.yaml, line "),
    ],
)
def test_mistakes_are_named_with_file_and_key(folder, old, new, message):
    file = folder / "parity.yaml"
    if "train" in new:
        (folder / "parity/train.jsonl").unlink()
    file.write_text(PARITY.replace(old, new))
    with pytest.raises(UserError, match=message) as e:
        source(folder)
    assert "\n" not in str(e.value)


def test_the_splits_of_a_mapping_have_the_names_of_those_of_a_folder(folder):
    rows = "rows: {train: parity/train.jsonl, dev: parity/train.jsonl, test: parity/test.jsonl}"
    (folder / "parity.yaml").write_text(PARITY.replace("rows: parity", rows))
    assert source(folder)[0].splits == ("train", "validation", "test")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            "test: test, tset: test",
            "parity.yaml: rows has the unknown split 'tset'; known: train, ",
        ),
        ("test: test, 3: test", "rows has the unknown split 3; known: train, validation .or dev,"),
        ("test: test, dev: test, val: test", "has the split validation twice, as dev and as val"),
        ("train: train", "parity.yaml: rows has no split test, .* role test needs; it has train"),
        ("dev: test", "parity.yaml: rows has no split test, .* it has validation: {'dev'"),
    ],
)
def test_a_split_that_would_be_dropped_or_is_missing_is_named(folder, rows, message):
    rows = re.sub(r": (\w+)", r": parity/\1.jsonl", rows)
    (folder / "parity.yaml").write_text(PARITY.replace("rows: parity", f"rows: {{{rows}}}"))
    with pytest.raises(UserError, match=message):
        source(folder)


def test_files_of_a_folder_that_are_no_split_are_named(folder, caplog):
    write(folder / "parity/tests.jsonl", {"number": 1, "answer": "odd"})
    write(folder / "parity/valid.jsonl", {"number": 1, "answer": "odd"})
    assert source(folder)[0].splits == ("train", "validation", "test")
    (warning,) = [r.getMessage() for r in caplog.records if "no split" in r.getMessage()]
    assert f"{folder}/parity.yaml" in warning
    assert f"{folder}/parity these are no split and not used: tests; known: train, " in warning
    (folder / "parity/test.jsonl").unlink()
    with pytest.raises(UserError, match="no split test, which a task of the role test needs"):
        source(folder)
    write(folder / "parity/dev.jsonl", {"number": 1, "answer": "odd"})
    with pytest.raises(UserError, match="the split validation twice, as dev and as valid; keep"):
        source(folder)


def test_a_missing_column_is_counted_by_name(folder):
    (folder / "parity.yaml").write_text(PARITY.replace("{{ number }}", "{{ nummer }}"))
    found, _ = source(folder)
    with pytest.raises(UserError, match=r"no usable row .*'nummer' is undefined"):
        list(found.read("test", Drops()))


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), [1], {"a": 1}])
def test_what_is_no_text_is_dropped_and_counted(folder, value):
    rows = [{"number": n, "answer": "odd"} for n in (7.5, value)]
    write(folder / "parity/test.jsonl", {**rows[0], "unused": value}, rows[1])
    drops = Drops()
    (example,) = source(folder)[0].read("test", drops)
    assert example.input == "Number: 7.5"
    assert drops.total() == 1


READER = """
from optiml_jax.data.example import TaskSource
def find_tasks(root, manifest, benchmark):
    manifest.declare(f"{benchmark}/t", {"level": "fully_held_out", "role": ["test"]}, __file__)
    return [TaskSource(f"{benchmark}/t", ("test",), (), lambda s, d: iter(()), list,
                       settings={"category": "Misc.", "root": root})]
"""


def test_a_collection_is_a_module_or_a_file_or_an_entry_point(tmp_path, monkeypatch):
    (tmp_path / "my_reader_1.py").write_text(READER)
    (tmp_path / "my_reader_2.py").write_text(READER)
    monkeypatch.syspath_prepend(str(tmp_path))
    point = importlib.metadata.EntryPoint("third", "my_reader_1", "optiml_jax.collections")
    monkeypatch.setattr(
        importlib.metadata,
        "entry_points",
        lambda group, name: [point] if name == "third" else [],
    )
    data = {"first": "my_reader_1:/a", "second": f"{tmp_path}/my_reader_2.py:/b", "third": "/c"}
    manifest = Manifest.load()
    found = find_sources(data, manifest)
    assert [(s.name, s.settings["root"]) for s in found] == [
        ("first/t", "/a"),
        ("second/t", "/b"),
        ("third/t", "/c"),
    ]
    assert {manifest.row(s).level for s in found} == {"fully_held_out"}
    # A change of the code is a change of its tasks.
    code = [f"{tmp_path}/my_reader_{i}.py" for i in (1, 2, 1)]
    assert [s.files for s in found] == [(file,) for file in code]
    with pytest.raises(UserError, match="first/t: its reader must put `category`"):
        category(dataclasses.replace(found[0], settings={}))


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("no.such.module:/a", "cannot import the reader no.such.module"),
        ("/no/such.py:/a", "reader not found: /no/such.py"),
        ("json:/a", "json has no find_tasks"),
        (
            "/tmp/nothing_here",
            "'mine', and folder not found: /tmp/nothing_here; known: ",
        ),
    ],
)
def test_a_reader_that_cannot_be_had_is_named(place, message):
    with pytest.raises(UserError, match=message):
        find_sources({"mine": place}, Manifest.load())


def test_two_readers_of_one_name_are_not_taken_for_each_other(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("a/twice.py", "b/twice.py", "a/csv.py", "a/time.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(READER)
    first, second = f"{tmp_path}/a/twice.py", f"{tmp_path}/b/twice.py"
    manifest = Manifest.load()
    # One file may serve two benchmarks.
    assert len(find_sources({"x": f"{first}:/a", "y": f"{first}:/b"}, manifest)) == 2
    clash = rf"Run.data\['y'\]: the reader {second} .* that is {first} already; rename one"
    with pytest.raises(UserError, match=clash):
        find_sources({"x": f"{first}:/a", "y": f"{second}:/b"}, manifest)
    with pytest.raises(UserError, match=rf"{tmp_path}/a/csv.py .*{csv.__file__} already; rename"):
        find_sources({"x": f"{tmp_path}/a/csv.py:/a"}, manifest)
    with pytest.raises(UserError, match="that is Python's own module time already; rename"):
        find_sources({"x": f"{tmp_path}/a/time.py:/a"}, manifest)


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("broken_1", "x = (\n", r"SyntaxError: .*\(broken_1.py, line 1\) \(in /.*1.py\)"),
        ("broken_2", "\nx = 1 / 0\n", r"ZeroDivisionError: .* \(/.*broken_2.py, line 2\)"),
        ("broken_3", "\n\nimport no_such\n", r"ModuleNotFoundError: .* \(/.*broken_3.py, line 3\)"),
    ],
)
def test_a_reader_that_fails_at_import_is_named_with_its_line(
    tmp_path, monkeypatch, name, code, message
):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / f"{name}.py").write_text(code)
    point = importlib.metadata.EntryPoint("mine", name, "optiml_jax.collections")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group, name: [point])
    for place in (f"{tmp_path}/{name}.py:/a", f"{name}:/a", "/a"):
        with pytest.raises(UserError, match=message) as e:
            find_sources({"mine": place}, Manifest.load())
        assert str(e.value).startswith("Run.data['mine']: cannot import the reader ")
        assert "\n" not in str(e.value)


def test_rows_of_the_users_manifests_win_field_by_field(tmp_path, folder):
    mine = tmp_path / "mine.yaml"
    mine.write_text(
        textwrap.dedent("""
        rows:
        - {tasks: "superni/task1344_*", metric: em}
        - {tasks: mine/parity, shots: [5]}
        """)
    )
    before = Manifest.load().lookup("superni/task1344_glue", "test")
    gin.bind_parameter("SplitConfig.manifests", str(mine))
    after = Manifest.load().lookup("superni/task1344_glue", "test")
    assert (before.metric, after.metric) == ("rougeL", "em")
    assert (after.role, after.category) == (before.role, before.category)
    assert source(folder)[1].shots == (5,)
    gin.bind_parameter("SplitConfig.manifests", "/no/such.yaml")
    with pytest.raises(UserError, match=r"SplitConfig.manifests: file not found: /no/such.yaml"):
        Manifest.load()


def test_rows_of_the_users_taxonomies_win(tmp_path):
    mine = tmp_path / "mine.tsv"
    head = "collection\tkind\tname\tcategory\tsource\n"
    mine.write_text(head + "flan\ttask\tcopa*\tMy Category\tme\nmine\ttask\tx\tOther\tme\n")
    assert taxonomy.category("flan", "copa") != "My Category"
    gin.bind_parameter("SplitConfig.taxonomies", (str(mine),))
    assert taxonomy.category("flan", "copa") == "My Category"
    assert taxonomy.category("mine", "x") == "Other"
    assert taxonomy.category("flan", "rte") != taxonomy.MISC
    bad = tmp_path / "bad.tsv"
    bad.write_text(head + "flan\ttask\n")
    gin.bind_parameter("SplitConfig.taxonomies", (str(bad),))
    with pytest.raises(UserError, match=r"bad.tsv, line 2"):
        taxonomy.category("flan", "copa")


def test_superni_instances_and_exmix_rows_list_options_of_their_own(tmp_path):
    from tasks.exmix import reader as exmix
    from tasks.superni import reader as superni

    root = tmp_path / "superni"
    instances = [
        {"id": "1", "input": "a?", "output": ["x"], "options": ["x", "y"]},
        {"id": "2", "input": "b?", "output": [3], "options": [1, 3, "z"]},
        {"id": "3", "input": "c?", "output": ["q"], "options": ["x", "y"]},
        {"id": "4", "input": "d?", "output": ["q"]},
    ]
    (root / "tasks").mkdir(parents=True)
    content = {"Definition": ["Choose."], "Instances": instances}
    (root / "tasks/mine.json").write_text(json.dumps(content))
    (root / "splits/default").mkdir(parents=True)
    (root / "splits/default/train_tasks.txt").write_text("")
    (root / "splits/default/test_tasks.txt").write_text("mine\n")
    rows = tmp_path / "rows.yaml"
    ranked = "role: [test], metric: acc_rank, options"
    rows.write_text(
        f"rows:\n- {{tasks: superni/mine, level: partially_held_out, {ranked}: listed}}\n"
    )
    gin.bind_parameter("SplitConfig.manifests", str(rows))
    (found,) = superni.find_tasks(root, Manifest.load())
    drops = Drops()
    assert [(e.target, e.options) for e in found.read("test", drops)] == [
        ("x", ("x", "y")),
        ("3", ("1", "3", "z")),
    ]
    assert drops["output is none of the options"] == 1
    assert drops["no list of options"] == 1

    write(tmp_path / "exmix/q/train.jsonl", {"q": "a?", "choices": ["u", "v"], "answer": "v"})
    (tmp_path / "exmix/tasks.yaml").write_text(
        "tasks:\n  q: {instruction: Say., input: '{q}', target: '{answer}', options: '{choices}'}\n"
    )
    (found,) = exmix.find_tasks(tmp_path / "exmix", Manifest.load())
    assert [e.options for e in found.read("train", Drops())] == [("u", "v")]
