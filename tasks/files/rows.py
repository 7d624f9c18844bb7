"""Rows of data sets as a user has them on disk: JSONL, Parquet, Arrow, or a TFDS builder by name.

What is found in the folder of one data set (no file is opened until rows are read):
  <split>.jsonl, <split>.parquet, <split>.arrow; also in shards, <split>-00000-of-00004.parquet, and
      with a name in front, squad-train.arrow, as the cache of Hugging Face's `datasets` has them;
  the same files in a folder `data` (a data set's repository on the Hub);
  <split>/state.json and its Arrow files, as `Dataset.save_to_disk` writes them;
  tfds.json: {"name": "glue/mrpc", "data_dir": null, "fields": {"<TFDS name>": "<our name>"}};
  <version>/ as TFDS prepares it, when the folder is one of TFDS's data_dir (the newest counts).
All streaming: memory does not grow with the file. What rows mean is not known here.
"""

import dataclasses
import json
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from optiml_jax.errors import UserError
from optiml_jax.files import read_json

Row = dict[str, Any]

_SUFFIXES = (".jsonl", ".parquet", ".arrow")
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_SHARD = re.compile(r"-\d+-of-\d+$")
_BATCH = 1000
_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class SplitFiles:
    """One split in files of one format.

    Attributes:
      name: the split's own name, e.g. "validation_matched".
      files: in order.
    """

    name: str
    files: tuple[str, ...]

    def read(self) -> Iterator[Row]:
        """The rows in order. A file that is damaged or no longer there is a UserError."""
        for file in self.files:
            yield from _READERS[pathlib.Path(file).suffix](file)

    def count(self) -> int:
        """The number of rows, without making them."""
        return sum(_COUNTERS[pathlib.Path(file).suffix](file) for file in self.files)


@dataclasses.dataclass(frozen=True)
class TfdsSplit:
    """One split of a TensorFlow Datasets builder that was prepared on this machine.

    Attributes:
      name: the split's own name.
      files: tfds.json and those of the split.
      builder: name of the builder, with config and version if wanted; or the folder of a version.
      data_dir: TFDS's folder; None is its default.
      fields: TFDS's field name -> the name that a row shall have.
    """

    name: str
    files: tuple[str, ...]
    builder: str
    data_dir: str | None
    fields: dict[str, str]

    def read(self) -> Iterator[Row]:
        """The rows in TFDS's order: bytes as text, arrays as lists."""
        import tensorflow_datasets as tfds

        builder = _tfds_builder(self.builder, self.data_dir)
        dataset = builder.as_dataset(split=self.name, shuffle_files=False)
        for row in tfds.as_numpy(dataset):
            yield {self.fields.get(key, key): _plain(value) for key, value in row.items()}

    def count(self) -> int:
        """The number of rows."""
        return _tfds_builder(self.builder, self.data_dir).info.splits[self.name].num_examples


Split = SplitFiles | TfdsSplit


def find_splits(folder: pathlib.Path) -> dict[str, Split]:
    """The splits of a data set's folder by name, sorted; empty when there are none.

    Raises:
      UserError: a split is there in two formats, or tfds.json is damaged or names no builder that
        is prepared here.
    """
    if not folder.is_dir():
        return {}
    description = folder / "tfds.json"
    if description.is_file():
        return _described_splits(description)
    if versions := [p for p in folder.iterdir() if _is_tfds_version(p)]:
        newest = max(versions, key=lambda p: [int(part) for part in p.name.split(".")])
        return _tfds_splits(str(newest), None, {}, str(newest / "dataset_info.json"))
    found: dict[str, list[pathlib.Path]] = {}
    for path in [*folder.iterdir(), *folder.glob("data/*")]:
        if path.suffix in _SUFFIXES and path.is_file():
            split = _SHARD.sub("", path.stem).rpartition("-")[2]
            found.setdefault(split, []).append(path)
    for state in folder.glob("*/state.json"):
        found.setdefault(state.parent.name, []).extend(_saved_files(state))
    for split, paths in found.items():
        if len({(p.parent, p.suffix) for p in paths}) > 1 or len(paths) > _shards(paths):
            raise UserError(
                f"split {split!r} is in {folder} more than once "
                f"({', '.join(sorted(p.name for p in paths)[:3])}); keep one of them"
            )
    return {s: SplitFiles(s, tuple(sorted(map(str, found[s])))) for s in sorted(found)}


def _shards(paths: list[pathlib.Path]) -> int:
    """How many files a split may have: one, or as many as are shards."""
    return max(1, sum(_SHARD.search(p.stem) is not None for p in paths))


def _saved_files(state: pathlib.Path) -> list[pathlib.Path]:
    content = read_json(state, "the state of a saved data set")
    try:
        return [state.parent / file["filename"] for file in content["_data_files"]]
    except (KeyError, TypeError) as e:
        raise UserError(f"{state} does not list the Arrow files of a saved data set") from e


# --- JSONL


def _read_jsonl(file: str) -> Iterator[Row]:
    number = 0
    try:
        with open(file, encoding="utf-8", newline="\n") as f:
            for number, line in enumerate(f, 1):
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise UserError(f"{file}, line {number}: a row must be a JSON object")
                    yield row
    except json.JSONDecodeError as e:
        raise UserError(
            f"{file}, line {number}: not valid JSON ({e.msg}); the file may be cut off"
        ) from e
    except UnicodeDecodeError as e:
        raise UserError(f"{file}, near line {number + 1}: not UTF-8; convert the file") from e
    except FileNotFoundError as e:
        raise UserError(f"rows not found: {file}") from e


def _count_jsonl(file: str) -> int:
    try:
        with open(file, "rb") as f:
            return sum(1 for line in f if line.strip())
    except FileNotFoundError as e:
        raise UserError(f"rows not found: {file}") from e


# --- Parquet and Arrow


def _read_parquet(file: str) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as f:
            for batch in f.iter_batches(_BATCH):
                yield from batch.to_pylist()
    except (pa.ArrowException, FileNotFoundError) as e:
        raise _damaged(file, e) from e


def _count_parquet(file: str) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_metadata(file).num_rows
    except (pa.ArrowException, FileNotFoundError) as e:
        raise _damaged(file, e) from e


def _arrow_batches(file: str) -> Iterator[Any]:
    """Record batches of an Arrow stream (what `datasets` writes) or an Arrow file."""
    import pyarrow as pa

    try:
        with pa.memory_map(file) as f:
            is_file = f.read(6) == b"ARROW1"
            f.seek(0)
            if is_file:
                reader = pa.ipc.open_file(f)
                yield from (reader.get_batch(i) for i in range(reader.num_record_batches))
            else:
                yield from pa.ipc.open_stream(f)
    except (pa.ArrowException, FileNotFoundError) as e:
        raise _damaged(file, e) from e


def _read_arrow(file: str) -> Iterator[Row]:
    for batch in _arrow_batches(file):
        for start in range(0, batch.num_rows, _BATCH):
            yield from batch.slice(start, _BATCH).to_pylist()


def _count_arrow(file: str) -> int:
    return sum(batch.num_rows for batch in _arrow_batches(file))


def _damaged(file: str, error: Exception) -> UserError:
    if isinstance(error, FileNotFoundError):
        return UserError(f"rows not found: {file}")
    return UserError(f"{file} is damaged ({str(error).splitlines()[0]}); download it again")


_READERS = {".jsonl": _read_jsonl, ".parquet": _read_parquet, ".arrow": _read_arrow}
_COUNTERS = {".jsonl": _count_jsonl, ".parquet": _count_parquet, ".arrow": _count_arrow}


# --- TensorFlow Datasets


def _is_tfds_version(folder: pathlib.Path) -> bool:
    return bool(_VERSION.fullmatch(folder.name)) and (folder / "features.json").is_file()


def _described_splits(description: pathlib.Path) -> dict[str, Split]:
    content = read_json(description, "the description of a TFDS data set")
    name = content.get("name") if isinstance(content, dict) else None
    if not isinstance(name, str):
        raise UserError(f"{description} has no `name` of a TFDS builder")
    return _tfds_splits(
        name, content.get("data_dir"), content.get("fields") or {}, str(description)
    )


def _tfds_splits(
    name: str, data_dir: str | None, fields: dict[str, str], description: str
) -> dict[str, Split]:
    splits = _tfds_builder(name, data_dir).info.splits
    if not splits:
        raise UserError(
            f"{description}: data set {name!r} is not prepared in {data_dir or 'the TFDS folder'}; "
            f"say: tfds build {name}"
        )
    return {
        split: TfdsSplit(split, (description, *map(str, info.filepaths)), name, data_dir, fields)
        for split, info in sorted(splits.items())
    }


def _tfds_builder(name: str, data_dir: str | None) -> Any:
    import tensorflow_datasets as tfds  # seconds, so only where a data set needs it

    try:
        if _is_tfds_version(pathlib.Path(name)):
            return tfds.builder_from_directory(name)
        return tfds.builder(name, data_dir=data_dir)
    except (tfds.core.DatasetNotFoundError, ValueError, AssertionError) as e:
        reason = " ".join(str(e).split())[:200]
        raise UserError(f"TFDS has no data set {name!r} here: {reason}") from e


def _plain(value: Any) -> Any:
    """NumPy values as JSON has them."""
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if hasattr(value, "to_list"):  # a ragged tensor
        return _plain(value.to_list())
    return _plain(value.tolist()) if hasattr(value, "tolist") else value
