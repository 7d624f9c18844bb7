"""Checkpoints that hold only LoRA adapters: merging them into models, and PEFT folders.

The metadata of such a checkpoint names its base checkpoint (`base`: its folder, and the fingerprint
that shows whether it has changed).
"""

import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import safetensors.numpy

from optiml_jax.checkpoint.manager import (
    find_checkpoint,
    load_fingerprint,
    load_metadata,
    load_params,
)
from optiml_jax.checkpoint.streaming import Index
from optiml_jax.checkpoint.weights import stored_params
from optiml_jax.errors import UserError
from optiml_jax.files import read_json
from optiml_jax.model.architectures import config_from_dict
from optiml_jax.model.config import DecoderConfig
from optiml_jax.model.decoder import huggingface_form
from optiml_jax.model.lora import ADAPTER, join_params, low_rank, merge_params, split_params
from optiml_jax.sharding.rules import abstract_params

PEFT_CONFIG, PEFT_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PEFT_PREFIX = "base_model.model."
# Fields of adapter_config.json that change the computation, with the only supported values.
_PEFT_FIXED = {
    "peft_type": "LORA",
    "bias": "none",
    "use_dora": False,
    "fan_in_fan_out": False,
    "modules_to_save": None,
    "rank_pattern": {},
    "alpha_pattern": {},
    "layers_to_transform": None,
    "lora_bias": False,
}
# Others that must be unset; they are not written, since older versions of PEFT know none of them.
_PEFT_UNSET = (
    "alora_invocation_tokens",  # adapters that act only after these tokens
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "monteclora_config",
    "use_bdlora",
    "use_qalora",
)
# Values of init_lora_weights that subtract the first adapters from the base, or quantise it.
_PEFT_OTHER_BASE = re.compile("pissa.*|corda.*|olora|lora_ga|loftq", re.IGNORECASE)


# ---- whole models ----------------------------------------------------------------------------


def describe_base(path: str | os.PathLike) -> dict[str, str]:
    """The entry of adapters' metadata about their base checkpoint."""
    folder = find_checkpoint(path, ("params",))
    return {"checkpoint": str(folder), "fingerprint": load_fingerprint(folder)}


def load_model_params(path: str | os.PathLike, abstract: Any) -> Any:
    """The parameters of a model, as `load_params`; adapters are merged into their base.

    Raises:
      UserError: see `load_params`; or the base is missing or has changed.
    """
    folder = find_checkpoint(path, ("params",))
    metadata = load_metadata(folder)
    if "base" not in metadata:
        return load_params(folder, abstract)
    params = load_model_params(_base_folder(folder, metadata), abstract)
    config = config_from_dict(metadata["model"])
    sharding = getattr(jax.tree.leaves(abstract)[0], "sharding", None)
    mesh = getattr(sharding, "mesh", None)
    adapters = load_params(folder, split_params(abstract_params(config, mesh))[0])
    shardings = jax.tree.map(lambda leaf: leaf.sharding, params)

    def merge(params: Any, adapters: Any) -> Any:
        return merge_params(join_params(adapters, params), config.lora_scale)

    return jax.jit(merge, out_shardings=shardings, donate_argnums=0)(params, adapters)


def stored_model_params(
    path: str | os.PathLike, config: DecoderConfig, dtype: str | None = None
) -> dict[str, Any]:
    """The parameters of a model, read lazily.

    Args:
      path: a checkpoint.
      config: of the model, without adapters.
      dtype: of merged matrices; None: the base's.
    """
    folder = find_checkpoint(path, ("params",))
    metadata = load_metadata(folder)
    if "base" not in metadata:
        return stored_params(folder / "params", config)
    base = stored_model_params(_base_folder(folder, metadata), config)
    adapters, scale = _load_adapters(folder, metadata)
    return _merged(join_params(adapters, base), scale, dtype)


@dataclasses.dataclass(frozen=True)
class _Merged:
    """A stacked kernel and its adapter; a part is merged when it is read."""

    kernel: Any
    a: np.ndarray
    b: np.ndarray
    scale: float
    dtype: np.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.kernel.shape)

    def __getitem__(self, index: Index) -> np.ndarray:
        kernel = self.kernel[index]
        kernel = kernel.read().result() if hasattr(kernel, "read") else kernel
        layers = index[0]
        whole = (len(range(*layers.indices(self.shape[0]))), *self.shape[1:])
        update = low_rank(self.a[layers], self.b[layers], self.scale, whole)
        update = update[(slice(None), *index[1:])]
        return (kernel.astype(np.float32) + update).astype(self.dtype)


def _merged(params: Mapping[str, Any], scale: float, dtype: str | None) -> dict[str, Any]:
    out = {
        name: _merged(value, scale, dtype) if isinstance(value, Mapping) else value
        for name, value in params.items()
        if name != ADAPTER
    }
    if ADAPTER in params:
        kernel, adapter = params["kernel"], params[ADAPTER]
        own = kernel.dtype.numpy_dtype if hasattr(kernel.dtype, "numpy_dtype") else kernel.dtype
        kind = np.dtype(dtype) if dtype else own
        out["kernel"] = _Merged(kernel, adapter["a"], adapter["b"], scale, kind)
    return out


def _base_folder(folder: pathlib.Path, metadata: Mapping[str, Any]) -> pathlib.Path:
    """The step folder of the base, checked to be unchanged."""
    base = metadata["base"]
    try:
        found = find_checkpoint(base["checkpoint"], ("params",))
    except UserError as e:
        raise UserError(f"the adapters in {folder} lack the checkpoint they adapt: {e}") from e
    if load_fingerprint(found) != base["fingerprint"]:
        raise UserError(
            f"{found} is not the checkpoint that the adapters in {folder} were trained on; "
            "restore that one"
        )
    return found


def _load_adapters(
    folder: pathlib.Path, metadata: Mapping[str, Any]
) -> tuple[dict[str, Any], float]:
    """The adapters as NumPy arrays, and their scale."""
    config = config_from_dict(metadata["model"])
    adapters = load_params(folder, split_params(abstract_params(config))[0])
    return jax.tree.map(np.asarray, adapters), config.lora_scale


# ---- PEFT ------------------------------------------------------------------------------------


def is_peft(source: str | os.PathLike) -> bool:
    """Whether a source is a PEFT folder."""
    return (pathlib.Path(source) / PEFT_CONFIG).is_file()


def write_peft(path: str | os.PathLike, folder: pathlib.Path, base_name: str) -> None:
    """Writes the adapters of a checkpoint as a folder that PEFT loads.

    Args:
      path: the checkpoint.
      folder: exists.
      base_name: the name of the base model in the PEFT configuration.

    Raises:
      UserError: the checkpoint is a full model.
    """
    step_folder = find_checkpoint(path, ("params",))
    metadata = load_metadata(step_folder)
    if "base" not in metadata:
        raise UserError(f"{step_folder} is a full model, not adapters; set Convert.to=huggingface")
    config = config_from_dict(metadata["model"])
    adapters, _ = _load_adapters(step_folder, metadata)
    tensors, modules = {}, set()
    for layer, name, part, value in _peft_tensors(config, adapters):
        tensors[_key(name, layer, part)] = np.ascontiguousarray(value)
        modules.add(name.rsplit(".", 1)[-1])
    safetensors.numpy.save_file(tensors, folder / PEFT_WEIGHTS, metadata={"format": "pt"})
    values = {
        **_PEFT_FIXED,
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": config.lora_rank,
        "lora_alpha": config.lora_alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted(modules),
        "inference_mode": True,
    }
    (folder / PEFT_CONFIG).write_text(json.dumps(values, indent=2) + "\n", "utf-8")


def read_peft(folder: pathlib.Path, base: DecoderConfig) -> tuple[DecoderConfig, dict[str, Any]]:
    """The configuration with adapters and the adapters of a PEFT folder, float32.

    Args:
      folder: with adapter_config.json and adapter_model.safetensors.
      base: configuration of the model that they adapt.

    Raises:
      UserError: not plain LoRA, or not for this model.
    """
    values = read_json(folder / PEFT_CONFIG, "the configuration of a PEFT adapter")
    _check_peft(values, folder / PEFT_CONFIG)
    try:
        tensors = safetensors.numpy.load_file(folder / PEFT_WEIGHTS)
    except (OSError, safetensors.SafetensorError) as e:
        raise UserError(f"{folder / PEFT_WEIGHTS} is missing or damaged: {e}") from e
    rank, alpha = values["r"], float(values["lora_alpha"])
    if values.get("use_rslora"):  # alpha / sqrt(r) instead of alpha / r
        alpha *= rank**0.5
    everywhere = dataclasses.replace(base, lora_rank=rank, lora_alpha=alpha, lora_targets=())
    targets = sorted(
        {path[-1] for path, module in _modules(everywhere) if _key(module, 0, "A") in tensors}
    )
    if not targets:
        raise UserError(
            f"{folder / PEFT_WEIGHTS} has no adapter for a matrix of {base.architecture}"
        )
    config = dataclasses.replace(everywhere, lora_targets=tuple(targets))
    abstract = split_params(abstract_params(config))[0]
    adapters = jax.tree.map(lambda leaf: np.empty(leaf.shape, np.float32), abstract)
    for layer, name, part, place in _peft_tensors(config, adapters):
        key = _key(name, layer, part)
        if key not in tensors:
            raise UserError(f"{folder / PEFT_WEIGHTS}: {key} is missing")
        value = tensors.pop(key)
        if value.shape != place.shape:
            raise UserError(
                f"{folder / PEFT_WEIGHTS}: {key} has shape {list(value.shape)}; the model expects "
                f"{list(place.shape)}"
            )
        place[...] = value
    if tensors:
        raise UserError(
            f"{folder / PEFT_WEIGHTS}: {min(tensors)} belongs to no matrix of the model"
        )
    return config, adapters


def _check_peft(values: Mapping[str, Any], path: pathlib.Path) -> None:
    """Raises UserError if the adapters are not plain LoRA for an unchanged base."""
    for name, fixed in {**_PEFT_FIXED, **dict.fromkeys(_PEFT_UNSET)}.items():
        if (values.get(name, fixed) or None) != (fixed or None):
            raise UserError(f"{path}: {name} is {values[name]!r}; only {fixed!r} can be read")
    init = values.get("init_lora_weights", True)
    if isinstance(init, str) and _PEFT_OTHER_BASE.fullmatch(init):
        raise UserError(
            f"{path}: init_lora_weights is {init!r}, which changed the base model before training; "
            "merge the adapters into that changed base with PEFT and convert the result"
        )


def _key(name: str, layer: int, part: str) -> str:
    return _PEFT_PREFIX + f"{name}.lora_{part}.weight".format(layer=layer)


def _modules(config: DecoderConfig) -> Iterator[tuple[tuple[str, ...], str]]:
    """(path of our matrix, Hugging Face's name of its module with `{layer}` in it)."""
    form = huggingface_form(config)

    def walk(tree: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        for name, value in tree.items():
            if name == ADAPTER:
                yield path
            elif isinstance(value, Mapping):
                yield from walk(value, (*path, name))

    for path in walk(split_params(abstract_params(config))[0], ()):
        yield path, form.tensor_name((*path, "kernel")).removesuffix(".weight")


def _peft_tensors(
    config: DecoderConfig, adapters: Mapping[str, Any]
) -> Iterator[tuple[int, str, str, np.ndarray]]:
    """(layer, module's name, "A" or "B", PEFT's matrix as a view of ours) of every adapter.

    PEFT's A is [rank, inputs] and B is [outputs, rank].
    """
    for path, name in _modules(config):
        node: Any = adapters
        for key in path:
            node = node[key]
        a, b = node[ADAPTER]["a"], node[ADAPTER]["b"]
        for layer in range(config.num_layers):
            yield layer, name, "A", a[layer].reshape(-1, config.lora_rank).T
            yield layer, name, "B", b[layer].reshape(config.lora_rank, -1).T
