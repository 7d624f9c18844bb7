"""`optiml report`: rolls evaluations up and prints them next to each other and the paper's.

Writes the same tables as Markdown, LaTeX, CSV and a page with plots.
"""

import collections
import dataclasses
import itertools
import os
import pathlib
import re
import sys
from collections.abc import Callable

from optiml_jax.cli import main as command_line
from optiml_jax.cli.printed import PUBLISHED, printed_results, wanted_tasks
from optiml_jax.cli.settings import Report, Run, configured
from optiml_jax.errors import UserError
from optiml_jax.evaluate.clean import clean
from optiml_jax.evaluate.records import RunFolder, TaskInfo
from optiml_jax.evaluate.rollup import Rollup, rollup
from optiml_jax.files import atomic_path, disk_errors
from optiml_jax.paths import matching, path_of
from optiml_jax.report import measure_tables, paper_tables, run_tables, tables
from optiml_jax.report.answers_data import answers_data
from optiml_jax.report.clean_tables import clean_table
from optiml_jax.report.report_page import write_page
from optiml_jax.report.seeds import joined_seeds
from optiml_jax.report.selection import selection_table
from optiml_jax.words import counted
from tasks import splits

MOST_ROWS_PRINTED = 60


def main() -> None:
    settings = Report()
    runs = evaluations(settings)
    if settings.join_seeds and not settings.positions:
        runs = joined_seeds(runs)
    folder = path_of(settings.output or path_of(configured(Run).run_dir) / "report")
    for table in write_report(folder, runs, settings):
        if len(table.rows) <= MOST_ROWS_PRINTED:
            print(tables.render(table, "terminal"))
        else:
            print(f"{table.title}: {counted(len(table.rows), 'row')}, see {folder}/report.md\n")
    print(f"written: {folder}/report.html (plots), .md and .tex (all tables), .csv (every cell),")
    print("paper_tables.csv (the paper's numbers and these)")


def write_report(
    folder: pathlib.Path, runs: dict[str, Rollup], settings: Report
) -> list[tables.Table]:
    """Writes all files of the report; returns its tables."""
    found = run_tables.evidence(runs, settings.replicates)
    made = run_tables.report(runs, found)
    more = (measure_tables.seeds_table(runs, found.estimates), measure_tables.measures_table(runs))
    made += [table for table in more if table is not None]
    for name, tree in runs.items():
        if (subset := clean(tree, settings.replicates)) is not None:
            made.append(clean_table(name, subset))
    if len(runs) > 1:
        made.append(selection_table(runs, settings.replicates))
    manifest = splits.Manifest.load()
    printed = printed_results([PUBLISHED, *settings.published], manifest)
    views = paper_tables.views_of(printed, runs, wanted_tasks(manifest))
    paper = paper_tables.paper_tables(printed, views)
    answers = answers_data(
        evaluation_folders(settings), settings.answers, settings.rule, settings.metric
    )
    write_page(
        folder / "report.html",
        runs,
        found,
        made,
        paper,
        settings.axis,
        settings.positions,
        answers if settings.answers else None,
    )
    files = {
        "report.md": "\n".join(tables.render(t, "markdown") for t in made + paper),
        "report.tex": tables.latex(made + paper),
        "report.csv": tables.render(run_tables.cells_table(runs), "csv"),
        "paper_tables.csv": tables.render(paper_tables.numbers_table(printed, views), "csv"),
    }
    for name, text in files.items():
        with disk_errors(folder / name, "the report"), atomic_path(folder / name) as temporary:
            temporary.write_text(text, "utf-8")
    return made + paper


def evaluations(settings: Report) -> dict[str, Rollup]:
    """Name -> evaluation, for `evaluation_folders`."""
    how = {"by": settings.by, "rule": settings.rule, "metric": settings.metric}
    return {
        name: rollup(group, **how, revise=revision())
        for name, group in evaluation_folders(settings).items()
    }


def evaluation_folders(settings: Report) -> dict[str, list[pathlib.Path]]:
    """Name -> folders: the evaluations that `settings` names, else all of the run, by step."""
    if settings.runs:
        found = (sorted(map(str, matching(p)), key=by_number) or [p] for p in settings.runs)
        groups = by_checkpoint([path_of(folder) for group in found for folder in group])
    else:
        place = configured(Run).evaluation_dir
        groups = by_checkpoint([p.parent for p in place.glob("*/tasks.json")])
        # The untrained model is also step 0; it precedes a checkpoint of that step.
        groups.sort(key=lambda g: (RunFolder(g[0]).load()[0].get("step") or 0, short_name(g)))
        if not groups:
            raise UserError(
                f"no evaluation in {place}; run `optiml evaluate` first, or name "
                "evaluation folders: --gin.Report.runs='(\"FOLDER\",)'"
            )
    names = list(settings.names) or distinct_names(groups)
    for given in (names, settings.positions):
        if given and len(given) != len(groups):
            raise UserError(
                f"{given!r} has {counted(len(given), 'part')} for "
                f"{counted(len(groups), 'evaluation')}: "
                f"{', '.join(map(short_name, groups))}"
            )
    if len({*names}) < len(groups):
        raise UserError(f"two evaluations have the same name: {', '.join(names)}")
    return dict(zip(names, groups, strict=True))


def revision() -> Callable[[TaskInfo], TaskInfo] | None:
    """Averages sub-tasks by the current `SplitConfig`, whatever it was at the evaluation."""
    if not splits.SplitConfig().bbh_23:
        return None
    manifest = splits.Manifest.load()

    def revised(info: TaskInfo) -> TaskInfo:
        if not info.task.startswith("bbh"):
            return info
        row = manifest.lookup(info.task, None)
        return dataclasses.replace(info, aggregate_as=row.aggregate_as)

    return revised


def by_checkpoint(folders: list[pathlib.Path]) -> list[list[pathlib.Path]]:
    """Groups the folders of one evaluation: siblings, of one checkpoint, with no task twice."""
    groups = collections.defaultdict(list)
    for folder in folders:
        run, infos = RunFolder(folder).load()
        groups[folder.parent, str(run.get("checkpoint", folder))].append((folder, infos))
    found = []
    for members in groups.values():
        cells = [
            (info.task, shots) for _, infos in members for info in infos for shots in info.shots
        ]
        apart = len({*cells}) < len(cells)
        names = [folder for folder, _ in members]
        found += [[name] for name in names] if apart else [names]
    return found


def short_name(group: list[pathlib.Path]) -> str:
    """The common prefix of folder names: "step_4" of "step_4_mmlu" and "step_4_opt14"."""
    parts = zip(*(folder.name.split("_") for folder in group), strict=False)
    alike = itertools.takewhile(lambda part: len({*part}) == 1, parts)
    return "_".join(part[0] for part in alike) or group[0].name


def distinct_names(groups: list[list[pathlib.Path]]) -> list[str]:
    """The names of the folders, prefixed by the differing parts of their paths if they repeat."""
    names = [short_name(group) for group in groups]
    if len({*names}) == len(names):
        return names
    paths = [pathlib.Path(os.path.abspath(group[0].parent)).parts for group in groups]
    alike = {part for part in paths[0] if all(part in path for path in paths)}
    return [
        "/".join((*(part for part in path if part not in alike), name))
        for path, name in zip(paths, names, strict=True)
    ]


def by_number(path: str) -> list:
    """Sort key: step_500 before step_2000."""
    return [int(x) if x.isdigit() else x for x in re.split(r"(\d+)", path)]


if __name__ == "__main__":
    sys.exit(command_line.main([pathlib.Path(__file__).stem, *sys.argv[1:]]))
