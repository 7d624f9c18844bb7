"""Which examples an evaluated task had, so that records of other ones do not count as done."""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from optiml_jax.data.example import Example, InstructionLevel
from optiml_jax.data.made_of import stat_key
from optiml_jax.files import fingerprint

Parts = tuple[Sequence[Example], Sequence[Example]]  # evaluated ones, pool of demonstrations


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where the examples of a task come from.

    Attributes:
      reader: a hash of the settings that they were read with.
      files: the user's files.
      most: limit on their number; None: none.
      level: where demonstrations stand, see `prompts.render`.
    """

    reader: str
    files: tuple[str, ...]
    most: int | None = None
    level: InstructionLevel = "task"

    def stamp(self, parts: Parts) -> dict[str, Any]:
        """What tells these examples from others; JSON-able, kept with the records."""
        own = {"paths": list(self.files), "level": self.level, "examples": content(parts)}
        return {**self._quick(), **own}

    def moved(self, stored: Mapping[str, Any] | None) -> dict[str, Any] | None:
        """The stamp of the same examples with the files of now, where those are others.

        With it `differs` need not read the examples next time.
        """
        files = _files(self.files)
        if not stored or stored.get("files", files) == files:
            return None
        return {**stored, "files": files, "paths": list(self.files)}

    def differs(self, stored: Mapping[str, Any], read: Callable[[], Parts]) -> bool:
        """Whether the examples are other than those of `stamp`, or demonstrations stand elsewhere.

        They are only read where the reader's settings, or place, size or time of a file differ.
        What an older stamp does not name counts as equal.
        """
        if stored.get("level", self.level) != self.level:
            return True
        quick = self._quick()
        if all(stored.get(name, value) == value for name, value in quick.items()):
            return False
        return stored.get("examples") != content(read())

    def _quick(self) -> dict[str, Any]:
        return {"reader": self.reader, "files": _files(self.files), "most": self.most}


def files_changed(stored: Mapping[str, Any]) -> bool:
    """Whether the size or time of a file of a stamp is another now; False if one is not here."""
    paths = stored.get("paths", ())
    return all(map(os.path.exists, paths)) and bool(paths) and _files(paths) != stored["files"]


def _files(paths: Sequence[str]) -> str:
    return fingerprint([*map(stat_key, paths)])


def content(parts: Parts) -> str:
    """A hash of what the model is asked and compared with."""
    return fingerprint([[_plain(example) for example in part] for part in parts])


def _plain(example: Example) -> list[Any]:
    names = ("example_id", "prompt_id", "instruction", "input", "target", "references", "options")
    return [getattr(example, name) for name in (*names, "contexts")]
