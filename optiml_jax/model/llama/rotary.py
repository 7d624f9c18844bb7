"""Rotary positions: angles of a configuration, and turning queries and keys by them."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from optiml_jax.model.llama.config import LlamaConfig


def frequencies(config: LlamaConfig) -> np.ndarray:
    """float32[head_dim / 2]: angle per position of each pair, scaled as `config` asks for."""
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / config.head_dim
    plain = (1.0 / np.float32(config.rope_theta) ** exponents).astype(np.float32)
    scale = {"default": _default, "linear": _linear, "llama3": _llama3, "yarn": _yarn}
    return scale[config.rope_type](config, plain).astype(np.float32)


def _default(config: LlamaConfig, plain: np.ndarray) -> np.ndarray:
    return plain


def _linear(config: LlamaConfig, plain: np.ndarray) -> np.ndarray:
    return plain / config.rope_factor


def _llama3(config: LlamaConfig, plain: np.ndarray) -> np.ndarray:
    """Long wavelengths divided, short ones kept, those between blended (Llama 3.1)."""
    turns = config.rope_original_positions * plain / (2 * math.pi)  # in the original length
    low, high = config.rope_low_frequency_factor, config.rope_high_frequency_factor
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return kept * plain + (1 - kept) * plain / config.rope_factor


def _yarn(config: LlamaConfig, plain: np.ndarray) -> np.ndarray:
    """A ramp over the pairs between two numbers of turns (Peng et al., 2023, equations 22-23)."""

    def pair_of(turns: float) -> float:
        wavelength = config.rope_original_positions / (turns * 2 * math.pi)
        return config.head_dim * math.log(wavelength) / (2 * math.log(config.rope_theta))

    first = max(math.floor(pair_of(config.rope_beta_fast)), 0)
    last = min(math.ceil(pair_of(config.rope_beta_slow)), config.head_dim - 1)
    ramp = (np.arange(len(plain)) - first) / max(last - first, 0.001)
    divided = np.clip(ramp, 0, 1)
    return divided * plain / config.rope_factor + (1 - divided) * plain


def attention_factor(config: LlamaConfig) -> float:
    """What queries and keys are multiplied with."""
    if config.rope_type != "yarn":
        return 1.0
    if config.rope_attention_factor is not None:
        return config.rope_attention_factor
    return 0.1 * math.log(config.rope_factor) + 1.0 if config.rope_factor > 1 else 1.0


def turns(config: LlamaConfig, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """float32[B, 1, L, head_dim / 2] cosines and sines of the angles at `positions` int32[B, L]."""
    angles = positions[:, None, :, None].astype(jnp.float32) * frequencies(config)
    factor = attention_factor(config)
    return jnp.cos(angles) * factor, jnp.sin(angles) * factor


def turn(x: jax.Array, cosines: jax.Array, sines: jax.Array) -> jax.Array:
    """`x` [B, H, L, head_dim] turned; the pairs are those of Hugging Face: i, i + head_dim / 2."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = (first * cosines - second * sines, second * cosines + first * sines)
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)
