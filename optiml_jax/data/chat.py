"""What an instruct model was trained to see around a prompt: the frame of a chat.

A frame is a text with `{prompt}` in the place of the user's message. In a prompt that is encoded,
marks stand around the frame's two parts, and only there are special tokens read. How a frame is
made of a model's own template is said in `tasks/templates/chat.py`.
"""

from optiml_jax.errors import UserError

MARK = "\ufdd3"  # a code point that no text may hold
PROMPT_PLACE = "{prompt}"


def check_frame(chat: str) -> None:
    """Raises a UserError for a frame that has not the one place for a prompt."""
    if chat.count(PROMPT_PLACE) != 1 or MARK in chat:
        raise UserError(f"PromptConfig.chat must hold {PROMPT_PLACE} once: {chat!r}")


def frame(chat: str | None) -> tuple[str, str]:
    """The texts before and after a prompt, within marks; of None twice "".

    Behind a frame the answer follows at once. One that ends with a space (Llama 2: "[/INST] ") has
    no last mark and no space, which joins the answer as everywhere else.
    """
    if chat is None:
        return "", ""
    before, after = chat.split(PROMPT_PLACE)
    last = after[:-1] if after.endswith(" ") else after + MARK
    return MARK + before + MARK, MARK + last


def is_framed(text: str) -> bool:
    """Whether a text is a prompt in a frame."""
    return text.startswith(MARK)


def shown(text: str) -> str:
    """A prompt for people and other programs: without marks."""
    return text.replace(MARK, "")


def front(text: str) -> str:
    """What the frame of a prompt has in front of it, within marks; "": no frame."""
    return f"{MARK}{text.split(MARK, 2)[1]}{MARK}" if is_framed(text) else ""


def put_in(chat: str | None, text: str) -> str:
    """The text as a message in the frame."""
    before, after = frame(chat)
    return before + shown(text) + after if chat else text


def taken_out(chat: str | None, text: str) -> str | None:
    """The message of a text that shows the whole frame, without marks; None: it does not."""
    before, after = map(shown, frame(chat))
    if not chat or len(text) < len(before + after):
        return None
    if not text.startswith(before) or not text.endswith(after):
        return None
    return text[len(before) : len(text) - len(after)]
