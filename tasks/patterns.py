"""Globs over task names with {a,b} alternatives, as the tables of `data/` write them."""

import fnmatch
import re
from collections.abc import Sequence
from typing import Any

from optiml_jax.errors import UserError


def expand(globs: Any, where: str) -> list[str]:
    """A glob or a list of globs as plain globs; braces do not nest.

    Args:
      globs: of the form <benchmark>/<task>.
      where: file and row, for errors.

    Raises:
      UserError: something else than a glob, or braces that do not match.
    """
    given = globs if isinstance(globs, list) else [globs]
    return [pattern for glob in given for pattern in _expand(glob, where)]


def _expand(glob: Any, where: str) -> list[str]:
    if not isinstance(glob, str) or "/" not in glob:
        raise UserError(f"{where}: {glob!r} is not a pattern of the form <benchmark>/<task>")
    head, brace, rest = glob.partition("{")
    inner, closed, tail = rest.partition("}")
    if "}" in head or bool(brace) != bool(closed) or "{" in inner:
        raise UserError(f"{where}: the braces of pattern {glob!r} do not match")
    if not brace:
        return [glob]
    return [p for choice in inner.split(",") for p in _expand(head + choice + tail, where)]


def matcher(patterns: Sequence[str]) -> re.Pattern[str]:
    """Matches, as a whole, the names that one of the plain globs matches."""
    return re.compile("|".join(f"(?:{fnmatch.translate(p)})" for p in patterns))
