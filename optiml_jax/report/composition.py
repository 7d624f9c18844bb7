"""What a mixture is made of: shares of benchmarks and categories before and after its caps.

Numbers of a plan come from plan.json; without a plan they are computed from the cache by the
mixture's own functions. How they look is decided in `tables.py` and `inspect.html`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from optiml_jax.data.mixture import Mixture, example_rates, mixing_rates, row_streams
from optiml_jax.data.plan import Plan
from optiml_jax.data.store import Store
from optiml_jax.report.tables import Table

_SERIES = {
    "all": "all examples",
    "capped": "after the cap",
    "asked": "asked for",
    "planned": "planned",
}


@dataclasses.dataclass(frozen=True)
class Part:
    """The tasks of one benchmark or category.

    Attributes:
      examples: in the cache; `capped`: left by `Mixture.max_examples`.
      shares: of all examples, by series: "all", "capped", "asked" and, with a plan, "planned".
    """

    name: str
    tasks: int
    examples: int
    capped: int
    shares: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Composition:
    """A mixture in parts.

    Attributes:
      about: where the numbers come from.
      parts: "benchmark" and "category" -> parts, the largest share first.
      notes: to be read with the shares.
    """

    name: str
    about: str
    parts: Mapping[str, tuple[Part, ...]]
    notes: tuple[str, ...]

    @property
    def series(self) -> dict[str, str]:
        """The series of shares there are -> what they are called."""
        first = self.parts["benchmark"][0]
        return {key: label for key, label in _SERIES.items() if key in first.shares}

    def page_data(self) -> dict[str, Any]:
        """As `inspect.html` wants it."""
        keys = list(self.series)
        groups = []
        for kind, parts in self.parts.items():
            rows = [
                {**dataclasses.asdict(part), "shares": [part.shares[key] for key in keys]}
                for part in parts
            ]
            groups.append({"id": kind, "title": f"By {kind}", "rows": rows})
        series = [{"id": key, "label": label} for key, label in self.series.items()]
        about = {"name": self.name, "about": self.about, "notes": self.notes}
        return {**about, "series": series, "groups": groups}

    def tables(self) -> list[Table]:
        """One table by benchmark and one by category."""
        columns = ("tasks", "examples", "kept", *(f"% {s}" for s in self.series.values()))
        return [
            Table(
                f"Mixture {self.name} by {kind}",
                (kind, *columns),
                tuple(
                    (
                        part.name,
                        *(f"{n:,}" for n in (part.tasks, part.examples, part.capped)),
                        *(f"{100 * part.shares[key]:.1f}" for key in self.series),
                    )
                    for part in parts
                ),
                notes=(self.about, *self.notes),
            )
            for kind, parts in self.parts.items()
        ]


def of_plan(plan: Plan, name: str) -> Composition:
    """The composition of a plan: asked for beside planned."""
    rows = [{**row, "planned": row["planned_examples"]} for row in plan.meta["tasks"]]
    about = f"{plan.num_rows:,} planned rows of the split {plan.meta['split']}: {plan.folder}"
    return _compose(name, about, rows, _row_notes(plan.summary["row_shares"]))


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
    about = f"no plan yet: counts of the cache {cache_dir}"
    shares = {stream.name: {"asked": stream.row_share} for stream in streams}
    return _compose(mixture.name, about, rows, _row_notes(shares))


def _compose(
    name: str, about: str, rows: Sequence[Mapping[str, Any]], notes: Sequence[str]
) -> Composition:
    numbers = {"all": "examples_in_cache", "capped": "examples", "asked": "rate"}
    if "planned" in rows[0]:
        numbers["planned"] = "planned"
    totals = {key: sum(row[column] for row in rows) or 1 for key, column in numbers.items()}
    parts = {}
    for kind in ("benchmark", "category"):
        parts[kind] = []
        for value in {row[kind] for row in rows}:
            members = [row for row in rows if row[kind] == value]
            sums = {key: sum(r[column] for r in members) for key, column in numbers.items()}
            shares = {key: n / totals[key] for key, n in sums.items()}
            parts[kind].append(Part(value, len(members), sums["all"], sums["capped"], shares))
        parts[kind].sort(key=lambda part: (-part.shares["asked"], part.name))
    return Composition(name, about, {k: tuple(p) for k, p in parts.items()}, tuple(notes))


def _row_notes(shares: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Benchmarks with rows of their own: their shares of the rows are what the user has set."""
    notes = []
    for name, share in shares.items():
        if name:
            planned = f", planned {share['planned']:.2%}" if "planned" in share else ""
            notes.append(f"{name} has rows of its own: {share['asked']:.2%} asked for{planned}")
    return notes
