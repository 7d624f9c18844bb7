"""Places of run, cache and plan: plain folders and folders in buckets (`gs://`, `s3://`) alike.

`path_of` gives a path for either; code that only reads and writes whole files need not know which.
Files with random access (arrays, records) are read from `local_copy`.
"""

import contextlib
import glob
import hashlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Sequence

from optiml_jax.errors import UserError

SCHEMES = ("gs://", "s3://")


def is_bucket(place: str | os.PathLike) -> bool:
    """Whether `place` is in a bucket."""
    return os.fspath(place).startswith(SCHEMES)


def path_of(place: str | os.PathLike) -> pathlib.Path:
    """`place` as a path: pathlib's, or one of a bucket with the same methods (`buckets.py`).

    Raises:
      UserError: the bucket cannot be reached.
    """
    if not is_bucket(place):
        return pathlib.Path(place)
    from optiml_jax import buckets

    path = buckets.BucketPath(os.fspath(place))
    buckets.reach(path)
    return path


def plain_path(place: str | os.PathLike, name: str) -> pathlib.Path:
    """`place` as a path of pathlib; UserError with the name of its setting if it is in a bucket."""
    if is_bucket(place):
        raise UserError(f"{name} = {os.fspath(place)!r}: set it to a plain folder, not a bucket")
    return pathlib.Path(place)


def matching(pattern: str) -> list[pathlib.Path]:
    """Matches of a shell pattern among plain files and folders, or in one bucket."""
    if not is_bucket(pattern):
        return [pathlib.Path(found) for found in glob.glob(pattern)]
    scheme, _, rest = pattern.partition("://")
    bucket, _, rest = rest.partition("/")
    return list(path_of(f"{scheme}://{bucket}").glob(rest))


def sizes(folder: pathlib.Path) -> dict[str, int]:
    """Bytes of every file below `folder`, by its path relative to it."""
    if is_bucket(folder):
        return folder.sizes()
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.stat().st_size for path in files}


def remove_folder(folder: pathlib.Path) -> None:
    """Removes a folder and its contents; does nothing if it does not exist."""
    if is_bucket(folder):
        folder.rmtree(missing_ok=True)
    else:
        shutil.rmtree(folder, ignore_errors=True)


def local_copy(file: pathlib.Path) -> pathlib.Path:
    """`file` itself; of one in a bucket a copy on this machine, which is made once.

    Copies are in $OPTIML_COPIES (default: ~/.cache/optiml_jax/copies), named after place and
    content; missing ones are made again.
    """
    return local_copies(file.parent, [file.name]) / file.name if is_bucket(file) else file


def local_copies(folder: pathlib.Path, names: Sequence[str] | None = None) -> pathlib.Path:
    """A folder with copies of these files of `folder` (None: of all), itself if it is a plain one.

    See `local_copy`.
    """
    if not is_bucket(folder):
        return folder
    names = sorted(folder.sizes()) if names is None else names
    versions = [str(folder), *(f"{name}\0{(folder / name).stat().version}" for name in names)]
    copies = _copies() / hashlib.sha256("\0".join(versions).encode()).hexdigest()[:24]
    if not copies.exists():
        copies.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".partial", dir=copies.parent) as partial:
            for name in names:
                target = pathlib.Path(partial, copies.name, name)
                target.parent.mkdir(parents=True, exist_ok=True)
                (folder / name).download(target)
            with contextlib.suppress(OSError):  # another process was faster
                os.rename(pathlib.Path(partial, copies.name), copies)
    return copies


def upload_folder(local: pathlib.Path, folder: pathlib.Path) -> None:
    """Copies all files of a local folder into one of a bucket."""
    for path in sorted(p for p in local.rglob("*") if p.is_file()):
        (folder / str(path.relative_to(local))).upload(path)


def _copies() -> pathlib.Path:
    if place := os.environ.get("OPTIML_COPIES"):
        return pathlib.Path(place)
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return pathlib.Path(base) / "optiml_jax" / "copies"
