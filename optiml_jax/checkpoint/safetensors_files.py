"""The weight files of a Hugging Face model: read lazily, and written in any order.

Other modules interpret the tensors. `pytorch_model.bin` is read as well (torch_files.py).
"""

import contextlib
import json
import math
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import safetensors

from optiml_jax.checkpoint.tensors import SAFETENSORS_TYPES, SafetensorsTensor, Tensor
from optiml_jax.checkpoint.torch_files import read_torch_file
from optiml_jax.errors import UserError
from optiml_jax.files import read_json

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
TORCH_WEIGHTS = "pytorch_model.bin"
TORCH_INDEX = "pytorch_model.bin.index.json"
_TYPE_NAMES = {name: code for code, name in SAFETENSORS_TYPES.items()}


# ---- reading ---------------------------------------------------------------------------------


@contextlib.contextmanager
def open_folder(folder: pathlib.Path) -> Iterator[dict[str, Tensor]]:
    """Yields name -> tensor for all weight files of a folder, safetensors if it has both formats.

    Raises:
      UserError: no weights, or a missing or damaged file.
    """
    with contextlib.ExitStack() as stack:
        tensors: dict[str, Tensor] = {}
        for file in _weight_files(folder):
            if file.endswith(".bin"):
                tensors |= _torch_tensors(folder / file)
                continue
            try:
                opened = stack.enter_context(safetensors.safe_open(folder / file, "numpy"))
            except FileNotFoundError as e:
                raise UserError(f"{folder / file} is missing although {INDEX} names it") from e
            except (safetensors.SafetensorError, OSError) as e:
                raise UserError(f"{folder / file} is damaged: {e}; copy it again") from e
            for name in opened.keys():  # noqa: SIM118  (not a dict)
                tensors[name] = SafetensorsTensor(opened.get_slice(name))
        yield tensors


def _weight_files(folder: pathlib.Path) -> list[str]:
    for index, single in ((INDEX, WEIGHTS), (TORCH_INDEX, TORCH_WEIGHTS)):
        if (folder / index).exists():
            values = read_json(folder / index, "the index of a Hugging Face model")
            return sorted(set(values.get("weight_map", {}).values()))
        if (folder / single).exists():
            return [single]
    raise UserError(f"{folder} has neither {WEIGHTS} nor {INDEX} nor {TORCH_WEIGHTS}")


def _torch_tensors(path: pathlib.Path) -> dict[str, Tensor]:
    values = read_torch_file(path)
    if not isinstance(values, dict):
        raise UserError(f"{path} has no table of tensors")
    return {name: value for name, value in values.items() if isinstance(value, np.ndarray)}


# ---- writing ---------------------------------------------------------------------------------


class ShardWriter:
    """The weight files of a model, created at their full size and then filled in any order.

    Args:
      folder: where the files go.
      tensors: name -> (shape, dtype), in their order in the files.
      max_shard_bytes: a larger model is split into several files.

    Data is written through mapped files, whose memory the system can reclaim. Disk space is
    reserved first, so that a full disk is an ordinary error.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        tensors: Mapping[str, tuple[tuple[int, ...], np.dtype]],
        max_shard_bytes: int,
    ):
        self.views: dict[str, np.ndarray] = {}
        sizes = {
            name: math.prod(shape) * dtype.itemsize for name, (shape, dtype) in tensors.items()
        }
        shards = _in_shards(sizes, max_shard_bytes)
        files = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
        files = [WEIGHTS] if len(shards) == 1 else files
        for file, names in zip(files, shards, strict=True):
            self._make(folder / file, {name: tensors[name] for name in names})
        if len(shards) > 1:
            weight_map = {n: file for file, names in zip(files, shards, strict=True) for n in names}
            index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
            (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", "utf-8")

    def _make(
        self, path: pathlib.Path, tensors: Mapping[str, tuple[tuple[int, ...], np.dtype]]
    ) -> None:
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        end, starts = 0, {}
        for name, (shape, dtype) in tensors.items():
            starts[name] = end
            end += math.prod(shape) * dtype.itemsize
            header[name] = {
                "dtype": _TYPE_NAMES[dtype.name],
                "shape": list(shape),
                "data_offsets": [starts[name], end],
            }
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        with open(path, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.flush()
            os.posix_fallocate(file.fileno(), 0, 8 + len(text) + end)
        mapped = np.memmap(path, np.uint8, "r+")
        for name, (shape, dtype) in tensors.items():
            start = 8 + len(text) + starts[name]
            part = mapped[start : start + math.prod(shape) * dtype.itemsize]
            self.views[name] = part.view(dtype).reshape(shape)

    def close(self) -> None:
        """Unmaps the files; the system writes the rest."""
        self.views.clear()


def _in_shards(sizes: Mapping[str, int], max_shard_bytes: int) -> Sequence[list[str]]:
    shards: list[list[str]] = [[]]
    used = 0
    for name, size in sizes.items():
        if shards[-1] and used + size > max_shard_bytes:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += size
    return shards
