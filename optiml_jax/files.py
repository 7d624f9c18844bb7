"""Writing files so that a reader never sees a half-written one."""

import contextlib
import errno
import hashlib
import json
import os
import pathlib
import stat
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

from optiml_jax.errors import UserError
from optiml_jax.paths import is_bucket, path_of

# Errors of an operation on a file that say something of the machine or the file, not of our code.
OF_THE_MACHINE = frozenset(
    {
        *(errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO, errno.ESTALE),
        *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENAMETOOLONG, errno.ELOOP),
        *(errno.EISDIR, errno.ENOTDIR, errno.ENOENT, errno.EEXIST, errno.EAGAIN),
        *(errno.ENOSPC, errno.EDQUOT),
    }
)


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
        if e.errno in OF_THE_MACHINE:
            raise UserError(f"cannot write {what} to {path}: {e.strerror}") from e
        raise


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields a temporary path next to `path`; renames it to `path` when the block succeeds.

    Of a path in a bucket the temporary lies on this machine, and is put there as one object.
    """
    path = path_of(path)
    if is_bucket(path):
        with tempfile.TemporaryDirectory() as folder:
            temporary = pathlib.Path(folder) / path.name
            yield temporary
            path.upload(temporary)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield temporary
        if path.is_dir():
            with contextlib.suppress(OSError):
                path.rmdir()  # an empty folder in the place of the file
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes `value` as indented JSON, atomically."""
    with disk_errors(path, "a JSON file"), atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")


class JSONDecoder(json.JSONDecoder):
    """Python's, for texts of unknown origin: whatever is wrong is a JSONDecodeError."""

    def raw_decode(self, s: str, idx: int = 0) -> tuple[Any, int]:
        try:
            return super().raw_decode(s, idx)
        except json.JSONDecodeError:
            raise
        except RecursionError as e:
            raise json.JSONDecodeError("brackets in brackets, too deep", s, idx) from e
        except ValueError as e:  # a whole number of thousands of digits
            raise json.JSONDecodeError(str(e).split(";")[0], s, idx) from e


def regular_file(path: str | os.PathLike) -> pathlib.Path:
    """The path, which must not be that of a folder, a pipe or a device: reading it might never end.

    Raises:
      UserError: it is one of them.
      OSError: nothing is there.
    """
    path = path_of(path)
    if is_bucket(path):
        return path
    if not stat.S_ISREG(path.stat().st_mode):
        raise UserError(f"{path} is not a file; restore the file")
    return path


def read_text(path: str | os.PathLike, what: str = "data file") -> str:
    """A text file in UTF-8; a missing one, another encoding or a folder in its place: UserError."""
    try:
        return regular_file(path).read_text("utf-8-sig")
    except FileNotFoundError as e:
        raise UserError(f"{what} not found: {path}") from e
    except OSError as e:
        raise UserError(f"{what} cannot be read: {path}: {e.strerror}") from e
    except UnicodeDecodeError as e:
        raise UserError(f"{path} is not UTF-8 ({e.reason}); download it again") from e


def read_json(path: str | os.PathLike, what: str, kind: type = object) -> Any:
    """Reads a JSON file; a missing or damaged one is a UserError that says what it should be.

    Args:
      kind: what must stand in it: dict, list, or anything.
    """
    try:
        value = json.loads(regular_file(path).read_text("utf-8-sig"), cls=JSONDecoder)
    except FileNotFoundError as e:
        raise UserError(f"{what} not found: {path}") from e
    except OSError as e:  # a folder in its place, no permission
        raise UserError(f"{what} cannot be read: {path}: {e.strerror}") from e
    except ValueError as e:
        raise UserError(f"{what} is damaged: {path}: {e}") from e
    if not isinstance(value, kind):
        raise UserError(f"{what} is damaged: {path} holds a {type(value).__name__}")
    return value


_SEAL = "checksum"


def write_sealed(path: str | os.PathLike, value: dict[str, Any]) -> None:
    """Writes a JSON object with a checksum of its content in it; see `read_sealed`."""
    value = json.loads(json.dumps({k: v for k, v in value.items() if k != _SEAL}))
    write_json(path, value | {_SEAL: fingerprint(value)})


def read_sealed(path: str | os.PathLike, what: str, mend: str) -> dict[str, Any]:
    """Reads what `write_sealed` wrote; UserError if it is not as it was written.

    Args:
      what: the file, as the subject of the message.
      mend: what to do about a damaged one.
    """
    try:
        value = read_json(path, what, dict)
    except UserError as e:
        raise UserError(f"{e}; {mend}") from e
    return opened_seal(value, path, what, mend)


def opened_seal(
    value: dict[str, Any], path: str | os.PathLike, what: str, mend: str
) -> dict[str, Any]:
    """`value` without its checksum, which must be right; see `read_sealed`."""
    content = {k: v for k, v in value.items() if k != _SEAL}
    if value.get(_SEAL) != fingerprint(content):
        raise UserError(f"{what} is damaged: {path} is not as it was written; {mend}")
    return content


def checksum(path: str | os.PathLike) -> list[int]:
    """Size and CRC-32 of a file."""
    size = value = 0
    with regular_file(path).open("rb") as f:
        while block := f.read(1 << 22):
            size, value = size + len(block), zlib.crc32(block, value)
    return [size, value]


def damage(folder: str | os.PathLike, checksums: Mapping[str, list[int]]) -> str | None:
    """The first file of a folder that is not as its `checksum` says, in words; None: all are."""
    for name, expected in checksums.items():
        try:
            found = checksum(path_of(folder) / name)
        except OSError as e:
            return f"{name}: {e.strerror or 'not found'}"
        except UserError as e:
            return str(e)
        if found != expected:
            return f"{name} is not as it was written"
    return None


def fingerprint(value: Any) -> str:
    """A short hash of any JSON-able value; equal values give equal hashes on every machine."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
