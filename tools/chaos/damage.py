"""Random damage to files, of the kinds that disks, copying and people cause."""

import os
import pathlib
import random
import shutil

KINDS = (
    *("bit", "byte", "zeros", "cut", "longer", "removed", "empty"),
    *("folder", "pipe", "link", "doubled"),
)
# For texts only: a duplicated or missing line, an unclosed bracket, invalid UTF-8.
TEXT_KINDS = (
    "line_doubled",
    "line_removed",
    "brackets",
    "not_utf8",
    "garbage_after",
    "nothing_else",
)


def damage(rng: random.Random, path: pathlib.Path, kind: str) -> str:
    """Damages the file; returns what was done."""
    if kind in ("removed", "folder", "pipe", "link"):
        return _replace(path, kind)
    data = bytearray(path.read_bytes())
    at = rng.randrange(len(data)) if data else 0
    what = f"{kind} of {path.name} at {at} of {len(data)}"
    lines = bytes(data).splitlines(keepends=True)
    line = rng.randrange(len(lines)) if lines else 0
    if not data or kind == "empty":
        data = bytearray()
    elif kind == "bit":
        data[at] ^= 1 << rng.randrange(8)
    elif kind == "byte":
        data[at] = rng.randrange(256)
    elif kind == "zeros":
        data[at : at + 64] = bytes(len(data[at : at + 64]))
    elif kind == "cut":
        del data[at:]
    elif kind in ("longer", "garbage_after"):
        data += bytes(rng.randrange(256) for _ in range(40)) if kind == "longer" else b"\n}]x"
    elif kind == "doubled":
        data = data + data
    elif kind == "line_doubled":
        data = bytearray(b"".join([*lines[: line + 1], *lines[line:]]))
    elif kind == "line_removed":
        data = bytearray(b"".join([*lines[:line], *lines[line + 1 :]]))
    elif kind == "brackets":
        data = bytearray(b"[" * 200_000)
    elif kind == "not_utf8":
        data[at:at] = b"\xff\xfe\xff"
    elif kind == "nothing_else":
        data = bytearray(rng.choice((b"null", b"{}", b"[]", b"1e999", b'"x"', b"9" * 5000)))
    path.write_bytes(bytes(data))
    return what


def _replace(path: pathlib.Path, kind: str) -> str:
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to(path.with_name("nowhere"))
    return f"{path.name}: {kind}"


def copied(source: pathlib.Path, destination: pathlib.Path) -> pathlib.Path:
    """A fresh copy of a folder, with its times."""
    shutil.rmtree(destination, ignore_errors=True)
    shutil.copytree(source, destination, symlinks=True)
    return destination
