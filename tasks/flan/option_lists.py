"""How FLAN v2 lists options: its headings, item marks and ends (flan/v2/templates.py).

The marks stand there as comprehensions, `["\\n(" + chr(x) + ") " for x in range(ord("a"), ...)]`.
They are not executed: an expression of texts, numbers, `+`, `%`, `a if x == b else c`, chr, ord,
str, range, .lower(), .upper() and names of lists in the same file has one meaning, which is worked
out here; anything else is refused. Turns of a dialogue are listed in the same way (`dialogs.py`).
"""

import ast
import dataclasses
import pathlib
from typing import Any

from optiml_jax.data.hashed_draws import choice
from tasks.flan.templates import assigned, expect

MAX_ITEMS = 1000  # of a list of marks; upstream's have 26 for options, 1000 for turns

_STARTS, _MARKS, _ENDS = (
    "OPT_START_STRING_CANDIDATES",
    "OPT_ITEM_NAME_CANDIDATES",
    "OPT_ITEM_END_STR_CANDIDATES",
)
_FUNCTIONS = {"chr": chr, "ord": ord, "str": str, "range": range}
_METHODS = ("lower", "upper")


@dataclasses.dataclass(frozen=True)
class OptionLists:
    """The forms of lists.

    Attributes:
      starts: headings.
      marks: what stands before each item, one text for each place.
      ends: what stands after each item.
    """

    starts: tuple[str, ...]
    marks: tuple[tuple[str, ...], ...]
    ends: tuple[tuple[str, ...], ...]

    def drawn(self, options: tuple[str, ...], key: str) -> tuple[str, tuple[str, ...]] | None:
        """A list of the options in a drawn form, and the answers that stand for them.

        Where each item has a mark of its own, marks are the answers, else the options themselves.
        None: there are more options than marks.
        """
        start = choice(self.starts, f"{key}\0start")
        marks = choice(self.marks, f"{key}\0marks")[: len(options)]
        ends = choice(self.ends, f"{key}\0ends")[: len(options)]
        if min(len(marks), len(ends)) < len(options):
            return None
        items = zip(marks, options, ends, strict=True)
        names = tuple(mark.strip() for mark in marks)
        own = len(set(names)) == len(options)
        return start + "".join(map("".join, items)), names if own else options


def read_option_lists(path: pathlib.Path, module: ast.Module) -> OptionLists:
    """The forms that a module of templates names.

    Raises:
      UserError: it lacks a list, or one has code of another kind; the message names the line.
    """
    return OptionLists(*read_lists(path, module, (_STARTS, _MARKS, _ENDS), "options"))


def read_lists(
    path: pathlib.Path, module: ast.Module, names: tuple[str, str, str], what: str
) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...], tuple[tuple[str, ...], ...]]:
    """Headings, marks and ends of the lists that a module assigns to three names.

    Args:
      path: the module's file.
      module: its syntax tree.
      names: of the headings, marks and ends.
      what: is listed, for messages.

    Raises:
      UserError: it lacks a list, or one has code of another kind; the message names the line.
    """
    lists = []
    for name in names:
        node = assigned(path, module, name)
        value = _Expression(path, module, what).value(node, {})
        depth = 1 if name == names[0] else 2
        expect(path, node, _is_texts(value, depth), f"{name} must be lists of texts")
        lists.append(value)
    starts, marks, ends = lists
    return tuple(starts), tuple(map(tuple, marks)), tuple(map(tuple, ends))


def _is_texts(value: Any, depth: int) -> bool:
    if depth == 0:
        return isinstance(value, str)
    return isinstance(value, list) and bool(value) and all(_is_texts(v, depth - 1) for v in value)


class _Expression:
    """Works out expressions of a file; see above."""

    def __init__(self, path: pathlib.Path, module: ast.Module, what: str):
        self._path, self._module, self._what = path, module, what
        self._open: list[str] = []  # names that are being worked out

    def value(self, node: ast.AST | None, names: dict[str, Any]) -> Any:
        """The value of an expression; `names`: of the variables of comprehensions."""
        match node:
            case ast.Constant(value=str() | int()):
                return node.value
            case ast.List():
                return [self.value(item, names) for item in node.elts]
            case ast.ListComp(generators=[ast.comprehension(target=ast.Name(id=name), ifs=[])]):
                items = self.value(node.generators[0].iter, names)
                self._expect(node, isinstance(items, list | range) and len(items) <= MAX_ITEMS)
                return [self.value(node.elt, names | {name: item}) for item in items]
            case ast.BinOp(op=ast.Add()):
                left, right = self.value(node.left, names), self.value(node.right, names)
                same = type(left) is type(right) and isinstance(left, str | int)
                self._expect(node, same)
                return left + right
            case ast.BinOp(op=ast.Mod()):
                left, right = self.value(node.left, names), self.value(node.right, names)
                self._expect(node, isinstance(left, int) and isinstance(right, int) and right > 0)
                return left % right
            case ast.IfExp(test=ast.Compare(left=left, ops=[ast.Eq()], comparators=[right])):
                same = self.value(left, names) == self.value(right, names)
                return self.value(node.body if same else node.orelse, names)
            case ast.Name(id=name) if name in names:
                return names[name]
            case ast.Name(id=name) if name.isupper():
                return self._named(node, name)
            case ast.Call(func=ast.Name(id=name), keywords=[]) if name in _FUNCTIONS:
                return self._call(node, _FUNCTIONS[name], names)
            case ast.Call(func=ast.Attribute(attr=name), args=[], keywords=[]) if name in _METHODS:
                text = self.value(node.func.value, names)
                self._expect(node, isinstance(text, str))
                return getattr(text, name)()
        return self._refused(node)

    def _named(self, node: ast.Name, name: str) -> Any:
        self._expect(node, name not in self._open)
        self._open.append(name)
        value = self.value(assigned(self._path, self._module, name), {})
        self._open.remove(name)
        return value

    def _call(self, node: ast.Call, function: Any, names: dict[str, Any]) -> Any:
        try:
            return function(*(self.value(argument, names) for argument in node.args))
        except (TypeError, ValueError, OverflowError):
            return self._refused(node)

    def _refused(self, node: ast.AST | None) -> None:
        self._expect(node, False)

    def _expect(self, node: ast.AST | None, good: bool) -> None:
        what = f"lists of {self._what} must be texts or simple comprehensions"
        expect(self._path, node, good, what)
