"""How Llama, Mistral, Qwen and SmolLM lie in Hugging Face's folders: config.json and tensors."""

import re
from collections.abc import Mapping
from typing import Any

from optiml_jax.errors import UserError
from optiml_jax.model.huggingface_form import HuggingFaceForm
from optiml_jax.model.llama.config import FAMILIES, LlamaConfig

_PREFIX = "model."
_HEAD = "lm_head.weight"
_TOKENS = _PREFIX + "embed_tokens.weight"
_FIELDS = {
    "vocab_size": "vocab_size",
    "d_model": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "ffn_dim": "intermediate_size",
    "max_positions": "max_position_embeddings",
    "attention_dropout": "attention_dropout",
    "norm_epsilon": "rms_norm_eps",
    "init_std": "initializer_range",
}
_NEEDED = ("vocab_size", "d_model", "num_layers", "num_heads", "ffn_dim", "max_positions")
_ROPE_FIELDS = {
    "rope_factor": "factor",
    "rope_original_positions": "original_max_position_embeddings",
    "rope_low_frequency_factor": "low_freq_factor",
    "rope_high_frequency_factor": "high_freq_factor",
    "rope_beta_fast": "beta_fast",
    "rope_beta_slow": "beta_slow",
    "rope_attention_factor": "attention_factor",
}
# Which of them a type has.
_ROPE_TYPES = {
    "default": (),
    "linear": ("rope_factor",),
    "llama3": (
        "rope_factor",
        "rope_original_positions",
        "rope_low_frequency_factor",
        "rope_high_frequency_factor",
    ),
    "yarn": (
        "rope_factor",
        "rope_original_positions",
        "rope_beta_fast",
        "rope_beta_slow",
        "rope_attention_factor",
    ),
}
# config.json fields that this model has in one form only.
_FIXED = {"hidden_act": "silu", "mlp_bias": False, "pretraining_tp": 1}
_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
# What Hugging Face's class of the family has when config.json does not say it.
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "llama": {"rms_norm_eps": 1e-6},
    "mistral": {"rms_norm_eps": 1e-6, "num_key_value_heads": 8, "sliding_window": 4096},
    "qwen2": {"rms_norm_eps": 1e-6},
    "qwen3": {"rms_norm_eps": 1e-6, "head_dim": 128},
}
_MODULES = {
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.out": "self_attn.o_proj",
    "attention.query_norm": "self_attn.q_norm",
    "attention.key_norm": "self_attn.k_norm",
    "attention_norm": "input_layernorm",
    "gate": "mlp.gate_proj",
    "wi": "mlp.up_proj",
    "wo": "mlp.down_proj",
    "mlp_norm": "post_attention_layernorm",
    "final_norm": "norm",
}
_PARTS = {"kernel": "weight", "scale": "weight", "bias": "bias"}
_FULL, _SLIDING = "full_attention", "sliding_attention"  # in `layer_types`


def _read_config(values: Mapping[str, Any], path: str) -> LlamaConfig:
    family = values["model_type"]
    values = {**_DEFAULTS[family], **values}
    for name, fixed in _FIXED.items():
        if values.get(name, fixed) != fixed:
            raise UserError(f"{path}: {name} is {values.get(name)!r}; only {fixed!r} can be read")
    if values.get("attention_bias"):
        raise UserError(f"{path}: attention_bias is on; an output bias cannot be read")
    for ours in _NEEDED:
        if _FIELDS[ours] not in values:
            raise UserError(f"{path}: {_FIELDS[ours]!r} is missing; is this the whole file?")
    fields = {
        ours: values[theirs] for ours, theirs in _FIELDS.items() if values.get(theirs) is not None
    }
    return LlamaConfig(
        family=family,
        tied=values.get("tie_word_embeddings", False),
        qkv_bias=family == "qwen2",
        qk_norm=family == "qwen3",
        sliding_window=_sliding_window(values, family, path),
        **fields,
        **_rope(values, path),
        **_special_ids(values, family, path),
    )


def _sliding_window(values: Mapping[str, Any], family: str, path: str) -> int | None:
    kinds = sorted(set(values.get("layer_types") or ()))
    if kinds not in ([], [_FULL], [_SLIDING]):
        raise UserError(
            f"{path}: layer_types has {', '.join(kinds)}; only {_FULL} in all layers or {_SLIDING} "
            "in all layers can be read"
        )
    window = _window_of_family(values, family, kinds, path)
    if kinds and kinds != [_FULL if window is None else _SLIDING]:
        raise UserError(
            f"{path}: layer_types has {kinds[0]} only, but the sliding window is {window}; make "
            "layer_types agree with the fields of the window"
        )
    return window


def _window_of_family(
    values: Mapping[str, Any], family: str, kinds: list[str], path: str
) -> int | None:
    if family == "llama":
        return None
    if family == "mistral":
        return values["sliding_window"]
    if kinds == [_FULL] or not values.get("use_sliding_window", False):
        return None
    # Where `layer_types` is given, transformers asks it and not the number of layers.
    if not kinds and values.get("max_window_layers", 28) > 0:
        raise UserError(
            f"{path}: use_sliding_window with max_window_layers "
            f"{values.get('max_window_layers', 28)}; only one window for all layers can be read"
        )
    return values.get("sliding_window", 4096)


def _rope(values: Mapping[str, Any], path: str) -> dict[str, Any]:
    # `rope_parameters` since transformers 5, `rope_theta` and `rope_scaling` before.
    given = values.get("rope_parameters") or values.get("rope_scaling") or {}
    kind = given.get("rope_type", given.get("type", "default"))
    if kind not in _ROPE_TYPES:
        raise UserError(
            f"{path}: rotary positions of type {kind!r}; choose one of {', '.join(_ROPE_TYPES)}"
        )
    if given.get("mscale") or given.get("mscale_all_dim") or not given.get("truncate", True):
        raise UserError(f"{path}: yarn with mscale or without truncation cannot be read")
    if given.get("partial_rotary_factor", values.get("partial_rotary_factor", 1.0)) != 1.0:
        raise UserError(f"{path}: rotary positions of a part of each head cannot be read")
    fields = {
        ours: given[_ROPE_FIELDS[ours]]
        for ours in _ROPE_TYPES[kind]
        if given.get(_ROPE_FIELDS[ours]) is not None
    }
    if "rope_factor" in _ROPE_TYPES[kind]:
        fields["rope_factor"] = _rope_factor(given, values, kind, path)
    if "rope_original_positions" in _ROPE_TYPES[kind]:
        fields.setdefault("rope_original_positions", values["max_position_embeddings"])
    theta = given.get("rope_theta", values.get("rope_theta", 10000.0))
    return {"rope_type": kind, "rope_theta": float(theta), **fields}


def _rope_factor(
    given: Mapping[str, Any], values: Mapping[str, Any], kind: str, path: str
) -> float:
    factor, original = given.get("factor"), given.get("original_max_position_embeddings")
    if kind == "yarn" and "factor" in given and factor is None and original:
        return values["max_position_embeddings"] / original  # as in transformers
    if factor is None:
        raise UserError(
            f"{path}: rotary positions of type {kind!r} have no factor; write it beside the type"
        )
    return factor


def _special_ids(values: Mapping[str, Any], family: str, path: str) -> dict[str, Any]:
    eos = values.get("eos_token_id", 2 if family in ("llama", "mistral") else None)
    eos = [*eos] if isinstance(eos, list | tuple) else [eos]
    if eos in ([], [None]):
        raise UserError(
            f"{path}: eos_token_id, the token that ends a text, is missing; write its id there"
        )
    pad = values.get("pad_token_id")
    bos = values.get("bos_token_id", 1 if family in ("llama", "mistral") else None)
    return {
        "bos_id": bos,
        "eos_id": eos[0],
        "more_eos_ids": tuple(eos[1:]),
        "pad_id": eos[0] if pad is None or pad < 0 else pad,
    }


def _write_config(config: LlamaConfig, dtype: str) -> dict[str, Any]:
    family = config.family
    for name, families in (("qkv_bias", ("qwen2",)), ("qk_norm", ("qwen3",))):
        if getattr(config, name) != (family in families):
            raise UserError(
                f"Hugging Face's {family} has {name} {family in families}, not "
                f"{getattr(config, name)}; model_config.family names another"
            )
    if config.sliding_window is not None and family == "llama":
        raise UserError("Hugging Face's llama has no sliding window; model_config.family = mistral")
    values = {"architectures": [_ARCHITECTURES[family]], "model_type": family}
    values |= {theirs: getattr(config, ours) for ours, theirs in _FIELDS.items()}
    values |= {
        "hidden_act": "silu",
        "tie_word_embeddings": config.tied,
        "rope_theta": config.rope_theta,
        "bos_token_id": config.bos_id,
        "eos_token_id": [*config.eos_ids] if config.more_eos_ids else config.eos_id,
        "pad_token_id": config.pad_id,
        "torch_dtype": dtype,
    }
    if family != "llama":
        values["sliding_window"] = config.sliding_window
    if family.startswith("qwen"):
        values |= {"use_sliding_window": config.sliding_window is not None, "max_window_layers": 0}
    if config.rope_type != "default":
        scaling = {"rope_type": config.rope_type}
        for name in _ROPE_TYPES[config.rope_type]:
            if getattr(config, name) is not None:
                scaling[_ROPE_FIELDS[name]] = getattr(config, name)
        values["rope_scaling"] = scaling
    return values


def _name(path: tuple[str, ...]) -> str:
    if path[-1] == "token_embedding":
        return _TOKENS
    if path == ("head",):
        return _HEAD
    stacked = path[0] == "blocks"
    name = f"{_MODULES['.'.join(path[stacked:-1])]}.{_PARTS[path[-1]]}"
    return _PREFIX + ("layers.{layer}." if stacked else "") + name


def _canonical_name(name: str) -> str:
    return name if name == _HEAD else _PREFIX + re.sub(r"^model\.", "", name)


FORM = HuggingFaceForm(
    model_types=FAMILIES,
    read_config=_read_config,
    write_config=_write_config,
    tensor_name=_name,
    canonical_name=_canonical_name,
    aliases=lambda config: {_HEAD: _TOKENS} if config.tied else {},
    without_bos=("qwen2", "qwen3"),
    # llama.cpp turns neighbours, not halves, by rotary positions where the type is "llama".
    gguf=dict.fromkeys(FAMILIES, ()) | {"llama": ("q_proj", "k_proj")},
)
