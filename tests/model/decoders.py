"""One small configuration for each kind of decoder, for the tests that hold for all of them."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from optiml_jax.model.config import DecoderConfig
from optiml_jax.model.decoder import abstract_model
from optiml_jax.model.llama.config import LlamaConfig
from optiml_jax.model.opt.config import OPTConfig

_SMALL = {"vocab_size": 64, "d_model": 32, "num_layers": 2, "num_heads": 4, "max_positions": 24}
_LLAMA_3 = {"rope_type": "llama3", "rope_factor": 8.0, "rope_original_positions": 16}
DECODERS = {
    "opt": OPTConfig(**_SMALL),
    "opt_350m": OPTConfig(**_SMALL, embed_dim=16, pre_layer_norm=False, final_layer_norm=False),
    "llama_3": LlamaConfig(**_SMALL, num_kv_heads=2, tied=False, **_LLAMA_3),
    "mistral": LlamaConfig(
        **_SMALL, family="mistral", num_kv_heads=2, sliding_window=4, tied=False
    ),
    "qwen_2": LlamaConfig(**_SMALL, family="qwen2", num_kv_heads=1, qkv_bias=True),
    "qwen_3": LlamaConfig(**_SMALL, family="qwen3", qk_norm=True, head_dim=16),
}
TWO = {name: DECODERS[name] for name in ("opt", "llama_3")}  # where one of each kind is enough


def random_params(config: DecoderConfig) -> dict:
    """A pure nested dict of parameters, biases and norms random too; compiles nothing."""
    generator = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: jnp.asarray(0.2 * generator.standard_normal(x.shape), jnp.float32),
        nnx.to_pure_dict(abstract_model(config)[1]),
    )
