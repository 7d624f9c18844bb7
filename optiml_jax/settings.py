"""Settings: what gin (or a caller) gives is turned into the type that is declared, or refused.

`@configurable` stands in the place of `@gin.configurable` on every class and function whose values
a user can set, so that this happens in one place: a single value where several are meant becomes a
tuple of one, a list a tuple, a whole number a float; anything that would lose something is a
UserError with the setting, the value and the type.
"""

import collections.abc
import contextlib
import dataclasses
import functools
import inspect
import math
import os
import types
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import gin

from optiml_jax.errors import UserError

_SEQUENCES = (tuple, list, collections.abc.Sequence)
_MAPPINGS = (dict, collections.abc.Mapping)
_WORDS = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "text",
    types.NoneType: "None",
}


# Numbers are computed with in these types; what they cannot hold would be infinite, or 0.
_MOST_INT, _MOST_FLOAT, _LEAST_FLOAT = 2**31 - 1, 3.4028234e38, 1.1754944e-38
_BELOW_ONE = math.nextafter(1, 0)


@dataclasses.dataclass(frozen=True)
class Within:
    """The smallest and the largest value that a number may have."""

    minimum: float
    maximum: float


# The ranges of all settings.
Positive = Annotated[int, Within(1, _MOST_INT)]
NotNegative = Annotated[int, Within(0, _MOST_INT)]
PositiveFloat = Annotated[float, Within(_LEAST_FLOAT, _MOST_FLOAT)]
NotNegativeFloat = Annotated[float, Within(0, _MOST_FLOAT)]
Share = Annotated[float, Within(0, _BELOW_ONE)]
Probability = Annotated[float, Within(0, 1)]
PositiveProbability = Annotated[float, Within(_LEAST_FLOAT, 1)]
Seed = Annotated[int, Within(0, 2**32 - 1)]  # JAX takes no more bits of it
Width = Annotated[int, Within(1, 10**9)]  # of a model; far above any that was ever trained
Layers = Annotated[int, Within(1, 10_000)]
Bytes = Annotated[int, Within(0, 2**63 - 1)]
NgramWords = Annotated[int, Within(2, 10_000)]
TokenId = Annotated[int, Within(0, _MOST_INT)]


class _Unfit(Exception):  # noqa: N818 - also of a choice that is tried in vain
    """`value` (at `path` inside the setting, such as "[0]") is not of the type `declared`."""

    def __init__(self, value: Any, declared: Any, path: str = ""):
        super().__init__()
        self.value, self.declared, self.path = value, declared, path


def configurable(target: Any) -> Any:
    """`gin.configurable` for a dataclass or function whose arguments have declared types.

    Raises:
      UserError: (when it is called) a value is not of the declared type.
    """
    function = target.__init__ if isinstance(target, type) else target
    signature = inspect.signature(function)

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind_partial(*args, **kwargs)
        for name, value in bound.arguments.items():
            if name in _hints(target):
                bound.arguments[name] = convert(
                    value, _hints(target)[name], f"{target.__name__}.{name}"
                )
        return function(*bound.args, **bound.kwargs)

    if isinstance(target, type):
        target.__init__ = checked
        return gin.configurable(target)
    return gin.configurable(checked)


def convert_fields(settings: Any, name: str) -> None:
    """Gives each field of a dataclass object, frozen or not, its declared type; see `convert`.

    Args:
      name: what the settings are called in messages.
    """
    for key, declared in _hints(type(settings)).items():
        value = convert(getattr(settings, key), declared, f"{name}.{key}")
        object.__setattr__(settings, key, value)


def convert(value: Any, declared: Any, name: str) -> Any:
    """`value` as `declared`, a type or annotation.

    Args:
      name: of the setting, for the message.

    Raises:
      UserError: it is not of that type, and cannot be turned into it without loss.
    """
    try:
        return _convert(value, declared)
    except _Unfit as e:
        given = "text" if isinstance(e.value, str) else type(e.value).__name__
        wanted = describe(e.declared)
        raise UserError(f"{name}{e.path} = {e.value!r} ({given}) must be {wanted}") from None


def describe(declared: Any) -> str:
    """The type in words, e.g. "a whole number or None"."""
    origin, arguments = typing.get_origin(declared), typing.get_args(declared)
    if origin is Annotated:
        return f"{describe(arguments[0])} {_limits(arguments[1])}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(describe, arguments))
    if origin is typing.Literal:
        return "one of " + ", ".join(map(repr, arguments))
    if origin in _SEQUENCES:
        items = [a for a in arguments if a is not Ellipsis]
        if origin is tuple and Ellipsis not in arguments:
            return f"({', '.join(map(describe, items))})"
        return f"a sequence, each {describe(items[0])}"
    if origin in _MAPPINGS:
        return f"a dictionary from {describe(arguments[0])} to {describe(arguments[1])}"
    return _WORDS.get(declared, getattr(declared, "__name__", str(declared)))


def _limits(within: Within) -> str:
    low = "above 0" if within.minimum == _LEAST_FLOAT else f"of at least {within.minimum:g}"
    high = "below 1" if within.maximum == _BELOW_ONE else f"at most {within.maximum:.10g}"
    return f"{low} and {high}"


def _convert(value: Any, declared: Any) -> Any:
    origin, arguments = typing.get_origin(declared), typing.get_args(declared)
    if declared is Any:
        return value
    if origin is Annotated:
        number = _scalar(value, arguments[0], declared)
        if not arguments[1].minimum <= number <= arguments[1].maximum:
            raise _Unfit(value, declared)
        return number
    if origin in (typing.Union, types.UnionType):
        return _first_that_fits(value, declared, arguments)
    if origin is typing.Literal:
        if any(value == choice and type(value) is type(choice) for choice in arguments):
            return value
        raise _Unfit(value, declared)
    if origin in _SEQUENCES:
        return _sequence(value, declared, arguments)
    if origin in _MAPPINGS:
        if not isinstance(value, Mapping):
            raise _Unfit(value, declared)
        key, item = arguments
        return {_convert(k, key): _item(v, item, f"[{k!r}]") for k, v in value.items()}
    return _scalar(value, declared, declared)


def _item(value: Any, declared: Any, path: str) -> Any:
    try:
        return _convert(value, declared)
    except _Unfit as e:
        raise _Unfit(e.value, e.declared, path + e.path) from None


def _first_that_fits(value: Any, declared: Any, choices: tuple[Any, ...]) -> Any:
    """As the type that takes the value unchanged, else as the first that takes it."""
    converted, inside = [], None
    for choice in choices:
        try:
            converted.append(_convert(value, choice))
        except _Unfit as e:
            inside = e if e.path else inside
    for one in converted:
        if type(one) is type(value) and one == value:
            return one
    if not converted:
        raise inside or _Unfit(value, declared)
    return converted[0]


def _sequence(value: Any, declared: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    one = isinstance(value, str) or not isinstance(value, collections.abc.Sequence)
    if arguments[-1] is Ellipsis or len(arguments) == 1:
        if one:  # not a sequence of letters
            return (_convert(value, arguments[0]),)
        return tuple(_item(v, arguments[0], f"[{i}]") for i, v in enumerate(value))
    if one or len(value) != len(arguments):
        raise _Unfit(value, declared)
    pairs = enumerate(zip(value, arguments, strict=True))
    return tuple(_item(v, a, f"[{i}]") for i, (v, a) in pairs)


def _scalar(value: Any, kind: Any, declared: Any) -> Any:
    """`value` as the plain type `kind`, of which `declared` is a part."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int and is_number and abs(value) < math.inf:
        if int(value) == value:
            return int(value)
    elif kind is float and is_number and abs(value) < math.inf:
        with contextlib.suppress(OverflowError):  # a whole number of 400 digits
            return float(value)
    elif kind is str and isinstance(value, os.PathLike):
        return os.fspath(value)
    elif kind not in (int, float) and isinstance(value, kind):
        return value
    raise _Unfit(value, declared)


@functools.cache
def _hints(target: Callable) -> dict[str, Any]:
    """Argument -> declared type, without `**kwargs`."""
    if dataclasses.is_dataclass(target):
        names = {field.name for field in dataclasses.fields(target) if field.init}
    else:
        kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        parameters = inspect.signature(target).parameters.values()
        names = {p.name for p in parameters if p.kind not in kinds}
    return {
        k: v for k, v in typing.get_type_hints(target, include_extras=True).items() if k in names
    }
