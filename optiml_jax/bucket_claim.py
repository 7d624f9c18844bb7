"""A claim on a folder in a bucket: an object that is made only where none is.

Its owner renews it while it lives. No clocks are compared: a process that finds a claim watches
whether it changes. Two processes that take over a dead owner's claim at the same moment find out
whose it is when they renew it, and the other one stops.
"""

import contextlib
import logging
import os
import signal
import socket
import threading
import time
import uuid
from typing import Any

from optiml_jax.errors import bucket_error, in_short

logger = logging.getLogger(__name__)


class BucketClaim:
    """The claim of this process.

    Args:
      file: the object (`buckets.BucketPath`).
      lease: seconds after which a claim that did not change is nobody's.
    """

    def __init__(self, file: Any, lease: float):
        self._file, self._lease = file, lease
        self._name = f"host={socket.gethostname()}\npid={os.getpid()}\nid={uuid.uuid4().hex}\n"
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._refresh, daemon=True)

    def acquire(self) -> str | None:
        """Claims the folder; returns who has it where that fails.

        Raises:
          UserError: nothing can be written there; says whether that may pass.
        """
        try:
            owner = self._create()
        except Exception as e:  # the services, their clients and the network have each their own
            raise bucket_error(f"cannot write to {self._file.parent}", e) from e
        if owner is None:
            self._thread.start()
        return owner

    def release(self) -> None:
        """Gives the folder back, unless it is another's by now.

        Where that fails the claim stays, which is a warning: how the run ended counts more.
        """
        self._released.set()
        self._thread.join()
        try:
            if self._read().startswith(self._name):
                self._file.unlink(missing_ok=True)
        except Exception as e:  # see `acquire`
            logger.warning(
                "the claim %s could not be removed (%s); the next start may have to wait %.0f s",
                self._file,
                in_short(e),
                self._lease,
            )

    def _create(self) -> str | None:
        """Makes the claim, in the place of a dead owner's; returns who has it where that fails."""
        if self._file.create(self._name.encode()):
            return None
        if (owner := self._living_owner()) is not None:
            return owner
        self._file.unlink(missing_ok=True)
        return None if self._file.create(self._name.encode()) else _words(self._read())

    def _living_owner(self) -> str | None:
        """Who wrote the claim, once it is known to live."""
        found = self._read()
        if not found or _is_dead(found):
            return None
        logger.warning(
            "%s is held by %s; waiting %.0f s to see whether it is alive",
            self._file.parent,
            _words(found),
            self._lease,
        )
        deadline = time.monotonic() + self._lease
        while time.monotonic() < deadline:
            time.sleep(min(1.0, self._lease / 10))
            now = self._read()
            if now != found:
                return _words(now) if now else None
        return None

    def _read(self) -> str:
        with contextlib.suppress(FileNotFoundError):
            return self._file.read_bytes().decode("utf-8", "replace")
        return ""

    def _refresh(self) -> None:
        beat, last = 0, time.monotonic()
        while not self._released.wait(self._lease / 4):
            beat += 1
            try:
                found = self._read()
                if not found.startswith(self._name):
                    stop_writing(str(self._file), f"it is {_words(found)}'s now")
                    return
                self._file.write_bytes(f"{self._name}beat={beat}\n".encode())
                last = time.monotonic()
            except Exception as e:  # see `acquire`; this thread must not end unless all ends
                if time.monotonic() - last > self._lease:
                    stop_writing(str(self._file), in_short(e))
                    return


def stop_writing(claim: str, reason: str) -> None:
    """Ends this process as Ctrl-C would: somebody else may be writing by now."""
    logger.critical("the claim %s was lost (%s): stopping", claim, reason)
    os.kill(os.getpid(), signal.SIGINT)


def _words(content: str) -> str:
    values = dict(line.split("=", 1) for line in content.splitlines() if "=" in line)
    if "host" not in values:
        return "an owner that left no name"
    return f"process {values.get('pid')} on {values['host']}"


def _is_dead(content: str) -> bool:
    """Whether the owner was a process of this machine that has ended."""
    values = dict(line.split("=", 1) for line in content.splitlines() if "=" in line)
    if values.get("host") != socket.gethostname():
        return False
    try:
        os.kill(int(values["pid"]), 0)
    except (ProcessLookupError, KeyError, ValueError):
        return True
    except PermissionError:
        return False
    return False
