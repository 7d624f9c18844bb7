"""Extracts the wanted files of a download: an archive, a compressed file, or the file itself."""

import gzip
import pathlib
import shutil
import tarfile
import zipfile

from optiml_jax.fetch.http import FetchError
from optiml_jax.fetch.sources import Source


def unpack(source: Source, file: pathlib.Path, tree: pathlib.Path) -> pathlib.Path:
    """Unpacks `file` into `tree`, emptied before; the folder that holds `source.start`.

    Raises:
      FetchError: the archive is damaged, or has a member that would lie outside of `tree`.
    """
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir(parents=True)
    try:
        if tarfile.is_tarfile(file):
            with tarfile.open(file) as archive:
                _extract(source, archive, tree)
        elif zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                names = [n for n in archive.namelist() if not n.endswith("/")]
                archive.extractall(tree, [n for n in names if source.wants(n)])
        elif file.suffix == ".gz":
            with gzip.open(file) as packed, open(tree / file.stem, "wb") as out:
                shutil.copyfileobj(packed, out)
        else:
            shutil.copyfile(file, tree / file.name)
    except (tarfile.TarError, zipfile.BadZipFile, OSError, EOFError) as e:
        raise FetchError(f"{file.name} of {source.id} cannot be unpacked: {e}") from e
    return tree / source.start.strip("/")


def _extract(source: Source, archive: tarfile.TarFile, tree: pathlib.Path) -> None:
    """Extracts regular files, by hand: Python 3.11 has the filter "data" from 3.11.4 on only."""
    inside = tree.resolve()
    for member in archive:
        name = member.name.removeprefix("./")
        if not member.isfile() or not source.wants(name):
            continue
        place = (inside / name).resolve()
        if not place.is_relative_to(inside):
            raise tarfile.TarError(f"{member.name!r} would lie outside of its folder")
        place.parent.mkdir(parents=True, exist_ok=True)
        with archive.extractfile(member) as packed, open(place, "wb") as out:
            shutil.copyfileobj(packed, out)
