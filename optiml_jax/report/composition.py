"""The tasks found and the mixture of them: their shares before and after its caps.

Numbers of a plan come from plan.json; without a plan they are computed from the cache by the
mixture's own functions. How they look is decided in `tables.py` and `inspect.html`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from optiml_jax.data.mixture import Mixture, example_rates, mixing_rates, row_streams
from optiml_jax.data.plan import Plan
from optiml_jax.data.store import Store
from optiml_jax.report.inspect_prompts import TaskFacts
from optiml_jax.report.tables import Table

_SERIES = {
    "all": "all examples",
    "capped": "after the cap",
    "asked": "requested",
    "planned": "planned",
}
_CONFIGURED = "benchmark, as configured"


@dataclasses.dataclass(frozen=True)
class Part:
    """The tasks of one benchmark or category.

    Attributes:
      examples: in the cache; `kept`: left by `Mixture.max_examples`.
      shares: by series: of "all" examples, of the "capped" ones, of those "asked" for and, with a
        plan, of those "planned".
    """

    name: str
    tasks: int
    examples: int
    kept: int
    shares: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Composition:
    """A mixture in parts.

    Attributes:
      about: where the numbers come from.
      groups: "benchmark" and "category" -> parts with their shares of all examples, the largest
        first. Where benchmarks have rows of their own, "benchmark, as configured" too: their shares
        of all rows, and those of the others of the examples in mixed rows.
    """

    name: str
    about: str
    groups: Mapping[str, tuple[Part, ...]]

    def page_data(self) -> dict[str, Any]:
        """As `inspect.html` wants it."""
        groups = []
        for kind, parts in self.groups.items():
            keys = list(parts[0].shares)
            rows = [
                {**dataclasses.asdict(part), "shares": list(part.shares.values())} for part in parts
            ]
            series = [{"id": key, "label": _SERIES[key]} for key in keys]
            groups.append({"id": kind, "series": series, "rows": rows})
        return {"name": self.name, "about": self.about, "groups": groups}

    def tables(self) -> list[Table]:
        """One table for each group."""
        tables = []
        for kind, parts in self.groups.items():
            rows = tuple(
                (
                    part.name,
                    *(f"{n:,}" for n in (part.tasks, part.examples, part.kept)),
                    *(f"{100 * share:.1f}" for share in part.shares.values()),
                )
                for part in parts
            )
            series = (f"% {_SERIES[key]}" for key in parts[0].shares)
            columns = (kind, "tasks", "examples", "kept", *series)
            title = f"Mixture {self.name} by {kind}"
            tables.append(Table(title, columns, rows, notes=(self.about,)))
        return tables


def task_table(facts: Sequence[TaskFacts]) -> Table:
    """Tasks of each benchmark by role and level."""
    roles = sorted({role for f in facts for role in f.role})
    levels = sorted({f.level for f in facts})
    rows = []
    for benchmark in sorted({f.benchmark for f in facts}):
        own = [f for f in facts if f.benchmark == benchmark]
        numbers = (
            len({f.category for f in own}),
            len(own),
            *(sum(role in f.role for f in own) for role in roles),
            *(sum(f.level == level for f in own) for level in levels),
        )
        rows.append((benchmark, *map(str, numbers)))
    names = (*(f"role {role}" for role in roles), *(level.replace("_", " ") for level in levels))
    note = "prompts of some: --gin.Inspect.tasks='GLOB'; of all, in a page: --gin.Inspect.html=FILE"
    return Table("Tasks", ("benchmark", "categories", "tasks", *names), tuple(rows), 1, (note,))


def of_plan(plan: Plan, name: str) -> Composition:
    """The composition of a plan: requested and planned shares."""
    rows = [{**row, "planned": row["planned_examples"]} for row in plan.meta["tasks"]]
    about = f"{plan.num_rows:,} planned rows of the split {plan.meta['split']}: {plan.folder}"
    return _compose(name, about, rows, plan.summary["row_shares"])


def of_cache(cache_dir: str, tasks: Sequence[str], mixture: Mixture) -> Composition:
    """What the mixture asks for, from the counts and lengths in the cache."""
    store = Store(cache_dir)
    cached = {n: t for n in tasks if "train" in (t := store.task(n)).info["splits"]}
    counts = {name: task.num_examples("train") for name, task in cached.items()}
    streams = row_streams(mixing_rates(counts, mixture), mixture.row_shares)
    means = {
        name: float(task.lengths("train").sum(axis=1).mean())
        for name, task in cached.items()
        if counts[name]
    }
    rates = example_rates(streams, means)
    rows = [
        {
            "benchmark": task.info["benchmark"],
            "category": task.info["category"],
            "examples_in_cache": counts[name],
            "examples": min(counts[name], mixture.max_examples_of(name) or counts[name]),
            "rate": rates.get(name, 0.0),
        }
        for name, task in cached.items()
    ]
    shares = {stream.name: {"asked": stream.row_share} for stream in streams}
    return _compose(mixture.name, f"no plan yet: counts of the cache {cache_dir}", rows, shares)


def _compose(
    name: str,
    about: str,
    rows: Sequence[Mapping[str, Any]],
    row_shares: Mapping[str, Mapping[str, float]],
) -> Composition:
    """Groups the tasks; `row_shares` as in a plan's summary, "" for the mixed rows."""
    numbers = {"all": "examples_in_cache", "capped": "examples", "asked": "rate"}
    if "planned" in rows[0]:
        numbers["planned"] = "planned"
    groups = {kind: _parts(rows, kind, numbers) for kind in ("benchmark", "category")}
    if any(row_shares):
        for kind in ("all", "capped"):
            del numbers[kind]
        own = [row for row in rows if row["benchmark"] in row_shares]
        others = [row for row in rows if row["benchmark"] not in row_shares]
        mixed = _parts(others, "benchmark", numbers) if others else ()
        aside = (
            dataclasses.replace(part, name=f"{part.name} (of all rows)", shares=dict(share))
            for part in _parts(own, "benchmark", numbers)
            for share in [row_shares[part.name]]
        )
        groups = {_CONFIGURED: (*mixed, *aside), **groups}
    return Composition(name, about, groups)


def _parts(
    rows: Sequence[Mapping[str, Any]], kind: str, numbers: Mapping[str, str]
) -> tuple[Part, ...]:
    """Tasks with the same `kind` as one part; `numbers` are the columns that series are made of."""
    totals = {key: sum(row[column] for row in rows) or 1 for key, column in numbers.items()}
    parts = []
    for value in {row[kind] for row in rows}:
        own = [row for row in rows if row[kind] == value]
        parts.append(
            Part(
                name=value,
                tasks=len(own),
                examples=sum(row["examples_in_cache"] for row in own),
                kept=sum(row["examples"] for row in own),
                shares={k: sum(row[c] for row in own) / totals[k] for k, c in numbers.items()},
            )
        )
    return tuple(sorted(parts, key=lambda part: (-part.shares["asked"], part.name)))
