"""What an instruct model was trained to see around a prompt, made of its own chat template.

Templates are Jinja of unknown origin; `sandbox.py` renders them.
"""

import datetime
import logging
import os
import pathlib
from typing import Any

import jinja2

from optiml_jax.data.chat import MARK, PROMPT_PLACE
from optiml_jax.data.vocabulary_files import special_tokens, vocabulary_files
from optiml_jax.errors import UserError
from optiml_jax.files import read_json
from optiml_jax.settings import configurable
from tasks.templates.budget import LimitError
from tasks.templates.sandbox import Choices, Environment

_TEMPLATE, _CONFIG = "chat_template.jinja", "tokenizer_config.json"
_QUESTION, _ANSWER = "\ufdd0", "\ufdd1"  # code points that no template may hold

_log = logging.getLogger(__name__)


@configurable
def chat_frame(vocabulary: str, system: str | None = None) -> str:
    """`PromptConfig.chat` of a model: one message of the user, and where its answer begins.

    Args:
      vocabulary: as `Run.vocabulary` has it: `huggingface:<folder>`, `checkpoint:<run>`, ...
      system: a message of the system in front; None: what the template has without one.

    Raises:
      UserError: no template there, or one that cannot be rendered, or not with one message.
    """
    files = vocabulary_files(os.path.expandvars(vocabulary))
    folder = next(iter(files.values())).parent
    template, specials = _template(files, vocabulary), special_tokens(folder)
    messages = [{"role": "system", "content": system}] if system is not None else []
    messages.append({"role": "user", "content": _QUESTION})
    asked = render_chat(template, messages, specials, vocabulary, add_generation_prompt=True)
    messages.append({"role": "assistant", "content": _ANSWER})
    answered = render_chat(template, messages, specials, vocabulary)
    frame, end = asked, ""
    if answered.startswith(asked) and answered.count(_ANSWER) == 1:
        # What stands between is not the answer: Qwen 3's empty thoughts, Llama 2's space.
        frame, end = answered.split(_ANSWER)
    if frame.count(_QUESTION) != 1 or MARK in frame or PROMPT_PLACE in frame:
        raise UserError(
            f"the chat template of {vocabulary} does not show the user's message once: it makes "
            f"{frame.replace(_QUESTION, PROMPT_PLACE)!r}"
        )
    eos = specials.get("eos_token", "")
    if end.strip() and not end.strip().startswith(eos):
        _log.warning(
            "in the chat template of %s an answer ends with %r, but its end of text is %r, with "
            "which answers end here; eos_token in tokenizer_config.json says it",
            vocabulary,
            end.strip(),
            eos,
        )
    return frame.replace(_QUESTION, PROMPT_PLACE)


def render_chat(
    template: str,
    messages: list[dict[str, str]],
    specials: dict[str, str],
    where: str,
    add_generation_prompt: bool = False,
) -> str:
    """The text of a chat.

    Args:
      specials: special tokens by kind. A begin-of-text token is not written: the model's
        configuration says whether one stands in front.
      where: for messages.
      add_generation_prompt: up to where the assistant speaks next.

    Raises:
      UserError: a template that is not valid, or does what is not allowed, or refuses the messages.
    """
    environment = Environment(functions={"raise_exception": _refuse, "strftime_now": _date})
    environment.trim_blocks = environment.lstrip_blocks = True  # as transformers has it
    fields: dict[str, Any] = {**specials, "bos_token": "", "messages": messages}
    fields["add_generation_prompt"] = add_generation_prompt
    try:
        compiled = environment.compile_text(template)
        return environment.render(compiled, fields, Choices(""), size=100_000)
    except (jinja2.TemplateError, LimitError, TypeError, ValueError) as e:
        raise UserError(f"the chat template of {where} cannot be rendered: {e}") from e


def _refuse(message: str) -> str:
    raise ValueError(message)


def _date(form: str) -> str:
    """A day that is always the same: prompts must not change with the calendar."""
    return datetime.date(2024, 7, 26).strftime(form)


def _template(files: dict[str, pathlib.Path], vocabulary: str) -> str:
    if _TEMPLATE in files:
        return files[_TEMPLATE].read_text("utf-8")
    found = None
    if _CONFIG in files:
        found = read_json(files[_CONFIG], "the tokenizer's configuration").get("chat_template")
    if isinstance(found, list):  # several by name
        found = next((one["template"] for one in found if one.get("name") == "default"), None)
    if not isinstance(found, str):
        raise UserError(
            f"chat_frame.vocabulary = {vocabulary!r} has no chat template: its model was not "
            "trained on chats"
        )
    return found
