"""What an OPT model is: its configuration, the published sizes, the number of its parameters.

No arrays here, and no JAX: every verb may import this module.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import gin

from optiml_jax.errors import UserError

DTYPES = ("float32", "bfloat16", "float16")
REMAT_POLICIES = ("none", "dots", "full")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OPTConfig:
    """The shape of an OPT decoder and how it is computed.

    A width that is None is derived when the object is made, so `dataclasses.replace` keeps it;
    `model_config` derives it anew.

    Attributes:
      vocab_size: rows of the token embedding. OPT pads its 50,265 words to 50,272; the padding rows
        are ordinary parameters and give ordinary logits, as in Hugging Face.
      d_model: width of the residual stream.
      num_layers: number of decoder blocks.
      num_heads: attention heads; must divide d_model.
      ffn_dim: width of the feed-forward layer; None means 4 * d_model.
      embed_dim: width of the token embedding; None means d_model. When it differs (350m), two
        bias-free projections lead into and out of the residual stream.
      max_positions: the largest number of positions; a position beyond gives NaN.
      position_offset: first row of the position table that is used (OPT: 2).
      pre_layer_norm: layer norm before attention and feed-forward; False is after (350m).
      final_layer_norm: a layer norm after the last block; None means the same as pre_layer_norm.
      dropout: probability on the embeddings and on both residual branches.
      attention_dropout: probability on the attention weights (the released configs say 0).
      pad_id: token id of padding.
      bos_id: token id that Hugging Face puts in front of a prompt (`</s>`).
      eos_id: token id that ends a text.
      init_std: standard deviation of the initial weights; the two layers that write to the residual
        stream use init_std / sqrt(2 * num_layers). The paper (2.2) says 0.006, Hugging Face 0.02.
      dtype: type of the computation; parameters are float32, and layer norm, softmax and logits
        are computed in float32 whatever it says.
      remat: what the backward pass computes again: nothing ("none"), everything but matrix products
        ("dots"), whole blocks ("full").
    """

    vocab_size: int = 50272
    d_model: int = 768
    num_layers: int = 12
    num_heads: int = 12
    ffn_dim: int | None = None
    embed_dim: int | None = None
    max_positions: int = 2048
    position_offset: int = 2
    pre_layer_norm: bool = True
    final_layer_norm: bool | None = None
    dropout: float = 0.1
    attention_dropout: float = 0.0
    pad_id: int = 1
    bos_id: int = 2
    eos_id: int = 2
    init_std: float = 0.02
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    remat: Literal["none", "dots", "full"] = "none"

    def __post_init__(self):
        derived = {
            "ffn_dim": 4 * self.d_model,
            "embed_dim": self.d_model,
            "final_layer_norm": self.pre_layer_norm,
        }
        for name, value in derived.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        self._check()

    def _check(self) -> None:
        for name in ("vocab_size", "d_model", "num_layers", "num_heads", "ffn_dim", "embed_dim"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise UserError(f"model configuration: {name} must be a positive whole number")
        for name in ("pad_id", "bos_id", "eos_id"):
            if not isinstance(getattr(self, name), int):
                raise UserError(f"model configuration: {name} must be one whole number")
        if self.d_model % self.num_heads:
            raise UserError(
                f"model configuration: num_heads {self.num_heads} does not divide "
                f"d_model {self.d_model}"
            )
        for name, allowed in (("dtype", DTYPES), ("remat", REMAT_POLICIES)):
            if getattr(self, name) not in allowed:
                raise UserError(
                    f"model configuration: {name} is {getattr(self, name)!r}; "
                    f"choose one of {', '.join(allowed)}"
                )
        for name in ("dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"model configuration: {name} must lie in [0, 1)")

    @property
    def head_dim(self) -> int:
        return self.d_model // self.num_heads

    @property
    def has_projections(self) -> bool:
        """Whether projections lead between the embedding's width and the residual stream's."""
        return self.embed_dim != self.d_model

    @property
    def num_params(self) -> int:
        """The number of parameters; the tied output embedding counts once."""
        d, f = self.d_model, self.ffn_dim
        attention = 4 * (d * d + d)
        feed_forward = 2 * d * f + f + d
        block = attention + feed_forward + 2 * 2 * d
        embeddings = self.vocab_size * self.embed_dim
        embeddings += (self.max_positions + self.position_offset) * d
        projections = 2 * d * self.embed_dim if self.has_projections else 0
        final = 2 * d if self.final_layer_norm else 0
        return embeddings + projections + self.num_layers * block + final

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dict that `from_dict` turns back into an equal configuration."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "OPTConfig":
        """The configuration of a dict; an unknown field is a UserError."""
        _check_fields(values)
        return cls(**values)


# OPT paper, table 1; 350m as released (metaseq: post-norm, 512-wide embeddings).
SIZES: dict[str, dict[str, Any]] = {
    "125m": {"num_layers": 12, "num_heads": 12, "d_model": 768},
    "350m": {
        "num_layers": 24,
        "num_heads": 16,
        "d_model": 1024,
        "embed_dim": 512,
        "pre_layer_norm": False,
    },
    "1.3b": {"num_layers": 24, "num_heads": 32, "d_model": 2048},
    "2.7b": {"num_layers": 32, "num_heads": 32, "d_model": 2560},
    "6.7b": {"num_layers": 32, "num_heads": 32, "d_model": 4096},
    "13b": {"num_layers": 40, "num_heads": 40, "d_model": 5120},
    "30b": {"num_layers": 48, "num_heads": 56, "d_model": 7168},
    "66b": {"num_layers": 64, "num_heads": 72, "d_model": 9216},
    "175b": {"num_layers": 96, "num_heads": 96, "d_model": 12288},
}


@gin.configurable
def model_config(size: str | None = None, **overrides: Any) -> OPTConfig:
    """The configuration of a published size, with some fields replaced.

    Args:
      size: a key of `SIZES`; None starts from the defaults of `OPTConfig`.
      **overrides: fields of `OPTConfig`. Widths that follow from others (ffn_dim, embed_dim)
        follow the replaced ones unless they are given too.

    Raises:
      UserError: an unknown size or field, or values that do not go together.
    """
    if size is not None and size not in SIZES:
        raise UserError(f"unknown model size {size!r}; choose one of {', '.join(SIZES)}")
    _check_fields(overrides)
    return OPTConfig(**{**SIZES.get(size, {}), **overrides})


def _check_fields(values: Mapping[str, Any]) -> None:
    known = [field.name for field in dataclasses.fields(OPTConfig)]
    for name in values:
        if name not in known:
            raise UserError(f"unknown field {name!r} of the model; known are {', '.join(known)}")
