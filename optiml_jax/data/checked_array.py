"""Arrays on disk whose parts are verified when they are first used; nothing else is read."""

import io
import pathlib
import zlib
from typing import Any

import numpy as np

from optiml_jax.errors import UserError
from optiml_jax.files import regular_file

_BLOCK_BYTES = 1 << 20


def block_checksums(array: np.ndarray) -> list[int]:
    """The CRC-32 of each MiB of a one-dimensional array."""
    data = np.ascontiguousarray(array).view(np.uint8)
    return [zlib.crc32(data[i : i + _BLOCK_BYTES]) for i in range(0, len(data), _BLOCK_BYTES)]


def _header(dtype: str, length: int) -> bytes:
    """The header of a .npy file."""
    out = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
    fields = {"descr": descr, "fortran_order": False, "shape": (length,)}
    np.lib.format.write_array_header_1_0(out, fields)
    return out.getvalue()


class CheckedArray:
    """A mapped .npy file of one dimension. Indexing and NumPy functions give ordinary arrays."""

    def __init__(
        self, path: pathlib.Path, dtype: str, length: int, checksums: list[int], mend: str
    ):
        """Opens the file; no number of it is read.

        Args:
          path: the file.
          dtype, length: what it must hold.
          checksums: as `block_checksums` gave them when it was written.
          mend: what to do about a damaged file.

        Raises:
          UserError: it is missing, or holds an array of another type or length.
        """
        self._path, self._mend = path, mend
        header = _header(dtype, length)
        try:
            with regular_file(path).open("rb") as f:
                same = f.read(len(header)) == header
            size, start = path.stat().st_size, len(header)
            if not same or size != start + length * np.dtype(dtype).itemsize:
                raise self._damaged("it holds another array")
            self._array = np.memmap(path, dtype, "r", start, (length,)).view(np.ndarray)
        except OSError as e:
            raise self._damaged(e.strerror) from e
        self._bytes = self._array.view(np.uint8)
        self._checksums = checksums
        self._to_verify = set(range(len(checksums)))

    @property
    def dtype(self) -> np.dtype:
        return self._array.dtype

    def __len__(self) -> int:
        return len(self._array)

    def __getitem__(self, index: Any) -> Any:
        """An element, a slice or the elements of an array of indices.

        Raises:
          UserError: a part of the file that holds them has changed since it was written.
        """
        if self._to_verify:
            self._verify(index)
        return self._array[index]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)

    def _verify(self, index: Any) -> None:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step < 0:
                start, stop = stop + 1, start + 1
            first, last = self._block(start), self._block(stop - 1)
            touched = set(range(first, last + 1)) if stop > start else set()
        else:
            index = np.asarray(index)
            touched = set(np.unique(self._block(np.where(index < 0, index + len(self), index))))
        for block in touched & self._to_verify:
            data = self._bytes[block * _BLOCK_BYTES : (block + 1) * _BLOCK_BYTES]
            if zlib.crc32(data) != self._checksums[block]:
                raise self._damaged("its content has changed since it was written")
            self._to_verify.discard(block)

    def _block(self, index: Any) -> Any:
        return index * self._array.itemsize // _BLOCK_BYTES

    def _damaged(self, why: str) -> UserError:
        return UserError(f"{self._path} is damaged ({why}); {self._mend}")
