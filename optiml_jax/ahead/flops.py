"""Floating-point operations of matrix products in a traced program, scans counted by length."""

import math
from collections.abc import Iterator
from typing import Any

from jax.extend import core
from jax.interpreters import partial_eval


def matmul_flops(jaxpr: core.ClosedJaxpr) -> int:
    """FLOPs of all matrix products whose results are used (2 per multiply and add)."""
    used, _ = partial_eval.dce_jaxpr(jaxpr.jaxpr, [True] * len(jaxpr.jaxpr.outvars))
    return _count(used, 1)


def _count(jaxpr: Any, times: int) -> int:
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            size = math.prod(equation.outvars[0].aval.shape)
            total += 2 * times * size * math.prod(left[i] for i in contracted)
        inside = times * (equation.params["length"] if equation.primitive.name == "scan" else 1)
        total += sum(_count(inner, inside) for inner in _inner(equation))
    return total


def _inner(equation: Any) -> Iterator[Any]:
    for value in equation.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if hasattr(item, "jaxpr") and hasattr(item, "consts"):
                yield item.jaxpr
            elif hasattr(item, "eqns"):
                yield item
