"""Dialogues as FLAN v2 shows them (google-research/FLAN, flan/v2/preprocessors.py).

Upstream draws one turn of each dialogue that is to be predicted; what was said before it stands in
the prompt, and a mark that announces the next turn. Few-shot prompts list the turns with dashes;
zero-shot prompts draw heading, marks and ends from the lists of flan/v2/templates.py.
"""

import ast
import dataclasses
import pathlib
from collections.abc import Sequence

from optiml_jax.data.hashed_draws import choice, draw
from tasks.flan.fields import UnusableError
from tasks.flan.option_lists import read_lists

DIALOG, ANSWER = "dialog_", "answer"  # slots of templates: what was said, and the next turn

_LISTS = (
    "DIALOG_START_STRING_CANDIDATES",
    "DIALOG_ITEM_NAME_CANDIDATES",
    "DIALOG_ITEM_END_STR_CANDIDATES",
)


@dataclasses.dataclass(frozen=True)
class Turns:
    """Which turns of a dialogue can be the one to predict: every `step`-th from the second on.

    Attributes:
      step: 2 where the second speaker alone is predicted.
      most: so many of them at most, from the first.
    """

    step: int
    most: int

    def drawn(self, dialog: Sequence[str], key: str) -> int:
        """The place of a dialogue's turn to predict.

        Raises:
          UnusableError: it has fewer than two turns.
        """
        places = range(1, len(dialog), self.step)[: self.most]
        if not places:
            raise UnusableError("a dialogue of fewer than two turns")
        return places[draw(f"{key}\0turn") % len(places)]


@dataclasses.dataclass(frozen=True)
class DialogForms:
    """The forms in which zero-shot prompts list turns.

    Attributes:
      starts: headings.
      marks: what stands before each turn and announces the next one, one text for each place.
      ends: what stands after each turn.
    """

    starts: tuple[str, ...]
    marks: tuple[tuple[str, ...], ...]
    ends: tuple[tuple[str, ...], ...]

    def drawn(self, turns: Sequence[str], key: str) -> str:
        """The turns in a drawn form; as `plain_dialog` if there are more turns than marks."""
        start = choice(self.starts, f"{key}\0start")
        marks = choice(self.marks, f"{key}\0marks")
        ends = choice(self.ends, f"{key}\0ends")
        if min(len(marks) - 1, len(ends)) < len(turns):
            return plain_dialog(turns)
        items = zip(marks, turns, ends, strict=False)
        return start + "".join(map("".join, items)) + marks[len(turns)]


def plain_dialog(turns: Sequence[str]) -> str:
    """The turns as few-shot prompts list them."""
    return "DIALOG:\n" + "\n- ".join(turns) + "\n- "


def read_dialog_forms(path: pathlib.Path, module: ast.Module) -> DialogForms:
    """The forms that a module of templates names.

    Raises:
      UserError: it lacks a list, or one has code of another kind; the message names the line.
    """
    return DialogForms(*read_lists(path, module, _LISTS, "turns"))
