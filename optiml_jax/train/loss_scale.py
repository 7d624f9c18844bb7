"""Dynamic loss scaling for training in float16, as in the paper (metaseq's fp16 mode).

The loss is multiplied by a power of two before differentiation, so that small gradients do not
underflow in float16. Where something overflows, the update is skipped and the scale halved; after a
number of updates without overflow it is doubled.
"""

from typing import Any

import jax
import jax.numpy as jnp

from optiml_jax.train.optimizer import OptimizerConfig

ScaleState = dict[str, jax.Array]
# Overflow at this scale means that the run has diverged.
MINIMUM = 2.0**-12


def init_scale(config: OptimizerConfig) -> ScaleState:
    """`scale` float32[], `good_updates` since the last change and `skipped` in all, int32[]."""
    return {
        "scale": jnp.float32(config.loss_scale),
        "good_updates": jnp.int32(0),
        "skipped": jnp.int32(0),
    }


def next_scale(config: OptimizerConfig, state: ScaleState, finite: jax.Array) -> ScaleState:
    """The state after an update with a finite gradient, or a non-finite one."""
    good = state["good_updates"] + 1
    grows = finite & (good >= config.loss_scale_interval)
    factor = jnp.where(finite, jnp.where(grows, 2.0, 1.0), 0.5)
    return {
        "scale": state["scale"] * factor.astype(jnp.float32),
        "good_updates": jnp.where(finite & ~grows, good, 0),
        "skipped": state["skipped"] + ~finite,
    }


def chosen(finite: jax.Array, new: Any, old: Any) -> Any:
    """`new` where the gradient was finite, else `old`: pytrees of the same structure."""
    return jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)
