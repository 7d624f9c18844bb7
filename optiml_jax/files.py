"""Writing files so that a reader never sees a half-written one."""

import contextlib
import errno
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from optiml_jax.errors import UserError


@contextlib.contextmanager
def disk_errors(path: str | os.PathLike, what: str) -> Iterator[None]:
    """Turns a full disk, a quota or a read-only folder into a UserError that names `path`.

    Args:
      path: the file or folder being written.
      what: what was being written, e.g. "the cache of task superni/task001".
    """
    try:
        yield
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"no space left on the disk of {path} while writing {what}; "
                "free some space or choose another folder, then run the same command again"
            ) from e
        if e.errno in (errno.EROFS, errno.EACCES):
            raise UserError(f"cannot write {what} to {path}: {e.strerror}") from e
        raise


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields a temporary path beside `path`; renames it onto `path` when the block succeeds."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes `value` as indented JSON, atomically."""
    with disk_errors(path, "a JSON file"), atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")


def read_json(path: str | os.PathLike, what: str) -> Any:
    """Reads a JSON file; a missing or damaged one is a UserError that says what it should be."""
    try:
        return json.loads(pathlib.Path(path).read_text("utf-8-sig"))
    except FileNotFoundError as e:
        raise UserError(f"{what} not found: {path}") from e
    except (json.JSONDecodeError, UnicodeDecodeError) as e:
        raise UserError(f"{what} is damaged: {path}: {e}") from e


def fingerprint(value: Any) -> str:
    """A short hash of any JSON-able value; equal values give equal hashes on every machine."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
