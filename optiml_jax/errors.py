"""The one exception of the project that is meant for the person at the terminal.

And which errors a retry can help: the exit status of a verb tells the launch scripts.
"""

import errno
import re
from collections.abc import Iterable, Iterator

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
# Answers of a service that it gives again however often it is asked.
_REFUSALS = frozenset({"401", "403", "404"})
# What the clients of buckets raise where settings or credentials are missing. By name: they are
# imported only where a bucket is named.
_OF_SETTINGS = frozenset(
    {
        *("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"),
        *("ParamValidationError", "DefaultCredentialsError"),
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
    chain = list(_chain(error))
    if any(_http_status(cause) in _REFUSALS for cause in chain):
        return False  # s3fs makes an I/O error of each status that it does not know
    return any(_passes(cause) for cause in chain)


def bucket_error(what: str, error: Exception) -> UserError:
    """The error to raise from `error`, of which it tells whether it may pass.

    Args:
      what: what failed, the beginning of the message.
      error: of the service, its client or the network, which have each their own types. One that
        is not known to be a refusal may pass.
    """
    refused = any(_is_refusal(cause) for cause in _chain(error))
    mend = "look at the bucket's name and your credentials, then " if refused else ""
    made = UserError(f"{what} ({in_short(error)}); {mend}the same command continues")
    made.passing = not refused
    return made


def in_short(error: BaseException) -> str:
    """The message of an error, whose length and lines others decide, as part of a line."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error, what caused it, what caused that, and so on."""
    while error is not None:
        yield error
        error = error.__cause__


def _passes(error: BaseException) -> bool:
    if isinstance(error, ConnectionError | TimeoutError) or getattr(error, "passing", False):
        return True
    return isinstance(error, OSError) and error.errno in _PASSING


def _is_refusal(error: BaseException) -> bool:
    """Whether a service, or its client, refused what it was asked for."""
    if isinstance(error, FileNotFoundError | PermissionError | ImportError | ValueError):
        return True
    if type(error) is OSError and str(error).startswith("Forbidden"):  # 403 as gcsfs says it
        return True
    return type(error).__name__ in _OF_SETTINGS or _http_status(error) in _REFUSALS


def _http_status(error: BaseException) -> str:
    """The status of the answer, as botocore, aiohttp and gcsfs keep it; else no status."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        return str(response.get("ResponseMetadata", {}).get("HTTPStatusCode"))
    return str(getattr(error, "status", None) or getattr(error, "code", None))


def status_of(passing: Iterable[bool]) -> int:
    """Exit status of a verb parts of which failed, by whether the failure of each may pass."""
    passing = list(passing)
    if not passing:
        return 0
    return RETRY if any(passing) else MEND
