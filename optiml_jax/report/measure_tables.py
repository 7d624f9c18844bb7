"""The measures of a task besides the one that is averaged, and the spread between seeds."""

from collections.abc import Mapping

from optiml_jax.evaluate.leaves import MEAN, Key
from optiml_jax.evaluate.metrics import METRICS
from optiml_jax.evaluate.rollup import Rollup
from optiml_jax.evaluate.statistics import Estimate
from optiml_jax.report.run_tables import AVERAGE, all_shots, level_keys, level_name, number
from optiml_jax.report.run_tables import shots_name as named
from optiml_jax.report.tables import Table


def measures_table(runs: Mapping[str, Rollup]) -> Table | None:
    """One row per task and measure, for the metrics that have several; None: there is none."""
    values: dict[tuple[str, str], dict[tuple[str, int], float]] = {}
    averaged = set()
    for name, tree in runs.items():
        own = {(leaf.key.subtask, leaf.key.shots): leaf for leaf in tree.leaves}
        for (task, shots), found in tree.further_measures().items():
            leaf = own[task, shots]
            main = METRICS[leaf.metric].main.name
            averaged.add((task, main))
            cell = tree.cells[leaf.key]
            for measure, value in {main: cell.value, **found}.items():
                values.setdefault((task, measure), {})[name, shots] = value
    if not values:
        return None
    shots = [k for k in all_shots(runs) if k != MEAN]
    names = [f"{name} " if len(runs) > 1 else "" for name in runs]
    rows = [
        (
            task,
            f"{measure} (in the averages)" if (task, measure) in averaged else measure,
            *(number(cells.get((name, k))) for name in runs for k in shots),
        )
        for (task, measure), cells in values.items()
    ]
    columns = ("task", "measure", *(f"{name}{named(k)}" for name in names for k in shots))
    notes = ("in percent; correlations and Matthews' coefficient times 100",)
    return Table("Measures of single tasks", columns, tuple(rows), 2, notes)


def seeds_table(
    runs: Mapping[str, Rollup], found: Mapping[str, Mapping[Key, Estimate]]
) -> Table | None:
    """Levels and the average of configurations that were run with several seeds."""
    rows = []
    for name, tree in runs.items():
        for key in level_keys(tree) if tree.seeds else ():
            estimate = found[name].get(key)
            if estimate is None or estimate.spread is None:
                continue
            each = [t.cells[key].value for t in tree.seeds if key in t.cells]
            rows.append(
                (
                    *(name, level_name(key.level) or AVERAGE, named(key.shots)),
                    str(estimate.spread.seeds),
                    number(estimate.value),
                    f"{estimate.spread.deviation:.2f}",
                    " ".join(number(v) for v in each),
                )
            )
    if not rows:
        return None
    columns = ("run", "level", "shots", "seeds", "mean", "standard deviation", "each")
    notes = ("the intervals and p values of these runs contain the spread between their seeds",)
    return Table("Seeds", columns, tuple(rows), 3, notes)
