"""The decoder of Llama, Mistral, Qwen and SmolLM in Flax NNX.

The contract it keeps is `optiml_jax.model.decoder.Decoder`.
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx

from optiml_jax.model.attention import DocumentMask, drop
from optiml_jax.model.axes import constrain
from optiml_jax.model.kv_cache import KVCache
from optiml_jax.model.layers import (
    RESIDUAL,
    Attend,
    Linear,
    LogitsOfHidden,
    embed,
    make_stack,
    out_of_range,
    parameter,
    run_stack,
    unembed,
    whole_length,
)
from optiml_jax.model.llama.config import LlamaConfig
from optiml_jax.model.llama.rotary import turn, turns
from optiml_jax.model.norms import RMSNorm

Turns = tuple[jax.Array, jax.Array]


class Attention(nnx.Module):
    """Grouped-query self-attention over documents, with rotary positions."""

    def __init__(self, config: LlamaConfig, rngs: nnx.Rngs):
        d, k = config.d_model, config.head_dim

        def project(heads: int, axis: str) -> Linear:
            axes = ("embed", axis, "head_dim")
            bias = axes[1:] if config.qkv_bias else None
            return Linear("bld,dhk->blhk", (d, heads, k), axes, bias, config.init_std, rngs)

        self.query = project(config.num_heads, "heads")
        self.key = project(config.num_kv_heads, "kv_heads")
        self.value = project(config.num_kv_heads, "kv_heads")
        norm = functools.partial(RMSNorm, k, config.norm_epsilon)
        self.query_norm, self.key_norm = (norm(), norm()) if config.qk_norm else (None, None)
        std = config.init_std / math.sqrt(2 * config.num_layers)
        shape, axes = (config.num_heads, k, d), ("heads", "head_dim", "embed")
        self.out = Linear("blhk,hkd->bld", shape, axes, None, std, rngs)

    def __call__(
        self,
        x: jax.Array,
        attend: Attend,
        dropout_key: jax.Array | None,
        angles: Turns,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """Returns [B, L, D], keys and values [B, Hkv, L, Dh] of `x`."""
        x = whole_length(x)
        query, key, value = self.query(x), self.key(x), self.value(x)
        if self.query_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        query, key, value = (
            constrain(jnp.swapaxes(y, 1, 2), "batch", axis, None, None)
            for y, axis in ((query, "heads"), (key, "kv_heads"), (value, "kv_heads"))
        )
        query = turn(query, *angles) * (query.shape[-1] ** -0.5)
        key = turn(key, *angles)
        y = attend(query, key, value, dropout_key)
        y = constrain(y, "batch", "heads", None, None)
        return self.out(jnp.swapaxes(y, 1, 2)), (key, value)


class Block(nnx.Module):
    """One decoder block: attention and gated feed-forward, each after an RMS norm."""

    def __init__(self, config: LlamaConfig, rngs: nnx.Rngs):
        d, f = config.d_model, config.ffn_dim
        std = config.init_std / math.sqrt(2 * config.num_layers)
        self.attention_norm = RMSNorm(d, config.norm_epsilon)
        self.attention = Attention(config, rngs)
        self.mlp_norm = RMSNorm(d, config.norm_epsilon)
        wi = functools.partial(Linear, "bld,df->blf", (d, f), ("embed", "mlp"), None)
        self.gate, self.wi = wi(config.init_std, rngs), wi(config.init_std, rngs)
        self.wo = Linear("blf,fd->bld", (f, d), ("mlp", "embed"), None, std, rngs)
        self.dropout = config.dropout

    def __call__(
        self,
        x: jax.Array,
        attend: Attend,
        dropout_key: jax.Array | None,
        angles: Turns,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        keys = (None,) * 3 if dropout_key is None else jax.random.split(dropout_key, 3)
        y = self.attention_norm(x)
        y, key_value = self.attention(y, attend, keys[0], angles)
        x = constrain(x + drop(constrain(y, *RESIDUAL), self.dropout, keys[1]), *RESIDUAL)
        y = whole_length(self.mlp_norm(x))
        y = constrain(jax.nn.silu(self.gate(y)) * self.wi(y), "batch", None, "mlp")
        y = self.wo(y)
        x = constrain(x + drop(constrain(y, *RESIDUAL), self.dropout, keys[2]), *RESIDUAL)
        return x, key_value


class Llama(LogitsOfHidden):
    """Llama and its like, a `Decoder`: `logits = model(tokens, positions, mask, cache=None)`.

    Args:
      config: what to build.
      rngs: source of the initial weights; not kept.
    """

    def __init__(self, config: LlamaConfig, rngs: nnx.Rngs):
        self.config = config

        def table() -> nnx.Param:
            shape = (config.vocab_size, config.d_model)
            return parameter(
                config.init_std * jax.random.normal(rngs.params(), shape), "vocab", "embed"
            )

        self.token_embedding = table()
        self.head = None if config.tied else table()
        self.blocks = make_stack(config, Block, rngs)
        self.final_norm = RMSNorm(config.d_model, config.norm_epsilon)

    def hidden(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        mask: DocumentMask,
        cache: KVCache | None = None,
        *,
        prefix: KVCache | None = None,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array | tuple[jax.Array, KVCache]:
        """What `unembed` turns into logits, [B, L, d_model]; see `Decoder`."""
        config = self.config
        embed_key, stack_key = (
            (None, None) if dropout_key is None else jax.random.split(dropout_key)
        )
        if config.sliding_window is not None:
            mask = mask.replace(positions=positions)
        x = embed(self.token_embedding[...], tokens, config.dtype)
        # No table of positions says that one is too far: the token itself becomes NaN.
        far = out_of_range(positions, mask, cache, config.max_positions)
        x = drop(jnp.where(far[..., None], jnp.nan, x), config.dropout, embed_key)
        x, cache = run_stack(
            self.blocks,
            constrain(x, *RESIDUAL),
            mask,
            cache,
            prefix,
            stack_key,
            config,
            turns(config, positions),
        )
        x = self.final_norm(x)
        return x if cache is None else (x, cache)

    def unembed(self, hidden: jax.Array) -> jax.Array:
        """float32[..., V]: logits of `hidden` [..., d_model]."""
        table = self.token_embedding if self.head is None else self.head
        return unembed(table[...], hidden, self.config.vocab_padding)
