"""The files of a study's report: tables, figures with their data, the page, the choice."""

from collections.abc import Callable, Sequence

from optiml_jax.evaluate.leaves import MEAN
from optiml_jax.evaluate.records import TaskInfo
from optiml_jax.files import atomic_path, disk_errors, write_json
from optiml_jax.report import measure_tables, run_tables
from optiml_jax.report.published import PublishedTable
from optiml_jax.report.report_page import shots_label, write_page
from optiml_jax.report.run_tables import interval_text, new_tasks_text, number
from optiml_jax.report.selection import selection_table
from optiml_jax.report.tables import Table, latex, render
from optiml_jax.study.choice import Choice, choose, write_choice
from optiml_jax.study.figures import write_figures
from optiml_jax.study.results import Point, Results, as_csv, as_json, name_of, results_of
from optiml_jax.study.runs import Plan


def write_report(
    plan: Plan,
    published: Sequence[PublishedTable] = (),
    revise: Callable[[TaskInfo], TaskInfo] | None = None,
) -> tuple[list[Table], Choice] | None:
    """Writes report and choice from the evaluations; None if there are none.

    Args:
      plan: the study's runs.
      published: printed tables, including the one to compare the study with.
      revise: see `rollup`.

    Returns:
      The tables for the terminal, and the choice.
    """
    results = results_of(plan, published, revise)
    if not results.trees:
        return None
    folder, study = plan.folder / "report", plan.study
    choice = choose(results)
    shown = [*study_tables(results)]
    if len(results.trees) > 1:
        shown.append(selection_table(results.trees, study.replicates))
    made = [*shown, *run_tables.report(results.trees, results.found)]
    seeds = measure_tables.seeds_table(results.trees, results.found.estimates)
    made += [seeds] if seeds is not None else []
    write_figures(folder, results)
    positions = [study.positions.get(v, float(i)) for i, v in enumerate(study.variants)]
    at = dict(zip(study.variants, positions, strict=True))
    write_page(
        folder / "report.html",
        results.trees,
        results.found,
        made,
        [],
        study.factor,
        [at[variant] for variant in results.trees],
        labels=[] if study.positions else list(study.variants),
        printed=[_on_page(p, at) for p in results.points if p.who != "ours"],
    )
    write_json(folder / "figures.json", as_json(results))
    texts = {
        "figures.csv": as_csv(results),
        "report.md": f"{choice.sentence}\n\n" + "\n".join(render(t, "markdown") for t in made),
        "report.tex": latex(made),
        "choice.txt": choice.sentence + "\n",
    }
    for name, text in texts.items():
        with disk_errors(folder / name, "the report"), atomic_path(folder / name) as temporary:
            temporary.write_text(text, "utf-8")
    write_choice(plan, choice)
    return shown, choice


def study_tables(results: Results) -> list[Table]:
    """Levels by variant and shots with intervals, next to the paper's; the fits."""
    rows = []
    points = [p for p in results.points if not p.category]
    ours = [p for p in points if p.who == "ours"]
    theirs = {(p.variant, p.level, p.shots): p for p in points if p.who != "ours"}
    for p in ours:
        printed = theirs.get((p.variant, p.level, p.shots))
        rows.append(
            (
                name_of(p.level, ""),
                shots_label(p.shots),
                p.variant,
                str(p.seeds),
                number(p.value),
                interval_text(p.interval, sign=False),
                new_tasks_text(p.new_tasks, sign=False),
                number(printed.value if printed else None),
            )
        )
    order = list(results.study.variants)
    keys = list(dict.fromkeys((row[0], row[1]) for row in rows))
    rows.sort(key=lambda row: (keys.index(row[:2]), order.index(row[2])))
    columns = ("level", "shots", results.study.factor, "seeds", "score", "95 % CI", "new tasks")
    notes = [
        "95 % CI: other instances of the same tasks and other seeds; new tasks: other tasks of the "
        "same categories"
    ]
    if results.lacking:
        notes.append(f"not evaluated: {'; '.join(results.lacking)}")
    if results.outdated:
        notes.append(f"made from other data than there is now: {'; '.join(results.outdated)}")
    notes += [
        f"{', '.join(names)} have identical scores: does {results.study.factor} change "
        "anything in these runs?"
        for names in _without_effect(ours)
    ]
    notes += [results.remark] if results.remark else []
    title = results.study.title or results.study.name
    made = [Table(title, (*columns, "paper"), tuple(rows), 3, tuple(notes))]
    if results.fits:
        made.append(_fit_table(results))
    return made


def _without_effect(points: Sequence[Point]) -> list[list[str]]:
    """Groups of variants whose scores are all equal, as if they were one run."""
    seen: dict[str, list[object]] = {}
    for p in points:
        seen.setdefault(p.variant, []).append((p.level, p.shots, p.value))
    groups: dict[tuple[object, ...], list[str]] = {}
    for variant, scores in seen.items():
        groups.setdefault(tuple(scores), []).append(variant)
    return [names for names in groups.values() if len(names) > 1]


def _fit_table(results: Results) -> Table:
    per = "doubling" if results.study.logarithmic else "unit"
    rows = tuple(
        (
            name_of(fit.level, fit.category),
            shots_label(fit.shots),
            f"{fit.slope:+.2f}",
            interval_text(fit.interval),
            new_tasks_text(fit.new_tasks),
            f"{fit.residual:.1f}",
        )
        for fit in results.fits
        if not fit.category
    )
    columns = ("level", "shots", f"points per {per}", "95 % CI", "new tasks", "largest residual")
    note = (
        "a least-squares line through the variants' scores; where the largest residual "
        "is not small compared with slope times range, the scores do not follow a line"
    )
    return Table(f"Scores over {results.study.factor}", columns, rows, 2, (note,))


def _on_page(p: Point, positions: dict[str, float]) -> dict[str, object]:
    return {
        "name": name_of(p.level, p.category),
        "level": run_tables.level_name(p.level),
        "shots": "mean over shots" if p.shots == MEAN else shots_label(p.shots),
        "position": positions[p.variant],
        "value": p.value,
        "label": f"{p.variant} ({p.who})",
    }
