"""Data sets that TensorFlow Datasets downloads, verifies and prepares itself."""

import pathlib

from optiml_jax.fetch.http import FetchError, passes
from optiml_jax.fetch.sources import Source


def prepare(source: Source, folder: pathlib.Path) -> tuple[list[str], str]:
    """Prepares a builder in `folder`, TFDS's data_dir.

    Returns:
      The files of the data set below the folder, and its version.

    Raises:
      FetchError: TFDS does not know the builder, or cannot prepare it.
    """
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(source.address, data_dir=str(folder))
        builder.download_and_prepare()
    except Exception as e:  # builders raise whatever the code of their data set raises
        reason = " ".join(str(e).split())[:300]
        raise FetchError(f"TFDS cannot prepare {source.address}: {reason}", passes(e)) from e
    place = pathlib.Path(builder.data_dir)
    files = [str(p.relative_to(folder)) for p in place.rglob("*") if p.is_file()]
    return files, str(builder.version)
