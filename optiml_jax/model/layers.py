"""What decoders are built of: named parameters, linear maps, the scan over the stack of blocks.

Parameters are float32 and carry logical axis names (`logical_axes`), which
`optiml_jax.sharding.rules` lays over the mesh.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from optiml_jax.model import axes
from optiml_jax.model.attention import MASKED_SCORE, DocumentMask
from optiml_jax.model.axes import constrain
from optiml_jax.model.config import DecoderConfig
from optiml_jax.model.float8 import check_device, float8_product
from optiml_jax.model.kernels.choice import attend
from optiml_jax.model.kernels.contract import SAVED, Keys
from optiml_jax.model.kv_cache import KVCache, write

_STREAM = "stream"  # what a block is given by the one before, for `jax.checkpoint`
RESIDUAL = ("batch", "length", None)  # logical axes of the residual stream
# (query [B, H, L, Dh] divided by sqrt(Dh), key and value [B, Hkv, L, Dh], key of the dropout) ->
# what the queries take from the values of all tokens they see, [B, H, L, Dh].
Attend = Callable[[jax.Array, jax.Array, jax.Array, jax.Array | None], jax.Array]


def parameter(value: jax.Array, *axes: str) -> nnx.Param:
    """A parameter whose dimensions have the logical names `axes`."""
    # Not Flax's own `out_sharding`: under a mesh, Flax would take the names for mesh axes.
    return nnx.Param(value, logical_axes=axes)


def whole_length(x: jax.Array) -> jax.Array:
    """[B, L, D] with all positions of its rows, where the residual stream is cut along them.

    Called on the input of a block's products: it is gathered once, in the compute dtype, and
    nothing after it (heads, scores) is resharded.
    """
    return constrain(constrain(x, *RESIDUAL), "batch", None, None)


class LogitsOfHidden(nnx.Module):
    """A decoder's call, made of its `hidden` and `unembed`; see `model.decoder.Decoder`."""

    def __call__(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        mask: DocumentMask,
        cache: KVCache | None = None,
        *,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array | tuple[jax.Array, KVCache]:
        """The logits of the next token; see `Decoder`."""
        hidden = self.hidden(tokens, positions, mask, cache, dropout_key=dropout_key)
        if cache is None:
            return self.unembed(hidden)
        hidden, cache = hidden
        return self.unembed(hidden), cache


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3))
def product(equation: str, x: jax.Array, kernel: jax.Array, out: str | None = None) -> jax.Array:
    """The einsum `equation` of `x` and `kernel`, computed in the type of `x`.

    The gradient of the kernel is added up in the kernel's own type, over the rows of a device and
    over devices: float32 parameters get a float32 gradient, whatever the type of `x`.

    Args:
      out: type of the result; None: that of `x`.
    """
    return _product_fwd(equation, x, kernel, out)[0]


def _product_fwd(equation: str, x: jax.Array, kernel: jax.Array, out: str | None) -> Any:
    # Not by `product`: a policy of `jax.checkpoint` knows products, but not what is inside of it.
    return _einsum(equation, x, kernel.astype(x.dtype), out), (x, kernel)


def _product_bwd(equation: str, out: str | None, saved: Any, gradient: jax.Array) -> Any:
    x, kernel = saved
    inputs, result = equation.split("->")
    into, of = inputs.split(",")
    gradient = gradient.astype(x.dtype)
    d_x = _einsum(f"{result},{of}->{into}", gradient, kernel.astype(x.dtype))
    d_kernel = _einsum(f"{into},{result}->{of}", x, gradient, kernel.dtype)
    return d_x, d_kernel


def _einsum(equation: str, x: jax.Array, y: jax.Array, out: str | None = None) -> jax.Array:
    """The einsum of two factors; on one CPU of matrices, which XLA copies less often there."""
    inputs, result = equation.split("->")
    of_x, of_y = inputs.split(",")
    shared = "".join(axis for axis in of_x if axis in of_y)
    rows, columns = of_x.replace(shared, ""), of_y.replace(shared, "")
    # Axes that belong together stand together; else they are no axis of a matrix.
    orders_x = {rows + shared: "ik", shared + rows: "ki"}
    orders_y = {shared + columns: "kj", columns + shared: "jk"}
    matrices = of_x in orders_x and of_y in orders_y and result == rows + columns
    if not (matrices and axes.is_one_cpu()):
        return jnp.einsum(equation, x, y, preferred_element_type=out)
    sizes = dict(zip(of_x + of_y, x.shape + y.shape, strict=True))
    groups = {"i": rows, "k": shared, "j": columns}
    lengths = {name: math.prod(sizes[a] for a in group) for name, group in groups.items()}
    x_axes, y_axes = orders_x[of_x], orders_y[of_y]
    x, y = (
        factor.reshape([lengths[name] for name in names])
        for factor, names in ((x, x_axes), (y, y_axes))
    )
    z = jnp.einsum(f"{x_axes},{y_axes}->ij", x, y, preferred_element_type=out)
    return z.reshape([sizes[axis] for axis in result])


product.defvjp(_product_fwd, _product_bwd)


def product_of_turned(equation: str, kernel: jax.Array, x: jax.Array) -> jax.Array:
    """The einsum `equation` of `kernel` and `x`, for few rows of `x` on a CPU.

    There it is two to three times as fast as `product` if the outputs are the first dimensions of
    the kernel and of what the product itself gives; so XLA must not turn its result around.

    Args:
      equation: (kernel, x) -> result; the result is in float32 if `x` is.
    """
    operands, out = equation.split("->")
    kernel_axes, x_axes = operands.split(",")
    first = "".join(axis for axis in kernel_axes if axis in out)
    first += "".join(axis for axis in x_axes if axis in out)
    y = jnp.einsum(f"{operands}->{first}", kernel.astype(x.dtype), x)
    return jnp.einsum(f"{first}->{out}", jax.lax.optimization_barrier(y))


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

    adapter: nnx.Module | None = None  # given by `lora.attach`
    float8 = False  # see `DecoderConfig.matmul`
    turned: str | None = None  # the equation of the kernel as `turn` leaves it

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
        self.kernel = parameter(std * jax.random.normal(rngs.params(), shape), *axes)
        if bias is None:
            self.bias = None
        else:
            self.bias = parameter(jnp.zeros(shape[len(shape) - len(bias) :]), *bias)

    def turn(self) -> None:
        """Lays the kernel out with its outputs first; see `product_of_turned`."""
        operands, out = self.equation.split("->")
        x, kernel = operands.split(",")
        turned = "".join(sorted(kernel, key=lambda axis: axis not in out))
        self.kernel = nnx.Param(jnp.einsum(f"{kernel}->{turned}", self.kernel[...]))
        self.turned = f"{turned},{x}->{out}"

    def __call__(self, x: jax.Array) -> jax.Array:
        if self.turned is not None:
            y = product_of_turned(self.turned, self.kernel[...], x)
        elif self.float8:
            check_device()
            y = float8_product(self.equation, x, self.kernel[...])
        else:
            y = product(self.equation, x, self.kernel[...])
        if self.adapter is not None:
            y = y + self.adapter(x)
        if self.bias is None:
            return y
        bias = self.bias[...] if self.train_bias else jax.lax.stop_gradient(self.bias[...])
        return y + bias.astype(x.dtype)


def embed(table: jax.Array, tokens: jax.Array, dtype: str) -> jax.Array:
    """[B, L, E] in `dtype`: rows of the token embedding; a token outside of it gives NaN."""
    table = constrain(table, "vocab", None)
    x = jnp.take(table, tokens, axis=0, mode="fill").astype(dtype)
    return constrain(x, *RESIDUAL)


def unembed(table: jax.Array, hidden: jax.Array, padding: int = 0) -> jax.Array:
    """float32[..., V]: the product of `hidden` [..., E] with each row of `table` [V, E].

    The last `padding` rows are no tokens: their logits are so low that they have no probability.
    """
    rows = "abc"[: hidden.ndim - 1]
    table = constrain(table, "vocab", None)
    if axes.is_one_cpu() and hidden.dtype == "float32" and hidden.shape[1:-1] == (1,):
        logits = product_of_turned(f"ve,{rows}e->{rows}v", table, hidden)
    else:
        logits = product(f"{rows}e,ve->{rows}v", hidden, table, "float32")
    if not padding:
        return logits
    return jnp.where(jnp.arange(logits.shape[-1]) < len(table) - padding, logits, MASKED_SCORE)


def out_of_range(
    positions: jax.Array, mask: DocumentMask, cache: KVCache | None, max_positions: int
) -> jax.Array:
    """bool[B, L]: tokens at no position of the model, or without a slot in the cache."""
    far = mask.valid & ((positions < 0) | (positions >= max_positions))
    return far if cache is None else far | cache.overflows(mask)


def make_stack(config: DecoderConfig, make_block: Any, rngs: nnx.Rngs) -> nnx.Module:
    """The blocks of a decoder as one module, whose parameters have a first axis "layers".

    Args:
      make_block: (config, rngs) -> block, each with random weights of its own.
    """

    @nnx.split_rngs(splits=config.num_layers)
    @nnx.vmap(transform_metadata={nnx.PARTITION_NAME: "layers", "logical_axes": "layers"})
    def stack(rngs: nnx.Rngs) -> nnx.Module:
        return make_block(config, rngs)

    return stack(rngs)


def run_stack(
    blocks: nnx.Module,
    x: jax.Array,
    mask: DocumentMask,
    cache: KVCache | None,
    prefix: KVCache | None,
    dropout_key: jax.Array | None,
    config: DecoderConfig,
    *extra: Any,
) -> tuple[jax.Array, KVCache | None]:
    """Runs the stack of `make_stack` as one scan over its layers.

    Args:
      blocks: called as block(x, attend, dropout_key, *extra) -> (x, (key, value)), `attend` an
        `Attend`, key and value [B, Hkv, L, Dh].
      x: [B, L, D].
      mask: of the tokens of `x`, with their positions if the model has a sliding window.
      cache: what came before; None: nothing did, and nothing is kept.
      prefix: what stands before the rows of `cache`, only read.
      dropout_key: None turns dropout off.
      extra: the same for every block.

    Returns:
      [B, L, D], and the cache with these tokens when one was given.
    """
    caches = [c for c in (prefix, cache) if c is not None and not c.fresh]
    keys = None
    if dropout_key is not None:
        keys = jax.random.split(dropout_key, config.num_layers)

    def run_block(
        x: jax.Array, block: nnx.Module, earlier: Any, dropout_key: jax.Array | None
    ) -> tuple[jax.Array, Any]:
        parts = [Keys(*kv, c.mask, own=False) for kv, c in zip(earlier, caches, strict=True)]

        def look(query, key, value, dropout_key):
            return attend(
                query,
                mask,
                [*parts, Keys(key, value, mask, own=True)],
                kernel=config.attention,
                window=config.sliding_window,
                dropout=config.attention_dropout,
                dropout_key=dropout_key,
            )

        x, key_value = block(x, look, dropout_key, *extra)
        return x, None if cache is None else key_value

    if isinstance(blocks, nnx.List):
        return _run_unstacked(blocks, x, mask, cache, config, extra)
    graphdef, layers = nnx.split(blocks)

    def body(x: jax.Array, layer: Any) -> tuple[jax.Array, Any]:
        params, *rest = layer
        return run_block(checkpoint_name(x, _STREAM), nnx.merge(graphdef, params), *rest)

    body = _rematerialised(body, config.remat)
    each = (layers, [(c.key, c.value) for c in caches], keys)
    x, key_values = jax.lax.scan(body, x, each, unroll=min(config.unroll, config.num_layers))
    return x, None if cache is None else cache.append(*key_values, mask)


def _run_unstacked(
    blocks: nnx.List,
    x: jax.Array,
    mask: DocumentMask,
    cache: KVCache,
    config: DecoderConfig,
    extra: Any,
) -> tuple[jax.Array, KVCache]:
    """`run_stack` for one more token of each row: see `model.unstacked`.

    Keys and values are written before they are read, so that they can be written in place.
    """
    slots, cache = cache.slots(mask), cache.counted(mask)
    buffers = []

    def look(query, key, value, dropout_key):
        i = len(buffers)
        buffers.append((write(cache.key[i], key, slots), write(cache.value[i], value, slots)))
        seen = [Keys(*buffers[i], cache.mask, own=False)]
        return attend(query, mask, seen, kernel=config.attention, window=config.sliding_window)

    for block in blocks:
        x, _ = block(x, look, None, *extra)
    key, value = zip(*buffers, strict=True)
    return x, cache.replace(key=key, value=value)


def _rematerialised(body: Any, remat: str) -> Any:
    if remat == "none":
        return body
    policies = jax.checkpoint_policies
    attention = policies.save_only_these_names(SAVED)
    dots = policies.dots_with_no_batch_dims_saveable
    policy = {
        "dots": policies.save_from_both_policies(dots, attention),
        "attention": attention,
        "full": None,
        "offload": policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=[_STREAM],
            offload_src="device",
            offload_dst="pinned_host",
        ),
    }[remat]
    return jax.checkpoint(body, policy=policy, prevent_cse=False)
