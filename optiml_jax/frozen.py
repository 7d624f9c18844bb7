"""The settings that a stored artefact was made with, and the refusal to use it with others.

Cache, plan, checkpoint and evaluation keep the settings they depend on by their names in gin. What
is frozen where is listed in WORKSPACE.md.
"""

import dataclasses
import json
from collections.abc import Collection, Mapping
from typing import Any

from optiml_jax.errors import UserError


def by_name(settings: Any, without: Collection[str] = ()) -> dict[str, Any]:
    """The fields of a settings object as `Class.field` -> value, as JSON gives them back."""
    values = json.loads(json.dumps(dataclasses.asdict(settings)))
    name = type(settings).__name__
    return {f"{name}.{field}": v for field, v in values.items() if field not in without}


def changes(stored: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """Every setting of `asked` whose stored value is another, in words with both values."""
    asked = json.loads(json.dumps(dict(asked)))
    return [
        f"{name} was {stored.get(name)!r} and is {value!r} now"
        for name, value in asked.items()
        if stored.get(name) != value
    ]


def refuse_changes(
    what: str, stored: Mapping[str, Any], asked: Mapping[str, Any], way_out: str
) -> None:
    """Raises a UserError if something that was made with `stored` is used with `asked`.

    Args:
      what: the artefact, as the subject of the sentence.
      stored, asked: name of a setting -> value.
      way_out: what to do.
    """
    if differences := changes(stored, asked):
        raise UserError(f"{what} was made with other settings: {'; '.join(differences)}; {way_out}")
