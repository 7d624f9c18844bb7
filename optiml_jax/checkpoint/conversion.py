"""Conversion of other programs' weights to a checkpoint, and of a checkpoint to Hugging Face.

Both convert piece by piece, with a progress bar, and never hold a whole model in memory.
"""

import contextlib
import dataclasses
import math
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import tqdm

from optiml_jax.checkpoint.adapters import stored_model_params
from optiml_jax.checkpoint.gguf_files import open_gguf
from optiml_jax.checkpoint.huggingface import open_huggingface, write_huggingface
from optiml_jax.checkpoint.manager import CheckpointManager
from optiml_jax.checkpoint.metaseq import is_metaseq, open_metaseq
from optiml_jax.checkpoint.tensors import Padded
from optiml_jax.checkpoint.weights import (
    Weights,
    checked,
    dtype_of,
    streamed_params,
)
from optiml_jax.errors import UserError
from optiml_jax.files import disk_errors
from optiml_jax.model.config import DTYPES, DecoderConfig
from optiml_jax.model.decoder import huggingface_tensors
from optiml_jax.paths import is_bucket

_VOCAB_MULTIPLE = 8  # the largest tensor axis inside a node


@contextlib.contextmanager
def open_weights(source: str) -> Iterator[Weights]:
    """Yields the weights of a source in any format; the data is read lazily.

    Args:
      source: a Hugging Face folder or Hub name, metaseq's files (metaseq.py) or a .gguf file.

    Raises:
      UserError: none of these, or damaged, incomplete or of a different model.
    """
    if source.endswith(".gguf"):
        config, tensors, files = open_gguf(pathlib.Path(source))
        yield dataclasses.replace(checked(Weights(source, config, tensors)), tokenizer=files)
    elif is_metaseq(source):
        config, tensors = open_metaseq(source)
        yield checked(Weights(source, config, tensors))
    else:
        with open_huggingface(source) as weights:
            yield weights


def padded(weights: Weights) -> Weights:
    """The weights with the embeddings padded by rows of zeros, so that a mesh can divide them.

    `vocab_padding` of the configuration counts them; converting back drops them.
    """
    config = weights.config
    missing = -config.vocab_size % _VOCAB_MULTIPLE
    if not missing:
        return weights
    larger = dataclasses.replace(
        config, vocab_size=config.vocab_size + missing, vocab_padding=missing
    )
    tensors = dict(weights.tensors)
    for before, after in zip(huggingface_tensors(config), huggingface_tensors(larger), strict=True):
        if before.their_shape != after.their_shape:
            tensors[before.name] = Padded(tensors[before.name], after.their_shape[0])
    return dataclasses.replace(weights, config=larger, tensors=tensors)


def into_checkpoint(
    weights: Weights,
    destination: pathlib.Path,
    metadata: dict[str, Any],
    dtype: str | None = None,
    files: Mapping[str, bytes] | None = None,
) -> None:
    """Writes the checkpoint <destination>/checkpoints/0, parameters only, atomically.

    Args:
      weights: what to write; see `open_weights`.
      destination: must not exist, or be empty.
      metadata: of the checkpoint.
      dtype: stored type; None: that of the source.
      files: see `CheckpointManager`.

    Raises:
      UserError: an unknown type, a value too large for it, a full disk.
    """
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"cannot store tensors as {dtype!r}; choose one of {', '.join(DTYPES)}")
    with _bar("reading", 0) as bar:
        params = streamed_params(weights, dtype, bar.update)
        bar.total = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
        save_params(params, destination, metadata, files)


def save_params(
    params: Mapping[str, Any],
    destination: pathlib.Path,
    metadata: dict[str, Any],
    files: Mapping[str, bytes] | None,
) -> None:
    """Writes parameters as the checkpoint <destination>/checkpoints/0, atomically."""
    with whole_folder(destination) as temporary:
        manager = CheckpointManager(temporary / "checkpoints", async_save=False, files=files)
        manager.save(0, {"params": params}, metadata)
        manager.close()


def out_of_checkpoint(
    source: str | os.PathLike,
    destination: pathlib.Path,
    config: DecoderConfig,
    dtype: str | None = None,
    **more: Any,
) -> None:
    """Writes a Hugging Face folder from a checkpoint.

    Args:
      source: a run folder, its `checkpoints` folder or one step folder.
      destination: must not exist, or be empty.
      config: of the model in it.
      dtype: of the tensors; None: as they are stored.
      **more: of `write_huggingface`.
    """
    params = stored_model_params(source, config, dtype)
    total = sum(
        math.prod(array.shape) * dtype_of(array).itemsize for array in jax.tree.leaves(params)
    )
    with _bar("writing", total) as bar:
        write_huggingface(destination, config, params, dtype=dtype, progress=bar.update, **more)


def _bar(what: str, total: int) -> tqdm.tqdm:
    return tqdm.tqdm(total=total, desc=what, unit="B", unit_scale=True, dynamic_ncols=True)


@contextlib.contextmanager
def whole_folder(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """A temporary folder that takes the place of `folder` when the block succeeds.

    In a bucket, `folder` itself: what is written there must mark its own completeness.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists already; choose a new folder or remove it")
    if is_bucket(folder):
        yield folder
        return
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        with disk_errors(folder, "a converted model"):
            temporary.mkdir(parents=True)
            yield temporary
            os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
