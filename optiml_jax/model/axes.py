"""The hook through which the model names the axes of its activations.

The model says what the axes of an array mean; `optiml_jax.sharding.rules.use_mesh` says, for the
time of a `with` block, which mesh axes they lie on. Outside such a block nothing happens.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator

import jax

Constraint = Callable[[jax.Array, tuple[str | None, ...]], jax.Array]

_constraint: contextvars.ContextVar[Constraint | None] = contextvars.ContextVar(
    "activation constraint", default=None
)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """`x` itself, laid out over the mesh as its logical `axes` ask for, one name per dimension."""
    constraint = _constraint.get()
    return x if constraint is None else constraint(x, axes)


def everywhere(x: jax.Array) -> jax.Array:
    """`x` itself, whole on every device: what every process reads."""
    return constrain(x, *(None,) * x.ndim)


@contextlib.contextmanager
def activation_constraint(constraint: Constraint) -> Iterator[None]:
    """Applies `constraint` to every activation that is named inside the block."""
    token = _constraint.set(constraint)
    try:
        yield
    finally:
        _constraint.reset(token)
