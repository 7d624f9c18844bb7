"""`optiml export` and `optiml evaluate --gin.Evaluate.answers`, for the user of another model.

The answers are made from the references and the options of the bench itself.
"""

import collections
import json
import pathlib

import gin
import pytest
from tiny_bench import write_tiny_bench

from optiml_jax.cli.main import main
from optiml_jax.data.example import Drops
from optiml_jax.data.plan import Plan
from optiml_jax.data.store import Store
from optiml_jax.data.vocabulary import load_vocabulary, train_sentencepiece
from optiml_jax.evaluate.records import RunFolder
from optiml_jax.evaluate.rollup import Key, rollup
from optiml_jax.fetch import provenance
from tasks.registry import find_sources
from tasks.splits import Manifest

MANIFEST = Manifest.load()
TASK = "demo_superni/demo903_program_execution_third"


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> pathlib.Path:
    root = tmp_path_factory.mktemp("bench")
    write_tiny_bench(root)
    assert optiml("export", root) == 0
    return root


def optiml(verb: str, root: pathlib.Path, *more: str) -> int:
    gin.clear_config()
    return main([verb, f"--gin_file={root}/tiny.gin", *(f"--gin.{setting}" for setting in more)])


def requests(root: pathlib.Path) -> list[dict]:
    lines = (root / "run/export/requests_jsonl/requests.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def write(path: pathlib.Path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"Evaluate.answers={path}"


def right(rows) -> list[dict]:
    return [{"id": row["id"], "text": row["references"][0]} for row in rows]


def test_requests_name_everything_and_their_ids_are_unique(bench):
    rows = requests(bench)
    assert len({row["id"] for row in rows}) == len(rows) == 3 * 2 * 3
    row = next(r for r in rows if r["task"] == TASK and r["shots"] == 2)
    assert row["kind"] == "generate"
    assert row["max_new_tokens"] == 4
    assert row["category"] == "Program Execution"
    assert row["prompt"].startswith("Instructions: Give the last word.")
    assert row["prompt"].endswith("Output:")
    assert row["prompt"].count("Input: ") == 3
    cells = json.loads((bench / "run/export/requests_jsonl/export.json").read_text())["tasks"]
    assert [cell["requests"] for cell in cells] == [3] * 6


def test_right_answers_score_100_and_are_reported_under_their_name(bench, tmp_path, capsys):
    rows = requests(bench)
    answers = write(tmp_path / "oracle.jsonl", right(rows))
    assert optiml("evaluate", bench, answers) == 0
    folder = bench / "run/evaluation/oracle"
    tree = rollup(folder)
    assert {tree.cells[Key(shots)].value for shots in (0, 2)} == {100.0}
    assert tree.run["checkpoint"] == "oracle"
    summary = json.loads((folder / "answers.json").read_text())
    assert summary["used"] == len(rows)
    assert optiml("report", bench, f"Report.runs={folder}", f"Report.output={tmp_path}/r") == 0
    assert "100.0" in capsys.readouterr().out


def test_missing_double_and_unknown_ids_are_counted_and_named(bench, tmp_path, caplog, capsys):
    rows = requests(bench)
    lost, twice, different = (next(r["id"] for r in rows if r["task"].endswith(e)) for e in ENDS)
    given = [row for row in right(rows) if row["id"] != lost]
    given += [{"id": "nobody", "text": ""}, {"id": different, "text": "else"}]
    given += [row for row in given if row["id"] == twice]
    answers = write(tmp_path / "mixed.jsonl", given)
    assert optiml("evaluate", bench, answers) == 2
    said = capsys.readouterr().err
    assert f"1 of 3 requests have no answer: {lost}" in said
    assert f"1 requests have two answers that differ: {different}" in said
    assert "1 answers belong to no request of these tasks: nobody" in caplog.text
    assert f"requests have an answer more than once: {different}, {twice}" in caplog.text
    folder = RunFolder(bench / "run/evaluation/mixed")
    assert folder.status(folder.load()[1][1], 0)[0] == "done"
    assert optiml("evaluate", bench, answers, "Evaluate.missing_answers=wrong") == 2
    records, _ = folder.read(next(r["task"] for r in rows if r["id"] == lost), 0)
    assert sorted(r.score for r in records) == [0.0, 1.0, 1.0]


ENDS = ("first", "second", "third")


def test_answers_of_another_file_do_not_mix(bench, tmp_path, capsys):
    rows = requests(bench)
    answers = write(tmp_path / "same.jsonl", right(rows))
    assert optiml("evaluate", bench, answers) == 0
    write(tmp_path / "same.jsonl", right(rows)[::-1])
    assert optiml("evaluate", bench, answers) == 2
    assert "choose another Evaluate.name" in capsys.readouterr().err


def test_openai_batches_go_out_and_their_output_comes_back(bench, tmp_path):
    assert optiml("export", bench, "Export.form=openai", "Export.model=m") == 0
    folder = bench / "run/export/requests_openai"
    asked = [json.loads(x) for x in (folder / "batch_00001.jsonl").read_text().splitlines()]
    by_id = {row["id"]: row for row in requests(bench)}
    output = []
    for request in asked:
        row = by_id[request["custom_id"]]
        assert request["body"]["messages"][-1] == {"role": "user", "content": row["prompt"]}
        assert (request["body"]["model"], request["body"]["max_tokens"]) == ("m", 4)
        message = {"message": {"role": "assistant", "content": f" {row['references'][0]}\n"}}
        body = {"choices": [message]}
        response = {"status_code": 200, "body": body}
        output.append({"custom_id": row["id"], "response": response, "error": None})
    answers = write(tmp_path / "batch_output.jsonl", output)
    assert optiml("evaluate", bench, answers) == 0
    assert rollup(bench / "run/evaluation/batch_output").cells[Key(0)].value == 100.0


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "answers.jsonl, line 2: no answer in a form that is known"),
        ('{"id": "x"}', "line 2: no answer in a form that is known (KeyError('text'))"),
        ('{"id": "x", "logprobs": [NaN]}', "line 2: no answer in a form that is known"),
    ],
)
def test_a_line_that_is_no_answer_is_named(bench, tmp_path, capsys, line, said):
    (tmp_path / "answers.jsonl").write_text(f'{{"id": "a", "text": "b"}}\n{line}\n')
    assert optiml("evaluate", bench, f"Evaluate.answers={tmp_path}/answers.jsonl") == 2
    assert said in capsys.readouterr().err


def test_no_answers_and_a_full_folder_are_said(bench, tmp_path, capsys):
    assert optiml("evaluate", bench, f"Evaluate.answers={tmp_path}/none.jsonl") == 2
    assert "no answers at" in capsys.readouterr().err
    assert optiml("export", bench) == 2
    assert "exists already" in capsys.readouterr().err


# --- training data --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def planned(bench) -> pathlib.Path:
    files = [str(p.relative_to(bench / "bench")) for p in (bench / "bench").glob("tasks/*.json")]
    entry = {"licence": "CC-TEST-1.0", "files": provenance.describe(bench / "bench", files)}
    provenance.record(bench / "bench", "own/bench", entry)
    for verb in ("prepare", "plan"):
        assert optiml(verb, bench, "PromptConfig.shots=(0.5, 0.5)", "TrainConfig.num_steps=20") == 0
    return bench


def loaded(folder: pathlib.Path, monkeypatch):
    """The folder as Hugging Face's `datasets` reads it, by its card."""
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return datasets.load_dataset(str(folder), split="train", cache_dir=str(folder / "cache"))


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_training_data_in_the_order_of_the_plan(planned, tmp_path, monkeypatch, form):
    more = (f"Export.form={form}", f"Export.output={tmp_path}/x", "Export.shard_rows=100")
    assert optiml("export", planned, "Export.what=training", *more) == 0
    table = loaded(tmp_path / "x", monkeypatch)
    plan = Plan.load(planned / "run/plan/train")
    entries = [(r, *entry) for r in range(plan.num_rows) for entry in plan.row(r)]
    assert table.num_rows == len(entries) > 200
    assert len(list((tmp_path / "x").glob(f"train-*.{form}"))) == -(-len(entries) // 100)
    tasks = {t.name: t for t in plan.cached_tasks if t}
    vocabulary = load_vocabulary(f"sentencepiece:{planned}/vocabulary.model")
    examples = {s.name: s for s in find_sources({"demo_superni": f"{planned}/bench"}, MANIFEST)}
    originals = {
        name: {e.example_id: e for e in source.read("train", Drops())}
        for name, source in examples.items()
    }
    for row, (number, task, index) in zip(table, entries, strict=True):
        assert (row["row"], row["task"], row["category"]) == (number, task, "Program Execution")
        ((source, target),) = tasks[task].read("train", [index])
        text = row["prompt"] + row["completion"]
        assert vocabulary.encode(text) == [*source.tolist(), *target.tolist()[:-1]]
        original = originals[task][row["example_id"]]
        assert row["completion"] == f" {original.target}"
        assert f"Input: {original.input}" in row["prompt"]
        assert row["prompt_id"] == original.prompt_id


def test_training_data_by_task_as_chat_with_rates_and_card(planned, tmp_path, monkeypatch):
    settings = ("Export.what=training", "Export.form=jsonl", "Export.order=task")
    more = ("Export.rows=chat", f"Export.output={tmp_path}/x")
    assert optiml("export", planned, *settings, *more) == 0
    table = loaded(tmp_path / "x", monkeypatch)
    store = Store(planned / "cache")
    counts = {n: store.task(n).num_examples("train") for n in store.tasks()}
    assert collections.Counter(table["task"]) == {n: c for n, c in counts.items() if c}
    user, assistant = table[0]["messages"]
    assert (user["role"], assistant["role"]) == ("user", "assistant")
    assert assistant["content"] in user["content"]  # the task: one of its words
    rates = json.loads((tmp_path / "x/rates.json").read_text())
    assert sum(rates.values()) == pytest.approx(1)
    card = (tmp_path / "x/README.md").read_text()
    line = f"| demo_superni | {len(rates)} | {table.num_rows} | 100.0% | CC-TEST-1.0 |"
    assert line in card


def test_another_vocabulary_than_the_caches_is_refused(planned, tmp_path, capsys):
    train_sentencepiece(["other words"] * 9, tmp_path / "other.model", 280)
    settings = ("Export.what=training", "Export.form=jsonl", f"Export.output={tmp_path}/x")
    other = f"Run.vocabulary=sentencepiece:{tmp_path}/other.model"
    assert optiml("export", planned, *settings, other) == 2
    assert "was made with the vocabulary" in capsys.readouterr().err
