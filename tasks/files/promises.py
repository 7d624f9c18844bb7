"""What a folder of data promises: links that lead somewhere, and the files that were fetched."""

import logging
import os
import pathlib
from collections.abc import Iterator

from optiml_jax.errors import UserError
from optiml_jax.fetch.provenance import FILE, damage, load

logger = logging.getLogger(__name__)


def check_folder(folder: str | os.PathLike) -> None:
    """Refuses broken links below a folder, whole data sets' too; names lost files in the log.

    Hidden folders are left out. A folder that is not there is somebody else's error.

    Raises:
      UserError: a link leads nowhere.
    """
    root = pathlib.Path(folder).expanduser()
    broken = [root] if root.is_symlink() and not root.exists() else []
    for path in _members(root, set()) if root.is_dir() else ():
        if path.is_symlink() and not path.exists():
            broken.append(path)
        elif path.name == FILE:
            _name_lost_files(path.parent)
    if broken:
        more = f" (and {len(broken) - 1} more broken links)" if len(broken) > 1 else ""
        raise UserError(
            f"broken link: {broken[0]} -> {broken[0].readlink()}{more}; mend or remove it"
        )


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
    """The links, and files with the provenance of others, below a folder; follows links."""
    status = folder.stat()
    if (status.st_dev, status.st_ino) in seen:  # links may lead back up
        return
    seen.add((status.st_dev, status.st_ino))
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda e: e.name):
            if entry.name.startswith("."):
                continue
            if entry.is_symlink() or entry.name == FILE:
                yield pathlib.Path(entry.path)
            if os.path.isdir(entry.path):  # links in a circle are none
                yield from _members(pathlib.Path(entry.path), seen)
