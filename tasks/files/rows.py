"""Rows of data sets as a user has them on disk, or a TFDS builder by name.

What is found in the folder of one data set (no file is opened until rows are read):
  <split>.jsonl, .json (a list, or one row a line), .csv, .tsv (with a line of names), .parquet,
      .arrow; the texts also compressed (.gz, .zst); in shards, <split>-00000-of-00004.parquet, and
      with a name in front, squad-train.arrow, as the cache of Hugging Face's `datasets` has them;
  the same files in a folder `data`, `default` or `plain_text`, or in `snapshots/<revision>`: a data
      set's repository on the Hub, as it is cloned, downloaded or cached; a split that is JSONL,
      Parquet or Arrow is read from there, though JSON, CSV or TSV with its name lies beside;
  <split>/0000.parquet, as the Hub converts data sets to Parquet;
  <split>/state.json and its Arrow files, as `Dataset.save_to_disk` writes them, or those of one
      split in the folder itself; rows that were selected or shuffled come as they were chosen;
  tfds.json: {"name": "glue/mrpc", "data_dir": null, "fields": {"<TFDS name>": "<our name>"}};
  <version>/ as TFDS prepares it, when the folder is one of TFDS's data_dir (the newest counts).
All streaming: memory does not grow with the file. What rows mean is not known here; how the files
are read is in `formats.py`.
"""

import dataclasses
import logging
import pathlib
import re
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from optiml_jax.data.sampling import RowSample
from optiml_jax.errors import UserError
from optiml_jax.files import read_json, read_text
from tasks.files.formats import (
    Row,
    count_rows,
    format_of,
    read_chosen,
    read_rows,
    read_selected,
    stem_of,
)
from tasks.files.values import without_nan

logger = logging.getLogger(__name__)

_FIRST_CHOICE = (".jsonl", ".parquet", ".arrow")
# Of the other formats a folder may hold what is no split: descriptions, tables of metadata.
_SPLIT_NAME = re.compile(r"(train|valid|dev|test|eval)\w*")
_SUBFOLDERS = ("data", "default", "plain_text")
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_SHARD = re.compile(r"-(\d+)-of-(\d+)$")
_CONVERTED = re.compile(r"\d{4}")


@dataclasses.dataclass(frozen=True)
class SplitFiles:
    """One split in files of one format.

    Attributes:
      name: the split's own name, e.g. "validation_matched".
      data_files: in order.
      indices: Arrow files that choose among the rows of these, if any.
    """

    name: str
    data_files: tuple[str, ...]
    indices: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[str, ...]:
        """All files, in order."""
        return self.data_files + self.indices

    def read(self, sample: RowSample | None = None) -> Iterator[Row | None]:
        """The rows in order. A file that is damaged or no longer there is a UserError.

        With a sample, None stands in the place of every row that is left out.
        """
        positions = sample.positions(self.count()) if sample else None
        if self.indices:
            yield from _chosen(read_selected(self.data_files, self.indices), positions)
            return
        start = 0
        for file in self.data_files:
            if positions is None:
                yield from read_rows(file)
                continue
            end = start + (count_rows(file) if len(self.data_files) > 1 else int(positions[-1]) + 1)
            first, last = np.searchsorted(positions, (start, end))
            yield from read_chosen(file, positions[first:last] - start)
            start = end

    def count(self) -> int:
        """The number of rows, without making them where the format allows it."""
        return sum(map(count_rows, self.indices or self.data_files))


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

    def read(self, sample: RowSample | None = None) -> Iterator[Row | None]:
        """The rows in TFDS's order: bytes as text, arrays as lists; a sample: `SplitFiles`."""
        positions = sample.positions(self.count()) if sample else None
        yield from _chosen(self._rows(), positions)

    def _rows(self) -> Iterator[Row]:
        import tensorflow_datasets as tfds

        builder = _tfds_builder(self.builder, self.data_dir)
        dataset = builder.as_dataset(split=self.name, shuffle_files=False)
        for row in tfds.as_numpy(dataset):
            plain = {self.fields.get(key, key): _plain(value) for key, value in row.items()}
            yield without_nan(plain)

    def count(self) -> int:
        """The number of rows."""
        return _tfds_builder(self.builder, self.data_dir).info.splits[self.name].num_examples


Split = SplitFiles | TfdsSplit


def _chosen(rows: Iterator[Row], positions: np.ndarray | None) -> Iterator[Row | None]:
    if positions is None:
        yield from rows
        return
    chosen = set(positions.tolist())
    for number, row in enumerate(rows):
        yield row if number in chosen else None


def find_splits(folder: pathlib.Path) -> dict[str, Split]:
    """The splits of a data set's folder by name, sorted; empty when there are none.

    Raises:
      UserError: a split is there in two formats or lacks a file, a link is broken, or tfds.json is
        damaged or names no builder that is prepared here.
    """
    if not folder.is_dir():
        return {}
    description = folder / "tfds.json"
    if description.is_file():
        return _described_splits(description)
    if versions := [p for p in folder.iterdir() if _is_tfds_version(p)]:
        newest = max(versions, key=lambda p: [int(part) for part in p.name.split(".")])
        return _tfds_splits(str(newest), None, {}, str(newest / "dataset_info.json"))
    found = _splits_in(folder)
    snapshots = _snapshots(folder)
    nested = (place / name for place in (folder, *snapshots) for name in _SUBFOLDERS)
    for place in (*snapshots, *nested):
        if place.is_dir():
            for split, parts in _splits_in(place).items():
                found.setdefault(split, []).extend(parts)
    for split, parts in found.items():
        if len(parts) > 1:
            names = sorted(file for part in parts for file in part.data_files)
            shown = ", ".join(pathlib.Path(name).name for name in names[:3])
            raise UserError(f"split {split!r} is in {folder} more than once ({shown}); keep one")
    if not found:
        _warn_of_no_split(folder)
    return {split: found[split][0] for split in sorted(found)}


def _warn_of_no_split(folder: pathlib.Path) -> None:
    """Names a folder that looks like a data set's, but has no split."""
    members = [p for p in folder.iterdir() if not p.name.startswith(".")]
    inner = any(p.is_dir() for p in members)  # perhaps the folder of its configurations
    strange = [p.name for p in members if not inner or _is_strange(p)]
    if strange:
        shown = ", ".join(sorted(strange)[:5])
        logger.warning(
            "%s: no split of a data set is recognised among its files: %s", folder, shown
        )
    elif not inner:
        logger.warning("%s: the folder of a data set is empty", folder)


def _is_strange(path: pathlib.Path) -> bool:
    """Whether a file looks like data, in a folder where no data was found."""
    about = path.suffix.lower() in (".md", ".py", ".txt", ".json", ".yaml", "")
    return path.is_file() and not about


def _snapshots(folder: pathlib.Path) -> list[pathlib.Path]:
    """The revision of a Hub's cache folder: the one that `main` is, or the only one."""
    main = folder / "refs" / "main"
    if main.is_file():
        return [folder / "snapshots" / read_text(main).strip()]
    revisions = sorted(folder.glob("snapshots/*"))
    if len(revisions) > 1:
        raise UserError(f"{folder / 'snapshots'} holds several revisions; keep one of them")
    return revisions


def _splits_in(folder: pathlib.Path) -> dict[str, list[SplitFiles]]:
    """Every split that lies in a folder, in as many ways as it lies there."""
    paths = sorted(folder.iterdir())
    if broken := [p for p in paths if p.is_symlink() and not p.exists()]:
        raise UserError(f"broken link: {broken[0]} -> {broken[0].readlink()}; fix or remove it")
    files = [p for p in paths if p.is_file() and format_of(p)]
    chosen = _of_splits(files)
    states = sorted(folder.glob("*/state.json"))
    if (folder / "state.json").is_file():
        states.append(folder / "state.json")
        chosen = []
    groups: dict[tuple[str, str], list[pathlib.Path]] = {}
    for path in chosen:
        groups.setdefault((_split_of(path), format_of(path)), []).append(path)
    found: dict[str, list[SplitFiles]] = {}
    for (split, _), members in groups.items():
        found.setdefault(split, []).extend(_shards(split, members))
    for state in states:
        saved = _saved(state, state.parent == folder)
        found.setdefault(saved.name, []).append(saved)
    for path in paths:
        converted = [p for p in path.glob("*.parquet") if _CONVERTED.fullmatch(p.stem)]
        if converted and path.name not in _SUBFOLDERS:
            found.setdefault(path.name, []).append(_split(path.name, _numbered(converted)))
    return found


def _of_splits(files: list[pathlib.Path]) -> list[pathlib.Path]:
    """The files that are splits: JSON, CSV and TSV by their names, where no other format has it."""
    first = [p for p in files if format_of(p) in _FIRST_CHOICE]
    there = {_split_of(p) for p in first}
    others = ((p, _split_of(p)) for p in files if p not in first)
    return first + [p for p, name in others if _SPLIT_NAME.fullmatch(name) and name not in there]


def _numbered(converted: list[pathlib.Path]) -> list[pathlib.Path]:
    """0000.parquet, 0001.parquet, ...; a UserError names the first gap."""
    paths = sorted(converted)
    for number, path in enumerate(paths):
        if int(path.stem) != number:
            missing = path.with_name(f"{number:04d}.parquet")
            raise UserError(f"{missing} is missing, but {path.name} is there: download it again")
    return paths


def _split_of(path: pathlib.Path) -> str:
    return _SHARD.sub("", stem_of(path)).rpartition("-")[2]


def _split(name: str, paths: Iterable[pathlib.Path]) -> SplitFiles:
    return SplitFiles(name, tuple(map(str, paths)))


def _shards(split: str, paths: list[pathlib.Path]) -> list[SplitFiles]:
    """The files of a split and format: one set of shards, which must be whole; or single files."""
    parts = [_SHARD.search(stem_of(path)) for path in paths]
    if not all(parts):
        return [_split(split, [path]) for path in paths]
    by_set: dict[tuple[str, int], dict[int, pathlib.Path]] = {}
    for path, part in zip(paths, parts, strict=True):
        key = stem_of(path)[: part.start()], int(part[2])
        by_set.setdefault(key, {})[int(part[1])] = path
    for (_, total), numbered in by_set.items():
        if missing := [n for n in range(total) if n not in numbered]:
            raise UserError(
                f"split {split!r} in {paths[0].parent} has {len(numbered)} of its {total} files; "
                f"number {missing[0]:05d} is missing: download it"
            )
    return [_split(split, (s[n] for n in sorted(s))) for s in by_set.values()]


def _saved(state: pathlib.Path, alone: bool) -> SplitFiles:
    """A split that `save_to_disk` wrote; its name is its folder's, unless it stands alone."""
    content = read_json(state, "the state of a saved data set")
    try:
        files, indices = (
            tuple(str(state.parent / file["filename"]) for file in content.get(key) or ())
            for key in ("_data_files", "_indices_data_files")
        )
    except (AttributeError, KeyError, TypeError) as e:
        raise UserError(f"{state} does not list the Arrow files of a saved data set") from e
    if not files:
        raise UserError(f"{state} does not list the Arrow files of a saved data set")
    if missing := [file for file in files + indices if not pathlib.Path(file).is_file()]:
        raise UserError(f"{state} lists {missing[0]}, which is not there: copy it again")
    name = content.get("_split") or "train" if alone else state.parent.name
    return SplitFiles(name, files, indices)


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
