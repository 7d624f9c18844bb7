"""One taxonomy for all collections: the category of every upstream task, category and cluster.

The facts are in `data/taxonomy.tsv`: the 76 names of Super-NaturalInstructions, and names of their
own for the kinds that none of these covers (paper, section 2.2).
"""

import fnmatch
import functools
import pathlib

from optiml_jax.errors import UserError
from optiml_jax.files import read_text
from tasks.splits import SplitConfig, user_file

MISC = "Misc."
_COLUMNS = ("collection", "kind", "name", "category", "source")
TAXONOMY_FILE = pathlib.Path(__file__).parent / "data" / "taxonomy.tsv"


def category(collection: str, task: str, group: str = "") -> str:
    """The category of a task: of its own row, else of its group's; `MISC` for unknown names.

    Rows of the files of `SplitConfig.taxonomies` come before the project's own.

    Args:
      collection: "flan", "crossfit", ..., also for a bench that is written in its format.
      task: the task's id without the benchmark.
      group: upstream's own category, cluster or family of the task.
    """
    layers = [user_file(f, "SplitConfig.taxonomies") for f in SplitConfig().taxonomies]
    for file in (*reversed(layers), TAXONOMY_FILE):
        tasks, globs, groups = _tables(file, collection)
        glob = next((glob for glob in globs if fnmatch.fnmatchcase(task, glob)), "")
        if found := tasks.get(task) or globs.get(glob) or groups.get(group):
            return found
    return MISC


@functools.cache
def rows(file: pathlib.Path = TAXONOMY_FILE) -> tuple[dict[str, str], ...]:
    """The rows of a file: collection, kind, name, category, source.

    Raises:
      UserError: the file has no line of these names, or a row of another width or kind.
    """
    lines = read_text(file, "taxonomy").splitlines()
    table = [(n, x.split("\t")) for n, x in enumerate(lines, 1) if x and not x.startswith("#")]
    if not table or table[0][1] != list(_COLUMNS):
        raise UserError(f"{file}: the first line must be {' '.join(_COLUMNS)}, divided by tabs")
    found = []
    for number, cells in table[1:]:
        if len(cells) != len(_COLUMNS) or cells[1] not in ("task", "group"):
            raise UserError(
                f"{file}, line {number}: give {', '.join(_COLUMNS)}; kind task or group"
            )
        found.append(dict(zip(_COLUMNS, cells, strict=True)))
    return tuple(found)


@functools.cache
def _tables(
    file: pathlib.Path, collection: str
) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """Name -> category, of tasks, of globs of tasks and of groups."""
    tables: dict[str, dict[str, str]] = {"task": {}, "glob": {}, "group": {}}
    for row in rows(file):
        if row["collection"] == collection:
            kind = "glob" if row["kind"] == "task" and "*" in row["name"] else row["kind"]
            tables[kind][row["name"]] = row["category"]
    return tables["task"], tables["glob"], tables["group"]
