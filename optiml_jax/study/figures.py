"""The figures of a study: small multiples over its factor, with our results and the paper's.

Drawn by matplotlib in Okabe and Ito's colour-blind-safe palette; the paper's points are hollow and
their lines dashed, so that no distinction relies on colour alone. Equal results give equal files.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from optiml_jax.evaluate.leaves import MEAN
from optiml_jax.evaluate.rollup import level_order
from optiml_jax.files import atomic_path, disk_errors
from optiml_jax.report.run_tables import level_name, shots_name
from optiml_jax.study.results import Fit, Point, Results, name_of, on_line
from optiml_jax.study.spec import Study

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_STYLE = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # searchable, editable text
    "svg.fonttype": "path",  # the same on machines without the font
    "svg.hashsalt": "optiml",  # no random ids
}
_FORMATS = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}
_PANEL = (2.5, 1.75)  # inches
_COLUMNS_OF_CATEGORIES = 3


@dataclasses.dataclass(frozen=True)
class _Line:
    """The data of one line in a panel."""

    label: str
    look: int  # determines colour and marker
    points: list[Point]


def write_figures(folder: pathlib.Path, results: Results) -> list[pathlib.Path]:
    """Writes `levels` and `categories`, each as SVG, PDF and PNG; returns the paths."""
    written = []
    for name, figure in (
        ("levels", levels_figure(results)),
        ("categories", categories_figure(results)),
    ):
        if figure is None:
            continue
        for form, metadata in _FORMATS.items():
            path = folder / f"{name}.{form}"
            with (
                disk_errors(path, "a figure"),
                atomic_path(path) as temporary,
                mpl.rc_context(_STYLE),
            ):
                figure.savefig(
                    temporary, format=form, metadata=metadata, dpi=200, bbox_inches="tight"
                )
            written.append(path)
    return written


def levels_figure(results: Results) -> Figure | None:
    """A row per level (and the average), a column per number of shots."""
    points = [p for p in results.points if not p.category]
    ours = [p for p in points if p.who == "ours"]
    levels = sorted({p.level for p in ours}, key=lambda x: (x == "", level_order(x)))
    shots = _shots(ours)
    if not ours:
        return None
    panels = [[(level, k) for k in shots] for level in levels]
    return _figure(results, panels, points)


def categories_figure(results: Results) -> Figure | None:
    """A panel per category of a level, a line per number of shots."""
    points = [p for p in results.points if p.category and p.shots != MEAN]
    ours = [p for p in points if p.who == "ours"]
    places = sorted({(p.level, p.category) for p in ours}, key=lambda c: (level_order(c[0]), c[1]))
    if not places:
        return None
    n = _COLUMNS_OF_CATEGORIES
    rows = [places[i : i + n] for i in range(0, len(places), n)]
    study = results.study
    with mpl.rc_context(_STYLE):
        figure, grid = _grid(len(rows), n)
        used: dict[str, Line2D] = {}
        for row, axes in zip(rows, grid, strict=True):
            for place, axis in zip(row, axes, strict=False):
                own = [p for p in points if (p.level, p.category) == place]
                lines = _lines(own, lambda p: shots_name(p.shots))
                _panel(axis, study, lines, (), used)
                axis.set_title(f"{place[1]}\n({level_name(place[0])})", fontsize=8)
            for axis in axes[len(row) :]:
                axis.remove()
        for i, axis in enumerate(grid[-1]):  # the lowest panel of each column
            lowest = axis if i < len(rows[-1]) else grid[-2][i] if len(rows) > 1 else None
            if lowest is not None:
                lowest.set_xlabel(study.factor)
        _finish(figure, study, used)
    return figure


def _figure(
    results: Results, panels: Sequence[Sequence[tuple[str, int | str]]], points: Sequence[Point]
) -> Figure:
    study = results.study
    with mpl.rc_context(_STYLE):
        figure, grid = _grid(len(panels), len(panels[0]), sharey="row")
        used: dict[str, Line2D] = {}
        for row, axes in zip(panels, grid, strict=True):
            for (level, k), axis in zip(row, axes, strict=True):
                own = [p for p in points if p.level == level and p.shots == k]
                fits = [f for f in results.fits if (f.level, f.category, f.shots) == (level, "", k)]
                _panel(axis, study, _lines(own, lambda p: p.series), fits, used)
                axis.set_title(f"{name_of(level, '')}, {shots_label(k)}", fontsize=8)
        for axis in grid[-1]:
            axis.set_xlabel(study.factor)
        _finish(figure, study, used)
    return figure


def _grid(rows: int, columns: int, sharey: str | bool = False) -> tuple[Figure, list[list[Axes]]]:
    figure = Figure(
        figsize=(columns * _PANEL[0] + 0.4, rows * _PANEL[1] + 0.7), layout="constrained"
    )
    grid = figure.subplots(rows, columns, squeeze=False, sharey=sharey)
    return figure, [list(row) for row in grid]


def _lines(points: Iterable[Point], group: Callable[[Point], str]) -> list[_Line]:
    """The points as lines: ours by series, then the paper's."""
    points = list(points)
    groups = list(dict.fromkeys(group(p) for p in sorted(points, key=lambda p: str(p.shots))))
    lines = []
    for who in dict.fromkeys(p.who for p in points):
        for i, name in enumerate(groups):
            own = [p for p in points if p.who == who and group(p) == name]
            source = "" if who == "ours" else "the paper's"
            label = ", ".join(filter(None, (name, source))) or "these runs"
            if own:
                lines.append(_Line(label, i, own))
    return lines


def _panel(
    axis: Axes, study: Study, lines: Sequence[_Line], fits: Sequence[Fit], used: dict[str, Line2D]
) -> None:
    variants = list(study.variants)
    numeric = bool(study.positions)

    def place(point: Point) -> float:
        return point.position if numeric else variants.index(point.variant)

    for number, line in enumerate(lines):
        points = sorted(line.points, key=place)
        printed = points[0].who != "ours"
        colour, marker = COLOURS[line.look % len(COLOURS)], MARKERS[line.look % len(MARKERS)]
        x = [place(p) for p in points]
        if not numeric and len(lines) > 1:  # side by side
            x = [v + (number - (len(lines) - 1) / 2) * 0.12 for v in x]
        ends = [
            (0.0, 0.0)
            if p.interval is None
            else (max(p.value - p.interval.low, 0), max(p.interval.high - p.value, 0))
            for p in points
        ]
        drawn = axis.errorbar(
            x,
            [p.value for p in points],
            yerr=None if printed else list(zip(*ends, strict=True)),
            color=colour,
            marker=marker,
            markersize=4,
            markerfacecolor="white" if printed else colour,
            linestyle=("--" if printed else "-") if numeric else "none",
            linewidth=1,
            capsize=2,
        )
        used.setdefault(line.label, drawn)
    for fit in fits:
        ends = [min(study.positions.values()), max(study.positions.values())]
        (drawn,) = axis.plot(
            ends, [on_line(study, fit, x) for x in ends], color="#777777", linestyle=":"
        )
        used.setdefault("fitted line", drawn)
        per = "doubling" if study.logarithmic else "unit"
        text = f"{fit.slope:+.1f} [{fit.interval.low:+.1f}, {fit.interval.high:+.1f}] per {per}"
        axis.annotate(
            text,
            (0.5, 0.03),
            xycoords="axes fraction",
            ha="center",
            fontsize=6,
            color="#333333",
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
        )
    _axis(axis, study, variants, numeric)


def _axis(axis: Axes, study: Study, variants: Sequence[str], numeric: bool) -> None:
    if numeric and study.logarithmic:
        axis.set_xscale("log", base=2)
    if numeric:
        ticks = _ticks(study.positions)
        axis.set_xticks(list(ticks), list(ticks.values()), rotation=45 if len(ticks) > 5 else 0)
        axis.minorticks_off()
    else:
        long = max(map(len, variants)) > 6
        axis.set_xticks(
            range(len(variants)),
            variants,
            rotation=35 if long else 0,
            ha="right" if long else "center",
        )
        axis.set_xlim(-0.5, len(variants) - 0.5)
    axis.tick_params(labelsize=7)


def _ticks(positions: Mapping[str, float]) -> dict[float, str]:
    """The distinct positions of the variants."""
    values = sorted({*positions.values()})
    return {x: f"{x:g}" if abs(x) < 1e5 else f"{x:.0e}".replace("e+0", "e") for x in values}


def _finish(figure: Figure, study: Study, used: Mapping[str, Line2D]) -> None:
    figure.supylabel("score in percent, 95 % interval", fontsize=9)
    if study.title:
        figure.suptitle(study.title, fontsize=10)
    if len(used) > 1:
        columns = min(len(used), 4)
        figure.legend(
            used.values(), used.keys(), loc="outside lower center", ncols=columns, fontsize=7
        )


def shots_label(shots: int | str) -> str:
    return "mean over shots" if shots == MEAN else shots_name(shots)


def _shots(points: Iterable[Point]) -> list[int | str]:
    found = {p.shots for p in points}
    return sorted((k for k in found if k != MEAN), key=int) + [MEAN] * (MEAN in found)
