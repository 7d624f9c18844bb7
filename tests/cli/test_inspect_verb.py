"""`optiml inspect` on the tiny bench: from the files alone, then with a cache and a plan."""

import json
import pathlib
import re
import shutil

import gin
import numpy as np
import pytest
from tiny_bench import write_tiny_bench

from optiml_jax.cli.main import main
from optiml_jax.data.loader import read_rows
from optiml_jax.data.plan import Plan
from optiml_jax.data.vocabulary import decode, load_vocabulary

BENCHMARK = "demo_superni"


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> pathlib.Path:
    """The tiny bench before anything was prepared."""
    root = tmp_path_factory.mktemp("files")
    write_tiny_bench(root)
    return root


@pytest.fixture(scope="module")
def planned(tmp_path_factory) -> pathlib.Path:
    root = tmp_path_factory.mktemp("planned")
    gin_file = write_tiny_bench(root)
    for verb in ("prepare", "plan"):
        assert main([verb, f"--gin_file={gin_file}"]) == 0
        gin.clear_config()
    return root


def inspect(root: pathlib.Path, status: int = 0, **settings) -> None:
    gin.clear_config()
    bindings = [f"--gin.Inspect.{name}={value}" for name, value in settings.items()]
    assert main(["inspect", f"--gin_file={root}/tiny.gin", *bindings]) == status


def upstream(root: pathlib.Path, stem: str) -> dict[str, dict]:
    content = json.loads((root / "bench" / "tasks" / f"{stem}.json").read_text())
    return {instance["id"]: instance for instance in content["Instances"]}


def page_data(path: pathlib.Path) -> dict:
    return json.loads(re.search(r'id="data">(.*?)</script>', path.read_text(), re.DOTALL)[1])


def test_prompts_are_shown_from_the_files_alone(files, capsys):
    inspect(files, tasks="*first", shots=2)
    out = capsys.readouterr().out
    assert f"{BENCHMARK}/demo901_program_execution_first\n" in out
    assert "2-shot evaluation" in out
    assert "instruction │ Instructions: Give the first word.\n" in out
    assert len(re.findall(r"^ +answer │  \w+$", out, re.MULTILINE)) == 2
    assert "second word" not in out
    assert not (files / "cache").exists()


def test_an_evaluation_prompt_has_the_delimiter_and_separator_of_evaluation(files, capsys):
    gin.clear_config()
    own = ["--gin.EvalConfig.delimiter= Answer:", "--gin.EvalConfig.separator= ## "]
    arguments = [f"--gin_file={files}/tiny.gin", "--gin.Inspect.tasks=*third", *own]
    assert main(["inspect", *arguments, "--gin.Inspect.shots=2"]) == 0
    out = capsys.readouterr().out
    assert out.count("##") == 3 * out.count("2-shot evaluation") > 0
    assert "Answer:" in out
    assert "Output:" not in out


def test_a_training_task_shows_its_training_prompt_and_a_held_out_one_its_test(files, capsys):
    inspect(files, tasks="('*first', '*third')")
    first, third = capsys.readouterr().out.split("demo903_program_execution_third")
    assert "train example" in first
    assert re.search(r"target \* │  \w+</s>", first)
    assert "test example" in third
    assert re.search(r"target │  \w+</s>", third)  # scored, not trained on


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"tasks": "*/demo901_program_execution_frist"}, "did you mean"),
        ({"tasks": "*first", "split": "valid"}, "it has train, validation, test"),
        ({"step": 0}, "run `optiml plan`"),
    ],
)
def test_mistakes_name_the_way_out(files, capsys, settings, expected):
    inspect(files, status=2, **settings)
    assert expected in capsys.readouterr().err


def test_a_mixture_that_cannot_be_made_does_not_hide_the_tasks(files, capsys):
    gin.clear_config()
    arguments = [f"--gin_file={files}/tiny.gin", "--gin.Mixture.tasks=nothing/*"]
    assert main(["inspect", *arguments]) == 0
    out = capsys.readouterr().out
    assert "demo_superni" in out
    assert "no task matches 'nothing/*'" in out


def test_overview_before_and_after_preparing(files, planned, capsys):
    inspect(files)
    assert "run `optiml prepare`" in capsys.readouterr().out
    inspect(planned)
    out = capsys.readouterr().out
    assert re.search(rf"^{BENCHMARK} +1 +3 +3 +2 ", out, re.MULTILINE)
    assert re.search(
        r"^Program Execution +2 +96 +96 +100.0 +100.0 +100.0 +100.0$", out, re.MULTILINE
    )


def test_shares_come_from_the_cache_when_there_is_no_plan(planned, tmp_path, capsys):
    shutil.copytree(planned, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "run")
    gin_file = tmp_path / "tiny.gin"
    gin_file.write_text(gin_file.read_text().replace(str(planned), str(tmp_path)))
    inspect(tmp_path)
    out = capsys.readouterr().out
    assert "no plan yet" in out
    assert re.search(r"^Program Execution +2 +96 +96 +100.0 +100.0 +100.0$", out, re.MULTILINE)


def test_a_steps_rows_are_what_training_reads(planned, capsys):
    """Against the arrays of the loader and the upstream file of the named example."""
    inspect(planned, step=1)
    out = capsys.readouterr().out
    plan = Plan.load(planned / "run" / "plan" / "train")
    assert re.findall(r"^row (\d+): (\d+) examples", out, re.MULTILINE) == [
        (str(r), str(len(plan.row(r)))) for r in range(8, 16)
    ]
    found = re.findall(
        rf"segment \d+: {BENCHMARK}/(\w+), example (\w+), prompt definition .*?: (\d+) tokens, "
        r"(\d+) with loss\n\n(.*?)\n\n",
        out,
        re.DOTALL,
    )
    batch = read_rows(plan, range(8, 16))
    assert sum(int(tokens) for *_, tokens, _, _ in found) == np.count_nonzero(batch["segment_ids"])
    assert sum(int(loss) for *_, loss, _ in found) == batch["loss_weights"].sum()
    stem, example, _, loss, shown = found[0]
    instance = upstream(planned, stem)[example]
    assert f"Input: {instance['input']}⏎" in shown or f"Input: {instance['input']} " in shown
    assert re.search(rf"target \* │  {instance['output'][0]}</s>$", shown)
    first = batch["segment_ids"][0] == 1
    ids = batch["targets"][0][first & (batch["loss_weights"][0] > 0)]
    assert len(ids) == int(loss)
    vocabulary = load_vocabulary(f"sentencepiece:{planned}/vocabulary.model")
    assert decode(vocabulary, ids).strip() == instance["output"][0]


def test_rows_outside_of_the_plan(planned, capsys):
    inspect(planned, status=2, row=32)
    assert "rows 0 to 31" in capsys.readouterr().err
    inspect(planned, row=31)
    assert "row 31: " in capsys.readouterr().out


def test_table1_is_the_same_by_cache_and_by_files(planned, capsys):
    tables = []
    for recount in (False, True):
        inspect(planned, table1=True, recount=recount)
        out = capsys.readouterr().out
        assert f"{0 if recount else 3} tasks counted by the cache" in out
        tables.append([x for x in out.splitlines() if x.startswith((BENCHMARK, "bench"))])
    assert tables[0] == tables[1]
    # Every instance is in one split; the readers show each with one prompt.
    count = sum(len(upstream(planned, p.stem)) for p in (planned / "bench/tasks").glob("*.json"))
    assert tables[0][0].split()[:7] == [BENCHMARK, "1", "–", "3", "–", str(count), "–"]


def test_page_of_all_tasks_survives_a_damaged_file(files, tmp_path, capsys):
    shutil.copytree(files, tmp_path, dirs_exist_ok=True)
    gin_file = tmp_path / "tiny.gin"
    gin_file.write_text(gin_file.read_text().replace(str(files), str(tmp_path)))
    path = tmp_path / "bench" / "tasks" / "demo902_program_execution_second.json"
    path.write_text(path.read_text()[:500])
    inspect(tmp_path, html=tmp_path / "page.html")
    assert "of 3 tasks, 0 prompts left out" in capsys.readouterr().out
    data = page_data(tmp_path / "page.html")
    problems = {task["task"]: task["problem"] for task in data["tasks"]}
    assert [bool(p) for p in problems.values()] == [False, True, False]
    assert {view["shots"] for view in data["tasks"][0]["views"]} == {"as trained", "0", "2"}
    assert {view["shots"] for view in data["tasks"][2]["views"]} == {"0", "2"}
    assert "optiml prepare" in data["no_composition"]


def test_page_holds_mixture_and_table(planned, tmp_path):
    inspect(planned, html=tmp_path / "page.html", table1=True, tasks="*first")
    data = page_data(tmp_path / "page.html")
    assert [task["task"] for task in data["tasks"]] == [
        f"{BENCHMARK}/demo901_program_execution_first"
    ]
    group = data["composition"]["groups"][0]
    assert [s["id"] for s in group["series"]] == ["all", "capped", "asked", "planned"]
    assert group["rows"][0]["shares"] == [1, 1, 1, 1]
    assert data["table1"]["rows"][0][0] == BENCHMARK
