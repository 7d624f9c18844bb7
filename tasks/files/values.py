"""Values of rows as text: numbers as they are spelled, and nothing else taken for text."""

import json
import math
from typing import Any

from optiml_jax.files import JSONDecoder


class SpelledFloat(float):
    """A number of a JSON file that is shown as it is written there: 1.50, 16777217.0, 1e-3."""

    def __new__(cls, text: str) -> "SpelledFloat":
        number = super().__new__(cls, text)
        number.spelling = text
        return number

    def __str__(self) -> str:
        return self.spelling

    def __reduce__(self) -> tuple[Any, ...]:
        return SpelledFloat, (self.spelling,)


def loads(text: str | bytes) -> Any:
    """`json.loads`, with numbers that keep their spelling and NaN and infinities as None."""
    return json.loads(text, cls=JSONDecoder, parse_float=_finite, parse_constant=lambda _: None)


def decoder() -> json.JSONDecoder:
    """The decoder of `loads`."""
    return JSONDecoder(parse_float=_finite, parse_constant=lambda _: None)


def without_nan(value: Any) -> Any:
    """`value` with None in the place of NaN and infinities: what is missing, in data frames."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    return value


def text_of(value: Any) -> str | None:
    """A text as it is, a number as it is spelled; None for everything else (NaN, lists, ...)."""
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return str(value)
    return None


def as_text(value: Any) -> str:
    """`text_of`; a TypeError where that is None."""
    if (text := text_of(value)) is None:
        raise TypeError(f"{type(value).__name__} is no text")
    return text


class Texts(dict):
    """Fields for `str.format_map`; one that is no text and no number is a TypeError."""

    def __getitem__(self, name: str) -> str:
        if (text := text_of(super().__getitem__(name))) is None:
            raise TypeError(f"{name} is no text")
        return text


def _finite(text: str) -> SpelledFloat | None:
    number = SpelledFloat(text)
    return number if math.isfinite(number) else None  # 1e999
