"""`optiml report`: rolls evaluations up and prints them side by side and beside the paper's.

Writes the same tables as Markdown, LaTeX, CSV and a page with plots.
"""

import glob
import os
import pathlib
import re
import sys

from optiml_jax.cli import main as command_line
from optiml_jax.cli.settings import Report, Run, configured
from optiml_jax.errors import UserError
from optiml_jax.evaluate.rollup import Rollup, rollup
from optiml_jax.files import atomic_path, disk_errors
from optiml_jax.report import paper_tables, published, run_tables, tables
from optiml_jax.report.report_page import write_page
from optiml_jax.report.selection import selection_table
from tasks import splits
from tasks.taxonomy import category

MOST_ROWS_PRINTED = 60
PUBLISHED = splits.DEFAULT_MANIFEST.parent / "published_results.yaml"


def main() -> None:
    run, settings = configured(Run), Report()
    runs = evaluations(run, settings)
    found = run_tables.evidence(runs, settings.replicates)
    made = run_tables.report(runs, found)
    if len(runs) > 1:
        made.append(selection_table(runs, settings.replicates))
    wanted = wanted_tasks(splits.Manifest.load())
    paper = paper_tables.paper_tables(published.load(PUBLISHED), runs, wanted)
    folder = pathlib.Path(settings.output or pathlib.Path(run.run_dir) / "report")
    write_page(folder / "report.html", runs, found, made, paper, settings.axis, settings.positions)
    made += paper
    write(folder / "report.md", "\n".join(tables.render(t, "markdown") for t in made))
    write(folder / "report.tex", tables.latex(made))
    write(folder / "report.csv", tables.render(run_tables.cells_table(runs), "csv"))
    for table in made:
        if len(table.rows) <= MOST_ROWS_PRINTED:
            print(tables.render(table, "terminal"))
        else:
            print(f"{table.title}: {len(table.rows)} rows, see {folder}/report.md\n")
    print(f"written: {folder}/report.html (plots), .md and .tex (all tables), .csv (every cell)")


def evaluations(run: Run, settings: Report) -> dict[str, Rollup]:
    """Name -> evaluation: those that `settings` names, else all of the run by step."""
    if settings.runs:
        folders = [f for p in settings.runs for f in sorted(glob.glob(p), key=by_number) or [p]]
        names = settings.names or short_names(folders)
        for given in (names, settings.positions):
            if given and len(given) != len(folders):
                raise UserError(
                    f"Report.runs are {len(folders)} folders, but {given!r} has {len(given)} parts"
                )
        if len({*names}) < len(folders):
            raise UserError(f"two evaluations have the same name: {', '.join(names)}")
        return {n: rollup(folder) for n, folder in zip(names, folders, strict=True)}
    trees = {p.parent.name: rollup(p.parent) for p in run.evaluation_dir.glob("*/tasks.json")}
    if not trees:
        raise UserError(
            f"no evaluation in {run.evaluation_dir}; run `optiml evaluate` first, or name "
            "evaluation folders: --gin.Report.runs='(\"FOLDER\",)'"
        )
    # The untrained model is step 0 as well, and comes before a checkpoint of that step.
    by_step = sorted(trees, key=lambda name: (trees[name].run["step"] or 0, name))
    return {name: trees[name] for name in by_step}


def by_number(path: str) -> list:
    """Sort key: step_500 before step_2000."""
    return [int(x) if x.isdigit() else x for x in re.split(r"(\d+)", path)]


def short_names(folders: list[str]) -> list[str]:
    """The parts of the paths in which they differ."""
    parts = [pathlib.Path(os.path.abspath(folder)).parts for folder in folders]
    if len(folders) == 1:
        return [parts[0][-1]]
    alike = {p for p in parts[0] if all(p in other for other in parts)}
    return ["/".join(p for p in path if p not in alike) or path[-1] for path in parts]


def wanted_tasks(manifest: splits.Manifest) -> list[published.Wanted]:
    """The manifest's evaluation tasks, as the paper's tables look for them."""
    return [
        published.Wanted(
            task=task,
            category=row.category or category(*task.split("/", 1)),
            level=row.level,
            role=row.role,
            shots=row.shots,
            aggregate_as=row.aggregate_as,
            prompts=len(row.prompts) if isinstance(row.prompts, tuple) else row.prompts,
        )
        for task, row in manifest.evaluation_tasks().items()
    ]


def write(path: pathlib.Path, text: str) -> None:
    """Writes a text file, atomically."""
    with disk_errors(path, "the report"), atomic_path(path) as temporary:
        temporary.write_text(text, "utf-8")


if __name__ == "__main__":
    sys.exit(command_line.main([pathlib.Path(__file__).stem, *sys.argv[1:]]))
