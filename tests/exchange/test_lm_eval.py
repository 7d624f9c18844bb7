"""Exported tasks run in lm-evaluation-harness itself, on an exported model of each kind.

The harness, torch and transformers are not ours: they tokenise, score and generate by themselves.
"""

import json
import os
import pathlib
import subprocess
import sys
import types

import exchange_bench as bench
import pytest

from optiml_jax.checkpoint.huggingface import write_huggingface
from optiml_jax.evaluate.evaluator import evaluate, evaluate_with
from optiml_jax.evaluate.records import RunFolder, rescore
from optiml_jax.evaluate.rollup import Key, rollup
from optiml_jax.exchange.answer_files import model_name, read_answers
from optiml_jax.exchange.answers import StoredAnswers
from optiml_jax.exchange.harness import Harness, task_name
from optiml_jax.exchange.request_files import export_requests

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")
pytest.importorskip("torch", reason="torch is not installed")


# The harness once for all models, as importing it takes longest.
HARNESS = """
import json, sys
from lm_eval.__main__ import cli_evaluate
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["lm_eval", "run", *arguments]
    cli_evaluate()
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Decoder -> folder: its exported model, the tasks, and what the harness says of them."""
    roots = {decoder: tmp_path_factory.mktemp(decoder) for decoder in bench.DECODERS}
    tasks = bench.tasks()
    for decoder, root in roots.items():
        config, _, params = bench.model(decoder)
        source = bench.vocabulary_folder(decoder)
        write_huggingface(root / "model", config, params, tokenizer_from=source)
        (root / "tasks").mkdir()
        written = export_requests(
            tasks,
            Harness(root / "tasks", {t.info.task: t for t in tasks}),
            root / "tasks",
            bench.CONFIG,
            bench.PROMPTS,
            bench.tokens(decoder=decoder),
        )
        assert not written["failures"]
    run_harness(roots)
    return roots


def run_harness(roots: dict[str, pathlib.Path]) -> None:
    calls = []
    for root in roots.values():
        arguments = ["--model", "hf", "--model_args", f"pretrained={root}/model,dtype=float32"]
        arguments += ["--tasks", "optiml", "--include_path", f"{root}/tasks", "--log_samples"]
        arguments += ["--output_path", f"{root}/out", "--device", "cpu", "--batch_size", "4"]
        calls.append(arguments)
    hub = {"HF_HUB_OFFLINE": "1", "HF_HOME": f"{next(iter(roots.values()))}/hub"}
    done = subprocess.run(
        [sys.executable, "-c", HARNESS, json.dumps(calls)],
        env=os.environ | hub,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module", params=bench.DECODERS)
def decoder(request):
    return request.param


@pytest.fixture(scope="module")
def both(decoder, folders):
    """(our evaluation, output of the harness): the same model on the same tasks."""
    root = folders[decoder]
    config, graphdef, params = bench.model(decoder)
    words = bench.vocabulary(decoder)
    failed = evaluate(
        bench.tasks(), graphdef, params, config, words, bench.CONFIG, str(root / "ours")
    )
    assert not failed
    return root / "ours", root / "out"


def cells(tasks):
    return [(task, shots) for task in tasks for shots in task.info.shots]


def test_the_harness_gives_our_scores_instance_by_instance(both):
    ours, out = both
    for task, shots in cells(bench.tasks()):
        records, _ = RunFolder(ours).read(task.info.task, shots)
        (file,) = out.rglob(f"samples_{task_name(task.info.task, shots)}_*.jsonl")
        rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
        rows.sort(key=lambda row: row["doc_id"])
        scores = [row["score"] for row in rows]
        assert scores == pytest.approx([r.score for r in records]), task.info.task
        if task.ranks:
            for row, record in zip(rows, records, strict=True):
                theirs = [float(pair[0]) for pair in row["filtered_resps"]]
                expected = [c.sum_logprob for c in record.candidates]
                assert theirs[: len(expected)] == pytest.approx(expected, abs=1e-3)


def harness_scores(candidates, correct, results):
    """acc, acc_norm and acc_bytes as the harness's own multiple-choice tasks compute them."""
    from lm_eval.api.task import ConfigurableTask

    task = object.__new__(ConfigurableTask)  # without a data set: only its arithmetic is asked for
    task.OUTPUT_TYPE, task.multiple_input, task.multiple_target = "multiple_choice", False, True
    task._config = types.SimpleNamespace(process_results=None)
    task._metric_fn_list = dict.fromkeys(("acc", "acc_norm", "acc_bytes"))
    task.doc_to_choice, task.doc_to_target = lambda doc: candidates, lambda doc: correct
    return task.process_results({}, results)


def test_acc_and_acc_norm_of_the_harness_are_our_rules(both):
    """Its own arithmetic on its own log-likelihoods, against ours on ours."""
    ours, out = both
    rules = {"acc": "sum", "acc_norm": "chars", "acc_bytes": "bytes"}
    compared = 0
    for task, shots in cells(bench.tasks()):
        if not task.ranks:
            continue
        records, _ = RunFolder(ours).read(task.info.task, shots)
        (file,) = out.rglob(f"samples_{task_name(task.info.task, shots)}_*.jsonl")
        rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
        rows.sort(key=lambda row: row["doc_id"])
        for row, record in zip(rows, records, strict=True):
            texts = [c.text for c in record.candidates]
            if "prompts" in row["doc"]:  # partial scoring: the same text after each
                texts = [row["doc"]["continuation"].strip()] * len(texts)
            results = [(float(p[0]), p[1] in (True, "True")) for p in row["filtered_resps"]]
            theirs = harness_scores(texts, list(record.correct), results[: len(texts)])
            mine = {name: rescore(record, rule).score for name, rule in rules.items()}
            assert theirs == mine, record
            compared += 1
    assert compared > 10


def test_tasks_and_groups_of_the_harness_are_those_of_our_tables(both):
    ours, out = both
    (file,) = out.rglob("results_*.json")
    results = json.loads(file.read_text())
    tree = rollup(ours)
    for task, shots in cells(bench.tasks()):
        mine = Key(shots, task.info.level, task.info.category, task.info.task)
        (cell,) = [c for k, c in tree.cells.items() if k == mine]
        theirs = results["results"][task_name(task.info.task, shots)]["task_score,none"]
        assert 100 * theirs == pytest.approx(cell.value), task.info.task
    for key, cell in tree.cells.items():
        if len(key.path) == 2 and key.shots != "mean":
            slug = {"C, one": "c_one", "Other": "other"}[key.category]
            group = results["groups"][f"optiml_{key.level}_{slug}_{key.shots}shot"]
            assert 100 * group["task_score,none"] == pytest.approx(cell.value)


def test_its_answers_evaluated_here_give_our_records_and_table(both, decoder, tmp_path):
    ours, out = both
    files = read_answers([str(out)])
    answers = StoredAnswers(files, bench.tokens(decoder=decoder), "fail")
    failed = evaluate_with(
        answers, bench.tasks(), bench.CONFIG, str(tmp_path), run={"checkpoint": "x", "step": None}
    )
    assert not failed
    assert not answers.remarks()
    assert "model" in model_name(files)
    assert rollup(tmp_path).cells == rollup(ours).cells
    for task, shots in cells(bench.tasks()):
        mine, theirs = (RunFolder(f).read(task.info.task, shots)[0] for f in (ours, tmp_path))
        for a, b in zip(mine, theirs, strict=True):
            assert (a.prediction, a.score, a.demonstration_ids, a.references, a.correct) == (
                b.prediction,
                b.score,
                b.demonstration_ids,
                b.references,
                b.correct,
            )


def test_a_text_generation_pipeline_opens_the_folder_and_answers_as_here(both, decoder, folders):
    from transformers import pipeline

    generate = pipeline("text-generation", model=str(folders[decoder] / "model"), device="cpu")
    generate.model.float()
    answers = set()
    for shots in (0, 2):
        file = folders[decoder] / "tasks" / "data" / f"{task_name('b/free', shots)}.jsonl"
        asked = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
        records, _ = RunFolder(both[0]).read("b/free", shots)
        for row, record in zip(asked, records, strict=True):
            (said,) = generate(
                row["prompt"], max_new_tokens=6, do_sample=False, return_full_text=False
            )
            assert said["generated_text"].strip() == (record.raw or record.prediction).strip()
            answers.add(record.prediction)
    assert len(answers) > 5
