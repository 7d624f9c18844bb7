"""Floating-point operations of matrix products in a traced program, scans counted by length.

A loop whose trip count depends on the data can declare its maximum, and a kernel of Pallas which
share of its grid it runs (`optiml_jax.model.kernels.contract.declaring`); without that the one
counts once, the other whole.
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from jax.extend import core
from jax.interpreters import partial_eval


def matmul_flops(jaxpr: core.ClosedJaxpr) -> float:
    """FLOPs of all matrix products whose results are used (2 per multiply and add)."""
    used, _ = partial_eval.dce_jaxpr(jaxpr.jaxpr, [True] * len(jaxpr.jaxpr.outvars))
    return _count(used, 1, {"turns": 1, "share": 1})


def _count(jaxpr: Any, times: float, declared: Mapping[str, float]) -> float:
    total = 0
    for equation in jaxpr.eqns:
        name, inside = equation.primitive.name, times
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            size = math.prod(equation.outvars[0].aval.shape)
            total += 2 * times * size * math.prod(left[i] for i in contracted)
        elif name == "scan":
            inside *= equation.params["length"]
        elif name == "while":
            inside *= declared["turns"]
        elif name == "pallas_call":
            inside *= math.prod(equation.params["grid_mapping"].grid) * declared["share"]
        elif name == "shard_map":
            inside *= equation.params["mesh"].size
        said = re.fullmatch(r"(turns|share)_([\d.]+)", str(equation.params.get("name", "")))
        known = {**declared, said[1]: float(said[2])} if said else declared
        total += sum(_count(inner, inside, known) for inner in _inner(equation))
    return total


def _inner(equation: Any) -> Iterator[Any]:
    for value in equation.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if hasattr(item, "jaxpr") and hasattr(item, "consts"):
                yield item.jaxpr
            elif hasattr(item, "eqns"):
                yield item
