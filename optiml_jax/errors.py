"""The one exception of the project that is meant for the person at the terminal.

And which errors a retry can help: the exit status of a verb tells the launch scripts.
"""

import errno
import re
from collections.abc import Iterable

# What a terminal would obey: control characters, and those that turn the direction of writing.
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")

# Errors of a network, of a file system behind one, or of a machine that others keep busy.
_PASSING = frozenset(
    {
        *(errno.EIO, errno.ESTALE, errno.EAGAIN, errno.EBUSY, errno.ENFILE),
        *(errno.ETIMEDOUT, errno.ECONNRESET, errno.ECONNREFUSED, errno.ECONNABORTED),
        *(errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH),
    }
)
# Exit statuses of a verb that did not do everything.
RETRY = 1  # the same command may succeed, and does only what is left
MEND = 2  # it fails again until its user has mended something


def printable(text: str) -> str:
    """`text` with what a terminal would obey spelled out; line feeds and tabs stay."""
    return _OBEYED.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


class UserError(Exception):
    """Something the user can put right: bad input, bad configuration, a full disk.

    The message is one line: what is wrong, where (file, line, task, parameter), and what to do.
    The command line prints it as ``error: <message>``, without a traceback, and exits with status
    2, or with 1 if it `may_pass`.
    Names and texts of files may stand in it: control characters are spelled out.

    Attributes:
      passing: the same command may succeed later, whatever caused this (see `may_pass`).
    """

    passing = False

    def __init__(self, message: object):
        super().__init__(printable(str(message)))


def reason_of(error: BaseException) -> str:
    """One error among others in a line: of what is not a `UserError` the type is named too."""
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


def may_pass(error: BaseException) -> bool:
    """Whether the same command may succeed later although nobody mends anything."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ConnectionError | TimeoutError) or getattr(cause, "passing", False):
            return True
        if isinstance(cause, OSError) and cause.errno in _PASSING:
            return True
        cause = cause.__cause__
    return False


def status_of(passing: Iterable[bool]) -> int:
    """Exit status of a verb parts of which failed, by whether the failure of each may pass."""
    passing = list(passing)
    if not passing:
        return 0
    return RETRY if any(passing) else MEND
