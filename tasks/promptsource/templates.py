"""Template files of PromptSource (bigscience-workshop/promptsource): reading and rendering them.

What upstream's `Template.apply` and `get_answer_choices_list` give for a row, these give, too, byte
by byte; but a template cannot do harm (see `tasks/templates/sandbox.py`). Rows, splits and
Examples are not here but in `tasks/files/rows.py` and `reader.py`.
"""

import copy
import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jinja2
import yaml

from optiml_jax.errors import UserError
from optiml_jax.settings import Positive, Seed, configurable
from optiml_jax.yaml_files import read_yaml
from tasks.templates.budget import LimitError
from tasks.templates.sandbox import Choices, Environment, mutates

SEPARATOR = "|||"
# Stands for a separator in a row's own text; as long as it, of code points that no text may hold.
_PROTECTED = "\ufdd0\ufdd1\ufdd2"
_ANSWER_CHOICES = "answer_choices"


@configurable
@dataclasses.dataclass(frozen=True)
class PromptSourceConfig:
    """How PromptSource's templates are rendered.

    Attributes:
      seed: of the draws of templates, and of the templates' own random choices.
      max_value_length: longer values lose their tail at a word boundary, as upstream has it; None
        keeps them whole. A printed expression whose outermost operator is `or`, `+` or an inline
        `if` has only its last operand cut, as upstream.
      strict_undefined: a variable that a row does not have is an error of that row (which is then
        dropped and counted); upstream prints nothing.
    """

    seed: Seed = 1234
    max_value_length: Positive | None = 2048
    strict_undefined: bool = False


@dataclasses.dataclass(frozen=True)
class Template:
    """One template of a file.

    Attributes:
      id: a UUID.
      name: not unique between data sets.
      jinja: source and target, separated by `|||`.
      answer_choices: a template of the options, separated by `|||`, or None.
      original_task: whether the target is what the data set was made for.
      choices_in_prompt: whether the source lists the options; None: not said.
      metrics: names, as upstream spells them.
      languages: codes.
      file: the file that holds it.
    """

    id: str
    name: str
    jinja: str
    answer_choices: str | None
    original_task: bool
    choices_in_prompt: bool | None
    metrics: tuple[str, ...]
    languages: tuple[str, ...]
    file: str

    def __str__(self) -> str:
        return f"template {self.id} ({self.name.strip()!r}) of {self.file}"


class RenderError(Exception):
    """A template that cannot be rendered on one row."""


class Renderer:
    """A compiled template. Not for two threads at once."""

    def __init__(self, template: Template, config: PromptSourceConfig):
        """Raises a UserError that names the template if it does not compile or is not allowed."""
        self.template = template
        self._mutates = mutates(template.jinja + (template.answer_choices or ""))
        self._environment = Environment(config.strict_undefined)
        text = template.jinja
        if config.max_value_length is not None:
            # As text, as upstream: after an operator the filters bind to its last operand alone.
            text = text.replace("}}", f" | string | truncate({config.max_value_length}) }}}}")
        self._prompt = self._compile(text)
        self._choices = self._compile(template.answer_choices)

    def render(
        self, fields: Mapping[str, Any], choices: Choices
    ) -> tuple[list[str], list[str] | None]:
        """The parts of the rendered text (source and target, if it applies) and the options.

        Args:
          fields: a row; a column must not be called answer_choices.
          choices: of the template's random choices.

        Raises:
          UserError: the template, which is named, tries something forbidden or takes too much.
          RenderError: the row does not fit the template.
        """
        if _ANSWER_CHOICES in fields:
            raise UserError(
                f"a column is called {_ANSWER_CHOICES!r}, which {self.template} needs for itself; "
                "rename the column"
            )
        if self._mutates:
            fields = copy.deepcopy(dict(fields))
        size = _characters(fields)
        fields = {
            key: value.replace(SEPARATOR, _PROTECTED) if isinstance(value, str) else value
            for key, value in fields.items()
        }
        options = None
        if self._choices is not None:
            options = self._split(self._choices, fields, choices, size)
        fields[_ANSWER_CHOICES] = options and [o.replace(SEPARATOR, _PROTECTED) for o in options]
        return self._split(self._prompt, fields, choices, size), options

    def _split(
        self, template: jinja2.Template, fields: dict[str, Any], choices: Choices, size: int
    ) -> list[str]:
        try:
            text = self._environment.render(template, fields, choices, size)
        except (LimitError, jinja2.exceptions.SecurityError, RecursionError, MemoryError) as e:
            raise self._refused(e) from e
        except Exception as e:
            raise RenderError(f"{type(e).__name__}: {e}") from e
        return [part.replace(_PROTECTED, SEPARATOR).strip() for part in text.split(SEPARATOR)]

    def _compile(self, text: str | None) -> jinja2.Template | None:
        if text is None:
            return None
        try:
            return self._environment.compile_text(text)
        except jinja2.TemplateSyntaxError as e:
            raise UserError(
                f"{self.template} is not valid: line {e.lineno}: {_line(e)}; repair or remove it"
            ) from e
        except (LimitError, RecursionError, MemoryError, SyntaxError) as e:
            raise self._refused(e) from e

    def _refused(self, error: BaseException) -> UserError:
        reason = f"too deeply nested ({error})" if isinstance(error, RecursionError) else error
        return UserError(
            f"{self.template} is refused: {_line(reason)}; repair it or remove it from the file"
        )


def read_templates(path: pathlib.Path) -> list[Template]:
    """The templates of a `templates.yaml`, in its order.

    Raises:
      UserError: no YAML, a tag that is not PromptSource's (nothing is executed), or a field that is
        missing or of the wrong type; the message names the file.
    """
    content = read_yaml(path, "a template file", loader=_Loader)
    entries = content.get("templates")
    if not isinstance(entries, dict):
        raise UserError(f"{path}: not a template file: it has no mapping `templates`")
    return [_parse(key, entry, path) for key, entry in entries.items()]


def _parse(key: Any, entry: Any, path: pathlib.Path) -> Template:
    entry = entry if isinstance(entry, dict) else {}
    metadata = entry.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}

    def wrong(field: str) -> UserError:
        return UserError(f"{path}: template {key}: {field} is missing or of the wrong type")

    for field, kind in (("id", str), ("name", str), ("jinja", str)):
        if not isinstance(entry.get(field), kind):
            raise wrong(field)
    if not isinstance(entry.get(_ANSWER_CHOICES), str | None):
        raise wrong(_ANSWER_CHOICES)
    if not isinstance(metadata.get("original_task"), bool | None):
        raise wrong("metadata.original_task")
    return Template(
        id=entry["id"],
        name=entry["name"],
        jinja=entry["jinja"],
        answer_choices=entry.get(_ANSWER_CHOICES),
        original_task=bool(metadata.get("original_task")),
        choices_in_prompt=metadata.get("choices_in_prompt"),
        metrics=tuple(map(str, metadata.get("metrics") or ())),
        languages=tuple(map(str, metadata.get("languages") or ())),
        file=str(path),
    )


class _Loader(yaml.CSafeLoader):
    """Knows plain YAML and PromptSource's two tags, which become dictionaries."""


for _tag in ("!Template", "!TemplateMetadata"):
    _Loader.add_constructor(_tag, lambda loader, node: loader.construct_mapping(node, deep=True))


def _characters(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(_characters, value.values()))
    return sum(map(_characters, value)) if isinstance(value, list) else 1


def _line(error: Any) -> str:
    return " ".join(str(error).split())
