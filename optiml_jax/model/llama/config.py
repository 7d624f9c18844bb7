"""What a model of Llama's kind is: its configuration, published sizes, number of parameters.

Llama, Mistral, Qwen 2, Qwen 3 and SmolLM differ in a few fields only.
"""

import dataclasses
import importlib.resources
import math
from typing import Any, ClassVar, Literal

import yaml

from optiml_jax.errors import UserError
from optiml_jax.model.config import DecoderConfig
from optiml_jax.settings import Layers, PositiveFloat, Width

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlamaConfig(DecoderConfig):
    """The shape of a decoder with RMS norm, rotary positions and a gated feed-forward layer.

    A width that is None is derived when the object is made. The fields of every decoder: see
    `DecoderConfig`.

    Attributes:
      family: Hugging Face's `model_type`; decides nothing but the name in exported folders.
      num_kv_heads: heads of keys and values, a divisor of num_heads; None means num_heads.
      head_dim: width of a head; None means d_model / num_heads.
      ffn_dim: width of the feed-forward layer; None means 8/3 * d_model, up to a multiple of 64.
      tied: whether the output embedding is the token embedding.
      qkv_bias: whether queries, keys and values have biases (Qwen 2).
      qk_norm: whether queries and keys pass an RMS norm over each head (Qwen 3).
      sliding_window: a token sees itself and the sliding_window - 1 tokens before it; None: all.
      norm_epsilon: of every RMS norm.
      rope_theta: base of the rotary wavelengths.
      rope_type: how wavelengths are scaled for longer texts: not at all ("default"), all alike
        ("linear"), the long ones ("llama3", "yarn").
      rope_factor: of the scaling.
      rope_original_positions: positions before the scaling; "llama3" and "yarn" need it.
      rope_low_frequency_factor, rope_high_frequency_factor: of "llama3".
      rope_beta_fast, rope_beta_slow: of "yarn".
      rope_attention_factor: what "yarn" multiplies queries and keys with; None: 0.1 ln(factor) + 1.
    """

    architecture: ClassVar[str] = "llama"

    family: Literal["llama", "mistral", "qwen2", "qwen3"] = "llama"
    vocab_size: Width = 32000
    d_model: Width = 768
    num_layers: Layers = 12
    num_heads: Width = 12
    num_kv_heads: Width | None = None
    head_dim: Width | None = None
    ffn_dim: Width | None = None
    tied: bool = True
    qkv_bias: bool = False
    qk_norm: bool = False
    sliding_window: Width | None = None
    norm_epsilon: PositiveFloat = 1e-5
    rope_theta: PositiveFloat = 10000.0
    rope_type: Literal["default", "linear", "llama3", "yarn"] = "default"
    rope_factor: PositiveFloat = 1.0
    rope_original_positions: Width | None = None
    rope_low_frequency_factor: PositiveFloat = 1.0
    rope_high_frequency_factor: PositiveFloat = 4.0
    rope_beta_fast: PositiveFloat = 32.0
    rope_beta_slow: PositiveFloat = 1.0
    rope_attention_factor: PositiveFloat | None = None

    def _derive(self) -> None:
        derived = {
            "num_kv_heads": self.num_heads,
            "head_dim": self.d_model // self.num_heads,
            "ffn_dim": math.ceil(8 * self.d_model / 3 / 64) * 64,
        }
        for name, value in derived.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)

    def _check(self) -> None:
        super()._check()
        if self.head_dim < 1:
            raise UserError(
                f"model configuration: num_heads {self.num_heads} is more than d_model "
                f"{self.d_model}"
            )
        if self.num_heads % self.num_kv_heads:
            raise UserError(
                f"model configuration: num_kv_heads {self.num_kv_heads} does not divide "
                f"num_heads {self.num_heads}"
            )
        if self.head_dim % 2:
            raise UserError(
                f"model configuration: head_dim {self.head_dim} is odd; rotary positions need pairs"
            )
        if self.rope_type in ("llama3", "yarn") and self.rope_original_positions is None:
            raise UserError(
                f"model configuration: rope_type {self.rope_type!r} needs rope_original_positions"
            )

    @property
    def num_params(self) -> int:
        return self.num_matmul_params + (0 if self.tied else self.vocab_size * self.d_model)

    @property
    def num_matmul_params(self) -> int:
        d, k = self.d_model, self.head_dim
        heads = self.num_heads + 2 * self.num_kv_heads
        attention = (heads + self.num_heads) * d * k + (heads * k if self.qkv_bias else 0)
        norms = 2 * d + (2 * k if self.qk_norm else 0)
        block = attention + 3 * d * self.ffn_dim + norms
        return self.vocab_size * d + self.num_layers * block + d


def _read_sizes() -> dict[str, dict[str, Any]]:
    text = importlib.resources.files(__package__).joinpath("sizes.yaml").read_text("utf-8")
    groups = yaml.safe_load(text)
    return {
        name: {**group["fields"], **fields}
        for group in groups
        for name, fields in group["sizes"].items()
    }


# Size -> fields, as in the config.json of the published base models.
SIZES: dict[str, dict[str, Any]] = _read_sizes()
