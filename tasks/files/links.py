"""Broken links below a folder of data: what it promises and does not hold."""

import os
import pathlib
from collections.abc import Iterator

from optiml_jax.errors import UserError


def check_links(folder: str | os.PathLike) -> None:
    """Raises a UserError if a link below `folder` leads nowhere, whole data sets' folders too.

    Hidden folders are left out. A folder that is not there is somebody else's error.
    """
    root = pathlib.Path(folder).expanduser()
    if root.is_symlink() and not root.exists():
        broken = [root]
    elif root.is_dir():
        broken = list(_broken(root, set()))
    else:
        return
    if broken:
        more = f" (and {len(broken) - 1} more broken links)" if len(broken) > 1 else ""
        raise UserError(
            f"broken link: {broken[0]} -> {broken[0].readlink()}{more}; mend or remove it"
        )


def _broken(folder: pathlib.Path, seen: set[tuple[int, int]]) -> Iterator[pathlib.Path]:
    status = folder.stat()
    if (status.st_dev, status.st_ino) in seen:  # links may lead back up
        return
    seen.add((status.st_dev, status.st_ino))
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda e: e.name):
            if entry.name.startswith("."):
                continue
            if entry.is_symlink() and not os.path.exists(entry.path):
                yield pathlib.Path(entry.path)
            elif entry.is_dir():
                yield from _broken(pathlib.Path(entry.path), seen)
