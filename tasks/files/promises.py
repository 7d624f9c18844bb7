"""Checks a folder of data: no broken links, complete files, everything fetched."""

import logging
import os
import pathlib
import stat
from collections.abc import Iterator

from optiml_jax.errors import UserError
from optiml_jax.fetch.provenance import FILE, damage, load
from tasks.files.formats import format_of

logger = logging.getLogger(__name__)

_SHOWN = 5


def check_folder(folder: str | os.PathLike) -> None:
    """Refuses broken links below a folder, whole data sets' too.

    Names in the log what readers would pass over in silence: fetched files that are gone, pipes,
    empty files of data and folders called like one. Hidden folders are left out. A folder that is
    not there is somebody else's error.

    Raises:
      UserError: a link leads nowhere.
    """
    root = pathlib.Path(folder).expanduser()
    broken = [root] if root.is_symlink() and not root.exists() else []
    strange = []
    for path in _members(root, set()) if root.is_dir() else ():
        if not path.exists():
            broken += [path] if path.is_symlink() else []
        elif path.name == FILE:
            _name_lost_files(path.parent)
        elif _is_strange(path):
            strange.append(str(path))
    if broken:
        more = f" (and {len(broken) - 1} more broken links)" if len(broken) > 1 else ""
        raise UserError(
            f"broken link: {broken[0]} -> {broken[0].readlink()}{more}; fix or remove it"
        )
    if strange:
        shown = ", ".join(strange[:_SHOWN]) + ", ..." * (len(strange) > _SHOWN)
        logger.warning("pipes, folders or empty files in the place of data: %s", shown)


def _is_strange(path: pathlib.Path) -> bool:
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        return bool(format_of(path.name))
    return not stat.S_ISREG(status.st_mode) or bool(not status.st_size and format_of(path.name))


def _name_lost_files(folder: pathlib.Path) -> None:
    for source, entry in load(folder).items():
        wrong = damage(folder, entry["files"], hashes=False)
        if lost := [f"{file} ({why})" for file, why in sorted(wrong.items()) if why != "changed"]:
            logger.warning(
                "%s: %d of %d files of %s are not as they were fetched: %s; fetch again",
                *(folder, len(lost), len(entry["files"]), source),
                ", ".join(lost[:3]) + ", ..." * (len(lost) > 3),
            )


def _members(folder: pathlib.Path, seen: set[tuple[int, int]]) -> Iterator[pathlib.Path]:
    """Everything below a folder but what is hidden; follows links."""
    status = folder.stat()
    if (status.st_dev, status.st_ino) in seen:  # links may lead back up
        return
    seen.add((status.st_dev, status.st_ino))
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda e: e.name):
            if entry.name.startswith("."):
                continue
            yield pathlib.Path(entry.path)
            if os.path.isdir(entry.path):
                yield from _members(pathlib.Path(entry.path), seen)
