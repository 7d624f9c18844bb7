"""A table of strings, and its four forms: terminal, Markdown, CSV and LaTeX.

What stands in the tables is decided in `run_tables.py`, `paper_tables.py` and `selection.py`.
"""

import csv
import dataclasses
import io
import re
from collections.abc import Iterable
from typing import Literal

import tabulate

MARK = "†"  # something that belongs into the number is missing from it
# Names and reasons come from data sets: no control character of them may steer a terminal.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")
_LATEX = {c: f"\\{c}" for c in "{}$&#%_"} | {
    "\\": "\\textbackslash{}",
    "^": "\\textasciicircum{}",
    "~": "\\textasciitilde{}",
    "<": "\\textless{}",
    ">": "\\textgreater{}",
    "|": "\\textbar{}",
    '"': "\\textquotedbl{}",
    MARK: "\\textdagger{}",
    "–": "--",
    "…": "\\dots{}",
    "±": "$\\pm$",
    "×": "$\\times$",
}
_LATEX_HEAD = r"""\documentclass{article}
\usepackage[T1]{fontenc}
\usepackage[utf8]{inputenc}
\usepackage{textcomp}
\usepackage[landscape,margin=1cm]{geometry}
\usepackage{booktabs,longtable}
\setlength{\tabcolsep}{3pt}
\begin{document}
\scriptsize
"""


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of strings.

    Attributes:
      text_columns: the first so many columns are text, the others numbers (aligned right).
      notes: lines below the table.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text_columns: int = 1
    notes: tuple[str, ...] = ()


def render(table: Table, form: Literal["terminal", "markdown", "csv"]) -> str:
    """The table as text; CSV holds columns and rows alone."""
    if form == "csv":
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows([table.columns, *table.rows])
        return out.getvalue()
    markdown = form == "markdown"
    text = _markdown if markdown else _plain
    numbers = len(table.columns) - table.text_columns
    body = tabulate.tabulate(
        [[text(cell) for cell in row] for row in table.rows],
        headers=[text(c) for c in table.columns],
        tablefmt="pipe" if markdown else "simple",
        colalign=("left",) * table.text_columns + ("right",) * numbers if table.rows else None,
        disable_numparse=True,
    )
    title = f"### {text(table.title)}" if markdown else text(table.title)
    notes = "".join(f"\n{'- ' if markdown else '  '}{text(note)}" for note in table.notes)
    return f"{title}\n\n{body}\n{notes}\n" if notes else f"{title}\n\n{body}\n"


def latex(tables: Iterable[Table]) -> str:
    """A document of all tables, each a `longtable` with booktabs' lines; pdflatex compiles it."""
    return "\n".join([_LATEX_HEAD, *map(_longtable, tables), r"\end{document}", ""])


def _longtable(table: Table) -> str:
    def row(cells: Iterable[str]) -> str:
        # Braces: a cell that starts with a bracket or a star is no argument of the line break.
        return " & ".join(f"{{{_escaped(cell)}}}" for cell in cells) + r" \\"

    numbers = len(table.columns) - table.text_columns
    notes = "".join(f"\\par {_escaped(note)}\n" for note in table.notes)
    return "\n".join(
        [
            rf"\begin{{longtable}}{{{'l' * table.text_columns}{'r' * numbers}}}",
            rf"\caption{{{_escaped(table.title)}}} \\",
            r"\toprule",
            row(table.columns),
            r"\midrule \endhead",
            r"\bottomrule \endfoot",
            *map(row, table.rows),
            r"\end{longtable}",
            rf"{{\raggedright\noindent {notes}\par}}",
        ]
    )


def _plain(text: str) -> str:
    return _CONTROL.sub(" ", text)


def _markdown(text: str) -> str:
    return _plain(text).replace("|", "\\|").replace("<", "&lt;")


def _escaped(text: str) -> str:
    """Escaped for LaTeX; characters its usual fonts lack become their code point."""
    return "".join(
        _LATEX.get(c) or (c if c.isascii() or "À" <= c <= "ÿ" else f"[U+{ord(c):04X}]")
        for c in _plain(text)
    )
