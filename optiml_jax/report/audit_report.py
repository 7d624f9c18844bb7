"""The report of an audit: Markdown and a page, pairs of tasks with examples side by side."""

import dataclasses
import html
import os
import pathlib
from collections.abc import Iterable, Sequence

from optiml_jax.audit.words import AuditWords, Normaliser
from optiml_jax.files import atomic_path, disk_errors
from optiml_jax.report.html_page import FOLDER
from optiml_jax.report.tables import Table, render

_MOST_CHARACTERS = 700  # of a text, around the span


@dataclasses.dataclass(frozen=True)
class Example:
    """A training and an evaluation example with an n-gram in common.

    Attributes:
      train_id, eval_id: their ids.
      train, eval: their texts without instruction, each as (before, span, after).
    """

    train_id: str
    eval_id: str
    train: tuple[str, str, str]
    eval: tuple[str, str, str]


@dataclasses.dataclass(frozen=True)
class Section:
    """A pair of tasks above the threshold.

    Attributes:
      title: the two tasks.
      facts: (name, value), what is known of the pair.
      examples: to look at.
    """

    title: str
    facts: tuple[tuple[str, str], ...]
    examples: tuple[Example, ...]


def marked(text: str, ngram: str, rules: AuditWords) -> tuple[str, str, str]:
    """A text before, in and after the span that an n-gram was found in, cut to what is shown.

    The span is found by the words of the normal form; where those do not come from whole pieces of
    text between spaces, nothing is marked.
    """
    normaliser, wanted = Normaliser(rules), ngram.encode().split()
    words: list[bytes] = []
    places: list[tuple[int, int]] = []
    start = 0
    for piece in text.split(" "):
        for part in piece.split("\n"):
            for word in normaliser.words(part):
                words.append(word)
                places.append((start, start + len(part)))
            start += len(part) + 1
    for i in range(len(words) - len(wanted) + 1):
        if words[i : i + len(wanted)] == wanted:
            begin, end = places[i][0], places[i + len(wanted) - 1][1]
            left = max(0, begin - _MOST_CHARACTERS // 2)
            before = ("…" if left else "") + text[left:begin]
            after = text[end : end + _MOST_CHARACTERS // 2]
            more = "…" if len(text) > end + _MOST_CHARACTERS // 2 else ""
            return before, text[begin:end], after + more
    return text[:_MOST_CHARACTERS] + ("…" if len(text) > _MOST_CHARACTERS else ""), "", ""


def write_report(
    folder: str | os.PathLike,
    head: Sequence[str],
    tables: Sequence[Table],
    sections: Iterable[Section],
) -> list[pathlib.Path]:
    """Writes report.md and report.html; returns their paths."""
    sections = list(sections)
    forms = {"report.md": _markdown, "report.html": _page}
    paths = []
    for name, form in forms.items():
        path = pathlib.Path(folder) / name
        with disk_errors(path, "the report"), atomic_path(path) as temporary:
            temporary.write_text(form(head, tables, sections), "utf-8")
        paths.append(path)
    return paths


def _markdown(head: Sequence[str], tables: Sequence[Table], sections: Sequence[Section]) -> str:
    parts = ["# Overlap of training and evaluation tasks\n", *(f"{line}\n" for line in head)]
    parts += [render(table, "markdown") for table in tables]
    for section in sections:
        parts.append(f"## {_plain(section.title)}\n")
        parts += [f"- {name}: {_plain(value)}" for name, value in section.facts]
        for example in section.examples:
            parts.append(
                f"\ntraining example `{example.train_id}`:\n\n> {_quoted(example.train)}\n"
            )
            parts.append(f"evaluation example `{example.eval_id}`:\n\n> {_quoted(example.eval)}\n")
        parts.append("")
    return "\n".join(parts)


def _plain(text: str) -> str:
    return " ".join(text.split()).replace("<", "&lt;")


def _quoted(parts: tuple[str, str, str]) -> str:
    before, span, after = map(_plain, parts)
    bold = f" **{span}** " if span else ""
    return f"{before}{bold}{after}".strip()


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Overlap of training and evaluation tasks</title>
<style>{style}
table {{ border-collapse: collapse; margin: 10px 0 18px; font-size: 13px; }}
th, td {{ border-bottom: 1px solid var(--line); padding: 4px 10px; text-align: left; }}
.number {{ text-align: right; font-variant-numeric: tabular-nums; }}
p, h1 {{ overflow-wrap: anywhere; }}
.pair {{ display: grid; gap: 14px; margin: 8px 0;
  grid-template-columns: repeat(2, minmax(0, 1fr)); }}
.pair > div {{ background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: 10px 12px; white-space: pre-wrap; overflow-wrap: anywhere; }}
.wide {{ overflow-x: auto; }}
mark {{ background: #ffe08a; color: #1c2230; }}
@media (max-width: 800px) {{ .pair {{ grid-template-columns: minmax(0, 1fr); }} }}
</style>
<header><div><h1>Overlap of training and evaluation tasks</h1></div></header>
<main>
{body}
</main></html>
"""


def _page(head: Sequence[str], tables: Sequence[Table], sections: Sequence[Section]) -> str:
    body = [f"<p>{html.escape(line)}</p>" for line in head]
    for table in tables:
        body.append(f"<h2>{html.escape(table.title)}</h2><div class=wide><table>")
        body.append(_row("th", table.columns, table.text_columns))
        body += [_row("td", row, table.text_columns) for row in table.rows]
        body.append("</table></div>")
        body += [f"<p class=quiet>{html.escape(note)}</p>" for note in table.notes]
    for section in sections:
        body.append(f"<h3>{html.escape(section.title)}</h3>")
        facts = "; ".join(f"{name}: {value}" for name, value in section.facts)
        body.append(f"<p class=quiet>{html.escape(facts)}</p>")
        for example in section.examples:
            cells = (("training", example.train_id, example.train),)
            cells += (("evaluation", example.eval_id, example.eval),)
            body.append("<div class=pair>")
            for side, name, parts in cells:
                before, span, after = map(html.escape, parts)
                span = f"<mark>{span}</mark>" if span else ""
                what = f"<b>{side} example {html.escape(name)}</b>"
                body.append(f"<div>{what}\n{before}{span}{after}</div>")
            body.append("</div>")
    style = (FOLDER / "page.css").read_text("utf-8")
    return _PAGE.format(style=style, body="\n".join(body))


def _row(tag: str, cells: Sequence[str], text_columns: int) -> str:
    parts = (
        f"<{tag}{' class=number' if i >= text_columns else ''}>{html.escape(cell)}</{tag}>"
        for i, cell in enumerate(cells)
    )
    return f"<tr>{''.join(parts)}</tr>"
