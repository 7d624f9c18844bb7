"""FLAN v2's templates of training prompts (google-research/FLAN, flan/v2/templates.py): reading.

Zero-shot prompts with options have templates of their own (PATTERNS); those without are FLAN 2021's
without the list (flan/v2/flan_templates_branched.py), or PATTERNS' where it has none. Few-shot
templates (FEWSHOT_PATTERNS) name what is before an input, between input and answer, and between
demonstrations; demonstrations have the template of the prompt, or in a mix ("fs_mix") each one of
its own. SuperNI's can also have one example within the text (INLINE_FS_PATTERNS). The files are
parsed, never executed. What is drawn how is in `prompts_v2.py`.
"""

import ast
import dataclasses
import pathlib
import re
from collections.abc import Collection, Sequence
from typing import Any

from optiml_jax.data.example import PromptForm, PromptText
from optiml_jax.data.training_prompts import slots
from optiml_jax.errors import UserError
from optiml_jax.yaml_files import read_yaml
from tasks.flan.dialogs import DialogForms, read_dialog_forms
from tasks.flan.option_lists import OptionLists, read_option_lists
from tasks.flan.templates import (
    Template,
    assigned,
    expect,
    is_text,
    literal_lists,
    literal_patterns,
    parsed,
    read_templates,
)

FACTS = read_yaml(pathlib.Path(__file__).parent / "v2.yaml", "the facts of FLAN v2's mixture")
# Kinds of prompts; see v2.yaml.
ZERO_SHOT = "zs_opt"  # evaluations show it, too
MIX = "fs_mix"
INLINE = "fs_inline"
NIV2 = "natinst_v2"  # the one pattern whose few-shot prompts begin with the task's definition

_TEMPLATES = "flan/v2/templates.py"
_FEW_SHOT = "FEWSHOT_PATTERNS"
_INLINE = "INLINE_FS_PATTERNS"
_WITHOUT_OPTIONS = "flan/v2/flan_templates_branched.py"
# What prompts without options lack.
_LISTS = {
    "zs_noopt": re.compile(r"\n{0,2}\{options_\}|\n\n\{options_str\}"),
    "fs_noopt": re.compile(
        r" \(\{options_\}\)|(?:\n\n|\n| \| | )?\{options_\}|\n{1,2}\{options_str\}"
    ),
}
_DEFAULTS = {"inputs_prefix": "", "targets_prefix": "", "x_y_delimiter": "\n\n"}
_DEFAULTS |= {"example_separator": "\n\n\n", "final_suffix": ""}
_DEFAULTS |= {"input_pattern": "{{inputs}}{final_suffix}", "in_template_mix": True}
_SHOTS = {name: tuple(numbers) for name, numbers in FACTS["shots"].items()}


@dataclasses.dataclass(frozen=True)
class TemplatesV2:
    """What a clone of FLAN has.

    Attributes:
      patterns: pattern name -> its templates of all kinds.
      option_lists: the forms in which options are listed.
    """

    patterns: dict[str, list[Template]]
    option_lists: OptionLists


def read_templates_v2(root: pathlib.Path, why: str = "FlanConfig.templates = 'v2'") -> TemplatesV2:
    """The templates of a clone.

    Args:
      root: a clone of FLAN.
      why: the setting that asks for them.

    Raises:
      UserError: a file is missing, damaged, or holds code in the place of texts.
    """
    _check_files(root, why)
    path = root / _TEMPLATES
    return _read(root, path, parsed(path))


def read_dialog_texts(root: pathlib.Path) -> tuple[TemplatesV2, DialogForms]:
    """The templates of a clone, and the forms in which they list the turns of a dialogue.

    Raises:
      UserError: see `read_templates_v2`.
    """
    _check_files(root, "FlanConfig.templates = 'v2'")
    path = root / _TEMPLATES
    module = parsed(path)
    return _read(root, path, module), read_dialog_forms(path, module)


def _check_files(root: pathlib.Path, why: str) -> None:
    for name in (_TEMPLATES, _WITHOUT_OPTIONS):
        if not (root / name).is_file():
            raise UserError(
                f"{why} needs {name} in {root}; give a clone of FLAN "
                "(https://github.com/google-research/FLAN), or leave the setting out"
            )


def _read(root: pathlib.Path, path: pathlib.Path, module: ast.Module) -> TemplatesV2:
    zero_shot = literal_patterns(path, assigned(path, module, "PATTERNS"))
    few_shot = literal_lists(path, assigned(path, module, _FEW_SHOT), _FEW_SHOT)
    inline = literal_patterns(path, assigned(path, module, _INLINE))
    _add_aliases(module, "PATTERNS", zero_shot)
    _add_aliases(module, _FEW_SHOT, few_shot)
    first = read_templates(root / _WITHOUT_OPTIONS)
    patterns = {}
    for name, pairs in zero_shot.items():
        plain = [(t.source, t.target) for t in first.get(name, ())] or pairs
        patterns[name] = [
            *_zero_shot(name, pairs, ZERO_SHOT),
            *_zero_shot(name, plain, "zs_noopt"),
            *_few_shot(path, name, few_shot.get(name, [])),
            *_zero_shot(name, inline.get(name, []), INLINE),
        ]
    return TemplatesV2(patterns, read_option_lists(path, module))


def usable(
    templates: Sequence[Template],
    targets: Collection[str],
    constants: Collection[str],
    available: Collection[str],
    inverted: bool,
) -> list[Template]:
    """The templates that rows can fill and that ask for the task's answer.

    A template asks for it if every slot of its target is one of `targets` and its source shows
    something else of the row (see `templates.select`; the target may have words around the slot).

    Args:
      templates: of one pattern.
      targets: slots that hold what is to be predicted.
      constants: slots that are the same for all rows.
      available: slots that the rows can fill.
      inverted: templates that ask for something else are used, too.
    """
    kept = []
    for template in templates:
        asked, shown = set(slots(template.target)), set(slots(template.source))
        if not asked or not asked | shown | set(slots(template.head)) <= set(available):
            continue
        if inverted or (asked <= set(targets) and shown - set(constants) - asked):
            kept.append(template)
    return kept


def _add_aliases(module: ast.Module, name: str, patterns: dict[str, Any]) -> None:
    """Follows `NAME["a"] = NAME["b"]`."""
    for node in module.body:
        match node:
            case ast.Assign(
                targets=[ast.Subscript(value=ast.Name(id=left), slice=ast.Constant(value=new))],
                value=ast.Subscript(value=ast.Name(id=right), slice=ast.Constant(value=old)),
            ) if left == right == name and old in patterns:
                patterns[new] = patterns[old]


def _shown(source: str, kind: str) -> str:
    return _LISTS[kind].sub("", source) if kind in _LISTS else source


def _zero_shot(name: str, pairs: Sequence[tuple[str, str]], kind: str) -> list[Template]:
    templates = []
    for index, (text, target) in enumerate(pairs):
        source, end = _ended(_shown(text, kind))
        templates.append(Template(name, index, source, target, kind, PromptForm(delimiter=end)))
    return templates


def _ended(source: str, delimiter: str = "") -> tuple[str, str]:
    """The source without its trailing white space, which becomes part of the delimiter."""
    stripped = source.rstrip()
    return stripped, source[len(stripped) :] + delimiter


def _few_shot(path: pathlib.Path, name: str, nodes: Sequence[ast.expr]) -> list[Template]:
    found = [_keywords(path, node) for node in nodes]
    return [
        *_alone(name, found, "fs_opt"),
        *([] if name == NIV2 else _mixed(name, found)),
        *_alone(name, found, "fs_noopt"),
    ]


def _alone(name: str, found: list[dict[str, Any]], kind: str) -> list[Template]:
    """Templates whose demonstrations have the same template."""
    templates = []
    for index, texts in enumerate(found):
        text = _text(texts, kind)
        head, head_end, suffix = _around(texts) if name == NIV2 else ("", "", "")
        form = PromptForm(
            delimiter=text.delimiter + suffix,
            shots=_SHOTS["definition" if name == NIV2 else "same_template"],
            texts=(text,),
            separator=texts["example_separator"],
            head_end=head_end,
        )
        templates.append(Template(name, index, text.source, text.target, kind, form, head))
    return templates


def _mixed(name: str, found: list[dict[str, Any]]) -> list[Template]:
    """Templates whose demonstrations have any template of the mix; the separator is the task's."""
    members = {i: _text(texts, MIX) for i, texts in enumerate(found) if texts["in_template_mix"]}
    # Upstream: "We always use the 2nd template's final_suffix and input_pattern."
    head, head_end, suffix = _around(found[1]) if len(found) > 1 else ("", "", "")
    return [
        Template(
            name,
            index,
            text.source,
            text.target,
            MIX,
            PromptForm(
                delimiter=text.delimiter + suffix,
                shots=_SHOTS["mix"],
                texts=tuple(members.values()),
                head_end=head_end,
            ),
            head,
        )
        for index, text in members.items()
    ]


def _text(texts: dict[str, Any], kind: str) -> PromptText:
    source, delimiter = _ended(
        texts["inputs_prefix"] + _shown(texts["inputs"], kind),
        texts["x_y_delimiter"] + texts["targets_prefix"],
    )
    return PromptText(source, texts["targets"], delimiter)


def _around(texts: dict[str, Any]) -> tuple[str, str, str]:
    """What stands before all demonstrations, the white space after it, and what ends the prompt.

    Upstream writes it as a format of formats: `{{Definition}}\\n\\n{{inputs}}{final_suffix}`.
    """
    before, _, after = texts["input_pattern"].partition("{{inputs}}")
    suffix = after.replace("{final_suffix}", texts["final_suffix"])
    return *_ended(before.replace("{{", "{").replace("}}", "}")), suffix


def _keywords(path: pathlib.Path, node: ast.expr) -> dict[str, Any]:
    """The values of a call FewShotPattern(name="text", ...)."""
    called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.args
    expect(path, node, called, "a few-shot template must be FewShotPattern(...)")
    values = dict(_DEFAULTS)
    for keyword in node.keywords:
        flag = keyword.arg == "in_template_mix"
        good = isinstance(keyword.value, ast.Constant) if flag else is_text(keyword.value)
        expect(path, node, good, f"{keyword.arg} must be a literal text")
        values[keyword.arg] = keyword.value.value
    whole = {"inputs", "targets", *_DEFAULTS} <= values.keys()
    expect(path, node, whole, "a few-shot template needs its texts")
    return values
