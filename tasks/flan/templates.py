"""FLAN 2021's templates (google-research/FLAN, flan/templates.py): reading, choosing, rendering.

A template is a pair of texts with `{slot}`s, source and target. Upstream's file is Python; it is
parsed, never executed. What fills the slots is not known here (see `fields.py`). FLAN v2's are read
in `templates_v2.py`.
"""

import ast
import dataclasses
import pathlib
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

from optiml_jax.data.example import PromptForm
from optiml_jax.data.training_prompts import slots
from optiml_jax.errors import UserError
from optiml_jax.files import read_json
from optiml_jax.settings import Seed, configurable

OPTION_SLOTS = ("options_", "options_str")
MAX_BYTES = 1 << 25  # upstream's file has 70 kB

_FILES = ("flan/templates.py", "templates.py", "templates.json")
_NAME = "PATTERNS"
_ONE_SLOT = re.compile(r"\{(\w*)\}")


@configurable
@dataclasses.dataclass(frozen=True)
class FlanConfig:
    """How FLAN's tasks are read.

    Attributes:
      seed: of the draws of templates.
      templates: "2021", or "v2": FLAN v2's kinds of training prompts (with and without
        options, with and without demonstrations), each with templates of its own, and its rows:
        all of a training split where FLAN 2021 has the first 30,000.
      fix_typos: repairs upstream's slips: in templates (FLAN 2021's) a literal `n` where a newline
        was meant, a repeated template, doubled question marks; in the rows those that tasks.yaml
        lists as `fixed_fields`. False keeps upstream's texts.
      tfds_dir: folder of TFDS's prepared data sets; None: $TFDS_DATA_DIR, else
        ~/tensorflow_datasets.
      wrapped: other collections whose training prompts have FLAN v2's templates around them: of
        "promptsource", "reasoning" and "superni".
      clone: the clone of FLAN that has the templates for them; None: `Run.data["flan"]`.
      inverted: FLAN v2's inverted templates are used, too, which ask for the question or the
        reasoning.
    """

    seed: Seed = 1234
    templates: Literal["2021", "v2"] = "2021"
    fix_typos: bool = False
    tfds_dir: str | None = None
    wrapped: tuple[str, ...] = ()
    clone: str | None = None
    inverted: bool = False


@dataclasses.dataclass(frozen=True)
class Template:
    """One template of a pattern.

    Attributes:
      pattern: upstream's name of the list that holds it, e.g. "anli".
      index: its position there.
      source: text with slots.
      target: text with slots.
      kind: of FLAN v2's templates, e.g. "zs_opt" (v2.yaml explains them); "" of FLAN 2021's.
      form: of its training prompts.
      head: stands before all demonstrations; text with slots.
    """

    pattern: str
    index: int
    source: str
    target: str
    kind: str = ""
    form: PromptForm | None = None
    head: str = ""

    @property
    def id(self) -> str:
        return f"{self.pattern}{'.' if self.kind else ''}{self.kind}#{self.index}"


def select(
    templates: Sequence[Template],
    targets: Collection[str],
    constants: Collection[str],
    available: Collection[str],
) -> list[Template]:
    """The templates whose task is the data set's own, which is the paper's removal of inversions.

    Kept is a template whose whole target is one of the slots `targets` and whose source shows
    something of the row (a language's name alone is not enough).

    Args:
      templates: of one pattern.
      targets: slots that hold what is to be predicted.
      constants: slots that are the same for all rows.
      available: slots that the rows can fill.
    """
    kept = []
    for template in templates:
        match = _ONE_SLOT.fullmatch(template.target)
        shown = set(slots(template.source))
        if (
            match
            and match[1] in targets
            and shown - set(constants) - {match[1]}
            and shown | {match[1]} <= set(available)
        ):
            kept.append(template)
    return kept


def repair(templates: Sequence[Template], typos: Sequence[Mapping[str, Any]]) -> list[Template]:
    """The templates without the slips that `typos` of tasks.yaml lists."""
    repaired = []
    for template in templates:
        for typo in typos:
            if template.pattern not in typo["patterns"]:
                continue
            if template.index in typo.get("repeated", ()):
                break
            if "find" in typo:
                source = template.source.replace(typo["find"], typo["put"])
                template = dataclasses.replace(template, source=source)
        else:
            repaired.append(template)
    return repaired


def find_templates(root: pathlib.Path) -> pathlib.Path | None:
    """The file of templates below `root`: a clone of FLAN, a folder with its file, or as JSON."""
    return next((root / name for name in _FILES if (root / name).is_file()), None)


def read_templates(path: pathlib.Path) -> dict[str, list[Template]]:
    """Pattern name -> its templates.

    Args:
      path: Python whose module assigns PATTERNS, a literal dictionary of lists of pairs of texts;
        or a JSON object of that form.

    Raises:
      UserError: the file is damaged or holds something else there, such as code; the message names
        file and line. Nothing of it is ever executed.
    """
    patterns = _json_patterns(path) if path.suffix == ".json" else _python_patterns(path)
    return {
        name: [Template(name, index, *pair) for index, pair in enumerate(pairs)]
        for name, pairs in patterns.items()
    }


def _json_patterns(path: pathlib.Path) -> dict[str, list[tuple[str, str]]]:
    content = read_json(path, "the file of FLAN's templates")
    if not isinstance(content, dict):
        raise UserError(f"{path} must be a JSON object of lists of [source, target]")
    for name, pairs in content.items():
        good = isinstance(pairs, list) and all(_is_pair(pair) for pair in pairs)
        if not good:
            raise UserError(f"{path}: {name!r} must be a list of pairs [source, target] of texts")
    return {name: [tuple(pair) for pair in pairs] for name, pairs in content.items()}


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(t, str) for t in value)


def _python_patterns(path: pathlib.Path) -> dict[str, list[tuple[str, str]]]:
    return literal_patterns(path, assigned(path, parsed(path), _NAME))


def parsed(path: pathlib.Path) -> ast.Module:
    """The syntax tree of a module of templates. Nothing of it is executed.

    Raises:
      UserError: the file is no Python module.
    """
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f"{path} has more than {MAX_BYTES >> 20} MB: it is no file of templates")
    try:
        return ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, RecursionError, MemoryError) as e:
        line = getattr(e, "lineno", None)
        where = f", line {line}" if line else ""
        raise UserError(f"{path}{where} is not Python; download it again") from e


def assigned(path: pathlib.Path, module: ast.Module, name: str) -> ast.AST | None:
    """What a module assigns to a name, as a syntax tree.

    Raises:
      UserError: it does not assign the name.
    """
    for node in module.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return node.value
    raise UserError(f"{path} assigns no {name}; give FLAN's own file")


def literal_patterns(path: pathlib.Path, node: ast.AST | None) -> dict[str, list]:
    """Pattern name -> pairs of texts, of a literal dictionary.

    Raises:
      UserError: it is something else; the message names the line.
    """
    patterns = {}
    for name, elements in literal_lists(path, node).items():
        pairs = []
        for pair in elements:
            good = isinstance(pair, ast.List | ast.Tuple) and len(pair.elts) == 2
            good = good and all(is_text(text) for text in pair.elts)
            expect(path, pair, good, "a template must be a pair of literal texts")
            pairs.append((pair.elts[0].value, pair.elts[1].value))
        patterns[name] = pairs
    return patterns


def literal_lists(
    path: pathlib.Path, node: ast.AST | None, name: str = _NAME
) -> dict[str, list[ast.expr]]:
    """Name -> elements, of a literal dictionary of lists."""
    expect(path, node, isinstance(node, ast.Dict), f"{name} must be a literal dictionary")
    lists = {}
    for key, value in zip(node.keys, node.values, strict=True):
        expect(path, key or value, is_text(key), "a pattern's name must be a literal text")
        expect(path, value, isinstance(value, ast.List | ast.Tuple), "a pattern must be a list")
        lists[key.value] = value.elts
    return lists


def is_text(node: ast.AST | None) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def expect(path: pathlib.Path, node: ast.AST | None, good: bool, what: str) -> None:
    """Raises a UserError that names the line unless `good`."""
    if not good:
        line = getattr(node, "lineno", 1)
        raise UserError(f"{path}, line {line}: {what}; code in this file is never executed")
