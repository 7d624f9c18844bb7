"""How the report grows with the number of tasks: the same evaluation at N, 2N and 4N tasks.

Two evaluations with synthetic records (ranked and generated answers, two numbers of shots, ten
categories) are rolled up, compared and turned into tables. Each size is compared with the previous
one: twice the time for twice the tasks is linear growth. Times are CPU seconds, so that other work
does not matter.

    python tools/bench/report_growth.py [number of tasks, default 200]
"""

import pathlib
import random
import sys
import tempfile
import time

from optiml_jax.evaluate.records import Candidate, Record, RunFolder, TaskInfo
from optiml_jax.evaluate.rollup import LEVELS, Rollup, rollup
from optiml_jax.evaluate.statistics import compare
from optiml_jax.report import run_tables, tables
from optiml_jax.report.answers_data import answers_data
from optiml_jax.report.selection import selection_table

INSTANCES, REPLICATES, SHOTS = 20, 1000, (0, 2)


def write_evaluation(path: pathlib.Path, num_tasks: int, skill: float) -> None:
    folder = RunFolder(path)
    infos = [
        TaskInfo(
            task=f"bench/task{i}",
            benchmark="bench",
            category=f"category {i % 10}",
            level=LEVELS[i % 10 % 3],
            metric="acc_rank" if i % 2 else "rougeL",
            shots=SHOTS,
        )
        for i in range(num_tasks)
    ]
    folder.open({"step": int(skill * 100)}, infos)
    for info in infos:
        for shots in SHOTS:
            draw = random.Random(f"{info.task} {shots} {skill}")
            records = [record(info, i, draw.random() < skill) for i in range(INSTANCES)]
            folder.write(info.task, shots, records, summary(info, shots))


def record(info: TaskInfo, i: int, right: bool) -> Record:
    candidates = (
        Candidate("yes", -1.0 if right else -2.0, 1, 3, 3, -0.1, -1.0, True),
        Candidate("no", -1.5, 1, 2, 2, -0.1, -1.0, True),
    )
    return Record(
        example_id=str(i),
        prompt_id="p",
        cluster=f"{info.task}:{i}",
        references=("yes",),
        prediction="yes" if right else "no",
        score=float(right),
        candidates=candidates if info.metric == "acc_rank" else (),
        correct=(0,) if info.metric == "acc_rank" else (),
    )


def summary(info: TaskInfo, shots: int) -> dict:
    return {
        "metric": info.metric,
        "num_instances": INSTANCES,
        "metrics": {},
        "best_constant": {"answer": "yes", "score": 0.5},
        "effective_shots": {"mean": shots, "min": shots},
        "num_truncated": 0,
        "num_ties": 0,
        "num_unfinished": 0,
    }


def lay_out(runs: dict[str, Rollup], found: run_tables.Evidence) -> None:
    for table in run_tables.report(runs, found):
        tables.render(table, "markdown")
    tables.render(run_tables.cells_table(runs), "csv")


def measure(num_tasks: int) -> dict[str, float]:
    seconds: dict[str, float] = {}

    def timed(name, function, *args):
        start = time.process_time()
        result = function(*args)
        seconds[name] = time.process_time() - start
        return result

    with tempfile.TemporaryDirectory() as folder:
        places = [pathlib.Path(folder, name) for name in ("before", "after")]
        for place, skill in zip(places, (0.3, 0.6), strict=True):
            write_evaluation(place, num_tasks, skill)
        before = timed("roll-up", rollup, places[0])
        runs = {"before": before, "after": rollup(places[1])}
        timed("comparison", compare, runs["after"], runs["before"], REPLICATES)
        found = run_tables.evidence(runs, REPLICATES)
        timed("tables", lay_out, runs, found)
        timed("selection", selection_table, runs, REPLICATES)
        timed("answers", answers_data, {p.name: [p] for p in places}, 10)
    return seconds


def main() -> None:
    smallest = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    measure(20)  # imports and caches
    previous: dict[str, float] = {}
    for num_tasks in (smallest, 2 * smallest, 4 * smallest):
        found = measure(num_tasks)
        said = [
            f"{name} {value:.2f} s" + (f" ({value / previous[name]:.1f}x)" if previous else "")
            for name, value in found.items()
        ]
        print(f"{num_tasks} tasks: {', '.join(said)}", flush=True)
        previous = found


if __name__ == "__main__":
    main()
