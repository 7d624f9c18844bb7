"""Lazy tensors over other programs' files: only requested slices are read.

A `Tensor` is anything with a shape, a dtype and slices: an array over a mapped file, a slice of a
safetensors file, or one of the compositions below. The modules of the formats know the names of the
tensors and the files they are in.
"""

import bisect
import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any, Protocol

import ml_dtypes  # noqa: F401  (makes "bfloat16" a NumPy type)
import numpy as np

# Type names in safetensors files.
SAFETENSORS_TYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}


class Tensor(Protocol):
    """What a converter reads: `tensor[slices]` is an array, with one slice of step 1 per axis."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype: ...

    def __getitem__(self, index: Any) -> np.ndarray: ...


class SafetensorsTensor:
    """A tensor of an open safetensors file."""

    def __init__(self, part: Any):
        self._part = part
        self.shape = tuple(part.get_shape())
        self.dtype = np.dtype(SAFETENSORS_TYPES.get(part.get_dtype(), "V1"))

    def __getitem__(self, index: Any) -> np.ndarray:
        return self._part[index]


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows `start` to `stop` of a tensor, along the first axis."""

    tensor: Tensor
    start: int
    stop: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.stop - self.start, *self.tensor.shape[1:])

    @property
    def dtype(self) -> np.dtype:
        return self.tensor.dtype

    def __getitem__(self, index: Any) -> np.ndarray:
        first, *rest = whole_index(index, self.shape)
        rows = slice(first.start + self.start, first.stop + self.start)
        return self.tensor[(rows, *rest)]


@dataclasses.dataclass(frozen=True)
class Padded:
    """A tensor padded with rows of zeros to `rows` rows."""

    tensor: Tensor
    rows: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.rows, *self.tensor.shape[1:])

    @property
    def dtype(self) -> np.dtype:
        return self.tensor.dtype

    def __getitem__(self, index: Any) -> np.ndarray:
        first, *rest = whole_index(index, self.shape)
        own = self.tensor.shape[0]
        part = self.tensor[(slice(min(first.start, own), min(first.stop, own)), *rest)]
        missing = first.stop - first.start - len(part)
        if not missing:
            return part
        return np.concatenate([part, np.zeros((missing, *part.shape[1:]), part.dtype)])


class Joined:
    """Tensors concatenated along one axis."""

    def __init__(self, tensors: Sequence[Tensor], axis: int):
        self._tensors, self._axis = tuple(tensors), axis
        sizes = [tensor.shape[axis] for tensor in tensors]
        self._ends = list(itertools.accumulate(sizes))
        shape = list(tensors[0].shape)
        shape[axis] = self._ends[-1]
        self.shape = tuple(shape)
        self.dtype = tensors[0].dtype

    def __getitem__(self, index: Any) -> np.ndarray:
        index = list(whole_index(index, self.shape))
        start, stop = index[self._axis].start, index[self._axis].stop
        parts = []
        for number in range(bisect.bisect_right(self._ends, start), len(self._tensors)):
            size = self._tensors[number].shape[self._axis]
            before = self._ends[number] - size
            if before >= stop and parts:
                break
            index[self._axis] = slice(max(start - before, 0), min(stop - before, size))
            parts.append(self._tensors[number][tuple(index)])
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=self._axis)


@dataclasses.dataclass(frozen=True)
class Reshaped:
    """A part of a flat tensor, beginning at `start`, as an array of `shape`."""

    flat: Tensor
    start: int
    shape: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype:
        return self.flat.dtype

    def __getitem__(self, index: Any) -> np.ndarray:
        first, *rest = whole_index(index, self.shape)
        step = math.prod(self.shape[1:])
        start, stop = self.start + first.start * step, self.start + first.stop * step
        return self.flat[(slice(start, stop),)].reshape(-1, *self.shape[1:])[(slice(None), *rest)]


def whole_index(index: Any, shape: Sequence[int]) -> tuple[slice, ...]:
    """One slice with explicit bounds for each axis of `shape`, from an index that may omit some."""
    index = index if isinstance(index, tuple) else (index,)
    index = (*index, *[slice(None)] * (len(shape) - len(index)))
    return tuple(slice(*part.indices(size)[:2]) for part, size in zip(index, shape, strict=True))
