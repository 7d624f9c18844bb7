"""From the row of a data set to the slots of FLAN's templates: a small language of values.

A value is written in tasks.yaml, whose head explains it, as
  a path:   `question.stem`, keys of the row divided by dots; over a list of mappings it is a list;
  a list:   [path, operation, ...], operations applied in order; its head may also be a list of
            paths, which gives a list;
  {text: x}: the same text for every row.
An operation is a name or {name: argument}. Which task has which values is data, see there.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from optiml_jax.data.training_prompts import fill
from optiml_jax.errors import UserError

Row = Mapping[str, Any]


class UnusableError(Exception):
    """A row that lacks what a value needs; the text is the reason that is counted."""


class Value:
    """A compiled value.

    Raises:
      UserError: it is not written as described above; the message starts with `where`.
    """

    def __init__(self, spec: Any, where: str):
        fixed = isinstance(spec, Mapping) and set(spec) == {"text"}
        self.constant = spec["text"] if fixed else None
        head, *operations = spec if isinstance(spec, list) and spec else [spec]
        self._many = isinstance(head, list)
        self.paths = head if self._many else [head]
        if not fixed and not (self.paths and all(isinstance(path, str) for path in self.paths)):
            raise UserError(f"{where}: {spec!r} is not a path, list or {{text: ...}}")
        self._operations = [_operation(o, where) for o in operations]

    def __call__(self, row: Row, slots: Mapping[str, str]) -> Any:
        """The value of a row; `slots` are those made before it.

        Raises:
          UnusableError: the row lacks something.
        """
        if self.constant is not None:
            return self.constant
        found = [look_up(row, path) for path in self.paths]
        value = found if self._many else found[0]
        for run, argument in self._operations:
            try:
                value = run(value, argument, row, slots)
            except (IndexError, KeyError, TypeError, ValueError, AttributeError) as e:
                raise UnusableError(f"no value of {', '.join(self.paths)}") from e
        return value


def look_up(row: Row, path: str) -> Any:
    """The value at a path of keys separated by dots."""
    value: Any = row
    for key in path.split("."):
        items = value if isinstance(value, list) else [value]
        if not all(isinstance(item, Mapping) and key in item for item in items):
            raise UnusableError(f"no field {path!r}")
        found = [item[key] for item in items]
        value = found if isinstance(value, list) else found[0]
    if value is None:
        raise UnusableError(f"no value of {path}")
    return value


def _operation(spec: Any, where: str) -> tuple[Callable[..., Any], Any]:
    name, argument = (
        next(iter(spec.items())) if isinstance(spec, Mapping) and spec else (spec, None)
    )
    if name not in _OPERATIONS or (isinstance(spec, Mapping) and len(spec) > 1):
        raise UserError(f"{where}: unknown operation {spec!r}; known: {', '.join(_OPERATIONS)}")
    if name == "replace":
        try:
            # TensorFlow's regular expressions know ASCII classes only.
            argument = (re.compile(argument[0], re.ASCII), argument[1])
        except (re.error, TypeError, IndexError) as e:
            raise UserError(f"{where}: replace needs [regular expression, text]: {e}") from e
    if name == "divide":
        try:
            argument = re.compile(argument, re.ASCII)
        except (re.error, TypeError) as e:
            raise UserError(f"{where}: divide needs a regular expression: {e}") from e
    return _OPERATIONS[name], argument


# --- operations: (value, argument, row, slots) -> value


def _on_text(change: Callable[[str, Any], str]) -> Callable[..., Any]:
    """An operation on a text, or on each text of a list."""

    def run(value: Any, argument: Any, row: Row, slots: Mapping[str, str]) -> Any:
        if isinstance(value, list):
            return [change(text, argument) for text in value]
        return change(value, argument)

    return run


def _ascii_lower(text: str, _: None) -> str:
    """As `tf.strings.lower`, which leaves all but A-Z alone."""
    return re.sub("[A-Z]+", lambda match: match[0].lower(), text)


def _replace(text: str, argument: tuple[re.Pattern[str], str]) -> str:
    pattern, new = argument
    return pattern.sub(lambda _: new, text)


def _on_list(change: Callable[[list, Any], Any]) -> Callable[..., Any]:
    """An operation on a list; a text is none."""

    def run(value: Any, argument: Any, row: Row, slots: Mapping[str, str]) -> Any:
        if not isinstance(value, list):
            raise TypeError
        return change(value, argument)

    return run


def _append(value: Any, argument: str, row: Row, slots: Mapping[str, str]) -> Any:
    return _on_text(lambda text, end: text + end)(value, fill(argument, slots), row, slots)


_OPERATIONS: dict[str, Callable[..., Any]] = {
    "strip": _on_text(lambda text, _: text.strip()),
    "lower": _on_text(_ascii_lower),
    "replace": _on_text(_replace),
    "piece": _on_text(lambda text, argument: text.split(argument[0])[argument[1]]),
    "append": _append,
    "divide": lambda value, pattern, row, slots: pattern.split(value),
    "upto": lambda value, path, row, slots: value[: look_up(row, path)],
    "since": lambda value, path, row, slots: value[look_up(row, path) :],
    "first": _on_list(lambda value, _: value[0]),
    "take": _on_list(lambda value, count: value[:count]),
    "skip": _on_list(lambda value, count: value[count:]),
    "join": _on_list(lambda value, separator: separator.join(value)),
    "numbered": _on_list(lambda value, _: "\n".join(f"{n}. {t}" for n, t in enumerate(value, 1))),
    "also": lambda value, path, row, slots: [*value, look_up(row, path)],
    "default": lambda value, other, row, slots: value or other,
    "choose": lambda value, table, row, slots: table[value],
    "index_in": lambda value, path, row, slots: look_up(row, path).index(value),
    "decimals": lambda value, count, row, slots: f"{value:.{count}f}",
}
