"""Files over HTTP: continued where they stopped, tried again, and verified."""

import dataclasses
import logging
import os
import pathlib
import random
import shutil
import time
from collections.abc import Callable, Mapping
from urllib.parse import urlsplit
from urllib.request import url2pathname

import requests

from optiml_jax.errors import UserError, may_pass
from optiml_jax.fetch.provenance import git_blob_sha1, sha256_of
from optiml_jax.files import disk_errors

_log = logging.getLogger(__name__)
_CHUNK = 1 << 14  # what a broken connection loses at most
_TIMEOUT = (10, 60)  # seconds to connect, and between two pieces
_GIVE_UP = (400, 401, 403, 404, 410)  # trying again does not help
_BUSY = (408, 425, 429)  # it may help later, as after any error of the server (500 and above)
_OF_THE_NETWORK = (
    requests.ConnectionError,
    requests.Timeout,
    requests.exceptions.ChunkedEncodingError,
)


class FetchError(UserError):
    """A source could not be fetched; the others can.

    Args:
      passing: the same command may fetch it later.
    """

    def __init__(self, message: str, passing: bool = False):
        super().__init__(message)
        self.passing = passing


def passes(error: BaseException) -> bool:
    """Whether a request that ended with `error` may succeed later although nobody mends anything.

    A certificate that is not accepted does not pass.
    """
    response = getattr(error, "response", None)
    if response is not None:
        return response.status_code in _BUSY or response.status_code >= 500
    if isinstance(error, requests.exceptions.SSLError):
        return False
    return isinstance(error, _OF_THE_NETWORK) or may_pass(error)


@dataclasses.dataclass(frozen=True)
class Remote:
    """A remote file.

    Attributes:
      url: http, https or file.
      size: in bytes; 0: not known.
      sha256, git_sha1: of its content where they are known.
      headers: of the request, e.g. for private data.
    """

    url: str
    size: int = 0
    sha256: str = ""
    git_sha1: str = ""
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Downloader:
    """How files are downloaded.

    Attributes:
      retries: how often a file is tried again after a failure.
      backoff: seconds before the first try, doubled for each further one.
      progress: called with the number of bytes that came.
    """

    retries: int = 5
    backoff: float = 1.0
    progress: Callable[[int], object] = lambda size: None

    def fetch(self, remote: Remote, path: pathlib.Path) -> None:
        """Downloads the file to `path`, which appears when it is complete and verified.

        What came before an interruption lies in `<path>.partial` and is continued.

        Raises:
          FetchError: it does not come, or not as it should be.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        for attempt in range(self.retries + 1):
            try:
                with disk_errors(path, "fetched data"):
                    self._once(remote, partial)
                    _verify(remote, partial)
                    os.replace(partial, path)
                return
            except (requests.RequestException, OSError, _DamagedError) as e:
                status = getattr(getattr(e, "response", None), "status_code", None)
                if isinstance(e, _DamagedError):
                    partial.unlink(missing_ok=True)
                if attempt == self.retries or status in _GIVE_UP:
                    why = f"{remote.url} cannot be fetched: {_reason(e)}"
                    raise FetchError(why, passes(e)) from e
                wait = self.backoff * 2**attempt * (1 + random.random() / 4)
                _log.info("%s: %s; again in %.0f s", remote.url, _reason(e), wait)
                time.sleep(wait)

    def _once(self, remote: Remote, partial: pathlib.Path) -> None:
        if remote.url.startswith("file:"):
            if not (file := local_path(remote.url)).is_file():
                raise FetchError(f"{remote.url} cannot be fetched: no such file")
            shutil.copyfile(file, partial)
            self.progress(partial.stat().st_size)
            return
        have = partial.stat().st_size if partial.exists() else 0
        if remote.size and have == remote.size:
            return
        tag = partial.with_name(partial.name + ".etag")
        if not (tag.exists() or remote.sha256 or remote.git_sha1):
            have = 0  # nothing would tell whether the rest belongs to it
        headers = {"Accept-Encoding": "identity", **remote.headers}
        if have:
            # If-Range: a file that has changed since is sent from its beginning.
            headers |= {"Range": f"bytes={have}-"}
            if tag.exists():
                headers |= {"If-Range": tag.read_text()}
        with requests.get(remote.url, headers=headers, stream=True, timeout=_TIMEOUT) as response:
            if response.status_code == 416:  # there is nothing after what we have, or less
                raise _DamagedError("what came before does not fit what is there now")
            response.raise_for_status()
            continued = response.status_code == 206
            if (etag := response.headers.get("ETag", "")) and not etag.startswith("W/"):
                tag.write_text(etag)
            if have and continued:
                self.progress(have)
            with open(partial, "ab" if continued else "wb") as file:
                for chunk in response.iter_content(_CHUNK):
                    file.write(chunk)
                    self.progress(len(chunk))
        tag.unlink(missing_ok=True)


class _DamagedError(Exception):
    """The download does not match its description."""


def _verify(remote: Remote, path: pathlib.Path) -> None:
    size = path.stat().st_size
    if remote.size and size != remote.size:
        raise _DamagedError(f"{size} bytes came, {remote.size} were promised")
    if remote.sha256 and (found := sha256_of(path)) != remote.sha256:
        raise _DamagedError(f"its SHA-256 is {found}, not {remote.sha256}")
    if remote.git_sha1 and (found := git_blob_sha1(path)) != remote.git_sha1:
        raise _DamagedError(f"its git id is {found}, not {remote.git_sha1}")


def is_here(remote: Remote, path: pathlib.Path) -> bool:
    """Whether the file at `path` is the remote one, as far as its description says."""
    try:
        _verify(remote, path)
    except (FileNotFoundError, _DamagedError):
        return False
    return True


def local_path(url: str) -> pathlib.Path:
    """The file of a file: address."""
    return pathlib.Path(url2pathname(urlsplit(url).path))


def remote_size(url: str) -> int:
    """Bytes of a file as its server says, 0 if it does not."""
    if url.startswith("file:"):
        path = local_path(url)
        return path.stat().st_size if path.is_file() else 0
    try:
        response = requests.head(url, timeout=_TIMEOUT, allow_redirects=True)
        return int(response.headers.get("Content-Length", 0)) if response.ok else 0
    except requests.RequestException:
        return 0


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
