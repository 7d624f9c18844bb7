"""`optiml splits`: lists the tasks to train on, to evaluate at each level, and missing ones."""

import collections
import fnmatch
import pathlib
import sys
from collections.abc import Iterable, Mapping, Sequence

import gin

from optiml_jax.cli import main as command_line
from optiml_jax.cli.settings import Run, Splits, configured
from optiml_jax.data.example import TaskSource
from optiml_jax.report.tables import Table, render
from tasks.registry import find_sources
from tasks.splits import LEVELS, ROLES, Manifest, Row, category
from tasks.taxonomy import MISC
from tasks.taxonomy import category as category_by_name

PAPER = {"train": (1545, 93), "dev": (35, 7), "test": (87, 10)}  # tasks, clusters (table 1)
EVALUATIONS = tuple(role for role in ROLES if role not in ("train", "exclude"))
Task = tuple[str, str, Row]  # name, category, row


def main() -> None:
    manifest = Manifest.load()
    data = given_data()
    wanted = [
        (name, row.category or category_by_name(*name.split("/", 1)), row)
        for name, row in manifest.evaluation_tasks().items()
        if not name.startswith("demo_") or name.split("/", 1)[0] in data
    ]
    if not data:
        print(render(wanted_table(wanted), "terminal"))
        print(render(sizes(wanted, ("dev", "test")), "terminal"))
        print("set Run.data to see which of them your copies have")
        return
    sources = find_sources(data, manifest)
    tasks = [(s.name, category(s), manifest.row(s)) for s in sources]
    for table in (benchmarks(tasks), sizes(tasks), evaluated(tasks)):
        print(render(table, "terminal"))
    groups = {
        "evaluation tasks of the manifest that are missing": missing(wanted, sources, data),
        "not trained on": by_why(tasks),
        f"in category {MISC}": by_benchmark(name for name, kind, _ in tasks if kind == MISC),
    }
    for title, named in groups.items():
        print_names(title, named, Splits().most_names)


def given_data() -> dict[str, str]:
    """`Run.data`, empty if no gin file sets it; no other setting of a run is needed."""
    try:
        gin.query_parameter("Run.data")
    except ValueError:
        return {}
    return configured(Run, vocabulary="", cache_dir="", run_dir="").data


# --- counts ---------------------------------------------------------------------------------------


def number(tasks: Iterable[Task], role: str) -> int:
    """The tasks of a role; evaluation tasks of a benchmark that are averaged count as one."""
    chosen = [(name, row) for name, _, row in tasks if role in row.role]
    if role in ("train", "exclude"):
        return len(chosen)
    return len({(name.split("/", 1)[0], row.aggregate_as or name) for name, row in chosen})


def benchmarks(tasks: Sequence[Task]) -> Table:
    """Tasks of every benchmark by role."""
    names = dict.fromkeys(name.split("/", 1)[0] for name, _, _ in tasks)
    rows = []
    for benchmark in names:
        own = [task for task in tasks if task[0].startswith(f"{benchmark}/")]
        counts = (len({kind for _, kind, _ in own}), len(own), *(number(own, r) for r in ROLES))
        rows.append((benchmark, *map(str, counts)))
    return Table("Tasks by benchmark and role", ("", "categories", "tasks", *ROLES), tuple(rows))


def sizes(tasks: Sequence[Task], roles: Sequence[str] = tuple(PAPER)) -> Table:
    """The sets compared with those of the paper."""
    rows = []
    for role in roles:
        paper_tasks, paper_clusters = PAPER[role]
        kinds = {kind for _, kind, row in tasks if role in row.role}
        counts = (number(tasks, role), paper_tasks, len(kinds), paper_clusters)
        rows.append((role, *(f"{count:,}" for count in counts)))
    columns = ("set", "tasks", "paper", "categories", "paper")
    notes = (
        "tasks of a benchmark that are averaged (aggregate_as) count as one; paper: table 1, whose "
        "35 dev tasks leave out MMLU; docs/mixtures.md accounts for the training tasks",
    )
    return Table("Sizes", columns, tuple(rows), notes=notes)


def evaluated(tasks: Sequence[Task]) -> Table:
    """Evaluation tasks by level and category."""
    groups = collections.defaultdict(list)
    for task in tasks:
        if task[2].evaluated:
            groups[task[2].level, task[1]].append(task)
    rows = [
        (level.replace("_", " "), kind, *(str(number(own, role) or "") for role in EVALUATIONS))
        for (level, kind), own in sorted(
            groups.items(), key=lambda item: (LEVELS.index(item[0][0]), item[0][1])
        )
    ]
    return Table("Evaluation tasks", ("level", "category", *EVALUATIONS), tuple(rows), 2)


def wanted_table(wanted: Sequence[Task]) -> Table:
    """Every evaluation task of the manifest."""
    rows = []
    for name, kind, row in wanted:
        prompts = ", ".join(row.prompts) if isinstance(row.prompts, tuple) else row.prompts or ""
        shots = ", ".join(map(str, row.shots))
        place = (", ".join(row.role), row.level.replace("_", " "), kind, name)
        rows.append((*place, row.metric, shots, str(prompts), f"{row.src}: {row.why or ''}"))
    columns = ("role", "level", "category", "task", "metric", "shots", "prompts", "source")
    return Table("Evaluation tasks of the manifest", columns, tuple(rows), len(columns))


# --- lists ----------------------------------------------------------------------------------------


def missing(
    wanted: Sequence[Task], sources: Sequence[TaskSource], data: Mapping[str, str]
) -> dict[str, list[str]]:
    """Benchmark -> its evaluation tasks that no task here matches."""
    names = [s.name for s in sources]
    absent = by_benchmark(name for name, _, _ in wanted if not fnmatch.filter(names, name))
    return {b if b in data else f"{b} (no data)": patterns for b, patterns in absent.items()}


def by_benchmark(names: Iterable[str]) -> dict[str, list[str]]:
    groups = collections.defaultdict(list)
    for name in names:
        groups[name.split("/", 1)[0]].append(name)
    return groups


def by_why(tasks: Sequence[Task]) -> dict[str, list[str]]:
    """Why -> the tasks that are neither trained on nor evaluated."""
    groups = collections.defaultdict(list)
    for name, _, row in tasks:
        if row.role == ("exclude",):
            groups[row.why or "no reason given"].append(name)
    return groups


def print_names(title: str, groups: Mapping[str, Sequence[str]], most: int) -> None:
    print(f"{sum(map(len, groups.values()))} {title}")
    for why, names in groups.items():
        shown = ", ".join(names[:most]) + (", ..." if len(names) > most else "")
        print(f"  {why}: {len(names)}: {shown}")


if __name__ == "__main__":
    sys.exit(command_line.main([pathlib.Path(__file__).stem, *sys.argv[1:]]))
