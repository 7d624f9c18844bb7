"""Single answers for the page of `optiml report`: prompts, options and what every run answered."""

import hashlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from optiml_jax.evaluate.records import RULES, Record, RunFolder, TaskInfo
from optiml_jax.evaluate.rollup import metric_of, rescored
from optiml_jax.report.run_tables import level_name

MOST_ANSWERS = 4000  # of all tasks together: some 20 MB
MOST_CHARACTERS = 2500  # of one text; longer ones lose their middle

_Cell = tuple[str, int]  # task, shots
_Name = tuple[str, str]  # example id, prompt id


def answers_data(
    groups: Mapping[str, Sequence[pathlib.Path]],
    most: int,
    rule: str | None = None,
    metric: str | None = None,
) -> dict[str, Any]:
    """What the page needs to show single answers.

    Args:
      groups: run -> its folders.
      most: examples per task and number of shots; they are drawn by hash, the same in all runs.
      rule, metric: score the answers, see `rollup.rollup`.

    Returns:
      `runs`; `texts`, each distinct prompt once; and `answers`, one per (task, shots, example,
      prompt), with `by_run` in the order of the runs (None: the run has none).
    """
    found: dict[_Cell, dict[_Name, dict[str, Any]]] = {}
    texts: dict[str, int] = {}
    infos: dict[_Cell, list[tuple[int, RunFolder, TaskInfo]]] = {}
    for number, folders in enumerate(groups.values()):
        for folder in map(RunFolder, folders):
            for info in folder.load()[1]:
                for shots in info.shots:
                    if folder.status(info, shots)[0] == "done":
                        infos.setdefault((info.task, shots), []).append((number, folder, info))
    most = min(most, max(1, MOST_ANSWERS // max(1, len(infos))))
    for (task, shots), places in infos.items():
        rows = found.setdefault((task, shots), {})
        for number, folder, info in places:
            records, _ = folder.read(task, shots)
            prompts = folder.prompts(task, shots)
            drawn = sorted(records, key=_draw)[:most]
            for record in rescored(drawn, info, rule, metric):
                row = rows.setdefault(
                    (record.example_id, record.prompt_id),
                    _row(info, metric_of(info, metric), shots, record, len(groups)),
                )
                row["by_run"][number] = _answer(record, rule or info.protocol.rule)
                if row["text"] is None and record.prompt in prompts:
                    text = shortened(prompts[record.prompt])
                    row["text"] = texts.setdefault(text, len(texts))
    answers = [row for rows in found.values() for row in rows.values()]
    return {"runs": list(groups), "texts": list(texts), "answers": answers}


def _draw(record: Record) -> bytes:
    return hashlib.sha256(f"{record.example_id}\0{record.prompt_id}".encode()).digest()


def _row(info: TaskInfo, metric: str, shots: int, record: Record, runs: int) -> dict[str, Any]:
    return {
        "level": level_name(info.level),
        "category": info.category,
        "task": info.task,
        "metric": metric,
        "shots": str(shots),
        "prompt": record.prompt_id,
        "example": record.example_id,
        "references": [shortened(r) for r in record.references],
        "options": [shortened(o) for o in record.options],
        "text": None,
        "by_run": [None] * runs,
    }


def _answer(record: Record, rule: str) -> dict[str, Any]:
    return {
        "rule": rule,
        "score": round(record.score, 4),
        "answer": shortened(record.prediction),
        "raw": shortened(record.raw),
        "candidates": [[shortened(c.text), round(RULES[rule](c), 3)] for c in record.candidates],
        "demonstrations": len(record.demonstration_ids),
        "tied": record.tied,
    }


def shortened(text: str) -> str:
    """The text, without its middle where it is very long."""
    gone = len(text) - MOST_CHARACTERS
    if gone <= 0:
        return text
    half = MOST_CHARACTERS // 2
    return f"{text[:half]} […{gone:,} characters left out…] {text[-half:]}"
