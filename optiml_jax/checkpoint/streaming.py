"""Arrays written to and read from checkpoints piece by piece, never whole in memory.

In the pytree given to `CheckpointManager.save`, a `StreamedArray` stands for an array that is
computed while it is written; on disk it is an ordinary array, which Orbax restores. `open_arrays`
gives the arrays of a checkpoint as TensorStores, whose parts can be read separately.
"""

import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts

from optiml_jax.paths import is_bucket

Index = tuple[slice, ...]

# Bytes per piece: large enough for the disk, small compared with the arrays of a large model.
PIECE_BYTES = 1 << 27


@dataclasses.dataclass(frozen=True, eq=False)
class StreamedArray:
    """An array whose pieces are requested one after another while it is written.

    Attributes:
      shape: of the whole array.
      dtype: as stored.
      piece: shape of the pieces, which are also the chunks on disk.
      read: index -> the piece there, in any dtype. Called in a separate thread, for one piece after
        another in the order of the array.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    piece: tuple[int, ...]
    read: Callable[[Index], np.ndarray]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def pieces(self) -> Iterator[Index]:
        """The index of every piece."""
        return grid(self.shape, self.piece)

    def whole(self) -> np.ndarray:
        """All of it in memory, for models that fit."""
        everything = tuple(slice(0, size) for size in self.shape)
        return self.read(everything).astype(self.dtype, copy=False)


def grid(shape: Sequence[int], piece: Sequence[int]) -> Iterator[Index]:
    """The indices that split `shape` into parts of at most shape `piece`, the last axis fastest."""
    counts = [math.ceil(size / step) for size, step in zip(shape, piece, strict=True)]
    for places in np.ndindex(*counts):
        starts = [place * step for place, step in zip(places, piece, strict=True)]
        yield tuple(
            slice(start, min(start + step, size))
            for start, step, size in zip(starts, piece, shape, strict=True)
        )


def piece_shape(shape: Sequence[int], itemsize: int, stacked: bool) -> tuple[int, ...]:
    """The shape of pieces of about `PIECE_BYTES`: some rows, of one layer if they are `stacked`.

    Small arrays are one piece, stacked or not.
    """
    shape = tuple(shape)
    if math.prod(shape) * itemsize <= PIECE_BYTES // 8:
        return shape
    layers = (1,) if stacked else ()
    rows, *rest = shape[len(layers) :]
    row_bytes = math.prod(rest) * itemsize
    return (*layers, min(rows, max(1, PIECE_BYTES // row_bytes)), *rest)


class _ArrayWriter(ocp.type_handlers.NumpyHandler):
    """Writes `StreamedArray`s for Orbax, marked on disk as JAX arrays."""

    def __init__(self):
        super().__init__(deepcopy_host_arrays=False)

    def typestr(self) -> str:
        return ocp.type_handlers.ArrayHandler().typestr()

    async def _background_serialize(
        self, values: Sequence[StreamedArray], infos: Sequence[Any], args: Any = None
    ) -> None:
        """Writes one piece at a time; Orbax would write all arrays at once, each as one chunk."""
        del args
        for value, info in zip(values, infos, strict=True):
            await info.await_path_creation()
            spec = ocp.type_handlers.get_json_tspec_write(
                info,
                use_ocdbt=True,
                global_shape=value.shape,
                local_shape=value.piece,
                dtype=value.dtype,
                process_index=0,
            )
            store = await ts.open(ts.Spec(spec), create=True, context=info.ts_context)
            for index in value.pieces():
                part = np.ascontiguousarray(value.read(index), dtype=value.dtype)
                await store[index].write(part, can_reference_source_data_indefinitely=True)


class _Handler(ocp.PyTreeCheckpointHandler):
    """A pytree of `StreamedArray`s."""

    def __init__(self):
        registry = ocp.type_handlers.create_type_handler_registry(
            (StreamedArray, _ArrayWriter()), (jax.Array, ocp.type_handlers.ArrayHandler())
        )
        super().__init__(type_handler_registry=registry)


@ocp.args.register_with_handler(_Handler, for_save=True)
@dataclasses.dataclass
class StreamedSave(ocp.args.PyTreeSave):
    """The argument with which Orbax saves a pytree of `StreamedArray`s."""


@ocp.args.register_with_handler(_Handler, for_restore=True)
@dataclasses.dataclass
class _StreamedRestore(ocp.args.PyTreeRestore):
    """Orbax requires one for every handler; restoring uses its standard handler."""


def open_arrays(item: str | os.PathLike, names: Sequence[str]) -> Mapping[str, ts.TensorStore]:
    """The arrays of an item's folder that Orbax wrote, by name, to be read lazily."""
    context = ts.Context({"file_io_concurrency": {"limit": 8}})
    opened = {}
    for name in names:
        store = {"driver": "ocdbt", "base": kvstore_of(item), "path": name + "/"}
        opened[name] = ts.open(
            {"driver": "zarr", "kvstore": store, "fill_missing_data_reads": False},
            open=True,
            read=True,
            context=context,
        )
    return {name: future.result() for name, future in opened.items()}


def kvstore_of(folder: str | os.PathLike) -> dict[str, Any]:
    """TensorStore's name of a folder, which may be in a bucket."""
    if is_bucket(folder):
        from optiml_jax.buckets import kvstore

        return kvstore(f"{folder}/")
    return {"driver": "file", "path": f"{os.path.abspath(folder)}/"}


def chunk_shape(array: ts.TensorStore) -> tuple[int, ...]:
    """The shape of the chunks, which are read as a whole."""
    return tuple(array.chunk_layout.read_chunk.shape)
