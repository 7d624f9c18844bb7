"""Jinja templates of unknown origin, rendered without harm: they are data, not code.

A template may use what PromptSource's templates use (print, set, if, for, and the filters, methods
and functions listed below) and nothing else; whatever makes a value larger is charged to a budget
before it is made, and loops look at the clock. What a template file is and what its output means
is in `tasks/promptsource/templates.py`.
"""

import functools
import hashlib
import json
import re
import statistics
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jinja2
from jinja2 import filters, nodes, sandbox
from jinja2.runtime import LoopContext
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from tasks.templates.budget import Budget, LimitError

MAX_TEMPLATE_LENGTH = 100_000  # characters
MAX_RANGE = 100_000


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_NODES = _words(
    "Template Output TemplateData Name Const Getitem Getattr Call Filter Test Compare Operand List "
    "Tuple Dict Pair Keyword If For Assign NSRef Slice Neg Pos Not And Or Add Sub Mul Div FloorDiv "
    "Mod Pow Concat CondExpr"
)
_FILTERS = _words(
    "abs capitalize count d default first float int last length list lower map max min reject "
    "rejectattr select selectattr sort title trim truncate unique upper"
)
_METHODS = {
    str: _words(
        "capitalize count endswith find index isalpha isdigit islower isnumeric isupper join lower "
        "lstrip partition removeprefix removesuffix replace rfind rindex rpartition rsplit rstrip "
        "split splitlines startswith strip title upper"
    ),
    list: _words("append count index insert pop remove"),
    dict: _words("get items keys pop update values"),
}
_MUTATING = ("append", "insert", "pop", "remove", "update")
_LOOP = _words("depth depth0 first index index0 last length nextitem previtem revindex revindex0")


class Choices:
    """The draws of the `choice` and `random` filters in one rendering: functions of a key.

    Attributes:
      sizes: number of alternatives of each draw so far.
    """

    def __init__(self, key: str, forced: dict[int, int] | None = None):
        """`forced` replaces draws: position -> index of the alternative."""
        self._key, self._forced = key, forced or {}
        self.sizes: list[int] = []
        self.drawn: list[int] = []

    def draw(self, size: int) -> int:
        if size < 1:
            raise IndexError("choice among nothing")
        position = len(self.sizes)
        digest = hashlib.sha256(f"{self._key}\0{position}".encode()).digest()
        index = self._forced.get(position, int.from_bytes(digest[:8], "big") % size)
        self.sizes.append(size)
        self.drawn.append(index)
        return index


class Environment(sandbox.SandboxedEnvironment):
    """Compiles and renders templates within the limits above. Not for two threads at once.

    `compile` and `render` raise LimitError and Jinja's SecurityError for what is forbidden, Jinja's
    other errors for a bad template, and Python's for values that do not fit.
    """

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(
        self, strict_undefined: bool = False, functions: Mapping[str, Callable] | None = None
    ):
        """`functions`: further ones that templates may call, by name."""
        self._budget, self._functions = Budget(), tuple((functions or {}).values())
        self._choices = Choices("")
        super().__init__(
            undefined=jinja2.StrictUndefined if strict_undefined else jinja2.Undefined,
            finalize=self._printed,
            cache_size=0,
        )
        self.concat = self._concat
        self.globals = {"range": self._range, "zip": zip, "namespace": Namespace}
        self.globals |= functions or {}
        self.filters = {name: self._guarded(filters.FILTERS[name]) for name in _FILTERS}
        self.filters |= {
            "choice": self._choose,
            "random": self._choose,
            "most_frequent": self._guarded(statistics.multimode),
            "string": self._string,
            "join": self._join,
            "replace": self._replace,
            "format": self._format,
            "round": self._round,
            "tojson": self._guarded(json.dumps),
            # Put in by `_Guard`; no template can spell these names.
            "#each": self._each,
            "#bounded": self._budget.bounded,
            "#created": self._budget.created,
            "#concat": self._concat_values,
        }

    def compile_text(self, text: str) -> jinja2.Template:
        """The template of a text."""
        if len(text) > MAX_TEMPLATE_LENGTH:
            raise LimitError(f"has more than {MAX_TEMPLATE_LENGTH:,} characters")
        self._budget.start(0)
        return self.from_string(text)

    def render(
        self, template: jinja2.Template, fields: dict[str, Any], choices: Choices, size: int
    ) -> str:
        """The text of a template for one row.

        Args:
          template: from `compile_text`.
          fields: the variables.
          choices: of the filters that draw.
          size: characters of the row, which the template may copy around a few times.
        """
        self._choices = choices
        self._budget.start(size)
        return template.render(fields)

    def _printed(self, value: Any) -> Any:
        """A value that is about to become text; a TypeError if it is missing, a list, ..."""
        if value is None or isinstance(value, list | tuple | dict):
            what = "nothing" if value is None else f"a {type(value).__name__}"
            raise TypeError(f"prints {what} where text belongs")
        return self._budget.printable(value)

    # --- what the compiler of Jinja calls

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for node in tree.find_all(nodes.Node):
            _check(node)
        return _Guard(self).visit(tree)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if type(obj) is Namespace:
            return not attr.startswith("_")
        if isinstance(obj, LoopContext):
            return attr in _LOOP
        return attr in _METHODS.get(type(obj), ())

    def unsafe_undefined(self, obj: Any, attribute: str) -> Any:
        raise jinja2.exceptions.SecurityError(
            f"reads {attribute!r} of a {type(obj).__name__}, which templates may not"
        )

    def getitem(self, obj: Any, argument: Any) -> Any:
        return super().getitem(obj, self._budget.bounded(argument))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        if isinstance(__obj, jinja2.Undefined):
            return __obj()  # raises
        for name in ("_loop_vars", "_block_vars"):  # the compiler's, for functions with context
            kwargs.pop(name, None)
        for value in (*args, *kwargs.values()):
            __self._budget.bounded(value)
        if __obj is zip or __obj is Namespace or __obj == __self._range:
            return __obj(*args, **kwargs)
        if any(__obj is function for function in __self._functions):
            return __obj(*args, **kwargs)
        if isinstance(__obj, types.BuiltinMethodType):
            owner, name = __obj.__self__, __obj.__name__
            if name in _METHODS.get(type(owner), ()):
                return __self._call_method(__obj, owner, name, args, kwargs)
        raise jinja2.exceptions.SecurityError("calls something that is not a listed method")

    def _call_method(
        self, method: Callable, owner: Any, name: str, args: tuple, kwargs: dict
    ) -> Any:
        budget = self._budget
        if name in ("append", "insert"):
            budget.charge_members(1)
            return method(*args, **kwargs)
        if name == "join":
            args = (budget.joinable(owner, args[0]),) if args else ()
        elif name == "replace":
            budget.charge_replace(owner, *args)
        elif name == "update":
            budget.charge_members(sum(len(a) for a in args if isinstance(a, dict)))
        elif name in ("split", "rsplit", "splitlines"):
            budget.charge_split(owner)
        result = method(*args, **kwargs)
        # What comes out of a container was paid for when it went in.
        return result if type(owner) is not str else budget.created(result)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        budget = self._budget
        if operator == "+" and isinstance(left, list) and isinstance(right, list):
            # No look inside: lists that grow in a loop would take time that grows with the cube.
            budget.charge_copy(len(left) + len(right))
            return left + right
        for value in (left, right):
            budget.bounded(value)
        if operator == "+":
            budget.charge_sum(left, right)
        elif operator == "*":
            budget.charge_product(left, right)
        elif operator == "**":
            budget.check_power(left, right)
        elif isinstance(left, str):
            budget.check_format(left)
        return budget.created(super().call_binop(context, operator, left, right))

    # --- filters and functions

    def _guarded(self, function: Callable) -> Callable:
        """A filter of Jinja whose output is at most as large as its input, both looked at."""

        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            for value in (*args, *kwargs.values()):
                self._budget.bounded(value)
            return self._budget.created(function(*args, **kwargs))

        return guarded

    @jinja2.pass_context  # so that no compiler takes it for a constant
    def _choose(self, context: Any, values: Any) -> Any:
        if not hasattr(values, "__len__"):
            raise TypeError(f"choice among a {type(values).__name__}")
        return values[self._choices.draw(len(values))]

    def _string(self, value: Any) -> str:
        return filters.FILTERS["string"](self._printed(value))

    @jinja2.pass_eval_context
    def _join(
        self, eval_ctx: Any, value: Any, d: str = "", attribute: str | int | None = None
    ) -> str:
        values = self._budget.bounded(list(value))
        if attribute is not None:
            values = list(map(filters.make_attrgetter(self, attribute), values))
        texts = map(self._printed, values)
        return filters.do_join(eval_ctx, self._budget.joinable(str(d), texts), d)

    @jinja2.pass_eval_context
    def _replace(self, eval_ctx: Any, s: Any, old: str, new: str, count: int | None = None) -> str:
        text = str(self._budget.printable(s))
        self._budget.charge_replace(text, str(old), str(new))
        return filters.do_replace(eval_ctx, text, old, new, count)

    def _format(self, value: Any, *args: Any, **kwargs: Any) -> str:
        for part in (value, *args, *kwargs.values()):
            self._budget.printable(part)
        self._budget.check_format(str(value))
        return self._budget.created(filters.do_format(value, *args, **kwargs))

    def _round(self, value: Any, precision: int = 0, method: str = "common") -> Any:
        if abs(precision) > 100:
            raise LimitError(f"rounds to {precision} digits")
        return filters.do_round(value, precision, method)

    def _range(self, *args: int) -> range:
        values = range(*args)
        if len(values) > MAX_RANGE:
            raise LimitError(f"has a range of more than {MAX_RANGE:,} numbers")
        return values

    def _each(self, values: Iterable) -> Iterator:
        for value in values:
            self._budget.charge(1)
            yield value

    def _concat(self, pieces: Iterable[str]) -> str:
        found = []
        for piece in pieces:
            self._budget.charge(len(piece))
            found.append(piece)
        return "".join(found)

    def _concat_values(self, values: list) -> str:
        return self._concat(str(self._printed(v)) for v in values)


class _Guard(NodeTransformer):
    """Puts the environment's guards where the compiler would emit bare Python."""

    def __init__(self, environment: Environment):
        self._environment = environment

    def visit_For(self, node: nodes.For) -> nodes.For:  # noqa: N802
        self.generic_visit(node)
        node.iter = self._wrap(node.iter, "#each")
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:  # noqa: N802
        self.generic_visit(node)
        values = nodes.List(node.nodes, lineno=node.lineno, environment=self._environment)
        return self._wrap(values, "#concat")

    def visit_Compare(self, node: nodes.Compare) -> nodes.Compare:  # noqa: N802
        self.generic_visit(node)
        for owner in (node, *node.ops):
            owner.expr = self._wrap(owner.expr, "#bounded")
        return node

    def visit_Pair(self, node: nodes.Pair) -> nodes.Pair:  # noqa: N802
        self.generic_visit(node)
        node.key = self._wrap(node.key, "#bounded")  # is hashed
        return node

    def visit_List(self, node: nodes.Expr) -> nodes.Expr:  # noqa: N802
        self.generic_visit(node)
        items = node.items
        if getattr(node, "ctx", "load") != "load" or all(type(i) is nodes.Const for i in items):
            return node
        return self._wrap(node, "#created")

    visit_Tuple = visit_Dict = visit_List  # noqa: N815

    def _wrap(self, node: nodes.Expr, name: str) -> nodes.Expr:
        if type(node) is nodes.Const:
            return node
        return nodes.Filter(
            node, name, [], [], None, None, lineno=node.lineno, environment=self._environment
        )


def mutates(template: str) -> bool:
    """Whether a template may change its variables in place."""
    return re.search(rf"\b({'|'.join(_MUTATING)})\b", template) is not None


def _check(node: nodes.Node) -> None:
    kind = type(node).__name__
    if kind not in _NODES or (kind == "For" and node.recursive):
        what = "a recursive loop" if kind == "For" else f"{kind!r}"
        raise LimitError(f"line {node.lineno}: uses {what}, which templates may not")
    if kind == "Getattr" and node.attr.startswith("_"):
        raise LimitError(f"line {node.lineno}: reads the private attribute {node.attr!r}")
