"""One process at a time writes into a folder; the second is told who the first is."""

import contextlib
import logging
import os
import pathlib
import socket
import time
from collections.abc import Iterator

import filelock

from optiml_jax.bucket_claim import BucketClaim, stop_writing
from optiml_jax.errors import UserError
from optiml_jax.files import disk_errors
from optiml_jax.paths import is_bucket, path_of

logger = logging.getLogger(__name__)

# An owner that is not seen alive for so long, on whatever host, no longer owns the folder.
LEASE_SECONDS = 60.0


@contextlib.contextmanager
def one_writer(
    folder: str | os.PathLike, what: str, lease: float = LEASE_SECONDS
) -> Iterator[None]:
    """Holds the folder while the block runs.

    The claim is a file with host and process, refreshed while its owner lives; so it works on
    network file systems, and neither a killed process nor a host that is gone keeps it.

    Args:
      folder: made if it is not there.
      what: who writes, e.g. "optiml train".
      lease: seconds after which an owner that does not refresh its claim has lost it.

    Raises:
      UserError: another process writes into the folder; or the folder cannot be made.
    """
    if is_bucket(folder):
        claim = BucketClaim(path_of(folder) / f".{what.split()[-1]}.lock", lease)
        if (owner := claim.acquire()) is not None:
            raise _held(what, folder, owner)
        try:
            yield
        finally:
            claim.release()
        return
    folder = pathlib.Path(folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is not a folder; choose another one")
    with disk_errors(folder, f"the lock of {what}"):
        folder.mkdir(parents=True, exist_ok=True)
        claim = _acquire(folder / f".{what.split()[-1]}.lock", folder, what, lease)
    try:
        yield
    finally:
        claim.release()


def writer_of(folder: str | os.PathLike, what: str, lease: float = LEASE_SECONDS) -> str | None:
    """Who holds the folder as `what` now, "process 12 on host"; None: nobody who is alive."""
    file = pathlib.Path(folder) / f".{what.split()[-1]}.lock"
    try:
        age = time.time() - file.stat().st_mtime
    except OSError:
        return None
    claim = filelock.SoftFileLease(file, lease_duration=lease, thread_local=False)
    if _host(claim) == socket.gethostname() and claim.pid:
        try:
            os.kill(claim.pid, 0)
        except ProcessLookupError:
            return None
        except PermissionError:  # alive, and somebody else's
            pass
    elif age > lease:
        return None
    return _owner(claim)


def _acquire(
    file: pathlib.Path, folder: pathlib.Path, what: str, lease: float
) -> filelock.SoftFileLease:
    claim = filelock.SoftFileLease(
        file, lease_duration=lease, on_compromise=_lost, thread_local=False
    )
    _remove_nameless(file)
    try:
        claim.acquire(timeout=1)  # enough to see that an owner on this host is dead
        return claim
    except filelock.Timeout:
        if _host(claim) not in ("", socket.gethostname()):
            logger.warning(
                "%s is held by %s; waiting %.0f s to see whether it is alive",
                folder,
                _owner(claim),
                lease,
            )
            with contextlib.suppress(filelock.Timeout):
                claim.acquire(timeout=lease + 5)
                return claim
        raise _held(what, folder, _owner(claim)) from None


def _remove_nameless(file: pathlib.Path) -> None:
    """Removes a claim whose owner was killed between making the file and writing its name into it.

    Those moments take microseconds; a second later the file would not be empty, or be another.
    """
    with contextlib.suppress(FileNotFoundError):
        if (seen := file.stat()).st_size == 0:
            time.sleep(1)
            now = file.stat()
            if (now.st_ino, now.st_mtime_ns, now.st_size) == (seen.st_ino, seen.st_mtime_ns, 0):
                file.unlink()


def _owner(claim: filelock.SoftFileLease) -> str:
    host = _host(claim)
    return f"process {claim.pid} on {host}" if host else "an owner that left no name"


def _host(claim: filelock.SoftFileLease) -> str:
    """The host that the claim's file names; empty when there is none any more."""
    with contextlib.suppress(OSError):
        lines = pathlib.Path(claim.lock_file).read_text("utf-8").splitlines()
        return next((x.removeprefix("host=") for x in lines if x.startswith("host=")), "")
    return ""


def _held(what: str, folder: str | os.PathLike, owner: str) -> UserError:
    return UserError(
        f"another `{what}` is at work in {folder}: {owner}; wait for it, stop it, or choose "
        "another folder"
    )


def _lost(loss: filelock.LeaseCompromise) -> None:
    stop_writing(loss.lock_file, loss.reason)
