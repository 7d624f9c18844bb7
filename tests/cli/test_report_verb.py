"""`optiml report`: which folders it puts together, what it writes, what it refuses."""

import csv
import pathlib

import gin
import pytest

from optiml_jax.cli.main import main
from optiml_jax.evaluate.records import Record, RunFolder, TaskInfo

SUMMARY = {
    "metric": "rougeL",
    "num_instances": 5,
    "best_constant": {"answer": "a", "score": 0.1},
    "effective_shots": {"mean": 0.0, "min": 0},
    "num_truncated": 0,
    "num_ties": 0,
    "num_unfinished": 0,
    "metrics": {},
}


def write(folder: pathlib.Path, step: int, tasks: dict[str, float]) -> None:
    infos = [
        TaskInfo(task, task.split("/")[0], "Textual Entailment", "fully_held_out", "rougeL")
        for task in tasks
    ]
    run = RunFolder(folder)
    run.open({"step": step, "checkpoint": f"{folder.parent}/{step}"}, infos)
    for task, score in tasks.items():
        records = [
            Record(f"e{i}", f"p{i}", f"{task}:{i}", ("a",), "a", score + i / 100) for i in range(5)
        ]
        run.write(task, 0, records, SUMMARY)


@pytest.fixture
def report(tmp_path, capsys):
    """Runs the verb without plots' long bootstrap; gives its exit status, text and files."""

    def run(*bindings: str):
        gin.clear_config()  # for the second call of a test
        more = ["--gin.Report.replicates=50", f"--gin.Report.output='{tmp_path}/out'", *bindings]
        status = main(["report", *more])
        said = capsys.readouterr()
        return status, said.out + said.err

    run.out = tmp_path / "out"
    return run


def columns(report) -> list[str]:
    with open(report.out / "report.csv", encoding="utf-8") as file:
        return list(dict.fromkeys(row["run"] for row in csv.DictReader(file)))


def test_suites_of_one_checkpoint_are_one_evaluation(tmp_path, report):
    for step in (500, 2000):
        write(tmp_path / "ev" / f"step_{step}_one", step, {"b/t": 0.5})
        write(tmp_path / "ev" / f"step_{step}_opt14", step, {"opt14/cb": 0.5 + step / 10000})
    status, text = report(f"--gin.Report.runs='{tmp_path}/ev/*'")
    assert status == 0
    assert columns(report) == ["step_500", "step_2000"]  # by number
    files = {path.name for path in report.out.iterdir()}
    assert files == {*("report.md", "report.html", "report.tex", "report.csv", "paper_tables.csv")}
    markdown = (report.out / "report.md").read_text("utf-8")
    assert "### Table 9: OPT's 14 tasks, accuracy (0-shot/32-shot)" in markdown
    assert " 57.0/–† |" in markdown  # CB of step_500, beside the paper's
    assert "Gain of step_2000 over step_500" in text
    assert "step_2000 is first under A, B, level means" in text


def test_repeated_tasks_keep_folders_apart(tmp_path, report):
    write(tmp_path / "ev" / "step_4", 4, {"b/t": 0.5})
    write(tmp_path / "ev" / "step_4_again", 4, {"b/t": 0.6})
    assert report(f"--gin.Report.runs='{tmp_path}/ev/*'")[0] == 0
    assert columns(report) == ["step_4", "step_4_again"]


def test_runs_of_other_folders_get_names_that_tell_them_apart(tmp_path, report):
    for name in ("eps_512", "eps_4096"):
        write(tmp_path / name / "evaluation" / "step_4", 4, {"b/t": 0.5})
    pattern = f"--gin.Report.runs='{tmp_path}/eps_*/evaluation/*'"
    assert report(pattern)[0] == 0
    assert columns(report) == ["eps_512/step_4", "eps_4096/step_4"]
    assert report(pattern, "--gin.Report.names=('small','large')")[0] == 0
    assert columns(report) == ["small", "large"]


@pytest.mark.parametrize(
    ("binding", "expected"),
    [
        ("--gin.Report.positions=(16, 64)", ["(16.0, 64.0) has 2 parts for 1 evaluation: step_4"]),
        ("--gin.Report.names=('a', 'b')", ["2 parts for 1"]),
        ("--gin.Report.runs=('{root}/nothing',)", ["nothing", "tasks.json"]),
    ],
)
def test_wrong_settings_are_named(tmp_path, report, binding, expected):
    write(tmp_path / "ev" / "step_4", 4, {"b/t": 0.5})
    bindings = [f"--gin.Report.runs='{tmp_path}/ev/*'", binding.format(root=tmp_path)]
    status, text = report(*bindings)
    assert status != 0
    assert all(part in text for part in expected), text


def test_evaluations_without_a_common_task_are_shown_but_not_compared(tmp_path, report):
    write(tmp_path / "ev" / "step_4", 4, {"b/t": 0.5})
    write(tmp_path / "ev" / "step_8", 8, {"b/u": 0.5})
    status, text = report(f"--gin.Report.runs='{tmp_path}/ev/*'")
    assert status == 0
    assert "they have no example in common" in text
    assert "no task is in all runs" in text


def seed_run(folder: pathlib.Path, seed: int, shift: float) -> None:
    run = RunFolder(folder)
    settings = {"step": 100, "checkpoint": str(folder), "seed": seed, "configuration": "same"}
    run.open(settings, [TaskInfo("b/t", "b", "Textual Entailment", "fully_held_out", "rougeL")])
    records = [
        Record(f"e{i}", "p", f"b/t:{i}", ("a",), "a", 0.4 + shift + i / 100) for i in range(5)
    ]
    run.write("b/t", 0, records, SUMMARY)


def test_evaluations_that_differ_in_the_seed_alone_are_one_run(tmp_path, report):
    for seed, shift in ((1, 0.0), (2, 0.1), (3, 0.2)):
        seed_run(tmp_path / f"seed{seed}" / "step_100", seed, shift)
    status, text = report(f"--gin.Report.runs='{tmp_path}/seed*/step_100'")
    assert status == 0
    assert columns(report) == ["seed*/step_100 (3 seeds)"]
    # 42, 52 and 62: mean 52, standard deviation 10.
    assert "10.00" in text
    assert "42.0 52.0 62.0" in text
    status, _ = report(
        f"--gin.Report.runs='{tmp_path}/seed*/step_100'", "--gin.Report.join_seeds=False"
    )
    assert len(columns(report)) == 3


def bbh_run(folder: pathlib.Path) -> None:
    run = RunFolder(folder)
    tasks = [f"bbh/logical_deduction_{n}_objects" for n in ("three", "five", "seven")]
    tasks.append("bbh/navigate")
    infos = [
        TaskInfo(task, "bbh", "BBH", "held_out_unspecified", "em_bbh", shots=(3,)) for task in tasks
    ]
    run.open({"step": 1, "checkpoint": "c"}, infos)
    for task in tasks:
        right = float(task == "bbh/navigate")
        records = [
            Record(f"e{i}", "p", f"{task}:{i}", ("(A)",), "So the answer is (a).", right)
            for i in range(5)
        ]
        run.write(task, 3, records, SUMMARY | {"metric": "em_bbh"})


def average(report) -> float:
    with open(report.out / "report.csv", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if not row["level"] and row["shots"] == "3"]
    return float(rows[0]["score"])


def test_stored_records_are_averaged_and_scored_anew_without_the_model(tmp_path, report):
    bbh_run(tmp_path / "bbh")
    runs = f"--gin.Report.runs='{tmp_path}/bbh'"
    assert report(runs)[0] == 0
    assert average(report) == pytest.approx(25.0)  # of four files
    assert report(runs, "--gin.SplitConfig.bbh_23=True")[0] == 0
    assert average(report) == pytest.approx(50.0)  # of two tasks
    assert report(runs, "--gin.Report.metric='em_tk_instruct'")[0] == 0
    assert average(report) == pytest.approx(0.0)  # "so the answer is a" is not "a"
    page = (report.out / "report.html").read_text()
    assert '"metric":"em_tk_instruct"' in page
    assert '"score":1.0' not in page
    status, text = report(runs, "--gin.Report.metric='nonsense'")
    assert status == 2
    assert "Report.metric = 'nonsense' is not one of acc_rank" in text


def test_a_published_table_of_the_user_is_printed_beside_ours(tmp_path, report):
    bbh_run(tmp_path / "bbh")
    (tmp_path / "mine.yaml").write_text(
        "tables:\n- {table: My paper, title: Navigate, roles: [test_max], shots: [3], source: me,\n"
        "   columns: [{name: Navigate, tasks: bbh/navigate}], rows: [{model: M, cells: [55.5]}]}\n",
        "utf-8",
    )
    status, text = report(
        f"--gin.Report.runs='{tmp_path}/bbh'", f"--gin.Report.published='{tmp_path}/mine.yaml'"
    )
    assert status == 0
    assert "My paper: Navigate" in text
    assert "55.5" in text
    assert "BBH groups: BIG-Bench Hard" in text
    assert "Flan-PaLM 540B" in text
