"""`optiml audit`, its review and paper mode, on a bench of three tasks with the same inputs."""

import json
import re
import shutil

import gin
import pytest
from tiny_bench import write_tiny_bench

from optiml_jax.audit.pairs import DESCRIPTION, read_pairs, read_rows
from optiml_jax.audit.tables import read_table, write_tables
from optiml_jax.cli.main import main
from tasks.decisions import Decisions

SECOND = "demo_superni/demo902_program_execution_second"
THIRD = "demo_superni/demo903_program_execution_third"


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """The bench; the answer of its test task is, now and then, that of a training task."""
    root = tmp_path_factory.mktemp("audit")
    gin_file = write_tiny_bench(root)
    tasks = root / "bench" / "tasks"
    third = json.loads((tasks / "demo903_program_execution_third.json").read_text())
    for letter, name in (
        ("w", "demo901_program_execution_first"),
        ("v", "demo902_program_execution_second"),
    ):
        content = json.loads((tasks / f"{name}.json").read_text())
        words = [f"{letter}{i}" for i in range(20)]
        content["Instances"][20]["input"] = "and " + ", ".join(words).upper()
        third["Instances"][ord(letter) % 5]["input"] = " ".join(words)
        (tasks / f"{name}.json").write_text(json.dumps(content))
    (tasks / "demo903_program_execution_third.json").write_text(json.dumps(third))
    return root, gin_file


@pytest.fixture
def run(bench, capsys, monkeypatch, tmp_path):
    """Runs a verb; decisions go to a file of this test."""
    root, gin_file = bench
    decisions = tmp_path / "decisions.yaml"

    def call(verb, *arguments, answers=()):
        gin.clear_config()  # two verbs in one process
        given = iter(answers)
        monkeypatch.setattr("builtins.input", lambda _: next(given, None) or pytest.fail("asked"))
        flag = f"--gin.SplitConfig.decisions={decisions}"
        code = main([verb, f"--gin_file={gin_file}", flag, "--gin.Audit.num_workers=1", *arguments])
        return code, capsys.readouterr()

    call.decisions = decisions
    call.root = root
    return call


def test_it_finds_the_copies_and_writes_a_report(run):
    code, out = run("audit")
    assert code == 0
    assert "2 training tasks, 3 evaluation tasks" in out.out
    assert "undecided" in out.out
    folder = run.root / "run" / "audit"
    found = {(p.train_task, p.eval_task): p for p in read_pairs(folder)}
    pair = found["demo_superni/demo901_program_execution_first", THIRD]
    # Inputs of the form "a b a", and the long one: counted here from the files.
    instances = {
        n: json.loads((run.root / "bench/tasks" / f"demo{n}.json").read_text())["Instances"]
        for n in ("901_program_execution_first", "903_program_execution_third")
    }
    first, third = instances.values()
    trained = {(i["input"], i["output"][0]) for i in first[: len(first) * 9 // 10]}
    held = [(i["input"], i["output"][0]) for i in third]
    whole = sum(h in trained for h in held)
    assert pair.content == 1
    assert whole - 6 <= pair.short <= whole
    for name in ("report.md", "report.html"):
        text = (folder / name).read_text("utf-8")
        assert THIRD in text
        assert "w2 w3 w4 w5 w6" in text
    assert "<mark>" in (folder / "report.html").read_text("utf-8")
    # By benchmark: those three tasks hold every overlapping example once, whatever trained on it.
    rows = read_rows(folder, "instances")
    distinct = {(r["eval_task"], r["example_id"], r["prompt_id"]) for r in rows}
    (line,) = (x for x in out.out.splitlines() if re.match(r"demo_superni +3 ", x))
    examples = sum(r["examples"] for r in read_rows(folder, "eval_tasks"))
    share = f"{100 * len(distinct) / examples:.1f}"
    number = str(len(distinct))
    assert line.split() == ["demo_superni", "3", str(examples), number, share, number]
    again = run("audit")[1].out
    assert "0 tasks scanned, 2 unchanged" in again


def test_paper_mode_waits_for_decisions(run):
    run("audit")
    run("prepare")
    mode = "--gin.Audit.paper_mode=True"
    code, out = run("plan", mode)
    assert code == 2
    assert "paper mode: " in out.err
    assert "decide with optiml audit --review, or pass --allow-undecided" in out.err
    code, out = run("plan", mode, "--allow-undecided")
    assert code == 0
    assert f"{THIRD}: " in out.out
    answers = ["k", "only the words are the same", "t", "it is a copy"]
    code, out = run("audit", "--review", "--gin.Audit.reviewer=me", answers=answers)
    assert code == 0
    rows = Decisions.load(run.decisions).rows
    assert [(r.decision, r.reviewer) for r in rows] == [("keep", "me"), ("remove_train", "me")]
    code, out = run("train", mode, "--allow-undecided")
    assert code == 2  # the plan goes by the decisions of its time
    assert "changed since the plan" in out.err
    code, out = run("plan", mode)
    assert code == 0
    assert "1 tasks" in out.out or "1 task" in out.out


def test_paper_mode_stops_training_evaluation_and_export_too(run):
    run("audit")
    run("prepare")
    mode, name = "--gin.Audit.paper_mode=True", "--gin.Evaluate.name=paper"
    every = "--gin.Evaluate.checkpoint=init"
    assert run("plan")[0] == 0
    code, out = run("train", mode)
    assert code == 2
    assert "was made without it; run optiml plan with Audit.paper_mode = True" in out.err
    assert run("plan", mode, "--allow-undecided")[0] == 0
    by_task = ("--gin.Export.what=training", "--gin.Export.order=task")
    for number, words in enumerate(
        [("train",), ("evaluate", every, name), ("export",), ("export", *by_task)]
    ):
        where = [f"--gin.Export.output={run.decisions.parent}/{number}"] * (words[0] == "export")
        code, out = run(*words, *where, mode)
        assert code == 2, words
        assert "undecided about 2 pairs of tasks with common examples" in out.err
        assert "pass --allow-undecided" in out.err
    code, out = run("train", mode, "--allow-undecided")
    assert code == 0
    assert out.out.count(f" and {THIRD}: ") == 2
    other = run.decisions.parent / "other"
    shutil.copytree(run.root / "run" / "audit", other)
    names = ("pairs", "eval_tasks", "train_tasks", "instances")
    tables = {name: read_table(other / DESCRIPTION, name) for name in names}
    tables["eval_tasks"] = tables["eval_tasks"].slice(0, len(tables["eval_tasks"]) - 1)
    write_tables(other / DESCRIPTION, tables, {})
    code, out = run("evaluate", every, name, mode, f"--gin.Audit.folder={other}")
    assert code == 2
    assert "does not cover 1 evaluation task (" in out.err
    answers = ["k", "the words are the same", "k", "the same"]
    assert run("audit", "--review", "--gin.Audit.reviewer=me", answers=answers)[0] == 0
    assert run("plan", mode)[0] == 0
    assert run("train", mode)[0] == 0
    assert run("evaluate", every, name, mode)[0] == 0


def test_a_review_that_ends_early_keeps_its_answers(run, monkeypatch):
    run("audit")
    given = iter(["k", "so"])

    def answer(_):
        try:
            return next(given)
        except StopIteration as e:
            raise EOFError from e

    monkeypatch.setattr("builtins.input", answer)
    gin.clear_config()
    flag = f"--gin.SplitConfig.decisions={run.decisions}"
    assert (
        main(
            [
                "audit",
                f"--gin_file={run.root}/tiny.gin",
                flag,
                "--review",
                "--gin.Audit.reviewer=me",
            ]
        )
        == 2
    )
    assert len(Decisions.load(run.decisions).rows) == 1


def test_paper_mode_without_an_audit_says_what_to_do(run, tmp_path):
    other = f"--gin.Audit.folder={tmp_path / 'none'}"
    code, out = run("plan", "--gin.Audit.paper_mode=True", other)
    assert code == 2
    assert "no audit in" in out.err


@pytest.mark.parametrize(
    ("binding", "message"),
    [
        (
            "--gin.Audit.training=some",
            "Audit.training = 'some' (text) must be one of 'mixture', 'all'",
        ),
        (
            "--gin.Audit.threshold=1",
            "Audit.threshold = 1 (int) must be a number of at least 0 and below 1",
        ),
        ("--gin.Audit.roles=('nobody',)", "Audit.roles: there is no role 'nobody'"),
        ("--gin.AuditWords.n=1", "AuditWords.n = 1 (int) must be a whole number of at least 2"),
    ],
)
def test_mistakes_are_one_line(run, binding, message):
    code, out = run("audit", binding)
    assert code == 2
    assert message in out.err
    assert out.err.strip().splitlines()[-1].startswith("error: ")
