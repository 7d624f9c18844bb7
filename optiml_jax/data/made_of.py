"""What stored artefacts were made of: the user's files, by size, time of modification and hash."""

import hashlib
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from optiml_jax.data.example import TaskSource
from optiml_jax.errors import UserError
from optiml_jax.files import regular_file

Key = tuple[str, int, int]  # path, size, time of modification


def stat_key(file: str) -> Key | None:
    """Identifies a file without reading it; None: it does not exist."""
    try:
        status = os.stat(file)
    except OSError:
        return None
    return (file, status.st_size, status.st_mtime_ns)


def known_digests(files: Sequence[Mapping[str, Any]]) -> dict[Key, str]:
    """Hashes by `stat_key`, of what `digest` gave."""
    return {(f["path"], f["size"], f["mtime_ns"]): f["sha256"] for f in files}


def digest(file: str, known: Mapping[Key, str]) -> dict[str, Any]:
    """Path, size, time of modification and hash of a file, which is only read if not `known`."""
    now = time.time_ns()
    key = stat_key(file)
    try:
        if key is None or key not in known:
            with regular_file(file).open("rb") as f:
                sha256 = hashlib.file_digest(f, "sha256").hexdigest()
        else:
            sha256 = known[key]
    except OSError as e:
        raise UserError(f"cannot read {file}: {e.strerror}") from e
    _, size, mtime = key
    # A file changed a moment ago may change again within the clock's grain: hashed again next time.
    return {
        "path": file,
        "size": size,
        "mtime_ns": mtime if now - mtime > 2_000_000_000 else -1,
        "sha256": sha256,
    }


def change(files: Sequence[str], stored: Sequence[Mapping[str, Any]]) -> str | None:
    """What has changed from `stored`, in words; None: nothing.

    The same bytes at another place or time are no change. Only files whose place, size or time
    differ are read.

    Args:
      files: as they are now, in the order of `stored`.
      stored: what `digest` gave for them.
    """
    before = [file["path"] for file in stored]
    if len(files) != len(before):
        odd = sorted({*files} ^ {*before})
        what = "is new" if odd and odd[0] in files else "is gone"
        return f"{odd[0]} {what}" if odd else f"{len(files)} files instead of {len(before)}"
    known = known_digests(stored)
    for file, old in zip(files, stored, strict=True):
        key = stat_key(file)
        if key is None:
            return f"{file} is gone"
        if known.get(key) == old["sha256"]:
            continue
        if key[1] != old["size"]:
            return f"{file} has {key[1]:,} bytes and had {old['size']:,}"
        if digest(file, {})["sha256"] != old["sha256"]:
            return f"{file} has another content"
    return None


def reader_settings(source: TaskSource) -> dict[str, Any]:
    """What determines, besides its files, what is read from a task."""
    return {
        "splits": source.splits,
        "level": source.instruction_level,
        "settings": source.settings,
    }
