"""Limits on the size and time of rendering a template of unknown origin.

Sizes are charged before values are made; the language itself is restricted in `sandbox.py`.
"""

import re
import time
from collections.abc import Iterable
from typing import Any

MAX_SECONDS = 2.0  # processor time of one rendering
MAX_CREATED = 250_000_000  # characters in all; a new member of a list counts as 64
MAX_VALUE = 50_000_000  # of them in one value
MAX_MEMBERS = 2_000_000  # of one list with everything in it
MAX_BITS = 100_000  # of a whole number

_MEMBER = 64  # what a member of a list costs, in characters
_POINTER = 8  # what it costs when a list is copied
_LONG_TEXT = 4_000_000
_CLOCK_EVERY = 32  # charges
_MAX_FORMAT_WIDTH = 1000
_FIELD = re.compile(r"%[-+ #0-9.]*")
_NAMED_FIELD = re.compile(r"[%)][-+ #0-9.]*")
_GIVEN_WIDTH = re.compile(r"%[-+ #0-9.]*\*")
_NUMBER = re.compile(r"[0-9]+")


class LimitError(Exception):
    """A template that asks for more than it may have, or for something it may not have."""


class Budget:
    """The remaining size and time of one rendering."""

    def __init__(self):
        self.start(0)

    def start(self, size: int) -> None:
        self._left = MAX_CREATED + min(2000 * size, MAX_CREATED) + 20 * size
        self._largest = MAX_VALUE + 20 * size
        self._deadline = time.thread_time() + MAX_SECONDS
        self._until_clock = _CLOCK_EVERY

    def charge(self, amount: int) -> None:
        self._left -= amount
        if self._left < 0 or amount > self._largest:
            raise LimitError("creates too much text")
        self._until_clock -= 1
        if self._until_clock <= 0:
            self._until_clock = _CLOCK_EVERY
            # Processor time: a machine that was asleep is not the template's fault.
            if time.thread_time() > self._deadline:
                raise LimitError(f"takes longer than {MAX_SECONDS:g} seconds")

    def charge_copy(self, members: int) -> None:
        if members > MAX_MEMBERS:
            raise LimitError(f"makes a list with more than {MAX_MEMBERS:,} members")
        self.charge(_POINTER * members)

    def created(self, value: Any) -> Any:
        """Charges a new value with everything in it; returns it."""
        self.charge(_total(value))
        return value

    def bounded(self, value: Any) -> Any:
        """Refuses a list with too much in it (lists of lists of lists ...); returns the value."""
        if type(value) in (list, tuple, dict):
            _total(value)
            self.charge(1)
        return value

    def printable(self, value: Any) -> Any:
        """Charges a value that is about to become text; returns it."""
        if type(value) is not str:
            self.charge(_total(value))
        return value

    def joinable(self, separator: str, values: Iterable) -> list:
        values = list(values)
        self.charge(len(separator) * len(values) + _total(values))
        return values

    def charge_members(self, number: int) -> None:
        self.charge(_MEMBER * number)

    def charge_replace(self, text: str, old: str, new: str, *_: Any) -> None:
        self.charge(len(text) + text.count(old) * len(new))

    def charge_split(self, text: str) -> None:
        """Charges the pieces of a long text beforehand; those of others are charged when made."""
        if len(text) > _LONG_TEXT:
            self.charge_members(len(text))

    def charge_sum(self, left: Any, right: Any) -> None:
        self.charge(_weight(left) + _weight(right))

    def charge_product(self, left: Any, right: Any) -> None:
        if isinstance(left, int) and isinstance(right, int):
            if left.bit_length() + right.bit_length() > MAX_BITS:
                raise LimitError("computes a number that is too large")
        elif isinstance(right, int):
            self.charge(_weight(left) * max(right, 0))
        elif isinstance(left, int):
            self.charge(_weight(right) * max(left, 0))

    def check_power(self, base: Any, exponent: Any) -> None:
        both_whole = isinstance(base, int) and isinstance(exponent, int)
        if both_whole and base.bit_length() * abs(exponent) > MAX_BITS:
            raise LimitError("computes a number that is too large")

    def check_format(self, text: str) -> None:
        """Refuses a %-format that asks for a wide field, in time linear in the text.

        A width stands after "%", or after a name in brackets, whose end may be any ")".
        """
        if _GIVEN_WIDTH.search(text):
            raise LimitError("formats with a width that is an argument")
        fields = (_NAMED_FIELD if "%(" in text else _FIELD).findall(text)
        if any(int(number[:9]) > _MAX_FORMAT_WIDTH for number in _NUMBER.findall("%".join(fields))):
            raise LimitError("formats with a width that is too large")


def _total(value: Any) -> int:
    """Characters of a value with all in it, a member of a container counting as `_MEMBER`.

    What a list holds twice counts twice, as it would in its text.
    """
    if type(value) is str:
        return len(value)
    if type(value) not in (list, tuple, dict):
        return 1
    total, members, stack = 0, 0, [value]
    while stack:
        value = stack.pop()
        kind = type(value)
        if kind is str:
            total += len(value)
        elif kind in (list, tuple, dict):
            members += len(value)
            if members > MAX_MEMBERS:
                raise LimitError(f"makes a list with more than {MAX_MEMBERS:,} members")
            stack.extend(value)
            if kind is dict:
                stack.extend(value.values())
    return total + _MEMBER * members


def _weight(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    return _MEMBER * len(value) if isinstance(value, list | tuple) else 0
