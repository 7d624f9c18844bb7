"""The OPT decoder in Flax NNX: embeddings, block, stack, tied output embedding.

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
    parameter,
    run_stack,
    unembed,
    whole_length,
)
from optiml_jax.model.norms import LayerNorm
from optiml_jax.model.opt.config import OPTConfig


class Attention(nnx.Module):
    """Multi-head self-attention over documents."""

    def __init__(self, config: OPTConfig, rngs: nnx.Rngs):
        d, h, k = config.d_model, config.num_heads, config.head_dim
        project = functools.partial(
            Linear,
            "bld,dhk->blhk",
            (d, h, k),
            ("embed", "heads", "head_dim"),
            ("heads", "head_dim"),
            config.init_std,
            rngs,
        )
        # A bias of the keys shifts all scores of a query alike, which the softmax does not see: its
        # gradient is 0, and the rounding errors in its place would be blown up by Adam.
        self.query, self.key, self.value = project(), project(train_bias=False), project()
        std = config.init_std / math.sqrt(2 * config.num_layers)
        out_axes = ("heads", "head_dim", "embed")
        self.out = Linear("blhk,hkd->bld", (h, k, d), out_axes, ("norm",), std, rngs)

    def __call__(
        self,
        x: jax.Array,
        attend: Attend,
        dropout_key: jax.Array | None,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """Returns [B, L, D] and the keys and values [B, H, L, Dh] of `x`."""
        x = whole_length(x)
        query, key, value = (
            constrain(jnp.swapaxes(project(x), 1, 2), "batch", "heads", None, None)
            for project in (self.query, self.key, self.value)
        )
        query = query * (query.shape[-1] ** -0.5)
        y = attend(query, key, value, dropout_key)
        y = constrain(y, "batch", "heads", None, None)
        return self.out(jnp.swapaxes(y, 1, 2)), (key, value)


class Block(nnx.Module):
    """One decoder block; layer norm before (OPT) or after (350m) its two residual branches."""

    def __init__(self, config: OPTConfig, rngs: nnx.Rngs):
        d, f = config.d_model, config.ffn_dim
        std = config.init_std / math.sqrt(2 * config.num_layers)
        self.attention_norm = LayerNorm(d)
        self.attention = Attention(config, rngs)
        self.mlp_norm = LayerNorm(d)
        wi_axes, wo_axes = ("embed", "mlp"), ("mlp", "embed")
        self.wi = Linear("bld,df->blf", (d, f), wi_axes, ("mlp",), config.init_std, rngs)
        self.wo = Linear("blf,fd->bld", (f, d), wo_axes, ("norm",), std, rngs)
        self.pre_layer_norm = config.pre_layer_norm
        self.dropout = config.dropout

    def __call__(
        self,
        x: jax.Array,
        attend: Attend,
        dropout_key: jax.Array | None,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        keys = (None,) * 3 if dropout_key is None else jax.random.split(dropout_key, 3)
        pre = self.pre_layer_norm

        y = self.attention_norm(x) if pre else x
        y, key_value = self.attention(y, attend, keys[0])
        x = constrain(x + drop(constrain(y, *RESIDUAL), self.dropout, keys[1]), *RESIDUAL)
        x = x if pre else self.attention_norm(x)

        y = whole_length(self.mlp_norm(x) if pre else x)
        y = constrain(jax.nn.relu(self.wi(y)), "batch", None, "mlp")
        y = self.wo(y)
        x = constrain(x + drop(constrain(y, *RESIDUAL), self.dropout, keys[2]), *RESIDUAL)
        x = x if pre else self.mlp_norm(x)
        return x, key_value


class OPT(LogitsOfHidden):
    """OPT, a `Decoder`: `logits = model(tokens, positions, mask, cache=None)`.

    Args:
      config: what to build.
      rngs: source of the initial weights; not kept.
    """

    def __init__(self, config: OPTConfig, rngs: nnx.Rngs):
        self.config = config
        std, d, e = config.init_std, config.d_model, config.embed_dim
        rows = config.max_positions + config.position_offset
        tokens = std * jax.random.normal(rngs.params(), (config.vocab_size, e))
        positions = std * jax.random.normal(rngs.params(), (rows, d))
        self.token_embedding = parameter(tokens, "vocab", "embed")
        self.position_embedding = parameter(positions, "positions", "embed")
        if not config.has_projections:
            self.project_in = self.project_out = None
        else:
            into, out = ("projection", "embed"), ("embed", "projection")
            self.project_in = Linear("ble,ed->bld", (e, d), into, None, e**-0.5, rngs)
            self.project_out = Linear("bld,de->ble", (d, e), out, None, d**-0.5, rngs)

        self.blocks = make_stack(config, Block, rngs)
        self.final_norm = LayerNorm(d) if config.final_layer_norm else None

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
        """What `unembed` turns into logits, [B, L, embed_dim]; see `Decoder`."""
        embed_key, stack_key = (
            (None, None) if dropout_key is None else jax.random.split(dropout_key)
        )
        positions = jnp.where(mask.valid, positions, 0)
        if cache is not None:
            # A token without a slot must not pass in silence: give it an impossible position.
            positions = jnp.where(cache.overflows(mask), self.config.max_positions, positions)
        x = drop(self._embed(tokens, positions), self.config.dropout, embed_key)
        x = constrain(x, *RESIDUAL)
        x, cache = run_stack(self.blocks, x, mask, cache, prefix, stack_key, self.config)
        if self.final_norm is not None:
            x = self.final_norm(x)
        if self.project_out is not None:
            x = self.project_out(x)
        return x if cache is None else (x, cache)

    def unembed(self, hidden: jax.Array) -> jax.Array:
        """float32[..., V]: logits of `hidden` [..., embed_dim] by the tied token embedding."""
        return unembed(self.token_embedding[...], hidden, self.config.vocab_padding)

    def _embed(self, tokens: jax.Array, positions: jax.Array) -> jax.Array:
        dtype = jnp.dtype(self.config.dtype)
        x = embed(self.token_embedding[...], tokens, dtype)
        if self.project_in is not None:
            x = self.project_in(x)
        rows = positions + self.config.position_offset
        table = constrain(self.position_embedding[...], None, None)
        return x + jnp.take(table, rows, axis=0, mode="fill").astype(dtype)
