"""How a decoder's parameters and configuration lie in Hugging Face's files; reads no file.

Each architecture fills in a `HuggingFaceForm`; a converter needs nothing else, and can go tensor by
tensor: every tensor of theirs is one `TensorLayout` and, in the stack, one layer.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from optiml_jax.errors import UserError
from optiml_jax.model.config import DecoderConfig

Shapes = Mapping[tuple[str, ...], tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class TensorLayout:
    """The layout of one of our parameters in Hugging Face's tensors.

    Attributes:
      path: where it lies in the nested dict of parameters.
      name: the tensor's whole name; `{layer}` stands for the layer in the stack.
      shape: our shape, without the axis of layers.
      num_layers: how many tensors it is made of; None for a parameter outside the stack.
      inputs: a kernel's number of input axes (ours: inputs, outputs; theirs: outputs x inputs, a
        matrix); None for anything that is only reshaped.
    """

    path: tuple[str, ...]
    name: str
    shape: tuple[int, ...]
    num_layers: int | None
    inputs: int | None

    @property
    def their_shape(self) -> tuple[int, ...]:
        """The shape of each of their tensors."""
        if self.inputs is not None:
            return (math.prod(self.shape[self.inputs :]), math.prod(self.shape[: self.inputs]))
        return self.shape if self.path[-1] != "bias" else (math.prod(self.shape),)

    def names(self) -> list[str]:
        """The names of their tensors, by layer."""
        return [self.name.format(layer=i) for i in range(self.num_layers or 1)]

    def ours(self, tensor: Any, index: tuple[slice, ...]) -> np.ndarray:
        """The part `index` (of `shape`) of their tensor, a safetensors slice; reads no more."""
        if self.inputs is None and len(self.their_shape) == len(self.shape):
            return tensor[index]
        n = self.inputs or 0
        rows = _flat(index[n], self.shape[n:])
        if self.inputs is None:
            out = tensor[rows].reshape(-1, *self.shape[1:])
            return out[(slice(None), *index[1:])]
        out = tensor[rows, _flat(index[0], self.shape[:n])].T
        out = out.reshape(length(index[0]), *self.shape[1:n], -1, *self.shape[n + 1 :])
        return out[(slice(None), *index[1:n], slice(None), *index[n + 1 :])]

    def theirs(self, value: np.ndarray) -> np.ndarray:
        """Their tensor from our array of `shape`."""
        if self.inputs is None:
            return value.reshape(self.their_shape)
        return value.reshape(self.their_shape[::-1]).T


@dataclasses.dataclass(frozen=True)
class HuggingFaceForm:
    """An architecture in Hugging Face's form.

    Attributes:
      model_types: the values of `model_type` in config.json that it reads.
      read_config: (values of config.json, its name for messages) -> configuration; UserError for
        what the architecture does not have.
      write_config: (configuration, type of the tensors) -> values of config.json; UserError for
        what has no form in Hugging Face's model.
      tensor_name: path of a parameter -> name of its tensor; `{layer}` stands for the layer of one
        in the stack.
      canonical_name: the whole name of a tensor that a file may call by a part of it.
      aliases: configuration -> {name: name of the tensor that is the same}: tied weights, of which
        a file may hold either name or both.
      tokenizer_config: tokenizer_config.json for a folder that has a vocabulary and no such file.
      vocabulary: kind of the vocabulary in a folder of such a model, as `Run.vocabulary` names it;
        "huggingface": the tokenizer there says what stands in front of a text, else `bos_token_id`.
      without_bos: model types of which config.json names a `bos_token_id` that nothing uses unless
        the tokenizer does.
      gguf: model types that are read from llama.cpp's files -> parts of names of the matrices whose
        rows, head by head, these hold in another order.
    """

    model_types: tuple[str, ...]
    read_config: Callable[[Mapping[str, Any], str], DecoderConfig]
    write_config: Callable[[Any, str], dict[str, Any]]
    tensor_name: Callable[[tuple[str, ...]], str]
    canonical_name: Callable[[str], str]
    aliases: Callable[[Any], Mapping[str, str]]
    tokenizer_config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    vocabulary: str = "huggingface"
    without_bos: tuple[str, ...] = ()
    gguf: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    def config(self, values: Mapping[str, Any], path: str) -> DecoderConfig:
        """The configuration in the values of a config.json; `path` is its name for messages.

        Raises:
          UserError: a value is missing, of another type or out of range, or describes a model that
            the architecture does not have.
        """
        try:
            return self.read_config(values, path)
        except UserError as e:
            raise UserError(str(e) if path in str(e) else f"{path}: {e}") from e
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError) as e:
            raise UserError(
                f"{path} is not the configuration of a model ({type(e).__name__}: {e}); put a "
                "whole one back"
            ) from e

    def tensors(self, shapes: Shapes, num_layers: int) -> list[TensorLayout]:
        """The layouts of all parameters, in the order of the published files.

        Args:
          shapes: of the parameters by path, the stacked ones with their axis of layers.
          num_layers: of the stack.
        """
        layouts = []
        for path, shape in shapes.items():
            stacked = path[0] == "blocks"
            inputs = None
            if path[-1] == "kernel":
                inputs = 2 if path[-2] == "out" else 1
            own = (shape[1:], num_layers) if stacked else (shape, None)
            layouts.append(TensorLayout(path, self.tensor_name(path), *own, inputs))
        return sorted(layouts, key=lambda layout: (layout.num_layers is not None, layout.name))


def _flat(part: slice, shape: tuple[int, ...]) -> slice:
    """The range that `part` of the first axis of `shape` takes when the axes are flattened."""
    step = math.prod(shape[1:])
    return slice(part.start * step, part.stop * step)


def length(part: slice) -> int:
    return part.stop - part.start
