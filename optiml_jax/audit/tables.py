"""Tables that an audit stores: Parquet files with a description of their checksums.

The description is written last, so tables without one, or of another one, are not taken for whole.
A damaged file is noticed before Parquet's reader sees it, which some damages would crash.
"""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from optiml_jax.errors import UserError
from optiml_jax.files import atomic_path, checksum, damage, disk_errors, read_sealed, write_sealed
from optiml_jax.paths import local_copy, path_of

MEND = "run optiml audit again"


def write_tables(
    description: str | os.PathLike, tables: Mapping[str, pa.Table], about: Mapping[str, Any]
) -> None:
    """Writes tables (name without suffix -> table) and a description of them into one folder.

    Args:
      description: its path.
      about: JSON-able; what else is to be known of them.
    """
    description = pathlib.Path(description)
    files = {}
    for name, table in tables.items():
        path = description.with_name(f"{name}.parquet")
        with disk_errors(path, "the result of an audit"), atomic_path(path) as temporary:
            pq.write_table(table, temporary, compression="zstd")
        files[path.name] = checksum(path)
    write_sealed(description, {"about": about, "files": files})


def read_about(description: str | os.PathLike) -> dict[str, Any]:
    """What is known of some tables, all of which are then as they were written.

    Raises:
      UserError: they are not.
    """
    return _read(description, None)["about"]


def read_table(description: str | os.PathLike, name: str) -> pa.Table:
    """One of the tables; errors as of `read_about`, for this table alone."""
    path = path_of(description).with_name(f"{name}.parquet")
    _read(description, path.name)
    return pq.read_table(local_copy(path))


def _read(description: str | os.PathLike, only: str | None) -> dict[str, Any]:
    value = read_sealed(description, "the result of an audit", MEND)
    files = {k: v for k, v in value["files"].items() if only in (None, k)}
    folder = path_of(description).parent
    if problem := damage(folder, files):
        raise UserError(f"the result of an audit in {folder} is damaged ({problem}); {MEND}")
    return value
