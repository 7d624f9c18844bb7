"""Shared by the HTML pages: one self-contained file, filled with its data.

All text travels as JSON inside a script element that is no script, and the page shows it as text:
nothing of a data set can become markup.
"""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from optiml_jax.files import atomic_path, disk_errors
from optiml_jax.report.tables import Table

FOLDER = pathlib.Path(__file__).parent


def write_filled(path: str | os.PathLike, template: str, data: Mapping[str, Any]) -> None:
    """Writes a template of this folder with the pages' common style, program and its data."""
    parts = {"@STYLE@": "page.css", "@SCRIPT@": "page.js"}
    page = (FOLDER / template).read_text("utf-8")
    for mark, name in parts.items():
        page = page.replace(mark, (FOLDER / name).read_text("utf-8"))
    page = page.replace("@DATA@", _embedded(data))
    with disk_errors(path, "the page"), atomic_path(path) as temporary:
        temporary.write_text(page, "utf-8")


def _embedded(data: Mapping[str, Any]) -> str:
    """JSON that is safe in a script element: no `</script>`, no `<!--`."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def table_data(table: Table) -> dict[str, Any]:
    return {
        "title": table.title,
        "columns": table.columns,
        "text_columns": table.text_columns,
        "rows": table.rows,
        "notes": table.notes,
    }
