"""The printed results that reports compare with, checked against the names that the bench has."""

import difflib
import pathlib
from collections.abc import Collection, Sequence

from optiml_jax.errors import UserError
from optiml_jax.report import published
from tasks import splits, taxonomy

_DATA = splits.DEFAULT_MANIFEST.parent
PUBLISHED = _DATA / "published_results.yaml"
FIGURES = _DATA / "published_figures.yaml"  # of the studies
_ALIKE = 0.8  # from here a name counts as misspelt: categories of users' own tasks are not known


def printed_results(
    files: Sequence[str | pathlib.Path], manifest: splits.Manifest
) -> list[published.PublishedTable]:
    """The tables of several files.

    Raises:
      UserError: as `published.load_all`, or the category or benchmark of a column is misspelt.
    """
    tables = published.load_all(files)
    wanted = wanted_tasks(manifest)
    categories = {row["category"] for row in taxonomy.rows()} | {w.category for w in wanted}
    benchmarks = {w.benchmark for w in wanted}
    for column in (column for table in tables for column in table.columns):
        _check(column.where, "category", column.category, categories)
        _check(column.where, "benchmark", column.benchmark, benchmarks)
    return tables


def _check(where: str, what: str, name: str | None, known: Collection[str]) -> None:
    if name is None or name in known:
        return
    if close := difflib.get_close_matches(name, known, n=1, cutoff=_ALIKE):
        raise UserError(f"{where}: unknown {what} {name!r}; is {close[0]!r} meant?")


def wanted_tasks(manifest: splits.Manifest) -> list[published.Wanted]:
    """The manifest's evaluation tasks, in the form that the paper's tables use."""
    return [
        published.Wanted(
            task=task,
            category=row.category or taxonomy.category(*task.split("/", 1)),
            level=row.level,
            role=row.role,
            shots=row.shots,
            aggregate_as=row.aggregate_as,
            prompts=len(row.prompts) if isinstance(row.prompts, tuple) else row.prompts,
        )
        for task, row in manifest.evaluation_tasks().items()
    ]
