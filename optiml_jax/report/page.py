"""The page of `optiml inspect`: the data that `inspect.html` shows in a browser."""

from collections.abc import Iterable
from typing import Any

from optiml_jax.report.composition import Composition
from optiml_jax.report.html_page import table_data, write_filled
from optiml_jax.report.inspect_prompts import PromptView, TaskFacts
from optiml_jax.report.tables import Table

MOST_CHARACTERS = 1500  # of one span; longer ones lose their middle
MOST_EXAMPLES = 6000  # rendered in one page: about 10 MB


def task_data(
    facts: TaskFacts, views: Iterable[PromptView], left_out: int, problem: str = ""
) -> dict[str, Any]:
    """One task in the form the page reads.

    Args:
      facts: of the task.
      views: its rendered examples.
      left_out: prompts of the task that are not among them.
      problem: why there are none.
    """
    return {
        "task": facts.task,
        "benchmark": facts.benchmark,
        "category": facts.category,
        "level": facts.level,
        "role": facts.role,
        "metric": facts.metric,
        "shots": facts.shots,
        "views": [_view_data(view) for view in views],
        "left_out": left_out,
        "problem": problem,
    }


def write_page(
    path: str,
    title: str,
    tasks: list[dict[str, Any]],
    sequence_length: int,
    composition: Composition | str,
    table1: Table | None,
) -> None:
    """Writes the page.

    Args:
      path: of the file.
      title: of the page.
      tasks: from `task_data`.
      sequence_length: tokens of a row.
      composition: of the mixture, or why there is none.
      table1: the paper's Table 1 on this data, if it was counted.
    """
    benchmarks, categories = ({t[key] for t in tasks} for key in ("benchmark", "category"))
    known = isinstance(composition, Composition)
    data = {
        "title": title,
        "summary": f"{_count(len(tasks), 'task')} of {_count(len(benchmarks), 'benchmark')} in "
        f"{len(categories)} categories",
        "sequence_length": sequence_length,
        "tasks": tasks,
        "composition": composition.page_data() if known else None,
        "no_composition": "" if known else composition,
        "table1": table1 and table_data(table1),
    }
    write_filled(path, "inspect.html", data)


def _view_data(view: PromptView) -> dict[str, Any]:
    e = view.example
    return {
        "prompt": e.prompt_id,
        "example": e.example_id,
        "split": e.split,
        "shots": "as trained" if view.shots is None else str(view.shots),
        "spans": [[span.kind, _shortened(span.text), int(span.loss)] for span in view.spans],
        "demonstrations": view.demonstration_ids,
        "tokens": view.tokens,
        "dropped": view.dropped,
        "fits": view.fits,
        "meta": {k: v for k, v in e.meta.items() if isinstance(v, str) and v},
        "options": None if e.options is None else [_shortened(o) for o in e.options],
        "references": [_shortened(r) for r in e.references],
    }


def _shortened(text: str) -> str:
    gone = len(text) - MOST_CHARACTERS
    if gone <= 0:
        return text
    head, tail = text[: 2 * MOST_CHARACTERS // 3], text[-MOST_CHARACTERS // 3 :]
    return f"{head} […{gone:,} characters left out…] {tail}"


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}{'s' * (n != 1)}"
