"""Optimisers: Optax transformations of gradients, and how their state is stored and sharded.

The state is a pure nested dict of arrays, named as Optax names them (Adam: `mu` and `nu`), ready
for a checkpoint. The number of updates is not part of it: the step is stored elsewhere.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from optiml_jax.errors import UserError

AxesOf = Mapping[str, Any]  # nested as the parameters: the logical names of each one's dimensions
NAMES = ("adam", "adafactor", "lion", "muon")
_COUNT = "count"  # Optax's name for the number of updates


def make_transform(
    name: str, options: Mapping[str, Any], state_dtype: str, axes: AxesOf | None
) -> optax.GradientTransformation:
    """The transformation that turns a gradient into the direction of the update.

    Args:
      name: one of `NAMES`, or "optax.FUNCTION" that makes such a transformation, e.g.
        optax.scale_by_rms. It includes neither learning rate nor weight decay.
      options: arguments of the function.
      state_dtype: in which the floating-point arrays of the state are stored between updates.
      axes: logical names of the parameters' dimensions; Muon needs them.

    Raises:
      UserError: there is no such function, or it does not take the options.
    """
    made = functools.partial(_made, f"OptimizerConfig.transform={name!r}", options=options)
    if name == "adam":
        transform = made(optax.scale_by_adam)
    elif name == "adafactor":  # Shazeer and Stern 2018: factored second moments, updates clipped
        transform = optax.chain(made(optax.scale_by_factored_rms), optax.clip_by_block_rms(1.0))
    elif name == "lion":
        transform = made(optax.scale_by_lion)
    elif name == "muon":
        transform = _muon(made, axes)
    else:
        transform = made(_function(name))
    return transform if state_dtype == "float32" else _stored_as(transform, state_dtype)


def init_state(transform: optax.GradientTransformation, params: Any) -> dict[str, Any]:
    """The state before the first update, as a pure nested dict."""
    return _pack(transform.init(jax.tree.map(lambda p: p.astype(jnp.float32), params)))


def update(
    transform: optax.GradientTransformation,
    gradient: Any,
    state: Mapping[str, Any],
    params: Any,
    step: jax.Array,
) -> tuple[Any, dict[str, Any]]:
    """(direction, new state) of update number `step`, counted from 0."""
    before = _unpack(state, jax.eval_shape(transform.init, params), step)
    direction, after = transform.update(gradient, before, params)
    return direction, _pack(after)


def abstract_state(transform: optax.GradientTransformation, params: Any) -> dict[str, Any]:
    """Shapes, types and shardings of the state of parameters that have all three.

    An array of its parameter's shape is sharded as the parameter; a factored one, which lacks one
    dimension, as the remaining dimensions; everything else is replicated.
    """
    state = jax.eval_shape(transform.init, params)
    mesh = jax.tree.leaves(params)[0].sharding.mesh

    def of_parameter(leaf: Any, param: Any) -> Any:
        sharding = NamedSharding(mesh, _spec_like(leaf.shape, param))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    def other(leaf: Any) -> Any:
        sharding = NamedSharding(mesh, PartitionSpec())
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return _pack(_map_params(transform, of_parameter, state, params, other=other))


def _spec_like(shape: tuple[int, ...], param: Any) -> PartitionSpec:
    spec = tuple(param.sharding.spec) + (None,) * (param.ndim - len(param.sharding.spec))
    if shape == param.shape:
        return PartitionSpec(*param.sharding.spec)
    for gone in range(param.ndim):
        if shape == param.shape[:gone] + param.shape[gone + 1 :]:
            return PartitionSpec(*spec[:gone], *spec[gone + 1 :])
    return PartitionSpec()


def _pack(state: Any) -> dict[str, Any]:
    packed: dict[str, Any] = {}
    for path, leaf in jax.tree.leaves_with_path(state):
        names = [_name(entry) for entry in path]
        if names[-1] == _COUNT and leaf.ndim == 0:
            continue
        folder = packed
        for name in names[:-1]:
            folder = folder.setdefault(name, {})
        folder[names[-1]] = leaf
    return packed


def _unpack(packed: Mapping[str, Any], example: Any, step: jax.Array) -> Any:
    def leaf(path: tuple[Any, ...], like: Any) -> jax.Array:
        names = [_name(entry) for entry in path]
        if names[-1] == _COUNT and like.ndim == 0:
            return jnp.asarray(step, like.dtype)
        return functools.reduce(lambda folder, name: folder[name], names, packed)

    return jax.tree.map_with_path(leaf, example)


def _name(entry: Any) -> str:
    for attribute in ("name", "key", "idx"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    raise TypeError(entry)


def _function(name: str) -> Callable[..., optax.GradientTransformation]:
    module, _, rest = name.partition(".")
    found: Any = optax if module == "optax" and rest else None
    for part in rest.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise UserError(
            f"OptimizerConfig.transform={name!r}: choose one of {', '.join(NAMES)}, or a function "
            "of Optax that makes a GradientTransformation, such as 'optax.scale_by_rms'"
        )
    return found


def _made(said: str, function: Callable[..., Any], options: Mapping[str, Any], **fixed: Any) -> Any:
    try:
        made = function(**fixed, **options)
    except (TypeError, ValueError) as e:
        known = ", ".join(n for n in inspect.signature(function).parameters if n not in fixed)
        raise UserError(
            f"{said}: it does not take OptimizerConfig.options={dict(options)!r} ({e}); "
            f"its arguments are {known}"
        ) from e
    if not isinstance(made, optax.GradientTransformation):
        raise UserError(f"{said} does not return an optax.GradientTransformation")
    return made


def _muon(made: Callable[..., Any], axes: AxesOf | None) -> optax.GradientTransformation:
    """Muon for the matrices of the blocks, Adam with Nesterov's momentum for all other parameters.

    The norm of an update matches Adam's (Liu et al. 2025, arXiv 2502.16982), so that learning rates
    carry over.
    """
    if axes is None:
        raise UserError("OptimizerConfig.transform='muon' needs the names of the model's axes")

    def numbers(params: Any) -> Any:
        def of(path: tuple[Any, ...], _: Any) -> Any:
            names = functools.reduce(lambda folder, entry: folder[entry.key], path, axes)
            return _matrix(names)

        return jax.tree.map_with_path(of, params)

    fixed = {"learning_rate": 1.0, "consistent_rms": 0.2, "muon_weight_dimension_numbers": numbers}
    return optax.chain(made(optax.contrib.muon, **fixed), optax.scale(-1.0))


def _matrix(names: tuple[str, ...]) -> optax.contrib.MuonDimensionNumbers | None:
    """Which dimensions of a block's matrix are input and output; None: it is not a matrix.

    One side of a matrix is the residual stream ("embed"), or the rank in an adapter.
    """
    side = next((name for name in ("rank", "embed") if name in names), None)
    if names[0] != "layers" or side is None or len(names) < 3:
        return None
    one = names.index(side)
    others = tuple(i for i in range(1, len(names)) if i != one)
    into, out = ((one,), others) if one == 1 else (others, (one,))
    return optax.contrib.MuonDimensionNumbers(reduction_axis=into, output_axis=out)


def _stored_as(transform: optax.GradientTransformation, dtype: str) -> optax.GradientTransformation:
    """The transformation with its per-parameter state stored in `dtype` and computed in float32."""

    def cast(state: Any, dtype: str) -> Any:
        return _map_params(transform, lambda x: x.astype(dtype), state)

    def init(params: Any) -> Any:
        return cast(transform.init(params), dtype)

    def updated(gradient: Any, state: Any, params: Any = None) -> Any:
        direction, state = transform.update(gradient, cast(state, "float32"), params)
        return direction, cast(state, dtype)

    return optax.GradientTransformation(init, updated)


def _map_params(
    transform: optax.GradientTransformation,
    function: Callable[..., Any],
    state: Any,
    *params: Any,
    other: Callable[[Any], Any] = lambda leaf: leaf,
) -> Any:
    """The state with function(leaf, param) for leaves of a parameter, other(leaf) for the rest."""

    def masked(leaf: Any) -> bool:  # a parameter that Muon's other part handles
        return isinstance(leaf, optax.MaskedNode)

    return optax.tree_utils.tree_map_params(
        transform.init,
        lambda leaf, *rest: leaf if masked(leaf) else function(leaf, *rest),
        state,
        *params,
        transform_non_params=other,
        is_leaf=masked,
    )
