"""FLAN v2's training prompts for FLAN's tasks (google-research/FLAN, flan/v2/templates.py).

Each task has four kinds of prompts: with or without demonstrations, with or without its options.
FLAN v2 mixes them in equal parts, and so does drawing templates, which are ten of each. Zero-shot
prompts with options have templates of their own (PATTERNS), those without are FLAN 2021's without
the list (flan/v2/flan_templates_branched.py). Few-shot templates (FEWSHOT_PATTERNS) name what is
before an input, between input and answer, and between demonstrations. The files are parsed, never
executed.
"""

import ast
import pathlib
import re

from optiml_jax.data.example import PromptForm
from optiml_jax.errors import UserError
from tasks.flan.templates import (
    Template,
    assigned,
    expect,
    is_text,
    literal_lists,
    literal_patterns,
    read_templates,
)

ZERO_SHOT = "zs_opt"  # the kind that evaluations show, too

_TEMPLATES = "flan/v2/templates.py"
_FEW_SHOT = "FEWSHOT_PATTERNS"
_WITHOUT_OPTIONS = "flan/v2/flan_templates_branched.py"
_LIST = re.compile(r" \(\{options_\}\)|(?:\n\n|\n| \| | )?\{options_\}|\n{1,2}\{options_str\}")
_TEXTS = ("inputs", "targets", "inputs_prefix", "targets_prefix", "x_y_delimiter")
_DEFAULTS = {"inputs_prefix": "", "targets_prefix": "", "x_y_delimiter": "\n\n"}
_DEFAULTS |= {"example_separator": "\n\n\n"}


def read_templates_v2(root: pathlib.Path) -> dict[str, list[Template]]:
    """Pattern name -> its templates of all kinds.

    Args:
      root: a clone of FLAN.

    Raises:
      UserError: a file is missing, damaged, or holds code in the place of texts.
    """
    for name in (_TEMPLATES, _WITHOUT_OPTIONS):
        if not (root / name).is_file():
            raise UserError(
                f"FlanConfig.templates = 'v2' needs {name} in {root}; give a clone of FLAN, or set "
                "FlanConfig.templates to '2021'"
            )
    path = root / _TEMPLATES
    zero_shot = literal_patterns(path, assigned(path, "PATTERNS"))
    few_shot = literal_lists(path, assigned(path, _FEW_SHOT), _FEW_SHOT)
    first = read_templates(root / _WITHOUT_OPTIONS)
    return {
        name: [
            *_zero_shot(name, pairs, "zs_opt"),
            *_zero_shot(name, _plain(first.get(name)) or pairs, "zs_noopt"),
            *_few_shot(path, name, few_shot.get(name, []), "fs_opt"),
            *_few_shot(path, name, few_shot.get(name, []), "fs_noopt"),
        ]
        for name, pairs in zero_shot.items()
    }


def _plain(templates: list[Template] | None) -> list[tuple[str, str]]:
    return [(template.source, template.target) for template in templates or ()]


def _shown(source: str, kind: str) -> str:
    return _LIST.sub("", source) if kind.endswith("noopt") else source


def _zero_shot(name: str, pairs: list[tuple[str, str]], kind: str) -> list[Template]:
    form = PromptForm(demonstrations=False, delimiter="")
    return [
        Template(name, index, _shown(source, kind), target, kind, form)
        for index, (source, target) in enumerate(pairs)
    ]


def _few_shot(path: pathlib.Path, name: str, nodes: list[ast.expr], kind: str) -> list[Template]:
    templates = []
    for index, node in enumerate(nodes):
        texts = _DEFAULTS | _keywords(path, node)
        expect(path, node, {*_TEXTS} <= texts.keys(), "a few-shot template needs its texts")
        form = PromptForm(
            demonstrations=True,
            delimiter=texts["x_y_delimiter"] + texts["targets_prefix"],
            separator=texts["example_separator"],
        )
        source = texts["inputs_prefix"] + _shown(texts["inputs"], kind)
        templates.append(Template(name, index, source, texts["targets"], kind, form))
    return templates


def _keywords(path: pathlib.Path, node: ast.expr) -> dict[str, str]:
    """The texts of a call FewShotPattern(name="text", ...)."""
    called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.args
    expect(path, node, called, "a few-shot template must be FewShotPattern(...)")
    texts = {}
    for keyword in node.keywords:
        if keyword.arg == "in_template_mix":
            continue
        expect(path, node, is_text(keyword.value), f"{keyword.arg} must be a literal text")
        texts[keyword.arg] = keyword.value.value
    return texts
