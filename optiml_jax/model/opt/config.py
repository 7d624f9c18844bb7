"""What an OPT model is: its configuration, the published sizes, the number of its parameters."""

import dataclasses
from typing import Any, ClassVar

from optiml_jax.errors import UserError
from optiml_jax.model.config import DecoderConfig
from optiml_jax.settings import Layers, NotNegative, Share, Width


@dataclasses.dataclass(frozen=True, kw_only=True)
class OPTConfig(DecoderConfig):
    """The shape of an OPT decoder and how it is computed.

    A width that is None is derived when the object is made, so `dataclasses.replace` keeps it;
    `model_config` derives it anew. The fields of every decoder: see `DecoderConfig`.

    Attributes:
      vocab_size: OPT pads its 50,265 words to 50,272.
      num_heads: must divide d_model.
      ffn_dim: width of the feed-forward layer; None means 4 * d_model.
      embed_dim: width of the token embedding; None means d_model. When it differs (350m), two
        bias-free projections lead into and out of the residual stream.
      max_positions: a position beyond gives NaN.
      position_offset: first row of the position table that is used (OPT: 2).
      pre_layer_norm: layer norm before attention and feed-forward; False is after (350m).
      final_layer_norm: a layer norm after the last block; None means the same as pre_layer_norm.
      attention_dropout: the released configurations say 0.
      bos_id: token id that Hugging Face puts in front of a prompt (`</s>`).
      init_std: the two layers that write to the residual stream use init_std / sqrt(2 *
        num_layers). The paper (2.2) says 0.006, Hugging Face 0.02.
    """

    architecture: ClassVar[str] = "opt"

    vocab_size: Width = 50272
    d_model: Width = 768
    num_layers: Layers = 12
    num_heads: Width = 12
    ffn_dim: Width | None = None
    embed_dim: Width | None = None
    position_offset: NotNegative = 2
    pre_layer_norm: bool = True
    final_layer_norm: bool | None = None
    dropout: Share = 0.1

    def _derive(self) -> None:
        derived = {
            "ffn_dim": 4 * self.d_model,
            "embed_dim": self.d_model,
            "final_layer_norm": self.pre_layer_norm,
        }
        for name, value in derived.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)

    def _check(self) -> None:
        super()._check()
        if self.d_model % self.num_heads:
            raise UserError(
                f"model configuration: num_heads {self.num_heads} does not divide "
                f"d_model {self.d_model}"
            )

    @property
    def has_projections(self) -> bool:
        """Whether projections lead between the embedding's width and the residual stream's."""
        return self.embed_dim != self.d_model

    @property
    def num_params(self) -> int:
        return self.num_matmul_params + (self.max_positions + self.position_offset) * self.d_model

    @property
    def num_matmul_params(self) -> int:
        d, f = self.d_model, self.ffn_dim
        attention = 4 * (d * d + d)
        feed_forward = 2 * d * f + f + d
        block = attention + feed_forward + 2 * 2 * d
        embedding = self.vocab_size * self.embed_dim
        projections = 2 * d * self.embed_dim if self.has_projections else 0
        final = 2 * d if self.final_layer_norm else 0
        return embedding + projections + self.num_layers * block + final


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
