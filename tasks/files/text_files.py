"""Shared by the readers of TSV, CSV and JSON: streaming, and the rules for every record.

One line is in memory at a time, and one number (a hash) for every record that was kept. Formats
and tasks are the readers' own. The rules: outer whitespace goes, `\\r\\n` becomes `\\n`, a record
that is empty, damaged or repeated is dropped and counted.
"""

import codecs
import csv
import hashlib
import itertools
import json
import logging
import os
import pathlib
import re
from collections.abc import Container, Iterable, Iterator, Sequence
from typing import Any, BinaryIO, TextIO

from optiml_jax.data.example import Drops, Example
from optiml_jax.data.identity import source_identity
from optiml_jax.errors import UserError
from optiml_jax.files import JSONDecoder, regular_file
from tasks.files import values

MAX_LINE_BYTES = 1 << 31  # metaseq's limit (metaseq/data/jsonl_dataset.py)
# NUL, the replacement character of broken encodings, and lone surrogates, which UTF-8 cannot hold.
BAD_CHARACTERS = re.compile("[\x00\ufffd\ud800-\udfff]")
NUM_DEMONSTRATIONS = 1000
CUT_LINE = "last line without its end"
_CHUNK = 1 << 20
# Characters of a CSV cell; Python's own limit, 131,072, is less than some documents have. It bounds
# the memory that is taken by a quotation mark without its second one.
csv.field_size_limit(1 << 27)
_SHOWN = 5  # malformed lines of a file that are named in the log

logger = logging.getLogger(__name__)


class RecordFilter:
    """Decides which records of one task or split are kept; the others are counted by reason.

    Args:
      without_input: records have a target only (plain text, dialogue).
      keep_repeated: a repeated record is kept, and counted as a warning.
    """

    def __init__(self, without_input: bool = False, keep_repeated: bool = False):
        self._without_input = without_input
        self._keep_repeated = keep_repeated
        self._seen: dict[int, int] = {}

    def __call__(self, text: str, references: Sequence[str], drops: Drops) -> dict[str, Any] | None:
        """The fields of an Example that come from its texts, or None (counted).

        The id is a hash of input and references, since files of lines have none of their own.
        """
        texts = [values.text_of(value) for value in (text, *references)]
        if None in texts:
            drops["not a text"] += 1
            return None
        text, *references = map(clean, texts)
        answers = tuple(dict.fromkeys(r for r in references if r))
        if not answers or not (text or self._without_input):
            drops["empty input" if answers else "empty target"] += 1
            return None
        if any(BAD_CHARACTERS.search(t) for t in (text, *answers)):
            drops["NUL or U+FFFD"] += 1
            return None
        key = int(hashed_id(text, answers[0]), 16)
        times = self._seen[key] = self._seen.get(key, 0) + 1
        if times > 1:
            drops["warning: repeated record" if self._keep_repeated else "duplicate"] += 1
            if not self._keep_repeated:
                return None
        if "" in references:
            drops["warning: empty reference left out"] += 1
        example_id = hashed_id(text, *answers) + (f"-{times}" if times > 1 else "")
        return {
            "input": text,
            "target": answers[0],
            "references": answers,
            "example_id": example_id,
            "source_id": source_identity([text or answers[0]]),
        }


def clean(text: str) -> str:
    return text.replace("\r\n", "\n").strip()


def hashed_id(*fields: str) -> str:
    """16 hexadecimal digits that depend on the fields alone."""
    return hashlib.sha256("\0".join(fields).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def demonstration_pool(examples: Iterable[Example]) -> list[Example]:
    """The first `NUM_DEMONSTRATIONS` of a training split; no prompt shows more."""
    return list(itertools.islice(examples, NUM_DEMONSTRATIONS))


def tsv_rows(path: str, columns: Container[int], drops: Drops) -> Iterator[tuple[int, list[str]]]:
    """Line number and cells of every row whose number of cells is in `columns`.

    No quoting, no escapes: a tab always divides, a quotation mark is a character like others. Rows
    of another width are counted as "wrong number of columns" and the first of them named in the
    log. So is a last line without the end that all lines before it have: the file was cut there,
    in a cell that may still look whole.

    Raises:
      UserError: the file is missing or a line is not UTF-8; the message names the line.
    """
    malformed = _Malformed(path, drops)
    for number, raw in _raw_lines(path, malformed):
        text = decode(raw, path, number)
        if number > 1 and not raw.endswith(b"\n"):
            malformed.add(number, CUT_LINE, "the file was cut, or put a newline at its end")
            continue
        cells = text.removesuffix("\n").removesuffix("\r").split("\t")
        if len(cells) in columns:
            yield number, cells
        elif text.strip():
            malformed.add(number, "wrong number of columns", f"{len(cells)} columns")
        else:
            malformed.add(number, "empty line")


def csv_rows(path: str) -> Iterator[tuple[int, list[str]]]:
    """Line number (of its end) and cells of every row; quoting as RFC 4180 has it.

    Raises:
      UserError: the file is missing, not UTF-8, or its quoting is broken; the message names the
        line.
    """
    number = 0
    try:
        with regular_file(path).open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            for cells in reader:
                number = reader.line_num
                if cells:
                    yield number, cells
        warn_if_cut(path)
    except FileNotFoundError as e:
        raise UserError(f"data file not found: {path}") from e
    except UnicodeDecodeError as e:
        raise not_utf8(path, regular_file(path).open("rb")) from e
    except csv.Error as e:
        raise UserError(f"{path} is damaged after line {number} ({e}); download it again") from e


def warn_if_cut(path: str) -> None:
    """Names a text file whose last line has no end, though lines before it have one."""
    with regular_file(path).open("rb") as file:
        several = any(b"\n" in part for part in iter(lambda: file.read(1 << 16), b""))
        if several and file.seek(-1, os.SEEK_END) and file.read(1) != b"\n":
            logger.warning(
                "%s: its last line has no end; if the file was cut there, get it again, else put "
                "a newline at its end",
                path,
            )


def csv_records(path: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and fields of every row of a CSV file whose first row names its columns.

    Raises:
      UserError: as `csv_rows`; or a row has more or fewer cells than there are columns.
    """
    rows = csv_rows(path)
    _, columns = next(rows, (0, []))
    for number, cells in rows:
        if len(cells) != len(columns):
            raise UserError(
                f"{path}, line {number}: {len(cells)} cells for {len(columns)} columns; "
                "download the file again"
            )
        yield number, dict(zip(columns, cells, strict=True))


def json_records(path: str, drops: Drops) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and object of every line of a JSONL file.

    A line that is no UTF-8, no JSON or no object is counted, and the first few named in the log: a
    bad line of a large corpus must not stop it.

    Raises:
      UserError: the file is missing.
    """
    malformed = _Malformed(path, drops)
    for number, raw in _raw_lines(path, malformed):
        if not raw.strip():
            continue
        try:
            record = values.loads(raw.decode("utf-8"))
        except UnicodeDecodeError:
            malformed.add(number, "not UTF-8")
        except json.JSONDecodeError:
            malformed.add(number, "not JSON")
        else:
            if isinstance(record, dict):
                yield number, record
            else:
                malformed.add(number, "not a JSON object")
    warn_if_cut(path)


def json_items(path: str, drops: Drops, key: str = "") -> Iterator[dict[str, Any]]:
    """The objects of a file that holds one JSON array of them, or one object per line (`.jsonl`).

    Only the object at hand is in memory. Items that are no objects are counted. With a key the file
    is an object whose array under that key is meant; it must be near the top.

    Raises:
      UserError: the file is missing, not UTF-8, no JSON array, or cut off.
    """
    if path.endswith(".jsonl"):
        yield from (record for _, record in json_records(path, drops))
        return
    for item in _array_items(path, key):
        if isinstance(item, dict):
            yield item
        else:
            drops["not a JSON object"] += 1


def _array_items(path: str, key: str) -> Iterator[Any]:
    try:
        with regular_file(path).open(encoding="utf-8-sig") as file:
            yield from json_array(file, path, key)
    except FileNotFoundError as e:
        raise UserError(f"data file not found: {path}") from e


def json_array(file: TextIO, path: str, key: str = "") -> Iterator[Any]:
    """The items of a JSON array, read as a stream; see `json_items`.

    Args:
      file: its text.
      path: its name, for messages.
      key: see `json_items`.
    """
    what = f"has no array {key!r} near its top" if key else "is not a JSON array"
    decoder = values.decoder()
    try:
        text = file.read(_CHUNK)
        opening = rf'\s*\{{.*?"{key}"\s*:\s*\[' if key else r"\s*\["
        start = re.match(opening, text, re.DOTALL)
        if not start:
            raise UserError(f"{path} {what}; give the file as upstream publishes it")
        position, ended, start = start.end(), False, None  # the match holds the text
        while True:
            while position < len(text) and text[position] in " \t\r\n,":
                position += 1
            if text.startswith("]", position):
                _check_rest(text[position + 1 :] + file.read(), path, key)
                return
            try:
                item, position = decoder.raw_decode(text, position)
                yield item
            except json.JSONDecodeError as e:
                if ended:
                    at_end = e.pos >= len(text.rstrip()) or "Unterminated" in e.msg
                    why = "is cut off: download it again" if at_end else f"is damaged ({e.msg})"
                    raise UserError(f"{path} {why}") from e
                # Perhaps more of it has to be read; doubling keeps long items cheap.
                more = file.read(max(_CHUNK, len(text) - position))
                text, position, ended = text[position:] + more, 0, not more
    except UnicodeDecodeError as e:
        raise UserError(f"{path} is not UTF-8 ({e.reason}); download it again") from e


def _check_rest(rest: str, path: str, key: str) -> None:
    """What stands after the array must be the rest of its object, or nothing."""
    try:
        json.loads(f'{{"": []{rest}' if key else f"[]{rest}", cls=JSONDecoder)
    except json.JSONDecodeError as e:
        raise UserError(f"{path} is damaged after its array ({e.msg}); download it again") from e


def decode(raw: bytes, path: str, number: int) -> str:
    """A line as text; a UserError names the file and line that is not UTF-8."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as e:
        raise UserError(
            f"{path}, line {number} is not UTF-8 (byte {e.start} of the line); "
            "convert the file or download it again"
        ) from e


def not_utf8(path: str, file: BinaryIO) -> UserError:
    """The error that names the first line that is not UTF-8; readers of whole files do not know it.

    Args:
      path: the file's name.
      file: its content from the beginning, decompressed.
    """
    try:
        with file:
            for number, raw in enumerate(file, 1):
                decode(raw, path, number)
    except UserError as e:
        return e
    return UserError(f"{path} is not UTF-8; convert the file or download it again")


def data_folder(root: str | os.PathLike, benchmark: str, what: str) -> pathlib.Path:
    """The root folder of a benchmark's data; a UserError says what it should hold if missing."""
    folder = pathlib.Path(root).expanduser()
    if not folder.is_dir():
        raise UserError(f"no data of benchmark {benchmark!r}: folder not found: {folder}; {what}")
    return folder


def warn_of_unread(
    folder: pathlib.Path, paths: Iterable[pathlib.Path], read: Iterable[pathlib.Path]
) -> None:
    """Names the files of `paths` that look like data and are not among those that are read."""
    about = (".md", ".py", ".yaml", ".yml", ".json", ".lock", "")
    unread = sorted({p for p in paths if p.is_file() and p.suffix not in about} - {*read})
    if names := [str(p.relative_to(folder)) for p in unread if not p.name.startswith(".")]:
        shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        logger.warning("%s: %d files are in no form that is read: %s", folder, len(names), shown)


class _Malformed:
    """Counts malformed lines of one file and names the first of them in the log."""

    def __init__(self, path: str, drops: Drops):
        self._path, self._drops, self._count = path, drops, 0

    def add(self, number: int, reason: str, detail: str = "") -> None:
        self._drops[reason] += 1
        self._count += 1
        if self._count <= _SHOWN:
            more = f" ({detail})" if detail else ""
            logger.warning("%s, line %d dropped: %s%s", self._path, number, reason, more)


def _raw_lines(path: str, malformed: _Malformed) -> Iterator[tuple[int, bytes]]:
    """Lines ending in `\\n` only: other line separators of Unicode are characters of a field."""
    try:
        file = regular_file(path).open("rb")
    except FileNotFoundError as e:
        raise UserError(f"data file not found: {path}") from e
    with file:
        number = 0
        while raw := file.readline(MAX_LINE_BYTES):
            number += 1
            if number == 1:
                raw = raw.removeprefix(codecs.BOM_UTF8)
            if len(raw) == MAX_LINE_BYTES and not raw.endswith(b"\n"):
                malformed.add(number, "line too long")
                while (rest := file.readline(1 << 20)) and not rest.endswith(b"\n"):
                    pass
            else:
                yield number, raw
