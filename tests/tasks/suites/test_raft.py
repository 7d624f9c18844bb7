"""RAFT: HELM's cut and the prompt of raft-baselines, on made rows in the official form."""

import csv
import json

import pytest

from optiml_jax.data.example import Drops
from optiml_jax.data.prompts import PromptConfig, render
from optiml_jax.errors import UserError
from tasks.splits import Manifest
from tasks.suites.raft import SETTINGS, find_tasks, labels_of_all

MANIFEST = Manifest.load()
SUBSET = "neurips_impact_statement_risks"
LABELS = ("doesn't mention a harmful application", "mentions a harmful application")
COLUMNS = ["Paper title", "Paper link", "Impact statement", "Label", "ID"]
# What Hugging Face's Dataset.train_test_split(test_size=0.8, seed=42) leaves for training, of 50
# rows: printed by that function.
TEN = [0, 12, 14, 48, 2, 36, 33, 1, 13, 8]
ROWS = [[f"Title {i}", "http://x", f"It, {i}.\nYes.", LABELS[i % 2], str(i)] for i in range(50)]


def write_csv(folder, rows=ROWS):
    path = folder / "data" / SUBSET / "train.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([COLUMNS, *rows])


@pytest.fixture
def folder(tmp_path):
    """One subset as ought/raft has it, and the settings of raft-baselines."""
    write_csv(tmp_path)
    orders = {SUBSET: ["Impact statement", "Paper title"]}
    lines = [json.dumps(orders), json.dumps({SUBSET: "Label the statement."})]
    (tmp_path / SETTINGS).write_text("\n".join(lines))
    return tmp_path


def test_the_cut_is_that_of_helm(folder):
    (source,) = find_tasks(folder, MANIFEST)
    test, shown = list(source.read("test", Drops())), source.demonstrations()
    assert (len(test), len(shown)) == (40, 10)
    assert [int(e.example_id) for e in shown] == TEN
    assert {e.example_id for e in test} | {e.example_id for e in shown} == set(map(str, range(50)))
    assert 11 * len(test) == 440  # the paper's 69.3 and 79.3 (table 14) are 305/440 and 349/440


def test_the_prompt_is_that_of_raft_baselines(folder):
    (source,) = find_tasks(folder, MANIFEST)
    example = next(e for e in source.read("test", Drops()))
    row = MANIFEST.row(source)
    assert (row.shots, row.metric, row.aggregate_as) == ((5,), "acc_rank", "raft")
    config = PromptConfig(separator=row.protocol.separator)
    text = render(example, source.demonstrations()[:5], source.instruction_level, config).source()
    head = f"Label the statement.\nPossible labels:\n1. {LABELS[0]}\n2. {LABELS[1]}\n\n"
    i = TEN[0]
    first = (
        f"Impact statement: It, {i}.\nYes.\nPaper title: Title {i}\nLabel: {LABELS[i % 2]}\n\n"
        f"Impact statement: It, {TEN[1]}."
    )
    assert text.startswith(head + first)
    assert text.endswith(f"\nPaper title: Title {example.example_id}\nLabel:")
    assert text.count("\nLabel: ") == 5
    assert example.options == LABELS


def test_numbered_labels_and_empty_fields(folder):
    """As the rows of Hugging Face have them: class 0 is "Unlabeled" and no candidate."""
    (folder / "data" / SUBSET / "train.csv").unlink()
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in ROWS]
    rows = [r | {"Label": 1 + i % 2, "ID": i, "Paper title": ""} for i, r in enumerate(rows)]
    path = folder / SUBSET / "train.jsonl"
    (folder / "data" / SUBSET).rmdir()
    path.parent.mkdir()
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (source,) = find_tasks(folder, MANIFEST)
    for example in source.read("test", Drops()):
        assert example.references == (LABELS[int(example.example_id) % 2],)
        assert example.input == f"Impact statement: It, {example.example_id}.\nYes.\nLabel:"


def test_the_classes_of_the_eleven_subsets():
    labels = labels_of_all()
    assert {f"raft/{subset}" for subset in labels} == {
        name for name in MANIFEST.evaluation_tasks() if name.startswith("raft/")
    }
    assert sorted(map(len, labels.values())) == [2] * 8 + [3, 3, 77]
    assert all(len(set(names)) == len(names) for names in labels.values())
    assert all(isinstance(name, str) for names in labels.values() for name in names)


def test_bad_data(folder):
    (source,) = find_tasks(folder, MANIFEST)
    write_csv(folder, ROWS[:49])
    with pytest.raises(UserError, match=r"train.csv has 49 rows, not the 50 labelled ones"):
        list(source.read("test", Drops()))
    write_csv(folder, [*ROWS[:49], [*ROWS[0][:3], "Unlabeled", "49"]])
    with pytest.raises(UserError, match="row 50: 'Unlabeled' is not a label of raft/neurips"):
        list(source.read("test", Drops()))
    write_csv(folder, [*ROWS[:49], ROWS[0][:3]])
    with pytest.raises(UserError, match=r"train.csv, line \d+: 3 cells for 5 columns"):
        list(source.read("test", Drops()))
    (folder / SETTINGS).write_text("{}")
    with pytest.raises(UserError, match="is not two lines of JSON"):
        find_tasks(folder, MANIFEST)
    (folder / SETTINGS).unlink()
    with pytest.raises(UserError, match=r"prompts of RAFT .*raft-baselines.* not found: "):
        find_tasks(folder, MANIFEST)
