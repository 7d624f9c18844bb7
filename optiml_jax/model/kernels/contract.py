"""What a kernel of attention is given, and what it answers."""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from optiml_jax.model import axes
from optiml_jax.model.attention import DocumentMask

# The name under which kernels keep their results for the backward pass (`jax.checkpoint`).
SAVED = "attention"


@dataclasses.dataclass(frozen=True)
class Case:
    """One attention as a kernel sees it before any array exists.

    Attributes:
      platform: "cpu", "gpu" or "tpu".
      capability: of the GPU, (9, 0) for Hopper; None: unknown, or no GPU.
      dtype: of queries, keys and values.
      rows, length: of the queries.
      heads, kv_heads: on one device.
      head_dim: width of a head.
      earlier: keys that lie in other arrays before those of the queries' own rows (a cache).
      window: see `DecoderConfig.sliding_window`.
      branches: the mask tells branches apart.
      dropout: attention weights are dropped.
    """

    platform: str
    capability: tuple[int, int] | None
    dtype: str
    rows: int
    length: int
    heads: int
    kv_heads: int
    head_dim: int
    earlier: int = 0
    window: int | None = None
    branches: bool = False
    dropout: bool = False


@dataclasses.dataclass(frozen=True)
class Keys:
    """A part of the keys, and what the mask says of them.

    Attributes:
      key, value: [A, Hkv, S, Dh]; each of the A rows serves B // A consecutive rows of queries, and
        each of the heads H // Hkv consecutive heads.
      mask: fields [A, S].
      own: they are the queries' own tokens, so that A = B, S = L and later ones are not seen; else
        all of them come before.
    """

    key: jax.Array
    value: jax.Array
    mask: DocumentMask
    own: bool


def cut_alike(query: jax.Array, part: Keys) -> tuple[jax.Array, jax.Array]:
    """Keys and values of a part, repeated where a device would lack those of its queries."""
    key, value = part.key, part.value
    rows, heads = len(query) // len(key), query.shape[1] // key.shape[1]
    if axes.parts(query.shape[1], "heads") != axes.parts(key.shape[1], "kv_heads"):
        key, value = (jnp.repeat(x, heads, axis=1) for x in (key, value))
    if len(key) > 1 and axes.parts(len(query), "batch") != axes.parts(len(key), "batch"):
        key, value = (jnp.repeat(x, rows, axis=0) for x in (key, value))
    return key, value


def declaring(fact: str, value: float, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` as a program whose name says what `optiml_jax.ahead.flops` cannot see in it.

    Args:
      fact: "turns", how often loops inside whose length depends on the data turn where nothing is
        skipped; or "share", of the grids of Pallas inside what is not skipped.
      value: the number.
    """

    def program(*arguments: Any) -> Any:
        return function(*arguments)

    program.__name__ = f"{fact}_{value:g}"
    return jax.jit(program, inline=False)


class Kernel(Protocol):
    """A way to compute attention; all give what the reference gives, to rounding.

    Attributes:
      name: by which settings choose it.
      platforms: where it may be chosen without being asked for.
    """

    name: str
    platforms: tuple[str, ...]

    def refuses(self, case: Case) -> str | None:
        """Why the kernel cannot compute this case; None: it can."""

    def pays(self, case: Case) -> bool:
        """Whether it is likely faster or smaller than the reference."""

    def attend(
        self,
        query: jax.Array,
        mask: DocumentMask,
        parts: list[Keys],
        window: int | None,
        dropout: float,
        dropout_key: jax.Array | None,
    ) -> jax.Array:
        """Softmax attention over the keys of all parts as one sequence.

        Args:
          query: [B, H, L, Dh], already divided by sqrt(Dh).
          mask: of the queries, fields [B, L].
          parts: the last one is the queries' own.
          dropout: probability of dropping an attention weight; needs `dropout_key`.

        Returns:
          [B, H, L, Dh] in the type of `query`; the softmax is computed in float32. What stands at
          padding is finite and means nothing.
        """


def grouped(rows: Any, keys: Any) -> Any:
    """[B, H, ...] as [A, B // A, Hkv, H // Hkv, ...]: rows and heads by the keys [A, Hkv, ...]."""
    num_rows, num_heads = keys.shape[:2]
    shape = (num_rows, len(rows) // num_rows, num_heads, rows.shape[1] // num_heads)
    return rows.reshape(*shape, *rows.shape[2:])
