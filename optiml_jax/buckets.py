"""Folders in `gs://` and `s3://`: paths that behave like pathlib's, and their contents.

Files go through etils' epath and fsspec (gcsfs, s3fs), arrays of checkpoints through TensorStore.
Both take credentials as the vendors' own tools do. Another address of the service is taken from
STORAGE_EMULATOR_HOST (Google's) and AWS_ENDPOINT_URL (S3 and what speaks like it). Imported only
where a bucket is named: see `paths.py`.
"""

import contextlib
import functools
import logging
import os
import pathlib
import types
from collections.abc import Iterator
from typing import Any

# Else gcsfs asks another service, with credentials of its own, what kind each bucket is.
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")

import fsspec
from etils.epath import backend, gpath, register

from optiml_jax.errors import bucket_error

_SCHEMES = ("gs://", "s3://")
logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it also raises what it logs
# Other processes write too: a listing is never taken from memory.
fsspec.config.conf.setdefault("gs", {}).setdefault("use_listings_cache", False)
fsspec.config.conf.setdefault("s3", {}).setdefault("use_listings_cache", False)


@register.register_path_cls(_SCHEMES)
class BucketPath(gpath.PosixGPath):
    """A place in a bucket, with pathlib's methods as far as this project uses them.

    A bucket has no folders: one is there when something lies below it, and need not be made.
    """

    # Else epath takes TensorFlow's file systems wherever TensorFlow is installed, whose answers and
    # errors differ.
    _backend = backend.fsspec_backend

    @property
    def files(self) -> fsspec.AbstractFileSystem:
        return fsspec.filesystem(self._uri_scheme)

    @property
    def key(self) -> str:
        """`bucket/path`, as fsspec names what it lists."""
        return str(self).partition("://")[2].rstrip("/")

    def mkdir(self, mode: int | None = None, parents: bool = False, exist_ok: bool = False) -> None:
        """Does nothing, but for the exception where the folder must not exist yet."""
        if not exist_ok and self.exists():
            raise FileExistsError(str(self))

    def resolve(self, strict: bool = False) -> "BucketPath":
        return self

    absolute = resolve

    def stat(self) -> Any:
        """`st_size`, and `version`: a text that changes with the content."""
        return _Stat(self.files.info(str(self)))

    def iterdir(self) -> Iterator["BucketPath"]:
        entries = self.files.ls(str(self), detail=False)
        names = (entry.rstrip("/") for entry in entries)
        yield from (self / name.rpartition("/")[2] for name in names if name != self.key)

    def glob(self, pattern: str) -> Iterator["BucketPath"]:
        for found in self.files.glob(f"{self}/{pattern}"):
            yield type(self)(f"{self._uri_scheme}://{found}")

    def sizes(self) -> dict[str, int]:
        """Bytes of every file below this folder, by its path relative to it. One listing."""
        start = len(self.key) + 1
        found = self.files.find(str(self), detail=True)
        return {name[start:]: entry["size"] for name, entry in found.items() if name[start:]}

    def rename(self, target: Any) -> "BucketPath":
        """Copies inside the bucket, file by file, and removes what was copied."""
        for name in [f"/{name}" for name in self.sizes()] or [""]:
            self.files.cp_file(f"{self}{name}", f"{target}{name}")
        self.rmtree()
        return type(self)(str(target))

    def unlink(self, missing_ok: bool = False) -> None:
        if missing_ok or self.exists():  # S3 does not say that there was nothing
            return super().unlink(missing_ok)
        raise FileNotFoundError(str(self))

    def rmtree(self, missing_ok: bool = False) -> None:
        if self.exists():
            self.files.rm(str(self), recursive=True)
        elif not missing_ok:
            raise FileNotFoundError(str(self))

    def create(self, content: bytes) -> bool:
        """Creates a file; False if it exists already. Of several writers only one succeeds."""
        try:
            self.files.pipe_file(str(self), content, mode="create")
        except OSError:  # each service has its own
            if self.exists():
                return False
            raise
        return True

    def upload(self, file: pathlib.Path) -> None:
        """Puts a local file here; whoever reads sees the old content or all of the new.

        Raises:
          UserError: it cannot be written; says whether that may pass.
        """
        try:
            self.files.put_file(str(file), str(self))
        except Exception as e:  # the services, their clients and the network have each their own
            raise bucket_error(f"cannot write {self}", e) from e

    def download(self, file: pathlib.Path) -> None:
        self.files.get_file(str(self), str(file))


_reached: set[str] = set()


def reach(place: BucketPath) -> None:
    """Asks for `place` once per bucket and process, so that what is wrong is one line at the start.

    Raises:
      UserError: no rights, no credentials, no network (which may pass), no client.
    """
    bucket = str(place)[: 5 + len(place.key.partition("/")[0])]
    if bucket in _reached:
        return
    try:
        with contextlib.suppress(FileNotFoundError):
            place.files.info(str(place))
    except Exception as e:  # the services, their clients and the network have each their own
        raise bucket_error(f"{bucket} cannot be used", e) from e
    _reached.add(bucket)


class _Stat(types.SimpleNamespace):
    def __init__(self, info: dict[str, Any]):
        size = info.get("size") or 0
        super().__init__(
            st_size=size,
            length=size,  # epath's name of it
            version=str(info.get("generation") or info.get("ETag")),
            is_directory=info.get("type") == "directory",
        )


def kvstore(place: str | os.PathLike) -> dict[str, Any]:
    """What TensorStore calls a place in a bucket."""
    scheme, _, rest = str(place).partition("://")
    bucket, _, path = rest.partition("/")
    spec = {"bucket": bucket, "path": path}
    if scheme == "gs":
        if address := os.environ.get("STORAGE_EMULATOR_HOST"):
            os.environ.setdefault("TENSORSTORE_GCS_HTTP_URL", address)
        return {"driver": "gcs", **spec}
    if address := os.environ.get("AWS_ENDPOINT_URL_S3", os.environ.get("AWS_ENDPOINT_URL")):
        spec |= {"endpoint": address}
        spec |= {"aws_region": os.environ.get("AWS_DEFAULT_REGION", "us-east-1")}
    if "AWS_ACCESS_KEY_ID" in os.environ:  # else its search for others is told on stderr
        spec |= {"aws_credentials": {"type": "environment"}}
    return {"driver": "s3", **spec}


@functools.cache
def teach_orbax() -> None:
    """Lets Orbax write to `s3://` as it writes to `gs://`, and delete in buckets without asking.

    Orbax knows one kind of bucket. What it asks of it (is it one, how does TensorStore call it, has
    it real folders) is answered here for both.
    """
    from orbax.checkpoint._src.path import gcs_utils
    from orbax.checkpoint._src.serialization import tensorstore_utils

    gcs_utils._GCS_PATH_PREFIX = _SCHEMES
    gcs_utils.get_kvstore_for_gcs = kvstore
    gcs_utils.is_hierarchical_namespace_enabled = lambda path: False
    tensorstore_utils._use_gcs_driver = lambda directory: directory.startswith(_SCHEMES)
    normalise = tensorstore_utils._normalize_path
    tensorstore_utils._normalize_path = lambda path: normalise(path).replace("s3:/", "s3://")
