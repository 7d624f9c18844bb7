"""Decisions about pairs: what they change, and what is refused."""

import pytest

from optiml_jax.errors import UserError
from tasks.decisions import Decision, Decisions
from tasks.splits import Manifest

ROW = "- {{train: {}, eval: {}, decision: {}, reason: because, reviewer: us}}\n"


@pytest.fixture
def write(tmp_path):
    def make(*rows: tuple[str, str, str]):
        path = tmp_path / "decisions.yaml"
        text = "".join(ROW.format(*row) for row in rows)
        path.write_text("version: 1\ndecisions:\n" + text if rows else "decisions: []\n", "utf-8")
        return path

    return make


def manifest(path) -> Manifest:
    plain = Manifest.load()
    return Manifest(plain._path, plain._rules, plain.provenance, Decisions.load(path))


def test_a_training_task_is_removed_and_says_why(write):
    path = write(("superni/task002_*", "flan/bool_q", "remove_train"))
    row = manifest(path).lookup("superni/task002_quoref_answer_generation", "train")
    assert row.role == ("test_extra",)  # it is still evaluated, as what it now is
    assert (row.level, row.trained) == ("held_out_unspecified", False)
    row = manifest(path).lookup("superni/task001_quoref_question_generation", "train")
    assert row.trained
    path = write(("flan/aeslc", "flan/bool_q", "remove_train"))
    row = manifest(path).lookup("flan/aeslc", None)
    assert (row.role, row.why) == (("exclude",), "remove_train by us: because")


def test_an_evaluation_task_is_removed(write):
    path = write(("flan/aeslc", "flan/bool_q", "remove_eval"))
    row = manifest(path).lookup("flan/bool_q", None)
    assert (row.role, row.evaluated) == (("exclude",), False)
    assert manifest(path).lookup("flan/aeslc", None).trained
    # What is held out no more holds out nothing: BoolQ's other holder still does.
    assert manifest(path).lookup("crossfit/boolq", None).role == ("exclude",)


def test_keep_changes_nothing_and_is_found(write):
    path = write(("flan/aeslc", '"flan/{bool_q,rte}"', "keep"))
    decisions = manifest(path).decisions
    assert decisions.of("flan/aeslc", "flan/rte").decision == "keep"
    assert decisions.of("flan/aeslc", "flan/cb") is None
    assert manifest(path).lookup("flan/aeslc", None) == Manifest.load().lookup("flan/aeslc", None)


def test_rows_that_contradict_each_other_are_named(write):
    path = write(("a/*", "b/c", "keep"), ("a/x", "b/*", "remove_train"))
    decisions = Decisions.load(path)
    with pytest.raises(
        UserError, match=r"row 2 says remove_train of a/x and b/c.* row 1 says keep"
    ):
        decisions.of("a/x", "b/c")
    assert decisions.of("a/y", "b/c").decision == "keep"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ROW.format("a/b", "c/d", "drop"), "row 1: unknown decision 'drop'; known: remove_train"),
        ("- {train: a/b, eval: c/d, decision: keep, reason: x}\n", "row 1: reviewer is missing"),
        ("- {train: a/b, eval: c/d, decision: keep, raison: x}\n", "row 1: unknown key 'raison'"),
        (ROW.format("ab", "c/d", "keep"), "row 1: 'ab' is not a pattern"),
        ("- keep\n", "row 1: a decision must be a mapping"),
        ("- {", "is not YAML"),
    ],
)
def test_a_bad_row_is_an_error_with_file_and_row(tmp_path, text, message):
    path = tmp_path / "decisions.yaml"
    path.write_text("decisions:\n" + text)
    with pytest.raises(UserError) as e:
        Decisions.load(path)
    assert message in str(e.value)
    assert "decisions.yaml" in str(e.value)


@pytest.mark.parametrize("before", [(), (("a/b", "c/d", "keep"),)])
def test_an_answer_is_appended_at_once(write, before):
    path = write(*before)
    decisions = Decisions.load(path)
    row = Decision(("a/x",), ("c/y", "c/z"), "remove_eval", "it: is\n'quoted'", "me")
    after = decisions.with_row(row)
    read = Decisions.load(path)
    assert [*read.rows] == [*after.rows]
    assert read.of("a/x", "c/z").reason == "it: is\n'quoted'"
    assert len(read.rows) == len(before) + 1


def test_the_projects_own_decisions_can_be_read():
    own = Decisions.load()
    assert own.of(
        "superni/task156_codah_classification_adversarial", "superni/task1390_wscfixed_coreference"
    )
    assert {row.decision for row in own.rows} <= {"keep", "remove_train", "remove_eval"}
    assert all(len(row.reason) > 20 for row in own.rows)
