"""`optiml report`: rolls evaluations up and prints them side by side; writes Markdown and CSV."""

import pathlib
import sys

from optiml_jax.cli import main as command_line
from optiml_jax.cli.settings import Report, Run, configured
from optiml_jax.errors import UserError
from optiml_jax.evaluate.rollup import Rollup, rollup
from optiml_jax.files import atomic_path, disk_errors
from optiml_jax.report import tables

MOST_ROWS_PRINTED = 60


def main() -> None:
    run, settings = configured(Run), Report()
    runs = evaluations(run, settings)
    made = tables.report(runs)
    folder = pathlib.Path(settings.output or pathlib.Path(run.run_dir) / "report")
    write(folder / "report.md", "\n".join(tables.render(t, "markdown") for t in made))
    write(folder / "report.csv", tables.render(tables.cells_table(runs), "csv"))
    for table in made:
        if len(table.rows) <= MOST_ROWS_PRINTED:
            print(tables.render(table, "terminal"))
        else:
            print(f"{table.title}: {len(table.rows)} rows, see {folder}/report.md\n")
    print(f"written: {folder}/report.md (all tables), {folder}/report.csv (every cell)")


def evaluations(run: Run, settings: Report) -> dict[str, Rollup]:
    """Name -> evaluation: those that `settings` names, else all of the run by step."""
    if settings.runs:
        return {folder: rollup(folder) for folder in settings.runs}
    trees = {p.parent.name: rollup(p.parent) for p in run.evaluation_dir.glob("*/tasks.json")}
    if not trees:
        raise UserError(
            f"no evaluation in {run.evaluation_dir}; run `optiml evaluate` first, or name "
            "evaluation folders: --gin.Report.runs='(\"FOLDER\",)'"
        )
    # The untrained model is step 0 as well, and comes before a checkpoint of that step.
    by_step = sorted(trees, key=lambda name: (trees[name].run["step"] or 0, name))
    return {name: trees[name] for name in by_step}


def write(path: pathlib.Path, text: str) -> None:
    """Writes a text file, atomically."""
    with disk_errors(path, "the report"), atomic_path(path) as temporary:
        temporary.write_text(text, "utf-8")


if __name__ == "__main__":
    sys.exit(command_line.main([pathlib.Path(__file__).stem, *sys.argv[1:]]))
