"""LoRA: low-rank adapters on the matrices of any decoder (Hu et al., 2021, arXiv 2106.09685).

A matrix W gets a projection a of its input to `lora_rank` dimensions and a projection b of these to
its output: y = x W + alpha / rank * (x a) b. In the parameter tree an adapter is under "adapter" of
its matrix. Only adapters are trained; merging them into W gives a plain model.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from optiml_jax.errors import UserError
from optiml_jax.model.config import DecoderConfig
from optiml_jax.model.layers import Linear, parameter

ADAPTER = "adapter"
Params = dict[str, Any]


class Adapter(nnx.Module):
    """The low-rank update of one `Linear`, or of a stack with one per layer.

    a is uniform within 1 / sqrt(inputs), as in PEFT, and b is 0, so the initial update is zero.

    Args:
      linear: the matrix; its kernel and axis names determine those of the adapter.
      rank: of the update.
      scale: its factor, alpha / rank.
      rngs: for the initial weights; not stored.
    """

    def __init__(self, linear: Linear, rank: int, scale: float, rngs: nnx.Rngs):
        self.into, self.out, num_inputs = _equations(linear.equation)
        shape, axes = linear.kernel.shape, linear.kernel.get_metadata()["logical_axes"]
        stacked = len(shape) - len(linear.equation.split(",")[1].split("->")[0])
        split = stacked + num_inputs
        layers, layer_axes = shape[:stacked], axes[:stacked]
        inputs, outputs = shape[stacked:split], shape[split:]
        bound = 1 / math.sqrt(math.prod(inputs))
        a = jax.random.uniform(rngs.params(), (*layers, *inputs, rank), minval=-bound, maxval=bound)
        self.a = parameter(a, *layer_axes, *axes[stacked:split], "rank")
        self.b = parameter(jnp.zeros((*layers, rank, *outputs)), *layer_axes, "rank", *axes[split:])
        self.scale = scale

    def __call__(self, x: jax.Array) -> jax.Array:
        y = jnp.einsum(self.into, x, self.a[...].astype(x.dtype))
        return self.scale * jnp.einsum(self.out, y, self.b[...].astype(x.dtype))


def attach(model: nnx.Module, config: DecoderConfig, rngs: nnx.Rngs) -> None:
    """Adds an adapter to each matrix that `config` names.

    Raises:
      UserError: `lora_targets` names a matrix that the model does not have.
    """
    found = {
        path: module
        for path, module in nnx.iter_modules(model)
        if isinstance(module, Linear) and path[0] == "blocks"
    }
    names = {str(path[-1]) for path in found}
    for name in config.lora_targets:
        if name not in names:
            raise UserError(
                f"model_config.lora_targets: {config.architecture} has no matrix {name!r}; "
                f"choose from {', '.join(sorted(names))}"
            )
    targets = set(config.lora_targets) or names
    for path, linear in sorted(found.items(), key=lambda item: tuple(map(str, item[0]))):
        if str(path[-1]) in targets:
            linear.adapter = Adapter(linear, config.lora_rank, config.lora_scale, rngs)


def split_params(params: Mapping[str, Any]) -> tuple[Params, Params]:
    """(adapters, everything else) of a tree of parameters, or of one with the same structure."""
    adapters, base = {}, {}
    for name, value in params.items():
        if name == ADAPTER:
            adapters[name] = value
        elif isinstance(value, Mapping):
            own, rest = split_params(value)
            adapters |= {name: own} if own else {}
            base[name] = rest
        else:
            base[name] = value
    return adapters, base


def join_params(adapters: Mapping[str, Any], base: Mapping[str, Any]) -> Params:
    """The whole tree again; inner dicts are copied, leaves are not."""
    out = dict(base)
    for name, value in adapters.items():
        out[name] = value if name == ADAPTER else join_params(value, base[name])
    return out


def merge_params(params: Mapping[str, Any], scale: float) -> Params:
    """The parameters of the equivalent model without adapters, in the kernels' types.

    Works on arrays of JAX and NumPy alike; the products are float32.
    """
    out = {
        name: merge_params(value, scale) if isinstance(value, Mapping) else value
        for name, value in params.items()
        if name != ADAPTER
    }
    if ADAPTER in params:
        kernel = params["kernel"]
        update = low_rank(params[ADAPTER]["a"], params[ADAPTER]["b"], scale, kernel.shape)
        out["kernel"] = (kernel.astype(jnp.float32) + update).astype(kernel.dtype)
    return out


def low_rank(a: Any, b: Any, scale: float, shape: tuple[int, ...]) -> Any:
    """What an adapter adds to its kernel of `shape`, with or without a leading layer axis."""
    stacked = a.ndim + b.ndim - 2 - len(shape)  # a and b each have the layer axis, the kernel once
    layers = shape[:stacked]
    product = a.reshape(*layers, -1, a.shape[-1]) @ b.reshape(*layers, b.shape[stacked], -1)
    return (scale * product).reshape(shape)


def _equations(equation: str) -> tuple[str, str, int]:
    """The einsums of input and a, of their result and b, and the number of the kernel's inputs."""
    operands, result = equation.split("->")
    x, kernel = operands.split(",")
    inputs = "".join(axis for axis in kernel if axis not in result)
    outputs = kernel[len(inputs) :]
    kept = "".join(axis for axis in x if axis not in inputs)
    return f"{x},{inputs}r->{kept}r", f"{kept}r,r{outputs}->{result}", len(inputs)
