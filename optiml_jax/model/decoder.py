"""The contract between decoders and whoever trains, scores, decodes, converts or compiles them.

A decoder is a `DecoderConfig`, a Flax NNX module that keeps the protocol `Decoder`, and a
`HuggingFaceForm`; a room under `optiml_jax/model` holds the three, and `_ROOMS` below names it.
Modules are used as pytrees: `nnx.merge(graphdef, params)` inside `jax.jit`, no random state inside
layers. A pure nested dict of float32 arrays is how parameters travel.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
from flax import nnx

from optiml_jax.model.attention import DocumentMask
from optiml_jax.model.config import DecoderConfig
from optiml_jax.model.huggingface_form import HuggingFaceForm, TensorLayout
from optiml_jax.model.kv_cache import KVCache
from optiml_jax.model.layers import Linear
from optiml_jax.model.llama import huggingface as llama_form
from optiml_jax.model.llama.model import Llama
from optiml_jax.model.lora import attach, split_params
from optiml_jax.model.opt import huggingface as opt_form
from optiml_jax.model.opt.model import OPT


class Decoder(Protocol):
    """What a model offers: `logits = model(tokens, positions, mask, cache=None)`.

    Every parameter carries `logical_axes`, names that `optiml_jax.sharding.rules` has a place for;
    the parameters of the blocks lie stacked under "blocks", their first axis is "layers".

    Attributes:
      config: what it was built from.
    """

    config: DecoderConfig

    def __call__(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        mask: DocumentMask,
        cache: KVCache | None = None,
        *,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array | tuple[jax.Array, KVCache]:
        """The logits of the next token.

        Args:
          tokens: int32[B, L].
          positions: int32[B, L], the place of each token in its document, from 0 to
            max_positions - 1; anything at padding.
          mask: who sees whom, fields [B, L].
          cache: what came before; the tokens also see the cached ones of their segment.
          dropout_key: key of all dropout; None turns dropout off.

        Returns:
          float32[B, L, V], and the cache with these tokens when one was given. A token or position
          out of range, or a token for which the cache has no slot left, gives NaN.
        """

    def hidden(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        mask: DocumentMask,
        cache: KVCache | None = None,
        *,
        prefix: KVCache | None = None,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array | tuple[jax.Array, KVCache]:
        """What `unembed` turns into logits, [B, L, E], in the type of the computation.

        Arguments as for `__call__`, and `prefix`: the cache of A rows that were run before, of
        which each stands before B // A consecutive rows; it is only read.
        """

    def unembed(self, hidden: jax.Array) -> jax.Array:
        """float32[..., V]: the logits of `hidden` [..., E]."""


_ROOMS: Mapping[str, tuple[Callable[[Any, nnx.Rngs], Any], HuggingFaceForm]] = {
    "opt": (OPT, opt_form.FORM),
    "llama": (Llama, llama_form.FORM),
}


def abstract_model(config: DecoderConfig) -> tuple[nnx.GraphDef, nnx.State]:
    """The model's structure and its abstract parameters (shapes and logical axes, no memory)."""
    return nnx.split(nnx.eval_shape(lambda: _build(config, nnx.Rngs(0))))


def init_params(
    config: DecoderConfig, seed: int, shardings: Any = None
) -> tuple[nnx.GraphDef, dict[str, Any]]:
    """A model with random weights.

    Args:
      config: what to build.
      seed: the weights depend on it and on the config alone, not on devices or shardings.
      shardings: tree of `jax.sharding.Sharding` like the parameters; each device then makes its
        own part only. None puts them on the default device.

    Returns:
      (graphdef, params): `nnx.merge(graphdef, params)` is the model; params is a pure nested dict
      of float32 arrays, the layers of the stack along the first axis of `params["blocks"]`.
    """
    graphdef, _ = abstract_model(config)
    create = _create
    if shardings is not None:
        create = jax.jit(_create, static_argnums=0, out_shardings=shardings)
    return graphdef, create(config, jax.random.key(seed))


def init_adapters(config: DecoderConfig, seed: int, shardings: Any) -> dict[str, Any]:
    """New adapters of a model with `lora_rank`, without anything else of it.

    Args:
      shardings: tree of `jax.sharding.Sharding` like them.
    """

    def create(key: jax.Array) -> dict[str, Any]:
        return split_params(_create(config, key))[0]

    return jax.jit(create, out_shardings=shardings)(jax.random.key(seed))


def huggingface_form(config: DecoderConfig) -> HuggingFaceForm:
    """The Hugging Face form of the architecture of `config`."""
    return _ROOMS[config.architecture][1]


def huggingface_form_of(model_type: Any) -> HuggingFaceForm | None:
    """The form whose config.json says `model_type`; None: no architecture of ours."""
    forms = [form for _, form in _ROOMS.values()]
    return next((form for form in forms if model_type in form.model_types), None)


def huggingface_model_types() -> list[str]:
    """Every `model_type` that can be read."""
    return [name for _, form in _ROOMS.values() for name in form.model_types]


def huggingface_tensors(config: DecoderConfig) -> list[TensorLayout]:
    """The layout of every parameter in Hugging Face's tensors, in their published order."""
    shapes = {}
    for path, variable in nnx.to_flat_state(abstract_model(config)[1]):
        shapes[tuple(map(str, path))] = tuple(variable.shape)
    return huggingface_form(config).tensors(shapes, config.num_layers)


def _build(config: DecoderConfig, rngs: nnx.Rngs) -> Any:
    model = _ROOMS[config.architecture][0](config, rngs)
    if config.lora_rank:
        attach(model, config, rngs)
    if config.matmul == "float8":
        for _, module in nnx.iter_modules(model.blocks):
            if isinstance(module, Linear):
                module.float8 = True
    return model


@functools.partial(jax.jit, static_argnums=0)
def _create(config: DecoderConfig, key: jax.Array) -> dict[str, Any]:
    return nnx.to_pure_dict(nnx.state(_build(config, nnx.Rngs(key)), nnx.Param))
