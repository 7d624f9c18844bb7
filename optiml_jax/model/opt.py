"""The OPT decoder in Flax NNX: embeddings, block, stack, tied output embedding.

Modules are used as pytrees: `nnx.merge(graphdef, params)` inside `jax.jit`, no random state inside
layers. Parameters are float32 and carry logical axis names (`logical_axes`); a pure nested dict of
arrays is how they travel. Attention lives in attention.py, the cache in kv_cache.py.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from optiml_jax.model.attention import DocumentMask, attend, drop
from optiml_jax.model.axes import constrain
from optiml_jax.model.config import OPTConfig
from optiml_jax.model.kv_cache import KVCache

LAYER_NORM_EPSILON = 1e-5
_RESIDUAL = ("batch", "length", None)


def _param(value: jax.Array, *axes: str) -> nnx.Param:
    # Not Flax's own `out_sharding`: under a mesh, Flax would take the names for mesh axes.
    return nnx.Param(value, logical_axes=axes)


class LayerNorm(nnx.Module):
    """Layer norm over the last axis, computed in float32."""

    def __init__(self, width: int):
        self.scale = _param(jnp.ones((width,)), "norm")
        self.bias = _param(jnp.zeros((width,)), "norm")

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        y = y - jnp.mean(y, axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + LAYER_NORM_EPSILON)
        return (y * self.scale[...] + self.bias[...]).astype(x.dtype)


class Linear(nnx.Module):
    """A linear map given by an einsum of input and kernel, with or without a bias.

    Args:
      equation: einsum of (input, kernel).
      shape: shape of the kernel.
      axes: logical axis names of the kernel.
      bias: logical axis names of the bias, by position the last ones of the kernel or their own
        ("norm", replicated); None is no bias.
      train_bias: whether the bias gets a gradient.
    """

    def __init__(
        self,
        equation: str,
        shape: tuple[int, ...],
        axes: tuple[str, ...],
        bias: tuple[str, ...] | None,
        std: float,
        rngs: nnx.Rngs,
        train_bias: bool = True,
    ):
        self.equation = equation
        self.train_bias = train_bias
        self.kernel = _param(std * jax.random.normal(rngs.params(), shape), *axes)
        if bias is None:
            self.bias = None
        else:
            self.bias = _param(jnp.zeros(shape[len(shape) - len(bias) :]), *bias)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = jnp.einsum(self.equation, x, self.kernel[...].astype(x.dtype))
        if self.bias is None:
            return y
        bias = self.bias[...] if self.train_bias else jax.lax.stop_gradient(self.bias[...])
        return y + bias.astype(x.dtype)


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
        self.dropout = config.attention_dropout

    def __call__(
        self,
        x: jax.Array,
        allowed: jax.Array,
        earlier: list[tuple[jax.Array, jax.Array, jax.Array]],
        dropout_key: jax.Array | None,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """Returns [B, L, D] and the keys and values [B, H, L, Dh] of `x`; `earlier`: see attend."""
        query, key, value = (
            constrain(jnp.swapaxes(project(x), 1, 2), "batch", "heads", None, None)
            for project in (self.query, self.key, self.value)
        )
        query = query * (query.shape[-1] ** -0.5)
        y = attend(query, [*earlier, (key, value, allowed)], self.dropout, dropout_key)
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
        allowed: jax.Array,
        earlier: list[tuple[jax.Array, jax.Array, jax.Array]],
        dropout_key: jax.Array | None,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        keys = (None,) * 3 if dropout_key is None else jax.random.split(dropout_key, 3)
        pre = self.pre_layer_norm

        y = self.attention_norm(x) if pre else x
        y, key_value = self.attention(y, allowed, earlier, keys[0])
        x = constrain(x + drop(constrain(y, *_RESIDUAL), self.dropout, keys[1]), *_RESIDUAL)
        x = x if pre else self.attention_norm(x)

        y = self.mlp_norm(x) if pre else x
        y = constrain(jax.nn.relu(self.wi(y)), "batch", None, "mlp")
        y = self.wo(y)
        x = constrain(x + drop(constrain(y, *_RESIDUAL), self.dropout, keys[2]), *_RESIDUAL)
        x = x if pre else self.mlp_norm(x)
        return x, key_value


class OPT(nnx.Module):
    """OPT: `logits = model(tokens, positions, mask, cache=None)`.

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
        self.token_embedding = _param(tokens, "vocab", "embed")
        self.position_embedding = _param(positions, "positions", "embed")
        if not config.has_projections:
            self.project_in = self.project_out = None
        else:
            into, out = ("projection", "embed"), ("embed", "projection")
            self.project_in = Linear("ble,ed->bld", (e, d), into, None, e**-0.5, rngs)
            self.project_out = Linear("bld,de->ble", (d, e), out, None, d**-0.5, rngs)

        @nnx.split_rngs(splits=config.num_layers)
        @nnx.vmap(transform_metadata={nnx.PARTITION_NAME: "layers", "logical_axes": "layers"})
        def stack(rngs: nnx.Rngs) -> Block:
            return Block(config, rngs)

        self.blocks = stack(rngs)
        self.final_norm = LayerNorm(d) if config.final_layer_norm else None

    def __call__(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        mask: DocumentMask,
        cache: KVCache | None = None,
        *,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array | tuple[jax.Array, KVCache]:
        """The logits of the next token.

        Args:
          tokens: int32[B, L].
          positions: int32[B, L], the place of each token in its document, from 0 to
            max_positions - 1; anything at padding.
          mask: who sees whom, fields [B, L].
          cache: what came before; the tokens also see the cached ones of their segment.
          dropout_key: key of all dropout; None turns dropout off.

        Returns:
          float32[B, L, V], and the cache with these tokens when one was given. A token or position
          outside its table, or a token for which the cache has no slot left, gives NaN.
        """
        hidden = self.hidden(tokens, positions, mask, cache, dropout_key=dropout_key)
        if cache is None:
            return self.unembed(hidden)
        hidden, cache = hidden
        return self.unembed(hidden), cache

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
        """What `unembed` turns into logits, [B, L, embed_dim].

        Arguments as for `__call__`, and `prefix`: the cache of A rows that were run before, of
        which each stands before B // A consecutive rows; it is only read.
        """
        embed_key, stack_key = (
            (None, None) if dropout_key is None else jax.random.split(dropout_key)
        )
        positions = jnp.where(mask.valid, positions, 0)
        if cache is not None:
            # A token without a slot must not pass in silence: give it an impossible position.
            positions = jnp.where(cache.overflows(mask), self.config.max_positions, positions)
        x = drop(self._embed(tokens, positions), self.config.dropout, embed_key)
        x, cache = self._run_blocks(constrain(x, *_RESIDUAL), mask, cache, prefix, stack_key)
        if self.final_norm is not None:
            x = self.final_norm(x)
        if self.project_out is not None:
            x = self.project_out(x)
        return x if cache is None else (x, cache)

    def unembed(self, hidden: jax.Array) -> jax.Array:
        """float32[..., V]: logits of `hidden` [..., embed_dim] by the tied token embedding."""
        table = constrain(self.token_embedding[...], "vocab", None).astype(hidden.dtype)
        return jnp.einsum("...e,ve->...v", hidden, table, preferred_element_type=jnp.float32)

    def _embed(self, tokens: jax.Array, positions: jax.Array) -> jax.Array:
        dtype = jnp.dtype(self.config.dtype)
        table = constrain(self.token_embedding[...], "vocab", None)
        x = jnp.take(table, tokens, axis=0, mode="fill").astype(dtype)
        x = constrain(x, *_RESIDUAL)
        if self.project_in is not None:
            x = self.project_in(x)
        rows = positions + self.config.position_offset
        table = constrain(self.position_embedding[...], None, None)
        return x + jnp.take(table, rows, axis=0, mode="fill").astype(dtype)

    def _run_blocks(
        self,
        x: jax.Array,
        mask: DocumentMask,
        cache: KVCache | None,
        prefix: KVCache | None,
        dropout_key: jax.Array | None,
    ) -> tuple[jax.Array, KVCache | None]:
        """Runs the stack as one scan over its layers."""
        graphdef, layers = nnx.split(self.blocks)
        allowed = mask.lower()
        caches = [c for c in (prefix, cache) if c is not None and not c.fresh]
        allowed_earlier = [mask.lower_earlier(c.mask) for c in caches]
        keys = None
        if dropout_key is not None:
            keys = jax.random.split(dropout_key, self.config.num_layers)

        def body(x: jax.Array, layer: Any) -> tuple[jax.Array, Any]:
            params, earlier, key = layer
            earlier = [(*kv, a) for kv, a in zip(earlier, allowed_earlier, strict=True)]
            x, key_value = nnx.merge(graphdef, params)(x, allowed, earlier, key)
            return x, None if cache is None else key_value

        body = _rematerialised(body, self.config.remat)
        x, key_values = jax.lax.scan(body, x, (layers, [(c.key, c.value) for c in caches], keys))
        return x, None if cache is None else cache.append(*key_values, mask)


def _rematerialised(body: Any, remat: str) -> Any:
    if remat == "none":
        return body
    policy = None if remat == "full" else jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    return jax.checkpoint(body, policy=policy, prevent_cse=False)


def abstract_model(config: OPTConfig) -> tuple[nnx.GraphDef, nnx.State]:
    """The model's structure and its abstract parameters (shapes and logical axes, no memory)."""
    return nnx.split(nnx.eval_shape(lambda: OPT(config, nnx.Rngs(0))))


def init_params(
    config: OPTConfig, seed: int, shardings: Any = None
) -> tuple[nnx.GraphDef, dict[str, Any]]:
    """A model with random weights.

    Args:
      config: what to build.
      seed: the weights depend on it and on the config alone, not on devices or shardings.
      shardings: tree of `jax.sharding.Sharding` like the parameters; each device then makes its
        own part only. None puts them on the default device.

    Returns:
      (graphdef, params): `nnx.merge(graphdef, params)` is the model; params is a pure nested dict
      of float32 arrays, the layers of the stack along the first axis of `params["blocks"]`.
    """
    graphdef, _ = abstract_model(config)
    create = _create
    if shardings is not None:
        create = jax.jit(_create, static_argnums=0, out_shardings=shardings)
    return graphdef, create(config, jax.random.key(seed))


@functools.partial(jax.jit, static_argnums=0)
def _create(config: OPTConfig, key: jax.Array) -> dict[str, Any]:
    return nnx.to_pure_dict(nnx.state(OPT(config, nnx.Rngs(key)), nnx.Param))
