"""One taxonomy for all collections: the category of every upstream task, category and cluster.

The facts are in `data/taxonomy.tsv`: the 76 names of Super-NaturalInstructions, and names of their
own for the kinds that none of these covers (paper, section 2.2).
"""

import fnmatch
import functools
import pathlib

MISC = "Misc."
TAXONOMY_FILE = pathlib.Path(__file__).parent / "data" / "taxonomy.tsv"


def category(collection: str, task: str, group: str = "") -> str:
    """The category of a task: of its own row, else of its group's; `MISC` for unknown names.

    Args:
      collection: "flan", "crossfit", ..., also for a bench that is written in its format.
      task: the task's id without the benchmark.
      group: upstream's own category, cluster or family of the task.
    """
    tasks, globs, groups = _tables(collection)
    if task in tasks:
        return tasks[task]
    glob = next((glob for glob in globs if fnmatch.fnmatchcase(task, glob)), "")
    return globs.get(glob) or groups.get(group, MISC)


@functools.cache
def rows() -> tuple[dict[str, str], ...]:
    """The rows of the file: collection, kind, name, category, source."""
    lines = TAXONOMY_FILE.read_text("utf-8").splitlines()
    header, *cells = (line.split("\t") for line in lines if not line.startswith("#"))
    return tuple(dict(zip(header, row, strict=True)) for row in cells)


@functools.cache
def _tables(collection: str) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """Name -> category, of tasks, of globs of tasks and of groups."""
    tables: dict[str, dict[str, str]] = {"task": {}, "glob": {}, "group": {}}
    for row in rows():
        if row["collection"] == collection:
            kind = "glob" if row["kind"] == "task" and "*" in row["name"] else row["kind"]
            tables[kind][row["name"]] = row["category"]
    return tables["task"], tables["glob"], tables["group"]
