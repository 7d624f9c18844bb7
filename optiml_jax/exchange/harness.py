"""Requests as tasks of lm-evaluation-harness: a folder for `--include_path`.

    optiml_<task>_<k>shot.yaml      one task each, and groups: one per (level, category) and per
    optiml_<level>..._<k>shot.yaml  level at each number of shots, and `optiml` of all
    data/<task>_<k>shot.jsonl       its requests
    optiml_task.py, optiml_scoring/ how they are read and scored

The tasks are `multiple_choice` and `generate_until`; each gives the metrics `score`, the mean over
requests, and `task_score`, which averages as the evaluation here does.
"""

import ast
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import yaml

from optiml_jax.data.example import seqio_name
from optiml_jax.evaluate.evaluator import EvalTask
from optiml_jax.exchange.request_files import FileStack, json_line
from optiml_jax.files import atomic_path

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_PACKAGE = "optiml_scoring"
_TASK_FILE = pathlib.Path(__file__).with_name("harness_task.py")
_SCORED = ("sum", "chars", "bytes", "unconditional")  # rules of which the harness knows all parts
_SCORING = "optiml_jax.evaluate.metrics"  # what is copied, with all that it imports of ours
_METRICS = [
    {"metric": "score", "aggregation": "mean", "higher_is_better": True},
    {
        "metric": "task_score",
        "aggregation": "!function optiml_task.task_mean",
        "higher_is_better": True,
    },
]


class Harness(FileStack):
    """Writes the tasks one after another, and the groups at the end.

    Args:
      tasks: all that may be written, by name.
    """

    def __init__(self, folder: pathlib.Path, tasks: Mapping[str, EvalTask]):
        super().__init__(folder)
        self._tasks = tasks
        self._current: tuple[str, int] | None = None
        self._file: Any = None
        self._first: dict[tuple[str, int], dict[str, Any]] = {}  # a request of every task

    def refusal(self, row: dict[str, Any]) -> str:
        rule = row.get("rule", "sum")
        if rule not in _SCORED:
            return f"score rule {rule!r} needs what lm-evaluation-harness does not tell"
        return ""

    def write(self, row: dict[str, Any]) -> None:
        if self._current != (row["task"], row["shots"]):
            self.close()
            self._current = row["task"], row["shots"]
            self._first[self._current] = row
            self._file = self.open(f"data/{task_name(*self._current)}.jsonl")
        info = self._tasks[row["task"]].info
        own: dict[str, Any] = {"crossed": info.prompts == "crossed"}
        if row["kind"] == "rank":
            own |= {"target": (row["correct"] or [0])[0], "continuation": row["continuations"][0]}
        self._file.write(json_line(row | own))

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        if error[0] is None:
            self._write_tasks()

    def _write_tasks(self) -> None:
        groups: dict[str, dict[str, None]] = {}
        for (task, shots), row in self._first.items():
            name = task_name(task, shots)
            self._dump(name, _task(name, row))
            level = f"optiml_{row['level']}_{shots}shot"
            category = f"optiml_{row['level']}_{_slug(row['category'])}_{shots}shot"
            for group, member in ((category, name), (level, category), ("optiml", level)):
                groups.setdefault(group, {})[member] = None
        for group, members in groups.items():
            metric = {"metric": "task_score", "aggregation": "mean", "weight_by_size": False}
            self._dump(
                group, {"group": group, "task": list(members), "aggregate_metric_list": [metric]}
            )
        for name, source in _modules(_SCORING, {}).items():
            copy = self.folder / f"{name.replace('.', '/')}.py".replace("optiml_jax", _PACKAGE, 1)
            copy.parent.mkdir(parents=True, exist_ok=True)
            for folder in copy.relative_to(self.folder).parents[:-1]:
                (self.folder / folder / "__init__.py").touch()
            copy.write_text(source.replace("optiml_jax.", f"{_PACKAGE}."), "utf-8")
        (self.folder / "optiml_task.py").write_text(_TASK_FILE.read_text("utf-8"), "utf-8")

    def _dump(self, name: str, value: dict[str, Any]) -> None:
        text = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100)
        with atomic_path(self.folder / f"{name}.yaml") as temporary:
            # safe_dump quotes what it takes for a string; it is a tag.
            temporary.write_text(re.sub(r"'(!function [\w.]+)'", r"\1", text), "utf-8")


def _modules(name: str, found: dict[str, str]) -> dict[str, str]:
    """Our module of this name and all that it imports of ours -> their source texts."""
    path = _ROOT / f"{name.replace('.', '/')}.py"
    if name in found or not path.is_file():
        return found
    found[name] = path.read_text("utf-8")
    for node in ast.walk(ast.parse(found[name])):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("optiml_jax"):
            _modules(node.module, found)
            for alias in node.names:
                _modules(f"{node.module}.{alias.name}", found)
    return found


def task_name(task: str, shots: int) -> str:
    """The name of a task at one number of shots in lm-evaluation-harness."""
    return f"optiml_{seqio_name(task)}_{shots}shot"


def _slug(text: str) -> str:
    return re.sub(r"\W+", "_", text).strip("_").lower()


def _task(name: str, row: dict[str, Any]) -> dict[str, Any]:
    ranked = row["kind"] == "rank"
    task: dict[str, Any] = {"task": name}
    if row.get("rule") == "unconditional":
        task["class"] = "!function optiml_task.UnconditionalTask"
    task |= {
        "custom_dataset": "!function optiml_task.load",
        "dataset_kwargs": {"file": f"data/{name}.jsonl"},
        "test_split": "test",
        "output_type": "multiple_choice" if ranked else "generate_until",
        "target_delimiter": "",
        "num_fewshot": 0,
        "process_results": f"!function optiml_task.process_{'ranked' if ranked else 'generated'}",
        "metric_list": _METRICS,
        "metadata": {"version": 1},
    }
    if not ranked:
        return task | _generation(row)
    if "prompts" in row:  # the harness takes a number in the place of a text for several contexts
        fields = {"doc_to_text": "target", "doc_to_choice": "prompts"}
        return task | fields | {"doc_to_target": "continuation"}
    return task | {
        "doc_to_text": "prompt",
        "doc_to_choice": "continuations",
        "doc_to_target": "target",
    }


def _generation(row: dict[str, Any]) -> dict[str, Any]:
    settings = {"until": row["stop"], "max_gen_toks": row["max_new_tokens"]}
    settings |= {"do_sample": bool(row["samples"]), "temperature": row["temperature"]}
    own: dict[str, Any] = {"doc_to_text": "prompt", "doc_to_target": "references"}
    if row["samples"]:
        own["repeats"] = row["samples"]
        steps = [{"function": "take_first_k", "k": row["samples"]}]
        own["filter_list"] = [{"name": "none", "filter": steps}]
    return own | {"generation_kwargs": settings}
