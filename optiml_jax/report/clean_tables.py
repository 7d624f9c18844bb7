"""The table of scores over the clean subset, next to those over all examples."""

from optiml_jax.evaluate.clean import Clean
from optiml_jax.evaluate.leaves import Key
from optiml_jax.evaluate.rollup import level_order
from optiml_jax.report.run_tables import interval_text, level_name, number, shots_name
from optiml_jax.report.tables import Table


def clean_table(name: str, found: Clean) -> Table:
    """Averages, levels, categories and tasks: the score, that of the clean examples, and the gap.

    The score is that of the tasks that have clean examples.
    """
    keys = sorted(
        (k for k in found.tree.cells if len(k.path) <= 3 and found.tree.cells[k].value is not None),
        key=lambda k: (not k.level, level_order(k.level), k.path, str(k.shots)),
    )
    rows = []
    for key in keys:
        difference = found.tree.cells[key].value
        whole = found.scores.cells[key].value
        overlapping, units = _units(key, found)
        estimate = found.differences.get(key)
        rows.append(
            (
                level_name(key.level) if key.level else "average",
                " / ".join(key.path[1:]),
                shots_name(key.shots),
                f"{units:,}",
                f"{overlapping:,}",
                number(whole),
                number(whole + difference),
                f"{difference:+.1f}",
                interval_text(estimate.fixed_tasks) if estimate else "",
            )
        )
    notes = ["clean: without the examples of which the training data holds an n-gram of content"]
    for what, tasks in (("not audited", found.unaudited), ("no clean example", found.unclean)):
        if tasks:
            notes.append(f"{what}, and in no number here: {', '.join(tasks)}")
    columns = ("level", "category / task", "shots", "examples", "overlapping", "score", "clean")
    return Table(
        f"Scores over the clean subset: {name}",
        (*columns, "difference", "95 % CI"),
        tuple(rows),
        2,
        tuple(notes),
    )


def _units(key: Key, found: Clean) -> tuple[int, int]:
    """(overlapping, all) units of a cell, over all numbers of shots where it combines them."""
    counts = [
        n for k, n in found.units.items() if k.path == key.path and key.shots in (k.shots, "mean")
    ]
    return sum(a for a, _ in counts), sum(b for _, b in counts)
