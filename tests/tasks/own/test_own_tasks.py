"""Tasks, collections and decisions of a user's own, without a change of the package.

Expected examples are written by hand from the rows; ranking is checked by a whole evaluation.
"""

import dataclasses
import importlib.metadata
import json
import pathlib
import pickle
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
