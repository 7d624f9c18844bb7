"""How OPT's parameters and configuration lie in Hugging Face's files; reads and writes nothing."""

import dataclasses
import math
from typing import Any

import numpy as np
from flax import nnx

from optiml_jax.model.config import OPTConfig
from optiml_jax.model.opt import abstract_model

PREFIX = "model.decoder."
HEAD = "lm_head.weight"
TOKENS = "embed_tokens.weight"
# OPTConfig field -> config.json field, for the fields that both have.
FIELDS = {
    "vocab_size": "vocab_size",
    "d_model": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "ffn_dim": "ffn_dim",
    "embed_dim": "word_embed_proj_dim",
    "max_positions": "max_position_embeddings",
    "pre_layer_norm": "do_layer_norm_before",
    "dropout": "dropout",
    "attention_dropout": "attention_dropout",
    "pad_id": "pad_token_id",
    "bos_id": "bos_token_id",
    "eos_id": "eos_token_id",
    "init_std": "init_std",
}
OPTIONAL_FIELDS = ("embed_dim", "init_std", "attention_dropout", "dropout", "pre_layer_norm")
# config.json fields that this model has in one form only.
FIXED = {
    "model_type": "opt",
    "activation_function": "relu",
    "enable_bias": True,
    "layer_norm_elementwise_affine": True,
    "tie_word_embeddings": True,
}
_NORM_PARTS = {"scale": "weight", "bias": "bias"}
_LINEAR_PARTS = {"kernel": "weight", "bias": "bias"}
_MODULES = {
    "attention.query": ("self_attn.q_proj", _LINEAR_PARTS),
    "attention.key": ("self_attn.k_proj", _LINEAR_PARTS),
    "attention.value": ("self_attn.v_proj", _LINEAR_PARTS),
    "attention.out": ("self_attn.out_proj", _LINEAR_PARTS),
    "attention_norm": ("self_attn_layer_norm", _NORM_PARTS),
    "wi": ("fc1", _LINEAR_PARTS),
    "wo": ("fc2", _LINEAR_PARTS),
    "mlp_norm": ("final_layer_norm", _NORM_PARTS),
    "project_in": ("project_in", _LINEAR_PARTS),
    "project_out": ("project_out", _LINEAR_PARTS),
    "final_norm": ("final_layer_norm", _NORM_PARTS),
}


@dataclasses.dataclass(frozen=True)
class Leaf:
    """How one of our parameters lies in Hugging Face's tensors.

    Attributes:
      path: where it lies in the nested dict of parameters.
      name: the tensor's name without prefix; `{layer}` stands for the layer in the stack.
      shape: our shape, without the axis of layers.
      num_layers: how many tensors it is made of; None for a parameter outside the stack.
      inputs: a kernel's number of input axes (ours: inputs, outputs; theirs: outputs x inputs);
        None for anything that is only reshaped.
    """

    path: tuple[str, ...]
    name: str
    shape: tuple[int, ...]
    num_layers: int | None
    inputs: int | None

    @property
    def their_shape(self) -> tuple[int, ...]:
        if self.inputs is not None:
            return (math.prod(self.shape[self.inputs :]), math.prod(self.shape[: self.inputs]))
        return self.shape if self.path[-1] != "bias" else (math.prod(self.shape),)

    def names(self) -> list[str]:
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


def _flat(part: slice, shape: tuple[int, ...]) -> slice:
    """The range that `part` of the first axis of `shape` takes when the axes are flattened."""
    step = math.prod(shape[1:])
    return slice(part.start * step, part.stop * step)


def length(part: slice) -> int:
    return part.stop - part.start


def leaves_of(config: OPTConfig) -> list[Leaf]:
    """Every parameter of the model, in the order of the published files."""
    leaves = []
    for path, variable in nnx.to_flat_state(abstract_model(config)[1]):
        path = tuple(map(str, path))
        stacked = path[0] == "blocks"
        shape = variable.shape[1:] if stacked else variable.shape
        inputs = None
        if path[-1] == "kernel":
            inputs = 2 if path[-2] == "out" else 1
        if path[-1] == "token_embedding":
            name = TOKENS
        elif path[-1] == "position_embedding":
            name = "embed_positions.weight"
        else:
            module, parts = _MODULES[".".join(path[stacked:-1])]
            name = f"{module}.{parts[path[-1]]}"
        name = "layers.{layer}." + name if stacked else name
        layers = config.num_layers if stacked else None
        leaves.append(Leaf(path, name, tuple(shape), layers, inputs))
    return sorted(leaves, key=lambda leaf: (leaf.num_layers is not None, leaf.name))
