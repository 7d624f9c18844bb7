"""What every decoder's configuration says: its sizes, special ids and how it is computed.

Training, scoring, decoding, conversion and sharding know a model by these fields and properties
alone; what else an architecture needs stands in its own room, e.g. `model/opt/config.py`. No arrays
here, and no JAX: every verb may import this module.
"""

import dataclasses
from typing import Any, ClassVar, Literal

from optiml_jax.errors import UserError
from optiml_jax.settings import (
    Layers,
    NotNegative,
    NotNegativeFloat,
    PositiveFloat,
    Share,
    TokenId,
    Width,
    convert_fields,
)

DTYPES = ("float32", "bfloat16", "float16")
REMAT_POLICIES = ("none", "dots", "attention", "full", "offload")  # from much memory to little


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """The shape of a decoder and how it is computed; one subclass per architecture.

    Attributes:
      architecture: name of the room under `optiml_jax/model`, a constant of the subclass.
      vocab_size: rows of the token embedding. Rows that pad the vocabulary are ordinary parameters
        and give ordinary logits, as in Hugging Face.
      vocab_padding: how many of them, the last ones, only fill the table up so that a mesh can
        divide it: they get no probability, and are left out where the model is written elsewhere.
      d_model: width of the residual stream.
      num_layers: number of decoder blocks.
      num_heads: attention heads (of the queries).
      max_positions: the largest number of positions of a document.
      dropout: probability on the embeddings and on both residual branches.
      attention_dropout: probability on the attention weights.
      pad_id: token id of padding.
      bos_id: token id that stands in front of every text; None: nothing does.
      eos_id: token id that ends a text, in training and in scoring.
      more_eos_ids: further ids that end a generated text (those of an instruct model's turns).
      init_std: standard deviation of the initial weights.
      lora_rank: of the adapters beside matrices, which are then trained alone (model/lora.py); 0:
        there are none, and all parameters are trained.
      lora_alpha: an adapter's result is multiplied with lora_alpha / lora_rank.
      lora_targets: names of the matrices of a block that have an adapter: "query", "key", "value",
        "out", "wi", "wo" and, of Llama's kind, "gate"; empty: all of them.
      dtype: type of the computation; parameters are float32, and norms, softmax and logits are
        computed in float32 whatever it says.
      remat: what the backward pass computes again: nothing ("none"), everything but matrix products
        ("dots"), everything but what attention gives ("attention"), whole blocks ("full"); or whole
        blocks, whose inputs wait in the host's memory ("offload").
      unroll: blocks per turn of the loop over them: with more, compiling takes longer, and less of
        what the backward pass needs is copied, which small models on a CPU notice.
      matmul: in which type inputs are multiplied with the blocks' matrices in training: that of the
        computation ("dtype"), or "float8", an experiment (model/float8.py).
      attention: the kernel that computes attention, see `model/kernels`; "auto": the first one that
        is meant for the platform and can compute the shape.
    """

    architecture: ClassVar[str]

    vocab_size: Width
    vocab_padding: NotNegative = 0
    d_model: Width
    num_layers: Layers
    num_heads: Width
    max_positions: Width = 2048
    dropout: Share = 0.0
    attention_dropout: Share = 0.0
    pad_id: TokenId = 1
    bos_id: TokenId | None = 2
    eos_id: TokenId = 2
    more_eos_ids: tuple[TokenId, ...] = ()
    init_std: NotNegativeFloat = 0.02
    lora_rank: NotNegative = 0
    lora_alpha: PositiveFloat = 16.0
    lora_targets: tuple[str, ...] = ()
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    remat: Literal["none", "dots", "attention", "full", "offload"] = "none"
    unroll: Layers = 1
    matmul: Literal["dtype", "float8"] = "dtype"
    attention: Literal["auto", "reference", "chunked", "splash", "triton"] = "auto"

    def __post_init__(self):
        convert_fields(self, "model_config")
        self._derive()
        self._check()

    def _derive(self) -> None:
        """Fills in the widths that follow from others."""

    def _check(self) -> None:
        """UserError where fields do not go together."""
        if self.vocab_padding >= self.vocab_size:
            raise UserError("model configuration: vocab_padding must be below vocab_size")
        if self.matmul == "float8" and self.dtype != "bfloat16":
            raise UserError(
                f"model_config.matmul='float8' goes with dtype='bfloat16' only, not {self.dtype}"
            )

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Every token id that ends a generated text, `eos_id` first."""
        return (self.eos_id, *(i for i in self.more_eos_ids if i != self.eos_id))

    @property
    def lora_scale(self) -> float:
        """What the result of an adapter is multiplied with."""
        return self.lora_alpha / self.lora_rank

    def as_evaluated(self) -> "DecoderConfig":
        """The model whose matrices have taken in their adapters, and are multiplied in `dtype`.

        Float8's one scale for all rows of a batch would make a row's result depend on the others.
        Its loop over blocks is not unrolled: nothing is kept for a backward pass.
        """
        of_training = {"matmul", "unroll", "lora_rank", "lora_alpha", "lora_targets"}
        defaults = {f.name: f.default for f in dataclasses.fields(self) if f.name in of_training}
        return dataclasses.replace(self, **defaults)

    # The shape of the cache of keys and values: [num_layers, B, num_kv_heads, positions, head_dim].
    # Fields in architectures in which they are free; here what follows from the other fields.

    @property
    def num_kv_heads(self) -> int:
        """Heads of keys and values; each serves num_heads // num_kv_heads heads of queries."""
        return self.num_heads

    @property
    def head_dim(self) -> int:
        return self.d_model // self.num_heads

    @property
    def sliding_window(self) -> int | None:
        """A token sees itself and the sliding_window - 1 tokens before it; None: all of them."""
        return None

    @property
    def num_params(self) -> int:
        """The number of parameters; a tied output embedding counts once."""
        raise NotImplementedError

    @property
    def num_matmul_params(self) -> int:
        """Parameters that a token is multiplied with, so that it costs two FLOPs for each forward.

        All but tables used for lookup only (positions, an untied input embedding).
        """
        raise NotImplementedError

    def flops_per_token(self, sequence_length: int) -> float:
        """FLOPs of one token in training: 6 * num_matmul_params + 12 * layers * width * length.

        Forward and backward, full attention, no recomputation (PaLM, appendix B); the width is that
        of all heads together, the length at most the sliding window. Under LoRA 4 in the place of
        6: the gradient of the matrices is not computed.
        """
        length = min(sequence_length, self.sliding_window or sequence_length)
        attention = 12 * self.num_layers * self.num_heads * self.head_dim * length
        return (4 if self.lora_rank else 6) * self.num_matmul_params + attention

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dict that `architectures.config_from_dict` turns back into an equal one."""
        values = dataclasses.asdict(self)
        lists = {name: [*value] for name, value in values.items() if isinstance(value, tuple)}
        return {"architecture": self.architecture, **values, **lists}
