"""Which architectures there are: their configurations and published sizes, by name. No JAX.

The models themselves are made in decoder.py.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from optiml_jax.errors import UserError
from optiml_jax.model.config import DecoderConfig
from optiml_jax.model.llama import config as llama
from optiml_jax.model.opt import config as opt
from optiml_jax.settings import configurable

# Of checkpoints that were written before they said it, and of `model_config` without a size.
DEFAULT = "opt"
CONFIGS: Mapping[str, type[DecoderConfig]] = {"opt": opt.OPTConfig, "llama": llama.LlamaConfig}
# Architecture -> published size -> fields of its configuration; no size occurs twice.
SIZES: Mapping[str, Mapping[str, Mapping[str, Any]]] = {"opt": opt.SIZES, "llama": llama.SIZES}


@configurable
def model_config(
    size: str | None = None, architecture: str | None = None, **overrides: Any
) -> DecoderConfig:
    """The configuration of a published size, with some fields replaced.

    Args:
      size: a published size, a key of one of `SIZES`; None starts from the architecture's defaults.
      architecture: a key of `CONFIGS`; None: that of the size, else `DEFAULT`.
      **overrides: fields of the configuration. Widths that follow from others (of OPT: ffn_dim,
        embed_dim) follow the replaced ones unless they are given too.

    Raises:
      UserError: an unknown architecture, size or field, or values that do not go together.
    """
    names = {name: kind for kind, sizes in SIZES.items() for name in sizes}
    if size is not None and size not in names:
        raise UserError(f"unknown model size {size!r}; choose one of {', '.join(names)}")
    architecture = architecture or names.get(size, DEFAULT)
    _check_architecture(architecture)
    if size is not None and names[size] != architecture:
        raise UserError(f"the size {size!r} is of {names[size]!r}, not of {architecture!r}")
    fields = {} if size is None else SIZES[architecture][size]
    return _make(architecture, {**fields, **overrides})


def config_from_dict(values: Mapping[str, Any]) -> DecoderConfig:
    """The configuration of `DecoderConfig.to_dict`; one without an architecture is OPT's.

    Raises:
      UserError: an unknown architecture or field.
    """
    fields = dict(values)
    architecture = fields.pop("architecture", DEFAULT)
    _check_architecture(architecture)
    return _make(architecture, fields)


def _make(architecture: str, values: Mapping[str, Any]) -> DecoderConfig:
    config = CONFIGS[architecture]
    known = [field.name for field in dataclasses.fields(config)]
    for field in values:
        if field not in known:
            raise UserError(f"unknown field {field!r} of the model; known are {', '.join(known)}")
    return config(**values)


def _check_architecture(name: str) -> None:
    if name not in CONFIGS:
        raise UserError(f"unknown architecture {name!r}; choose one of {', '.join(CONFIGS)}")
