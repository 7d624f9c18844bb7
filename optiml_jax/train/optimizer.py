"""Adam with decoupled weight decay, its learning rate schedule and gradient clipping.

Pure functions over pytrees; the moments are float32 and a pure dict, ready for a checkpoint.
"""

import dataclasses
from typing import Any

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


@configurable
@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The defaults are the paper's (section 3.3 and Table 3 of OPT-IML).

    Attributes:
      learning_rate: the peak, reached at the end of the warm-up.
      warmup_steps: updates of linear warm-up; afterwards linear decay to 0 at the end of the run.
      beta1, beta2, epsilon: of Adam.
      weight_decay: decoupled (AdamW), times the learning rate; on every parameter, as in metaseq.
      clip_norm: the gradient is scaled down to this global norm; 0 turns clipping off.
      loss_scale: what the summed loss is multiplied with at first, in float16 only; see
        `optiml_jax.train.loss_scale`.
      loss_scale_interval: updates without overflow after which the scale doubles.
    """

    learning_rate: NotNegativeFloat = 5e-5
    warmup_steps: NotNegative = 60
    beta1: Share = 0.9
    beta2: Share = 0.95
    epsilon: PositiveFloat = 1e-8
    weight_decay: NotNegativeFloat = 0.0
    clip_norm: NotNegativeFloat = 1.0
    loss_scale: PositiveFloat = 64.0
    loss_scale_interval: Positive = 200

    def check(self, num_steps: int) -> None:
        """UserError when the warm-up does not end within a run of `num_steps` updates."""
        if self.warmup_steps >= num_steps:
            raise UserError(
                f"OptimizerConfig.warmup_steps={self.warmup_steps} must be below "
                f"TrainConfig.num_steps={num_steps}"
            )


def learning_rate_at(config: OptimizerConfig, num_steps: int, step: jax.Array | int) -> jax.Array:
    """The learning rate of update `step`, counted from 0: float32[].

    learning_rate / warmup_steps at step 0, the peak at steps warmup_steps - 1 and warmup_steps, and
    a last update with one decay step left: the 0 is reached after the run, no update is wasted.
    """
    rising = (step + 1) / max(config.warmup_steps, 1)
    falling = (num_steps - step) / (num_steps - config.warmup_steps)
    return config.learning_rate * jnp.minimum(rising, falling).astype(jnp.float32)


def init_optimizer(params: Any) -> dict[str, Any]:
    """The state before the first update: moments `mu` and `nu`, float32 zeros like `params`."""
    state = optax.scale_by_adam().init(jax.tree.map(lambda p: p.astype(jnp.float32), params))
    return {"mu": state.mu, "nu": state.nu}


def apply_gradient(
    config: OptimizerConfig,
    num_steps: int,
    step: jax.Array,
    params: Any,
    state: dict[str, Any],
    gradient: Any,
) -> tuple[Any, dict[str, Any], dict[str, jax.Array]]:
    """One update: clip, Adam, weight decay.

    Args:
      step: int32[], updates made so far; also counts Adam's bias correction.
      params, gradient: pytrees of float32 arrays.
      state: as made by `init_optimizer`.

    Returns:
      New params, new state, and `gradient_norm` (before clipping) and `learning_rate`, float32[].
    """
    norm = optax.global_norm(gradient)
    if config.clip_norm:
        scale = config.clip_norm / jnp.maximum(norm, config.clip_norm)
        gradient = jax.tree.map(lambda g: g * scale, gradient)
    adam = optax.scale_by_adam(config.beta1, config.beta2, config.epsilon)
    before = optax.ScaleByAdamState(count=step, mu=state["mu"], nu=state["nu"])
    direction, after = adam.update(gradient, before)
    rate = learning_rate_at(config, num_steps, step)
    params = jax.tree.map(lambda p, d: p - rate * (d + config.weight_decay * p), params, direction)
    measured = {"gradient_norm": norm, "learning_rate": rate}
    return params, {"mu": after.mu, "nu": after.nu}, measured
