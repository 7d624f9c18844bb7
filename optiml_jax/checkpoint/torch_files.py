"""Reads files of torch.save without torch and without executing anything that they name.

A pickle can name any function for its reader to call. Here only plain containers and the four
functions that assemble tensors are known; everything else becomes an `Opaque` object that stores
its arguments. Tensors are arrays over the mapped file: opening one reads nothing of it. Only the
zip format is read, which torch has written since 1.6.
"""

import collections
import mmap
import pathlib
import pickle
import struct
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from optiml_jax.errors import UserError

_TYPES: dict[str, Any] = {
    "Double": np.float64,
    "Float": np.float32,
    "Half": np.float16,
    "BFloat16": ml_dtypes.bfloat16,
    "Long": np.int64,
    "Int": np.int32,
    "Short": np.int16,
    "Char": np.int8,
    "Byte": np.uint8,
    "Bool": np.bool_,
}
_TYPE_NAMES = {
    "float64": "Double",
    "float32": "Float",
    "float16": "Half",
    "bfloat16": "BFloat16",
    "int64": "Long",
    "int32": "Int",
    "int16": "Short",
    "int8": "Char",
    "uint8": "Byte",
    "bool": "Bool",
}
_CONTAINERS: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("collections", "defaultdict"): collections.defaultdict,
    ("builtins", "dict"): dict,
    ("builtins", "list"): list,
    ("builtins", "set"): set,
    ("torch", "Size"): tuple,
}
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # of a member of a zip file: name and extra lengths last


class Opaque:
    """An object of an unknown class, none of whose code is executed.

    Attributes:
      origin: module and name of the class.
      arguments: of its construction.
      state: that it was to be given.
    """

    origin = ""

    def __new__(cls, *arguments: Any, **named: Any) -> "Opaque":
        made = super().__new__(cls)
        made.arguments, made.state = (*arguments, *named.values()), None
        return made

    def __init__(self, *arguments: Any, **named: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def append(self, value: Any) -> None:
        """Called by a pickle for a subclass of list."""

    def extend(self, values: Any) -> None:
        """See `append`."""

    def add(self, value: Any) -> None:
        """See `append`."""

    def __setitem__(self, key: Any, value: Any) -> None:
        """See `append`."""


def plain(value: Any) -> Any:
    """A configuration as plain containers, from dataclasses, Namespaces and OmegaConf."""
    if isinstance(value, Opaque):
        state = value.state
        if isinstance(state, tuple) and state and isinstance(state[0], dict):
            state = state[0]
        if isinstance(state, dict) and "_content" in state:
            return plain(state["_content"])
        if isinstance(state, dict) and "_val" in state:
            return plain(state["_val"])
        return plain(state)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


class _Storage(NamedTuple):
    offset: int
    nbytes: int
    dtype: np.dtype | None


def read_torch_file(path: pathlib.Path) -> Any:
    """The content of a file of torch.save, with tensors as read-only arrays over the mapped file.

    Raises:
      UserError: missing, damaged, or not in the zip format.
    """
    try:
        with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            return _Reader(path, mapped, archive).read()
    except FileNotFoundError as e:
        raise UserError(f"{path} is missing") from e
    except zipfile.BadZipFile as e:
        raise UserError(
            f"{path} is damaged, or was written by torch before 1.6; copy it again, or load and "
            "save it once with a newer torch"
        ) from e


class _Reader:
    def __init__(self, path: pathlib.Path, mapped: mmap.mmap, archive: zipfile.ZipFile):
        self._path, self._mapped, self._archive = path, mapped, archive
        names = [n for n in archive.namelist() if n.endswith("/data.pkl")]
        if len(names) != 1:
            raise UserError(f"{path} is a zip file, but not one of torch.save")
        self._folder = names[0].removesuffix("data.pkl")
        self._storages: dict[str, _Storage] = {}

    def read(self) -> Any:
        order = self._folder + "byteorder"
        if order in self._archive.namelist() and self._archive.read(order) != b"little":
            raise UserError(f"{self._path} holds big-endian numbers, which are not supported")
        with self._archive.open(self._folder + "data.pkl") as file:
            try:
                return _Unpickler(file, self.storage, self.tensor).load()
            except UserError:
                raise
            except Exception as e:  # a damaged pickle can raise almost anything
                raise UserError(f"{self._path} is damaged ({type(e).__name__}: {e})") from e

    def storage(self, reference: Any) -> _Storage:
        """The position of a storage's data in the file."""
        _, kind, key, _, _ = reference
        if key not in self._storages:
            try:
                member = self._archive.getinfo(f"{self._folder}data/{key}")
            except KeyError as e:
                raise UserError(f"{self._path} is damaged: storage {key} is missing") from e
            start = member.header_offset
            if member.compress_type != zipfile.ZIP_STORED:
                raise UserError(f"{self._path} is compressed; unpack and save it with torch")
            magic, name, extra = _LOCAL_HEADER.unpack_from(self._mapped, start)
            start += _LOCAL_HEADER.size + name + extra
            if magic != b"PK\x03\x04" or start + member.file_size > len(self._mapped):
                raise UserError(f"{self._path} is truncated at storage {key}; copy it again")
            self._storages[key] = _Storage(start, member.file_size, kind)
        return self._storages[key]

    def tensor(
        self, storage: _Storage, offset: int, size: Any, stride: Any, dtype: Any = None
    ) -> np.ndarray:
        """The array of a storage."""
        dtype = np.dtype(storage.dtype if dtype is None else dtype)
        shape, stride = tuple(size), tuple(stride)
        last = offset + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
        if 0 in shape:
            return np.zeros(shape, dtype)
        if offset < 0 or min(stride, default=0) < 0 or (last + 1) * dtype.itemsize > storage.nbytes:
            raise UserError(f"{self._path} is damaged: a tensor is larger than its storage")
        return np.ndarray(
            shape,
            dtype,
            self._mapped,
            storage.offset + offset * dtype.itemsize,
            tuple(s * dtype.itemsize for s in stride),
        )


class _Unpickler(pickle.Unpickler):
    """Knows containers and tensors; anything else that a pickle names becomes `Opaque`."""

    def __init__(self, file: Any, storage: Callable[..., Any], tensor: Callable[..., Any]):
        super().__init__(file)
        self._storage = storage
        self._known = {
            ("torch._utils", "_rebuild_tensor_v2"): lambda s, o, n, t, *_: tensor(s, o, n, t),
            ("torch._utils", "_rebuild_tensor_v3"): (
                lambda s, o, n, t, grad, hooks, dtype, *_: tensor(s, o, n, t, dtype)
            ),
            ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
            ("torch._utils", "_rebuild_parameter_with_state"): lambda data, *_: data,
            **_CONTAINERS,
        }

    def persistent_load(self, pid: Any) -> Any:
        return self._storage(pid)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self._known:
            return self._known[module, name]
        if module in ("torch", "torch.storage") and name.endswith("Storage"):
            return _TYPES.get(name.removesuffix("Storage"))
        if module == "torch" and name in _TYPE_NAMES:
            return _TYPES[_TYPE_NAMES[name]]
        return type(name, (Opaque,), {"origin": f"{module}.{name}"})
