"""Reads gin files as settings only: they may bind registered parameters and nothing else.

Gin itself would import any module that a file names and call any function that it registers, so a
gin file from elsewhere could run code. Its messages also span many lines.
"""

import dataclasses
import pathlib
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import gin
from gin import config_parser

from optiml_jax.errors import UserError

# Relative gin files and includes are looked up here too, so that they work from any folder.
REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
OUR_PACKAGES = ("optiml_jax", "tasks")
_MACRO = "gin.macro"


def read_settings(files: Sequence[str], bindings: Sequence[str]) -> dict[str, Any]:
    """Binds what the files set, then the bindings; later ones take precedence.

    Returns what is bound: name ("TrainConfig.seed", or a macro's) -> value, whose `repr` is gin
      syntax.

    Args:
      files: paths; relative ones are looked up here and in the repository. An `include` is also
        looked up beside the file that has it.
      bindings: lines `NAME = VALUE` of the command line.

    Raises:
      UserError: a file that is missing, includes itself, imports something, cannot be parsed or
        sets an unknown name; a macro that is not set. The message names file and line.
    """
    reader = _Reader()
    for file in files:
        reader.read_file(_find(file, None, "gin file not found"), ())
    for binding in bindings:
        reader.read(binding, "command line", ())
    reader.check_macros()
    return reader.bound


def without_macros(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What `read_settings` returned, each macro replaced by its value, at any depth."""

    def replaced(value: Any) -> Any:
        if isinstance(value, gin.config.ConfigurableReference):
            if value.configurable.selector != _MACRO:
                return value
            return replaced(settings[value.scoped_selector.rsplit("/", 1)[0]])
        if isinstance(value, dict):
            return {replaced(k): replaced(v) for k, v in value.items()}
        if isinstance(value, (list, tuple, set)):
            return type(value)(replaced(v) for v in value)
        return value

    return {name: replaced(value) for name, value in settings.items() if "." in name}


@dataclasses.dataclass
class _Reader:
    """What was read: bindings, macros that are set, and where macros are used."""

    bound: dict[str, Any] = dataclasses.field(default_factory=dict)
    set_macros: set[str] = dataclasses.field(default_factory=set)
    used_macros: dict[str, str] = dataclasses.field(default_factory=dict)
    asked_macros: dict[str, str] = dataclasses.field(default_factory=dict)  # by no file

    def read_file(self, path: pathlib.Path, including: tuple[pathlib.Path, ...]) -> None:
        if path.resolve() in [p.resolve() for p in including]:
            chain = " -> ".join(str(p) for p in (*including, path))
            raise UserError(f"gin configuration: {path} includes itself: {chain}")
        try:
            text = path.read_text("utf-8-sig")
        except (OSError, UnicodeDecodeError) as e:
            raise UserError(f"gin configuration: cannot read {path}: {e}") from e
        self.read(text, str(path), (*including, path))

    def read(self, text: str, name: str, including: tuple[pathlib.Path, ...]) -> None:
        for statement in _statements(text, name):
            place = f"{name}, line {statement.location.line_num}" if including else name
            if isinstance(statement, config_parser.ImportStatement):
                raise UserError(
                    f"gin configuration: {place}: {statement.format()!r}: gin files may set "
                    "settings and include other gin files, but import nothing; remove the line"
                )
            if isinstance(statement, config_parser.IncludeStatement):
                beside = including[-1].parent if including else None
                missing = f"gin configuration: {place}: included file not found"
                self.read_file(_find(statement.filename, beside, missing), including)
            elif isinstance(statement, config_parser.BindingStatement):
                self.bind(statement, place)
                if not including and not statement.arg_name:
                    self.asked_macros[statement.selector] = place

    def bind(self, statement: config_parser.BindingStatement, place: str) -> None:
        scope, selector, parameter, value, _ = statement
        name = f"{scope}/{selector}" if scope else selector
        self.bound[f"{name}.{parameter}" if parameter else name] = value
        if not parameter:  # a macro: NAME = VALUE
            scope, selector, parameter = name, _MACRO, "value"
            self.set_macros.add(name)
        for reference in _references(value):
            self.check_reference(reference, place)
        try:
            gin.bind_parameter((scope, selector, parameter), value)
        except (ValueError, TypeError, AttributeError) as e:
            raise UserError(f"gin configuration: {place}: {_one_line(e)}") from e

    def check_reference(self, reference: gin.config.ConfigurableReference, place: str) -> None:
        selector = reference.configurable.selector  # with its module
        if selector == _MACRO:
            self.used_macros.setdefault(reference.scoped_selector.rsplit("/", 1)[0], place)
        elif selector != "gin.constant" and selector.split(".")[0] not in OUR_PACKAGES:
            raise UserError(
                f"gin configuration: {place}: @{selector} is not a function of this project"
            )

    def check_macros(self) -> None:
        for name, place in self.used_macros.items():
            if name not in self.set_macros:
                raise UserError(
                    f"gin configuration: {place}: %{name} is not set; set it with a line "
                    f"{name} = VALUE, or --gin.{name}=VALUE"
                )
        for name, place in self.asked_macros.items():
            if name not in self.used_macros:
                raise UserError(
                    f"gin configuration: {place}: {name!r} has no effect: no setting is %{name}; "
                    f"a setting has its class in front, e.g. --gin.CLASS.{name}=VALUE"
                )


def _statements(text: str, name: str) -> Iterator[config_parser.BindingStatement]:
    """The parsed statements; a syntax error is a UserError with file and line."""
    try:
        # A function that is not registered is a ValueError here.
        yield from config_parser.ConfigParser(text, gin.config.ParserDelegate())
    except SyntaxError as e:
        place = f"{name}, line {e.lineno}" if e.lineno else name
        raise UserError(f"gin configuration: {place}: {_one_line(e.msg)}") from e
    except tokenize.TokenError as e:
        what, (line, _) = e.args
        if "multi-line statement" in what:
            what = "a bracket is not closed"
        raise UserError(f"gin configuration: {name}, line {line}: {what}") from e
    except (ValueError, RecursionError) as e:
        raise UserError(f"gin configuration: {name}: {_one_line(e)}") from e


def _references(value: object) -> Iterator[gin.config.ConfigurableReference]:
    """The macros and functions in a value, at any depth."""
    if isinstance(value, gin.config.ConfigurableReference):
        yield value
    elif isinstance(value, dict):
        for pair in value.items():
            yield from _references(pair)
    elif isinstance(value, (list, tuple, set)):
        for item in value:
            yield from _references(item)


def _find(file: str, beside: pathlib.Path | None, missing: str) -> pathlib.Path:
    folders = [pathlib.Path(), *([beside] if beside else []), REPOSITORY]
    for folder in folders:
        if (folder / file).is_file():
            return folder / file
    raise UserError(f"{missing}: {file}")


def _one_line(error: object) -> str:
    return " ".join(str(error).split())
