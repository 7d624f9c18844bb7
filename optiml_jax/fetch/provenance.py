"""The origin of fetched files, stored with them, and whether they have changed.

`provenance.json` in the folder of a source:

    {"sources": {"<collection>/<name>": {"address", "kind", "revision", "licence", "date",
                                         "files": {"<path>": {"size", "sha256"}}}}}
"""

import concurrent.futures
import functools
import hashlib
import logging
import os
import pathlib
import threading
from collections.abc import Iterable, Mapping
from typing import Any

from optiml_jax.files import read_json, write_json

_log = logging.getLogger(__name__)
FILE = "provenance.json"
_CHUNK = 1 << 20
_lock = threading.Lock()  # several sources may share a folder


def sha256_of(path: pathlib.Path) -> str:
    """The SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def git_blob_sha1(path: pathlib.Path) -> str:
    """The id that git gives a file, by which the Hub names small files."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def describe(folder: pathlib.Path, paths: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Size and hash of files, hashed in parallel."""
    paths = sorted(paths)

    def one(path: str) -> dict[str, Any]:
        return {"size": (folder / path).stat().st_size, "sha256": sha256_of(folder / path)}

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(paths, pool.map(one, paths), strict=True))


def load(folder: pathlib.Path) -> dict[str, Any]:
    """Source id -> its provenance; empty when the folder has none, or another program's."""
    return _sources(folder) or {}


def is_foreign(folder: pathlib.Path) -> bool:
    """Whether another program wrote the folder's file of our name."""
    return _sources(folder) is None


def _sources(folder: pathlib.Path) -> dict[str, Any] | None:
    """Source id -> its provenance; None when another program wrote the file."""
    file = folder / FILE
    if not file.exists():
        return {}
    content = read_json(file, "the provenance of fetched data")
    sources = content.get("sources") if isinstance(content, dict) else None
    if isinstance(sources, dict) and all(map(_lists_files, sources.values())):
        return sources
    _warn_of_foreign(file)
    return None


def _lists_files(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("files"), dict)


@functools.cache  # once for each file, though every task looks for it
def _warn_of_foreign(file: pathlib.Path) -> None:
    _log.warning("%s is not the provenance of fetched data, but another program's: not used", file)


def record(folder: pathlib.Path, source_id: str, entry: Mapping[str, Any]) -> None:
    """Records a complete source."""
    with _lock:
        for leftover in folder.glob(f".{FILE}.*.partial"):  # of a process that was killed here
            leftover.unlink(missing_ok=True)
        write_json(folder / FILE, {"sources": {**load(folder), source_id: dict(entry)}})


def damage(
    folder: pathlib.Path, files: Mapping[str, Mapping[str, Any]], hashes: bool = True
) -> dict[str, str]:
    """Path -> what is wrong with it: "missing", "truncated", "changed".

    Args:
      hashes: also read the files; otherwise sizes are compared only.
    """
    found = {}
    whole = []
    for path, known in files.items():
        place = folder / path
        if not place.is_file():
            found[path] = "missing"
        elif (size := place.stat().st_size) != known["size"]:
            found[path] = "truncated" if size < known["size"] else "changed"
        else:
            whole.append(path)
    for path, now in describe(folder, whole).items() if hashes else ():
        if now["sha256"] != files[path]["sha256"]:
            found[path] = "changed"
    return found


def sources_of(paths: Iterable[str]) -> list[dict[str, str]]:
    """Where files came from, without the lists of files; [] for those that were not fetched.

    Looks for the nearest provenance.json above each file.
    """
    found: dict[str, dict[str, str]] = {}
    by_folder: dict[pathlib.Path, dict[str, Any] | None] = {}
    for path in map(pathlib.Path, paths):
        for folder in path.absolute().parents:
            if folder not in by_folder:
                by_folder[folder] = load(folder)
            for name, entry in by_folder[folder].items():
                if str(path.absolute().relative_to(folder)) in entry["files"]:
                    own = {k: v for k, v in entry.items() if k != "files"}
                    found[name] = {"source": name, **own}
    return [found[name] for name in sorted(found)]
