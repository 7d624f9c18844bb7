"""Weights under Hugging Face's names to our parameters and back, piece by piece.

The architecture maps tensors to parameters (`model/*/huggingface.py`); huggingface.py, metaseq.py
and gguf_files.py open the tensors.
"""

import dataclasses
import logging
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorstore as ts

from optiml_jax.checkpoint.safetensors_files import ShardWriter
from optiml_jax.checkpoint.streaming import (
    StreamedArray,
    chunk_shape,
    grid,
    open_arrays,
    piece_shape,
)
from optiml_jax.checkpoint.tensors import Tensor
from optiml_jax.errors import UserError
from optiml_jax.model.config import DTYPES, DecoderConfig
from optiml_jax.model.decoder import huggingface_form, huggingface_tensors
from optiml_jax.model.huggingface_form import TensorLayout, length

logger = logging.getLogger(__name__)

# Buffers that transformers ignores too: they are not parameters, or are recomputed.
_BUFFERS = re.compile(r"(^|\.)(version|_float_tensor|inv_freq|masked_bias|position_ids)$")

Progress = Callable[[int], Any]


def _no_progress(_: int) -> None:
    pass


@dataclasses.dataclass(frozen=True)
class Weights:
    """The weights of a source.

    Attributes:
      source: for messages.
      config: the model.
      tensors: Hugging Face's name -> tensor.
      tokenizer: name -> content of the tokenizer's files, if the source includes them.
    """

    source: str
    config: DecoderConfig
    tensors: Mapping[str, Tensor]
    tokenizer: Mapping[str, bytes] | None = None


def checked(weights: Weights) -> Weights:
    """The weights with exactly the tensors that the configuration requires.

    Raises:
      UserError: a tensor is missing, unknown or of a different shape, or tied ones differ.
    """
    form = huggingface_form(weights.config)
    tensors = {form.canonical_name(name): tensor for name, tensor in weights.tensors.items()}
    ignored = [name for name in tensors if _BUFFERS.search(name)]
    if ignored:
        logger.info("%s: ignored, as transformers does: %s", weights.source, ", ".join(ignored))
        tensors = {name: tensor for name, tensor in tensors.items() if name not in ignored}
    _settle_aliases(weights.source, form.aliases(weights.config), tensors)
    _check_tensors(weights.source, huggingface_tensors(weights.config), tensors)
    return dataclasses.replace(weights, tensors=tensors)


def _settle_aliases(source: str, aliases: Mapping[str, str], tensors: dict[str, Tensor]) -> None:
    """Keeps one name of tied tensors; files may have either or both."""
    for alias, name in aliases.items():
        if alias not in tensors:
            continue
        other = tensors.pop(alias)
        if name not in tensors:
            tensors[name] = other
        elif not _equal(other, tensors[name]):
            raise UserError(
                f"{source}: {alias} differs from {name}, but config.json says they are tied"
            )


def _equal(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    pieces = grid(one.shape, piece_shape(one.shape, one.dtype.itemsize, stacked=False))
    return all(np.array_equal(one[index], other[index]) for index in pieces)


def _check_tensors(source: str, layouts: list[TensorLayout], tensors: Mapping[str, Tensor]) -> None:
    expected = {name: layout.their_shape for layout in layouts for name in layout.names()}
    for name, shape in expected.items():
        if name not in tensors:
            raise UserError(f"{source}: tensor {name} is missing")
        if tensors[name].shape != shape:
            raise UserError(
                f"{source}: tensor {name} has shape {list(tensors[name].shape)}; "
                f"config.json expects {list(shape)}"
            )
        if tensors[name].dtype.kind not in "fV" or tensors[name].dtype.itemsize < 2:
            raise UserError(f"{source}: tensor {name} has an unsupported type")
    for name in tensors:
        if name not in expected:
            raise UserError(
                f"{source}: tensor {name} belongs to no part of the model in config.json"
            )


# ---- into our parameters ---------------------------------------------------------------------


def streamed_params(
    weights: Weights, dtype: str | None, progress: Progress = _no_progress
) -> dict[str, Any]:
    """The parameters as a pytree of `StreamedArray`, which the checkpoint manager saves.

    Args:
      weights: of `checked`; must stay open until the tree is saved.
      dtype: stored type; None: each tensor's own.
      progress: called with the size in bytes of every piece read.
    """

    def streamed(layout: TensorLayout) -> StreamedArray:
        shape = _whole_shape(layout)
        types = {weights.tensors[name].dtype for name in layout.names()}
        kind = np.dtype(dtype) if dtype else types.pop() if len(types) == 1 else np.dtype("float32")

        def read(index: tuple[slice, ...]) -> np.ndarray:
            part = _part(layout, weights.tensors, index, kind)
            progress(part.nbytes)
            return part

        stacked = layout.num_layers is not None
        return StreamedArray(shape, kind, piece_shape(shape, kind.itemsize, stacked), read)

    layouts = huggingface_tensors(weights.config)
    return _nested((layout.path, streamed(layout)) for layout in layouts)


def _part(
    layout: TensorLayout, tensors: Mapping[str, Tensor], index: tuple[slice, ...], dtype: np.dtype
) -> np.ndarray:
    """The part `index` of one of our arrays, cast to `dtype` if one is given."""
    if layout.num_layers is None:
        return _cast(layout.ours(tensors[layout.name], index), dtype, layout.name)
    names = layout.names()[index[0]]
    out = np.empty((len(names), *map(length, index[1:])), dtype)
    for i, name in enumerate(names):
        out[i] = _cast(layout.ours(tensors[name], index[1:]), dtype, name)
    return out


def _cast(values: np.ndarray, dtype: np.dtype, name: str) -> np.ndarray:
    """`values` cast to another type; UserError if they are not finite, or would not be."""
    if not np.isfinite(values).all():
        raise UserError(f"tensor {name} holds numbers that are not finite; nothing was written")
    if values.dtype == dtype:
        return values
    with np.errstate(over="ignore"):
        out = values.astype(dtype)
    if not np.isfinite(out).all():
        raise UserError(f"{name} has values too large for {dtype}; write bfloat16 instead")
    return out


def _whole_shape(layout: TensorLayout) -> tuple[int, ...]:
    return layout.shape if layout.num_layers is None else (layout.num_layers, *layout.shape)


def _nested(leaves: Iterator[tuple[tuple[str, ...], Any]]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, leaf in leaves:
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = leaf
    return tree


# ---- out of our parameters -------------------------------------------------------------------


def stored_params(item: str | os.PathLike, config: DecoderConfig) -> dict[str, Any]:
    """The parameters of a checkpoint's `params` folder as TensorStores, which read lazily."""
    paths = [layout.path for layout in huggingface_tensors(config)]
    arrays = open_arrays(item, [".".join(path) for path in paths])
    return _nested((path, arrays[".".join(path)]) for path in paths)


def write_weights(
    folder: pathlib.Path,
    config: DecoderConfig,
    params: Mapping[str, Any],
    dtype: str | None,
    max_shard_bytes: int,
    progress: Progress = _no_progress,
) -> str:
    """Writes the safetensors files of a folder, reading `params` piece by piece.

    Args:
      folder: exists. config: the model. Its embedding may have fewer rows than that of `params`,
        whose last rows are then dropped.
      params: pure nested dict of arrays or TensorStores.
      dtype: of the tensors; None: that of each parameter.
      max_shard_bytes: a larger model is split into several files.
      progress: called with the size in bytes of every piece written.

    Returns:
      The type of most of the data.
    """
    layouts = huggingface_tensors(config)
    leaves = {layout.path: _leaf(params, layout.path) for layout in layouts}
    types = {path: np.dtype(dtype or dtype_of(leaf)) for path, leaf in leaves.items()}
    for kind in set(types.values()):
        if kind.name not in DTYPES:
            raise UserError(
                f"cannot write tensors as {kind.name!r}; choose one of {', '.join(DTYPES)}"
            )
    tensors = {
        name: (layout.their_shape, types[layout.path])
        for layout in layouts
        for name in layout.names()
    }
    writer = ShardWriter(folder, tensors, max_shard_bytes)
    for layout in layouts:
        leaf, shape = leaves[layout.path], _whole_shape(layout)
        for index in grid(shape, _pieces_of(leaf, layout, shape)):
            values = np.asarray(leaf[index].read().result() if _is_stored(leaf) else leaf[index])
            _write_piece(writer.views, layout, index, values)
            progress(values.nbytes)
    writer.close()
    bytes_of = dict.fromkeys(types.values(), 0)
    for path, leaf in leaves.items():
        bytes_of[types[path]] += int(np.prod(leaf.shape))
    return max(bytes_of, key=lambda kind: bytes_of[kind]).name


def _write_piece(
    views: Mapping[str, np.ndarray],
    layout: TensorLayout,
    index: tuple[slice, ...],
    values: np.ndarray,
) -> None:
    names, inner = [layout.name], index
    if layout.num_layers is None:
        values = values[None]
    else:
        names, inner = layout.names()[index[0]], index[1:]
    for name, value in zip(names, values, strict=True):
        view = views[name]
        view = view.T if layout.inputs is not None else view
        view.reshape(layout.shape)[inner] = _cast(value, view.dtype, name)


def _leaf(params: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    node: Any = params
    for key in path:
        node = node[key]
    return node


def _is_stored(leaf: Any) -> bool:
    return isinstance(leaf, ts.TensorStore)


def dtype_of(leaf: Any) -> np.dtype:
    """The type of an array or TensorStore."""
    return leaf.dtype.numpy_dtype if _is_stored(leaf) else leaf.dtype


def _pieces_of(leaf: Any, layout: TensorLayout, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The pieces to read: the chunks on disk, else one layer at a time."""
    if _is_stored(leaf):
        return tuple(min(sizes) for sizes in zip(chunk_shape(leaf), shape, strict=True))
    return shape if layout.num_layers is None else (1, *shape[1:])
