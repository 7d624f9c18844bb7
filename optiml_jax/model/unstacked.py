"""The form in which a single CPU decodes fastest: arrays of its own for each block.

A scan over stacked blocks copies the weights of a layer before it reads them, and with few rows
reading them is nearly all of the work. Matrices are also turned (`layers.product_of_turned`), and
so the blocks' weights are there twice while answers are generated.
"""

from typing import Any

import jax
from flax import nnx

from optiml_jax.model.config import DecoderConfig
from optiml_jax.model.layers import Linear

_LARGEST = 2**31  # parameters, 8 GiB of them: of larger models the weights are not doubled


def can_be_unstacked(config: DecoderConfig) -> bool:
    """Whether `unstacked` is meant for such a model on a CPU."""
    return config.dtype == "float32" and config.num_params < _LARGEST


@jax.jit(static_argnums=0)
def unstacked(graphdef: nnx.GraphDef, params: Any) -> tuple[nnx.GraphDef, Any]:
    """The same model in that form, `nnx.merge(*unstacked(graphdef, params))`.

    It takes calls of one token for each row, with a cache of the same form
    (`KVCache.unstacked`), and gives what the stacked model gives but for rounding.
    """
    model = nnx.merge(graphdef, params)
    of_block, layers = nnx.split(model.blocks)
    number = len(jax.tree.leaves(layers)[0])
    model.blocks = nnx.List(
        nnx.merge(of_block, jax.tree.map(lambda x, i=i: x[i], layers)) for i in range(number)
    )
    for _, module in nnx.iter_modules(model.blocks):
        if isinstance(module, Linear):
            module.turn()
    return nnx.split(model)
