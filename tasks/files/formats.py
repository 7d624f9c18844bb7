"""Files of rows in the formats that users have: JSON, CSV, TSV, Parquet, Arrow, also compressed.

Every format streams: memory does not grow with the file, but of a JSON list, one row of which is
in memory at a time, too. NaN and infinities are None in every row.
"""

import csv
import io
import itertools
import json
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from optiml_jax.errors import UserError
from optiml_jax.files import regular_file
from tasks.files import columnar
from tasks.files.text_files import json_array, not_utf8, warn_if_cut
from tasks.files.values import loads, without_nan

Row = dict[str, Any]
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
_BATCH = 1000
# A shard's number may come after the format: x.jsonl-0-of-9.gz is x-0-of-9.jsonl.gz.
_LATE_NUMBER = re.compile(r"(\.\w+)(-\d+-of-\d+)(?=\.|$)")


def format_of(file: str | os.PathLike) -> str:
    """The suffix that says how the file is read, e.g. ".jsonl" of x.jsonl.gz; "" for others."""
    suffixes = pathlib.Path(_name(file)).suffixes
    compressed = bool(suffixes) and suffixes[-1] in COMPRESSIONS
    suffix = "".join(suffixes[-2:-1]) if compressed else "".join(suffixes[-1:])
    if suffix not in _READERS or (compressed and suffix in (".parquet", ".arrow")):
        return ""
    return suffix


def stem_of(file: str | os.PathLike) -> str:
    """The file's name without the suffixes of its format and compression."""
    name = _name(file)
    for suffix in COMPRESSIONS:
        name = name.removesuffix(suffix)
    return name.removesuffix(format_of(file))


def _name(file: str | os.PathLike) -> str:
    return _LATE_NUMBER.sub(r"\2\1", pathlib.Path(file).name)


def read_rows(file: str) -> Iterator[Row]:
    """The rows of a file in order.

    Raises:
      UserError: the file is damaged or no longer there; the message names the line.
    """
    try:
        yield from _READERS[format_of(file)](file)
    except FileNotFoundError as e:
        raise UserError(f"rows not found: {file}") from e


def read_chosen(file: str, positions: np.ndarray) -> Iterator[Row | None]:
    """A row or None for every row of a file, in order: None for those that are not chosen.

    Parquet, Arrow and JSONL make only the chosen ones.

    Args:
      positions: sorted positions of the chosen rows.
    """
    chooser = _CHOOSERS.get(format_of(file))
    if chooser is not None:
        try:
            yield from chooser(file, positions)
        except FileNotFoundError as e:
            raise UserError(f"rows not found: {file}") from e
        return
    chosen = set(positions.tolist())
    for number, row in enumerate(read_rows(file)):
        yield row if number in chosen else None


def _chosen_of_batches(batches: Iterator[Any], positions: np.ndarray) -> Iterator[Row | None]:
    start = 0
    for batch in batches:
        first, last = np.searchsorted(positions, (start, start + batch.num_rows))
        local = positions[first:last] - start
        rows = iter(batch.take(local).to_pylist()) if len(local) else iter(())
        previous = -1
        for position in local.tolist():
            yield from itertools.repeat(None, position - previous - 1)
            yield without_nan(next(rows))
            previous = position
        yield from itertools.repeat(None, batch.num_rows - previous - 1)
        start += batch.num_rows


def _choose_parquet(file: str, positions: np.ndarray) -> Iterator[Row | None]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columnar.check(file)
    try:
        with pq.ParquetFile(file) as f:
            yield from _chosen_of_batches(f.iter_batches(10 * _BATCH), positions)
    except pa.ArrowException as e:
        raise _damaged(file, e) from e


def _choose_arrow(file: str, positions: np.ndarray) -> Iterator[Row | None]:
    yield from _chosen_of_batches(arrow_batches(file), positions)


def _choose_jsonl(file: str, positions: np.ndarray) -> Iterator[Row | None]:
    chosen = set(positions.tolist())
    number = 0
    for at, line in _lines(file):
        if line.strip():
            yield _parsed(file, at, line) if number in chosen else None
            number += 1
    _warn_if_cut(file)


def count_rows(file: str) -> int:
    """The number of rows, without making them where the format allows it."""
    try:
        counter = _COUNTERS.get(format_of(file))
        return counter(file) if counter else sum(1 for _ in read_rows(file))
    except FileNotFoundError as e:
        raise UserError(f"rows not found: {file}") from e


def open_bytes(file: str) -> BinaryIO:
    """The content of a file, decompressed."""
    compression = COMPRESSIONS.get(pathlib.Path(file).suffix)
    if compression is None:
        return regular_file(file).open("rb")
    import pyarrow as pa

    return io.BufferedReader(pa.input_stream(file, compression=compression), 1 << 20)


def _lines(file: str) -> Iterator[tuple[int, str]]:
    """Number and text of every line; without a byte order mark."""
    number = 0
    try:
        with open_bytes(file) as f:
            for number, raw in enumerate(f, 1):
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as e:
        raise UserError(f"{file}, line {number}: not UTF-8; convert the file") from e
    except FileNotFoundError:
        raise
    except OSError as e:  # of the decompression
        reason = str(e).splitlines()[0]
        raise UserError(
            f"{file} is damaged after line {number} ({reason}); download it again"
        ) from e


def _read_jsonl(file: str) -> Iterator[Row]:
    for number, line in _lines(file):
        if not line.strip():
            continue
        yield _parsed(file, number, line)
    _warn_if_cut(file)


def _parsed(file: str, number: int, line: str) -> Row:
    try:
        row = loads(line)
    except json.JSONDecodeError as e:
        cut = "" if line.endswith("\n") else "; the file may be cut off"
        raise UserError(f"{file}, line {number}: not valid JSON ({e.msg}){cut}") from e
    if not isinstance(row, dict):
        raise UserError(f"{file}, line {number}: a row must be a JSON object")
    return row


def _count_jsonl(file: str) -> int:
    with open_bytes(file) as f:
        return sum(1 for line in f if line.strip())


def _read_json(file: str) -> Iterator[Row]:
    """A list of rows; or one row a line, which many files that are called .json are."""
    with open_bytes(file) as f:
        start = f.read(1 << 12).decode("utf-8-sig", "replace").lstrip()
    if not start.startswith("["):
        yield from _read_jsonl(file)
        return
    with io.TextIOWrapper(open_bytes(file), encoding="utf-8-sig") as text:
        for number, row in enumerate(json_array(text, file), 1):
            if not isinstance(row, dict):
                raise UserError(f"{file}, item {number}: a row must be a JSON object")
            yield row


def _read_table(file: str) -> Iterator[Row]:
    """CSV as RFC 4180 has it, and TSV without quoting; the first row names the columns."""
    if format_of(file) == ".tsv":
        cells = ((n, line.rstrip("\r\n").split("\t")) for n, line in _lines(file) if line.strip())
    else:
        cells = _csv_cells(file)
    _, columns = next(cells, (0, []))
    if len(set(columns)) != len(columns) or "" in columns:
        raise UserError(f"{file}, line 1 does not name the columns: {columns}; add their names")
    for number, row in cells:
        if len(row) != len(columns):
            raise UserError(
                f"{file}, line {number}: {len(row)} cells for {len(columns)} columns; "
                "repair the line or download the file again"
            )
        yield dict(zip(columns, row, strict=True))
    _warn_if_cut(file)


def _warn_if_cut(file: str) -> None:
    """As `warn_if_cut`; where a compressed file is cut, decompression ends."""
    if pathlib.Path(file).suffix not in COMPRESSIONS:
        warn_if_cut(file)


def _csv_cells(file: str) -> Iterator[tuple[int, list[str]]]:
    number = 0
    try:
        with io.TextIOWrapper(open_bytes(file), encoding="utf-8-sig", newline="") as text:
            reader = csv.reader(text, strict=True)
            for row in reader:
                number = reader.line_num
                if row:
                    yield number, row
    except UnicodeDecodeError as e:
        raise not_utf8(file, open_bytes(file)) from e
    except FileNotFoundError:
        raise
    except (csv.Error, OSError) as e:  # of the decompression
        raise UserError(f"{file} is damaged after line {number} ({e}); download it again") from e


# --- Parquet and Arrow


def _read_parquet(file: str) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columnar.check(file)
    try:
        with pq.ParquetFile(file) as f:
            for batch in f.iter_batches(_BATCH):
                yield from map(without_nan, batch.to_pylist())
    except pa.ArrowException as e:
        raise _damaged(file, e) from e


def _count_parquet(file: str) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columnar.check(file)
    try:
        return pq.read_metadata(file).num_rows
    except pa.ArrowException as e:
        raise _damaged(file, e) from e


def arrow_batches(file: str) -> Iterator[Any]:
    """Record batches of an Arrow stream (what `datasets` writes) or an Arrow file."""
    import pyarrow as pa

    columnar.check(file)
    try:
        with pa.memory_map(file) as f:
            is_file = f.read(6) == b"ARROW1"
            f.seek(0)
            if is_file:
                reader = pa.ipc.open_file(f)
                yield from (reader.get_batch(i) for i in range(reader.num_record_batches))
            else:
                yield from pa.ipc.open_stream(f)
    except pa.ArrowException as e:
        raise _damaged(file, e) from e


def _read_arrow(file: str) -> Iterator[Row]:
    for batch in arrow_batches(file):
        for start in range(0, batch.num_rows, _BATCH):
            yield from map(without_nan, batch.slice(start, _BATCH).to_pylist())


def _count_arrow(file: str) -> int:
    return sum(batch.num_rows for batch in arrow_batches(file))


def read_selected(files: tuple[str, ...], indices: tuple[str, ...]) -> Iterator[Row]:
    """The rows of Arrow files that index files choose, in their order.

    `Dataset.select`, `shuffle` and `filter` write such indices beside data that they leave whole.
    """
    import pyarrow as pa

    batches = [batch for file in files for batch in arrow_batches(file)]  # mapped, not in memory
    table = pa.Table.from_batches(batches)
    for file in indices:
        for batch in arrow_batches(file):
            column = batch.column(0)
            for start in range(0, len(column), _BATCH):
                chosen = column.slice(start, _BATCH)
                if len(chosen) and max(chosen.to_pylist()) >= table.num_rows:
                    raise UserError(f"{file} points past the end of the data; save it again")
                yield from map(without_nan, table.take(chosen).to_pylist())


def _damaged(file: str, error: Exception) -> UserError:
    return UserError(f"{file} is damaged ({str(error).splitlines()[0]}); download it again")


_READERS = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_table,
    ".tsv": _read_table,
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
}
_CHOOSERS = {".jsonl": _choose_jsonl, ".parquet": _choose_parquet, ".arrow": _choose_arrow}
_COUNTERS = {".jsonl": _count_jsonl, ".parquet": _count_parquet, ".arrow": _count_arrow}
