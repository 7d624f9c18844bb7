"""The optimiser: gradient clipping, a transformation of Optax, weight decay and the learning rate.

Pure functions over pytrees. The transformations and their state are in transforms.py.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from optiml_jax.errors import UserError
from optiml_jax.settings import (
    NotNegative,
    NotNegativeFloat,
    Positive,
    PositiveFloat,
    Share,
    configurable,
)
from optiml_jax.train import transforms


@configurable
@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The defaults are the paper's (section 3.3 and Table 3 of OPT-IML).

    Attributes:
      learning_rate: the peak, reached at the end of the warm-up.
      warmup_steps: updates of linear warm-up.
      schedule: of the learning rate after the warm-up: "linear" or "cosine" decay to 0 at the end
        of the run, or "constant".
      transform: the gradient transformation: "adam" (AdamW), "adafactor", "lion", "muon", or a
        function of Optax such as "optax.scale_by_rms".
      options: arguments of that function, by Optax's names. Adam has its own fields.
      state_dtype: in which the transformation's state is stored; computation is in float32.
      gradient_dtype: in which the gradients of the blocks' matrices are reduced over devices;
        "bfloat16" halves communication and the gradient's memory. Microbatches are accumulated in
        float32.
      continued: for a run that continues beyond its planned end: each earlier end (a number of
        updates) and what the learning rate does from there on. "constant" keeps that of the last
        update before it; "decay" falls to 0 at the next end, as if that had been planned (under a
        constant schedule: linearly, from the peak).
      beta1, beta2, epsilon: of Adam.
      weight_decay: decoupled (AdamW), times the learning rate; on every parameter, as in metaseq.
      clip_norm: the gradient is clipped to this global norm; 0 turns clipping off.
      loss_scale: the initial loss scale, in float16 only; see `optiml_jax.train.loss_scale`.
      loss_scale_interval: updates without overflow after which the scale doubles.
    """

    learning_rate: NotNegativeFloat = 5e-5
    warmup_steps: NotNegative = 60
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    transform: str = "adam"
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    state_dtype: Literal["float32", "bfloat16"] = "float32"
    gradient_dtype: Literal["float32", "bfloat16"] = "float32"
    continued: Mapping[Positive, Literal["constant", "decay"]] = dataclasses.field(
        default_factory=dict
    )
    beta1: Share = 0.9
    beta2: Share = 0.95
    epsilon: PositiveFloat = 1e-8
    weight_decay: NotNegativeFloat = 0.0
    clip_norm: NotNegativeFloat = 1.0
    loss_scale: PositiveFloat = 64.0
    loss_scale_interval: Positive = 200

    def check(self, num_steps: int) -> None:
        """Checks the settings for a run of `num_steps` updates.

        Raises:
          UserError: the warm-up does not end within it, the earlier planned ends do not increase,
            or there is no such transformation.
        """
        if self.transform != "muon":  # which needs a model
            self.made()
        if self.warmup_steps >= min([num_steps, *self.continued]):
            raise UserError(
                f"OptimizerConfig.warmup_steps={self.warmup_steps} must be less than "
                f"TrainConfig.num_steps={num_steps}, and less than every earlier planned end"
            )
        ends = [*self.continued, num_steps]
        if ends != sorted(set(ends)):
            raise UserError(
                f"OptimizerConfig.continued={self.continued}: the earlier planned ends "
                f"must increase, and be less than TrainConfig.num_steps={num_steps}"
            )

    def made(self, axes: transforms.AxesOf | None = None) -> optax.GradientTransformation:
        """The transformation.

        Args:
          axes: logical names of the dimensions of the parameters, nested as they are; Muon needs
            them (`optiml_jax.sharding.rules.logical_axes`).
        """
        options = dict(self.options)
        if self.transform == "adam":
            options = {"b1": self.beta1, "b2": self.beta2, "eps": self.epsilon, **options}
        return transforms.make_transform(self.transform, options, self.state_dtype, axes)


def learning_rate_at(config: OptimizerConfig, num_steps: int, step: jax.Array | int) -> jax.Array:
    """The learning rate of update `step`, counted from 0: float32[].

    It is learning_rate / warmup_steps at step 0 and the peak at steps warmup_steps - 1 and
    warmup_steps; 0 is reached only after the last update, so that no update is wasted.
    """
    rising = (step + 1) / max(config.warmup_steps, 1)
    falling = _share_of_peak(config, [*config.continued, num_steps], step)
    return config.learning_rate * jnp.minimum(rising, falling).astype(jnp.float32)


def _share_of_peak(
    config: OptimizerConfig, ends: Sequence[int], step: jax.Array | int
) -> jax.Array | float:
    """Learning rate after the warm-up over its peak, of a run planned to end at `ends`."""
    *before, end = ends
    constant = config.schedule == "constant"
    if not before:
        return 1.0 if constant else _decay(config, config.warmup_steps, end, step)
    held = _share_of_peak(config, before, jnp.minimum(step, before[-1] - 1))
    if config.continued[before[-1]] == "constant":
        return held
    last_peak = before[-1] if constant else config.warmup_steps
    return jnp.where(step < before[-1], held, _decay(config, last_peak, end, step))


def _decay(
    config: OptimizerConfig, start: int, end: int, step: jax.Array | int
) -> jax.Array | float:
    """From 1 at step `start` to 0 at step `end`."""
    falling = (end - step) / (end - start)
    if config.schedule == "cosine":
        falling = 0.5 - 0.5 * jnp.cos(jnp.pi * jnp.minimum(falling, 1))
    return falling


def apply_gradient(
    config: OptimizerConfig,
    num_steps: int,
    step: jax.Array,
    params: Any,
    state: dict[str, Any],
    gradient: Any,
    axes: transforms.AxesOf | None = None,
    divisor: jax.Array | float = 1.0,
) -> tuple[Any, dict[str, Any], dict[str, jax.Array]]:
    """One update: clip, transform, weight decay.

    Args:
      step: int32[], updates made so far.
      params, gradient: pytrees of float32 arrays; the gradient is `divisor` times what is applied.
      state: as made by `transforms.init_state` of `config.made(axes)`.
      axes: see `OptimizerConfig.made`.

    Returns:
      New params, new state, and `gradient_norm` (before clipping) and `learning_rate`, float32[].
    """
    norm = optax.global_norm(gradient) / divisor
    clipped = config.clip_norm / jnp.maximum(norm, config.clip_norm) if config.clip_norm else 1.0
    # One factor, multiplied where the gradient is used: XLA then writes no second gradient.
    gradient = jax.tree.map(lambda g: g * (clipped / divisor), gradient)
    direction, state = transforms.update(config.made(axes), gradient, state, params, step)
    rate = learning_rate_at(config, num_steps, step)
    params = jax.tree.map(lambda p, d: p - rate * (d + config.weight_decay * p), params, direction)
    return params, state, {"gradient_norm": norm, "learning_rate": rate}
