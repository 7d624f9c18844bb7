"""Two small tasks, a plan and a table, made by hand, for tests of the page."""

import pathlib
import types

from test_inspect_prompts import example, renderer, source

from optiml_jax.report import composition, page
from optiml_jax.report.inspect_prompts import TaskFacts
from optiml_jax.report.tables import Table

HOSTILE = (
    '<script>window.hacked = 1</script><img src=x onerror="window.hacked=1"> </script><!-- &amp;'
)

# Two tasks share the mixed rows 3 : 1, a third has rows of its own.
TASKS = [
    {"benchmark": "alpha", "category": "Question Answering", "rate": 0.6}
    | {"examples_in_cache": 9000, "examples": 1000, "planned_examples": 62},
    {"benchmark": "beta", "category": "Summarization", "rate": 0.2}
    | {"examples_in_cache": 1000, "examples": 1000, "planned_examples": 18},
    {"benchmark": "plain", "category": "Summarization", "rate": 0.2}
    | {"examples_in_cache": 0, "examples": 0, "planned_examples": 20},
]
ROW_SHARES = {"": {"asked": 0.95, "planned": 0.94}, "plain": {"asked": 0.05, "planned": 0.06}}


def parts() -> composition.Composition:
    plan = types.SimpleNamespace(
        meta={"tasks": TASKS, "split": "train"},
        summary={"row_shares": ROW_SHARES},
        num_rows=40,
        folder="FOLDER",
    )
    return composition.of_plan(plan, "small")


def facts(task: str, category: str, level: str, *role: str) -> TaskFacts:
    trained = "train" in role
    return TaskFacts(task, task.split("/")[0], category, level, role, trained, "rougeL", (0, 2))


def write_page(path: pathlib.Path) -> pathlib.Path:
    """A page of an ordinary task with two prompts, a hostile one and one that cannot be read."""
    make = renderer(shots=(0, 1.0), delimiter="\nAnswer:")
    ordinary = [
        example(i, prompt, instruction="Read it. Pick one.")
        for i, prompt in enumerate(["first", "second"])
    ]
    hostile = [example(i, HOSTILE, input=f"{HOSTILE} {i}", options_text="") for i in range(2)]
    tasks = [
        page.task_data(
            facts("alpha/ordinary_task", "Question Answering", "fully_supervised", "train", "test"),
            make.views(source(ordinary), ordinary, [None, 0]),
            left_out=3,
        ),
        page.task_data(
            facts("beta/hostile", "Summarization", "fully_held_out", "test"),
            make.views(source(hostile), hostile[:1], [0]),
            left_out=0,
        ),
        page.task_data(
            facts("beta/unreadable", "Summarization", "train_only", "train"), [], 0, "damaged: x"
        ),
    ]
    table = Table("Table 1", ("collection", "tasks"), (("alpha", HOSTILE),), notes=("a note",))
    page.write_page(str(path), "small: tasks and mixture", tasks, 2000, parts(), table)
    return path
