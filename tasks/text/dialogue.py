"""Reader of dialogues for training on whole sequences: JSONL files, and ParlAI's text format.

A file is a task, an episode an Example: its turns joined by one newline, without speakers, persona
or knowledge lines; empty input, loss on everything (OPT-IML paper, section 4.7 and table 6).
"""

import dataclasses
import logging
import os
import pathlib
import re
from collections.abc import Iterator

from optiml_jax.data.example import Drops, Example, TaskSource, check_unique_names
from optiml_jax.errors import UserError
from optiml_jax.files import regular_file
from tasks import taxonomy
from tasks.files.text_files import (
    RecordFilter,
    data_folder,
    decode,
    json_records,
    warn_of_unread,
)
from tasks.files.values import text_of
from tasks.splits import Manifest

logger = logging.getLogger(__name__)

READER_VERSION = 3  # raise it when the same file gives other Examples: caches are then redone

# ParlAI: fields `name:value`, divided by tabs; lines of `text` that are no turn.
_KNOWLEDGE = re.compile(r"(?:your|partner's) persona: |__\w+__")


def find_tasks(
    root: str | os.PathLike, manifest: Manifest, benchmark: str = "dialogue"
) -> list[TaskSource]:
    """One task per `*.jsonl` or `*.txt` file of a folder, sorted by name. Opens no file.

    Raises:
      UserError: the folder is missing or empty, or two files have one name.
    """
    folder = data_folder(root, benchmark, "give a folder of JSONL files with the field turns")
    paths = sorted(p for p in folder.iterdir() if p.suffix in (".jsonl", ".txt"))
    warn_of_unread(folder, folder.iterdir(), paths)
    if not paths:
        raise UserError(f"no file (*.jsonl or *.txt) of benchmark {benchmark!r} in {folder}")
    sources = [_source(f"{benchmark}/{path.stem}", path, manifest) for path in paths]
    check_unique_names([s.name for s in sources])
    return sources


def _source(name: str, path: pathlib.Path, manifest: Manifest) -> TaskSource:
    row = manifest.lookup(name, None)
    task = DialogueFile(str(path), name, row.category or taxonomy.category("dialogue", path.stem))
    return TaskSource(
        name=name,
        splits=("train",),
        files=(str(path),),
        read=task.read,
        demonstrations=_no_demonstrations,
        instruction_level="instance",
        settings={"category": task.category, "format": path.suffix, "reader": READER_VERSION},
    )


def _no_demonstrations() -> list[Example]:
    return []


@dataclasses.dataclass(frozen=True)
class DialogueFile:
    """One file of dialogues.

    Attributes:
      path: JSONL with `turns` (strings, or objects with `text`) and perhaps `id` and `source`; or
        ParlAI's text format (`text:...<TAB>labels:...<TAB>episode_done:True`).
      name: `<benchmark>/<file stem>`.
      category: of every Example.
    """

    path: str
    name: str
    category: str

    def read(self, split: str, drops: Drops) -> Iterator[Example]:
        """Streams the episodes; repeated ones are dropped.

        Raises:
          UserError: the file is missing, or has no usable dialogue.
        """
        keep = RecordFilter(without_input=True)
        episodes = (
            _parlai(self.path, drops) if self.path.endswith(".txt") else _json(self.path, drops)
        )
        usable = False
        ids: set[str] = set()
        for upstream_id, origin, turns in episodes:
            fields = keep("", ["\n".join(turns)], drops)
            if fields is None:
                continue
            usable = True
            if upstream_id in ids:
                drops["warning: repeated id"] += 1
            elif upstream_id:
                ids.add(upstream_id)
                fields["example_id"] = upstream_id
            yield Example(
                benchmark=self.name.split("/", 1)[0],
                task=self.name,
                category=self.category,
                prompt_id="turns",
                split=split,
                instruction="",
                source_dataset=origin or self.name.split("/", 1)[1],
                meta={"turns": len(turns)},
                **fields,
            )
        if not usable:
            why = "; ".join(f"{n} {reason}" for reason, n in drops.items())
            raise UserError(
                f"no usable dialogue in {self.path} ({why or 'it is empty'}); "
                "every line must be a JSON object with the list `turns`"
            )


def _json(path: str, drops: Drops) -> Iterator[tuple[str, str, list[str]]]:
    """Id, source and turns of the dialogues of a JSONL file."""
    for _, record in json_records(path, drops):
        turns = record.get("turns")
        listed = turns if isinstance(turns, list) else [None]
        texts = [text_of(t.get("text") if isinstance(t, dict) else t) for t in listed]
        if None in texts:
            drops["malformed dialogue"] += 1
            continue
        if len(lines := _one_line_each(texts)) < len(texts):
            drops["warning: empty turn left out"] += 1
        yield _string(record.get("id")), _string(record.get("source")), lines


def _parlai(path: str, drops: Drops) -> Iterator[tuple[str, str, list[str]]]:
    """Episodes of a file in ParlAI's text format; candidates, personas and knowledge are left out.

    A line is a pair of turns. Some teachers repeat the history in `text`: then only its last line
    is new. Where the file is cut inside a line, the episode of that line is left out.
    """
    turns: list[str] = []
    number, raw, ended = 0, b"", False
    with regular_file(path).open("rb") as file:
        for number, raw in enumerate(file, 1):
            cells = decode(raw, path, number).rstrip("\r\n").split("\t")
            fields = dict(cell.partition(":")[::2] for cell in cells)
            if any(cells) and not fields.keys() & {"text", "labels", "eval_labels"}:
                drops["line without text"] += 1
            lines = [t for t in fields.get("text", "").split("\\n") if not _KNOWLEDGE.match(t)]
            label = fields.get("labels", fields.get("eval_labels", "")).split("|")[0]
            new = lines[-1:] if turns and lines[: len(turns)] == turns else lines
            turns += _one_line_each([*new, label.replace("\\n", " ")])
            if fields.get("episode_done", "").strip() == "True":
                yield "", "", turns
                turns, ended = [], True
    if turns and number > 1 and not raw.endswith(b"\n"):
        logger.warning("%s: its last episode and line have no end: the file was cut", path)
        drops["episode cut off"] += 1
    elif turns:
        if ended:
            drops["warning: last episode without its end"] += 1
        yield "", "", turns


def _one_line_each(turns: list[str]) -> list[str]:
    """The turns that are not empty; a newline inside a turn would look like the next turn."""
    lines = ((part.strip() for part in turn.split("\n")) for turn in turns)
    return [line for parts in lines if (line := " ".join(filter(None, parts)))]


def _string(value: object) -> str:
    return value if isinstance(value, str) else ""
