"""MMLU: upstream's prompt to the character, its CSV quirks, two evaluations, the macro mean."""

import csv
import dataclasses

import pytest

from optiml_jax.data.example import Drops
from optiml_jax.data.prompts import PromptConfig, render
from optiml_jax.errors import UserError
from optiml_jax.evaluate.records import Record, RunFolder, TaskInfo
from optiml_jax.evaluate.rollup import Key, rollup
from optiml_jax.report.run_tables import task_table
from tasks.splits import Manifest, category
from tasks.suites.mmlu import find_tasks

MANIFEST = Manifest.load()
DEV = [[f"What is {i} + 0?", str(i), "None", "NA", "x", "A"] for i in range(5)]
TEST = [
    ['He said "go, now".\nThen?', " A b", "N/A", "c, d", "", "D"],
    ["Which?", "1", "2", "3", "4", "B"],
]


@pytest.fixture
def folder(tmp_path):
    """Two subjects in upstream's layout; the csv module writes as upstream's files are written."""
    for split, rows in (("dev", DEV), ("val", TEST[1:]), ("test", TEST)):
        for subject in ("us_foreign_policy", "anatomy"):
            path = tmp_path / "data" / split / f"{subject}_{split}.csv"
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "w", newline="") as file:
                csv.writer(file, lineterminator="\n").writerows(rows)
    return tmp_path


def test_the_prompt_is_upstreams(folder):
    """Typed from hendrycks/test, evaluate.py: format_subject, format_example, gen_prompt."""
    source = {s.name: s for s in find_tasks(folder, MANIFEST)}["mmlu/us_foreign_policy"]
    first, second = source.read("test", Drops())
    shown = source.demonstrations()
    separator = MANIFEST.row(source).protocol.separator
    rendered = render(first, shown, source.instruction_level, PromptConfig(separator=separator))
    header = "The following are multiple choice questions (with answers) about  us foreign policy."
    demonstrations = "".join(
        f"What is {i} + 0?\nA. {i}\nB. None\nC. NA\nD. x\nAnswer: A\n\n" for i in range(5)
    )
    question = 'He said "go, now".\nThen?\nA.  A b\nB. N/A\nC. c, d\nD. \nAnswer:'
    assert rendered.source() == f"{header}\n\n{demonstrations}{question}"
    assert rendered.source(0) == f"{header}\n\n{question}"
    assert (first.options, first.references) == (("A", "B", "C", "D"), ("D",))
    assert (rendered.target, second.references) == ("D", ("B",))
    assert len({e.example_id for e in (first, second, *shown)}) == 7


def test_validation_and_test_are_two_evaluations(folder):
    test, val = (find_tasks(folder / "data", MANIFEST, b) for b in ("mmlu", "mmlu_val"))
    sources = {s.name: s for s in (*test, *val)}
    rows = {name: MANIFEST.row(source) for name, source in sources.items()}
    assert {name: (row.role, row.aggregate_as) for name, row in rows.items()} == {
        "mmlu/anatomy": (("test_max",), "mmlu"),
        "mmlu/us_foreign_policy": (("test_max",), "mmlu"),
        "mmlu_val/anatomy": (("dev",), "mmlu_val"),
        "mmlu_val/us_foreign_policy": (("dev",), "mmlu_val"),
    }
    assert {category(source) for source in sources.values()} == {"MMLU"}
    assert {row.shots for row in rows.values()} == {(0, 5)}
    (only,) = sources["mmlu_val/anatomy"].read("test", Drops())
    assert only.references == ("B",)
    assert only.instruction.endswith("about  anatomy.")
    assert len(sources["mmlu_val/anatomy"].demonstrations()) == 5
    names = [n.split("/")[0] for n in MANIFEST.evaluation_tasks() if n.startswith("mmlu")]
    assert (names.count("mmlu"), names.count("mmlu_val")) == (57, 57)


def test_subjects_weigh_the_same_whatever_their_size(tmp_path):
    """The paper's rule (section 4.1): the macro mean; the mean over instances stands beside it."""
    folder = RunFolder(tmp_path)
    row = MANIFEST.lookup("mmlu/anatomy", None)
    info = TaskInfo("", "mmlu", row.category, row.level, row.metric, row.aggregate_as)
    scores = {"mmlu/anatomy": [1.0, 0.0], "mmlu/virology": [1.0] * 8}
    infos = [dataclasses.replace(info, task=task) for task in scores]
    folder.open({"step": 1}, infos)
    for task, values in scores.items():
        records = [Record(str(i), "p", str(i), ("A",), "A", v) for i, v in enumerate(values)]
        summary = {"metric": "acc_rank", "best_constant": {"answer": "A", "score": 1.0}}
        folder.write(task, 0, records, summary)
    tree = rollup(tmp_path)
    assert tree.cells[Key(0, "partially_held_out", "MMLU", "mmlu")].value == 75.0
    rows = {row[2].strip(): row[-1] for row in task_table({"run": tree}).rows}
    assert rows == {
        "mmlu": "75.0",
        "mmlu/anatomy": "50.0",
        "mmlu/virology": "100.0",
        "(mean over instances)": "90.0",  # which other harnesses print
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("Q,a,b,c,d,A\nQ,a,b,c,A\n", r"anatomy_test.csv, line 2: .*\(5 cells\)"),
        ("Q,a,b,c,d,E\n", "anatomy_test.csv, line 1: not a question"),
        ('Q,a,b,c,d,A\n"Q,a,b,c,d,A\n', "anatomy_test.csv is damaged after line 1"),
        ("", "anatomy_test.csv is empty"),
        (b"Q,\xff,b,c,d,A\n", "anatomy_test.csv, line 1 is not UTF-8"),
    ],
)
def test_damaged_files(folder, content, message):
    path = folder / "data" / "test" / "anatomy_test.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    source = find_tasks(folder, MANIFEST)[0]
    with pytest.raises(UserError, match=message):
        list(source.read("test", Drops()))


def test_missing_files(tmp_path, folder):
    with pytest.raises(UserError, match=r"no test/<subject>_test.csv in .*hendrycks/test"):
        find_tasks(folder / "data" / "dev", MANIFEST)
    (folder / "data" / "dev" / "anatomy_dev.csv").unlink()
    assert find_tasks(folder, MANIFEST)[0].demonstrations() == []
