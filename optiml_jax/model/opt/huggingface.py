"""How OPT lies in Hugging Face's folders: its config.json and its tensors."""

import re
from collections.abc import Mapping
from typing import Any

from optiml_jax.errors import UserError
from optiml_jax.model.huggingface_form import HuggingFaceForm
from optiml_jax.model.opt.config import OPTConfig

_PREFIX = "model.decoder."
_HEAD = "lm_head.weight"
_TOKENS = _PREFIX + "embed_tokens.weight"
# OPTConfig field -> config.json field, for the fields that both have.
_FIELDS = {
    "vocab_size": "vocab_size",
    "d_model": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "ffn_dim": "ffn_dim",
    "embed_dim": "word_embed_proj_dim",
    "max_positions": "max_position_embeddings",
    "pre_layer_norm": "do_layer_norm_before",
    "dropout": "dropout",
    "attention_dropout": "attention_dropout",
    "pad_id": "pad_token_id",
    "bos_id": "bos_token_id",
    "eos_id": "eos_token_id",
    "init_std": "init_std",
}
_OPTIONAL_FIELDS = ("embed_dim", "init_std", "attention_dropout", "dropout", "pre_layer_norm")
# config.json fields that this model has in one form only.
_FIXED = {
    "model_type": "opt",
    "activation_function": "relu",
    "enable_bias": True,
    "layer_norm_elementwise_affine": True,
    "tie_word_embeddings": True,
}
_NORM_PARTS = {"scale": "weight", "bias": "bias"}
_LINEAR_PARTS = {"kernel": "weight", "bias": "bias"}
_MODULES = {
    "attention.query": ("self_attn.q_proj", _LINEAR_PARTS),
    "attention.key": ("self_attn.k_proj", _LINEAR_PARTS),
    "attention.value": ("self_attn.v_proj", _LINEAR_PARTS),
    "attention.out": ("self_attn.out_proj", _LINEAR_PARTS),
    "attention_norm": ("self_attn_layer_norm", _NORM_PARTS),
    "wi": ("fc1", _LINEAR_PARTS),
    "wo": ("fc2", _LINEAR_PARTS),
    "mlp_norm": ("final_layer_norm", _NORM_PARTS),
    "project_in": ("project_in", _LINEAR_PARTS),
    "project_out": ("project_out", _LINEAR_PARTS),
    "final_norm": ("final_layer_norm", _NORM_PARTS),
}
_TOKENIZER_CONFIG = {
    "tokenizer_class": "GPT2Tokenizer",
    "add_bos_token": True,
    "add_prefix_space": False,
    "bos_token": "</s>",
    "eos_token": "</s>",
    "unk_token": "</s>",
    "pad_token": "<pad>",
}


def _read_config(values: Mapping[str, Any], path: str) -> OPTConfig:
    for name, fixed in _FIXED.items():
        if values.get(name, fixed if name != "model_type" else None) != fixed:
            raise UserError(f"{path}: {name} is {values.get(name)!r}; only {fixed!r} can be read")
    fields = {}
    for ours, theirs in _FIELDS.items():
        if theirs in values:
            fields[ours] = values[theirs]
        elif ours not in _OPTIONAL_FIELDS:
            raise UserError(f"{path}: {theirs!r} is missing; is this the whole file?")
    if values.get("_remove_final_layer_norm"):
        fields["final_layer_norm"] = False
    if isinstance(fields["eos_id"], list):
        first, *more = fields["eos_id"]
        fields |= {"eos_id": first, "more_eos_ids": tuple(more)}
    return OPTConfig(**fields)


def _write_config(config: OPTConfig, dtype: str) -> dict[str, Any]:
    if config.position_offset != 2:
        raise UserError(f"Hugging Face's OPT has position offset 2, not {config.position_offset}")
    if config.final_layer_norm and not config.pre_layer_norm:
        raise UserError("Hugging Face's OPT has no final layer norm when pre_layer_norm is off")
    values = {"architectures": ["OPTForCausalLM"], **_FIXED, "torch_dtype": dtype}
    values |= {theirs: getattr(config, ours) for ours, theirs in _FIELDS.items()}
    if config.more_eos_ids:
        values["eos_token_id"] = list(config.eos_ids)
    values["_remove_final_layer_norm"] = config.pre_layer_norm and not config.final_layer_norm
    return values


def _name(path: tuple[str, ...]) -> str:
    if path[-1] == "token_embedding":
        return _TOKENS
    if path[-1] == "position_embedding":
        return f"{_PREFIX}embed_positions.weight"
    stacked = path[0] == "blocks"
    module, parts = _MODULES[".".join(path[stacked:-1])]
    return _PREFIX + ("layers.{layer}." if stacked else "") + f"{module}.{parts[path[-1]]}"


def _canonical_name(name: str) -> str:
    return name if name == _HEAD else _PREFIX + re.sub(r"^(model\.)?(decoder\.)?", "", name)


FORM = HuggingFaceForm(
    model_types=("opt",),
    read_config=_read_config,
    write_config=_write_config,
    tensor_name=_name,
    canonical_name=_canonical_name,
    aliases=lambda config: {_HEAD: _TOKENS},
    tokenizer_config=_TOKENIZER_CONFIG,
    vocabulary="opt",
)
