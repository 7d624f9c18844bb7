"""Extracts the wanted files of a download: an archive, a compressed file, or the file itself."""

import errno
import gzip
import lzma
import pathlib
import shutil
import tarfile
import zipfile
import zlib

from optiml_jax.fetch.http import FetchError
from optiml_jax.fetch.sources import Source

_ARCHIVES = (".zip", ".tar", ".tgz", ".tbz", ".tbz2", ".txz", ".tar.gz", ".tar.bz2", ".tar.xz")
_DAMAGE = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, OSError, EOFError)
_FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
_CHUNK = 1 << 20


def unpack(source: Source, file: pathlib.Path, tree: pathlib.Path) -> pathlib.Path:
    """Unpacks `file` into `tree`, emptied before; the folder that holds `source.start`.

    Raises:
      FetchError: the archive is damaged, cut off or none, or has a member that would lie outside of
        `tree`.
      OSError: the disk is full.
    """
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir(parents=True)
    try:
        _unpack(source, file, tree)
    except _DAMAGE as e:
        if getattr(e, "errno", None) in _FULL_DISK:
            raise
        raise FetchError(f"{file.name} of {source.id} cannot be unpacked: {e}") from e
    return tree / source.start.strip("/")


def _unpack(source: Source, file: pathlib.Path, tree: pathlib.Path) -> None:
    if tarfile.is_tarfile(file):
        with tarfile.open(file) as archive:
            _extract(source, archive, tree)
            _check_end(archive)
    elif zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            names = [n for n in archive.namelist() if not n.endswith("/")]
            archive.extractall(tree, [n for n in names if source.wants(n)])
    elif file.name.lower().endswith(_ARCHIVES):
        raise tarfile.ReadError(
            "it is damaged or no archive, perhaps a page that asks for something; "
            f"look at {source.address} in a browser"
        )
    elif file.suffix == ".gz":
        with gzip.open(file) as packed, open(tree / file.stem, "wb") as out:
            shutil.copyfileobj(packed, out)
    else:
        shutil.copyfile(file, tree / file.name)


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


def _check_end(archive: tarfile.TarFile) -> None:
    """Raises a TarError unless the archive ends where its members do.

    `tarfile` takes a damaged header, and the end of a file that was cut, for the end of an archive.
    That is a block of zeros: usually two and padding, but one is enough for GNU tar, too.
    """
    archive.fileobj.seek(archive.offset)
    end = archive.fileobj.read(tarfile.BLOCKSIZE)
    while archive.fileobj.read(_CHUNK):  # to where gzip compares its checksum
        pass
    if end != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(f"it is damaged or cut off at byte {archive.offset:,} of the tar")
