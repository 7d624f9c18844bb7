"""Where data comes from, as facts: the form of a sources file, read and checked.

What is done with a source is said in the module of its kind: git.py, hub.py, http.py, tfds.py.
"""

import dataclasses
import fnmatch
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from optiml_jax.errors import UserError
from optiml_jax.yaml_files import read_yaml

KINDS = ("git", "hub", "http", "tfds", "ask")
PARQUET = "refs/convert/parquet"  # the Hub's own conversion, also of data sets that are scripts
# Licences under which a data set may not be used for everything, by their SPDX or Hub names.
_RESTRICTED = re.compile(r"(^|-)(nc|nd)(-|$)|non-?commercial|research-only|custom", re.IGNORECASE)
_NAMES = {dict: "mapping", list: "list", str: "text"}
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


@dataclasses.dataclass(frozen=True)
class Source:
    """One thing to fetch.

    Attributes:
      collection: what it belongs to, a key of `Run.data` or the name of a suite.
      name: unique in its collection.
      kind: one of `KINDS`; "ask" can only be had by asking.
      folder: that it is brought into, below the root.
      address: of a git repository, a file or archive; a Hub data set; a TFDS builder; for "ask" who
        must be asked and how.
      revision: commit, tag or branch; of "tfds" the version.
      only: globs over the paths upstream; empty: all.
      start: the folder upstream that is brought, without its name.
      configs: of "hub": configurations of a data set, each in a folder of its own; empty: all.
      size: bytes, as far as known; 0: not known.
      licence: as upstream names it; "card": as the Hub names it when it is fetched.
      sha256: of the file at `address`, where it is published or was seen.
      optional: left out unless its name is asked for.
    """

    collection: str
    name: str
    kind: str
    folder: str
    address: str
    revision: str = ""
    only: tuple[str, ...] = ()
    start: str = ""
    configs: tuple[str, ...] = ()
    size: int = 0
    licence: str = "unknown"
    sha256: str = ""
    optional: bool = False

    @property
    def id(self) -> str:
        return f"{self.collection}/{self.name}"

    def wants(self, path: str) -> bool:
        """Whether a file of the source is needed: it is in `start` and matches one of `only`."""
        start = f"{self.start.strip('/')}/" if self.start else ""
        inside = path.removeprefix(start)
        return path.startswith(start) and (
            not self.only or any(fnmatch.fnmatchcase(inside, glob) for glob in self.only)
        )


def restricted(licence: str) -> bool:
    """Whether the licence forbids some uses, so that the user must accept it."""
    return bool(_RESTRICTED.search(licence))


def read_sources(file: pathlib.Path) -> dict[str, list[Source]]:
    """The sources of every collection.

    Raises:
      UserError: the file is damaged, or a source lacks something; names it.
    """
    content = read_yaml(file, "the file of sources")
    found: dict[str, list[Source]] = {}
    for collection, entry in _value(content, "collections", dict, str(file)).items():
        where = f"{file}, {collection}"
        folder = _value(entry, "folder", str, where)
        found[collection] = []
        for row in (*_value(entry, "sources", list, where), *_sets(entry, where)):
            source = _source(file, collection, folder, row)
            if source.name in {s.name for s in found[collection]}:
                raise UserError(f"{file}: {source.id} is there twice")
            found[collection].append(source)
    return found


def _value(entry: Any, key: str, kind: type, where: str) -> Any:
    """What stands at a key; a UserError if the key is not there or holds something else."""
    if not isinstance(entry, dict):
        raise UserError(f"{where}: must be a mapping with the key {key!r}, not {entry!r}")
    if key not in entry:
        raise UserError(f"{where}: no key {key!r}; it has: {', '.join(map(str, entry)) or 'none'}")
    if not isinstance(entry[key], kind):
        raise UserError(f"{where}: {key!r} must be a {_NAMES[kind]}, not {entry[key]!r}")
    return entry[key]


def _sets(entry: Mapping[str, Any], where: str) -> Iterator[dict[str, Any]]:
    """The rows of the data sets that differ in nothing but their names."""
    for kind, form in (("hub", dict), ("tfds", list), ("http", list)):
        sets, inside = entry.get(f"{kind}_sets"), f"{where}, {kind}_sets"
        for name in _value(sets, "sets", form, inside) if sets is not None else ():
            to = _value(sets, "to", str, inside).replace("{name}", str(name))
            row = {"name": name, "kind": kind, "address": name, "to": to}
            if kind == "hub":
                row["configs"] = sets["sets"][name]
            if kind == "http":
                row["address"] = _value(sets, "address", str, inside).replace("{name}", str(name))
                row["licence"] = _value(sets, "licence", str, inside)
            yield row


def _source(file: pathlib.Path, collection: str, root: str, row: Any) -> Source:
    fields = {f.name for f in dataclasses.fields(Source)} - {"collection"}
    if not isinstance(row, dict):
        raise UserError(f"{file}, {collection}: a source must be a mapping, not {row!r}")
    where = f"{file}, {collection}/{row.get('name', '?')}"
    if unknown := sorted(row.keys() - fields - {"to"}):
        raise UserError(f"{where}: unknown field {unknown[0]!r}")
    if missing := sorted({"name", "kind", "address"} - row.keys()):
        raise UserError(f"{where}: no {missing[0]!r}")
    if row["kind"] not in KINDS:
        raise UserError(f"{where}: unknown kind {row['kind']!r}; known: {', '.join(KINDS)}")
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in row.items() if k != "to"}
    values["folder"] = "/".join(part for part in (root, row.get("to", "")) if part)
    values["size"] = parse_size(str(row.get("size", 0)))
    if row["kind"] == "hub":
        values.setdefault("revision", PARQUET)
        values.setdefault("licence", "card")
    if row["kind"] == "git" and not row.get("revision"):
        raise UserError(f"{where}: a git repository needs a revision")
    return Source(collection=collection, **values)


def parse_size(text: str) -> int:
    """Bytes of "350M", "1.2G" or a number."""
    match = re.fullmatch(r"([\d.]+)([KMGT]?)", text)
    if not match:
        raise UserError(f"not a size: {text!r}")
    return int(float(match[1]) * _UNITS[match[2]])


def format_size(size: int) -> str:
    """Bytes in readable units; "?" if not known."""
    if not size:
        return "?"
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
