"""Models in llama.cpp's .gguf files: tensors by Hugging Face's names, and the tokenizer.

The `gguf` package's own code dequantises the weights, some rows at a time. For some architectures
llama.cpp permutes the rows of query and key for another form of rotary embeddings
(convert_hf_to_gguf.py, `permute`); the permutation is undone here.
"""

import functools
import json
import math
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import gguf
import ml_dtypes
import numpy as np

from optiml_jax.checkpoint.tensors import Tensor, whole_index
from optiml_jax.errors import UserError
from optiml_jax.model.config import DecoderConfig
from optiml_jax.model.decoder import huggingface_form_of

_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# config.json field -> key of the metadata, after the name of the architecture.
_FIELDS = {
    "num_hidden_layers": "block_count",
    "max_position_embeddings": "context_length",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
}
_DIVISORS = "rope_freqs.weight"  # what the frequency of each pair is divided by
_LLAMA3_FACTORS = (8.0, 32.0)  # of Llama 3.1 and 3.3, and of 3.2
_LLAMA3_SCALING = {  # the rest of their `rope_scaling`
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_IDS = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
_TYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
_CONTROL, _USER_DEFINED = 3, 4  # token types
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
_WORDS = {**_BYTES, "use_regex": True}
_DIGIT = {"type": "Digits", "individual_digits": True}


def _split(digits: str) -> dict[str, Any]:
    """Pre-tokenisation of Llama 3 (up to three digits) and Qwen 2 (single digits)."""
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
        + digits
        + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    cut = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [cut, {**_BYTES, "use_regex": False}]}


# `tokenizer.ggml.pre` -> pre-tokenisation.
_PRE_TOKENIZERS = {
    "default": _WORDS,
    "gpt-2": _WORDS,
    "smollm": {"type": "Sequence", "pretokenizers": [_DIGIT, _WORDS]},
    "llama-bpe": _split(r"\p{N}{1,3}"),
    "llama3": _split(r"\p{N}{1,3}"),
    "qwen2": _split(r"\p{N}"),
}


class GGUFTensor:
    """A tensor of a GGUF file; only the rows that are read are dequantised.

    Args:
      tensor: of `gguf.GGUFReader`.
      heads: number of heads whose rows llama.cpp permuted; 0: not permuted.
    """

    def __init__(self, tensor: Any, heads: int = 0):
        self._kind, self._data = tensor.tensor_type, tensor.data
        self.shape = tuple(int(n) for n in reversed(tensor.shape))
        self.dtype = np.dtype(_TYPES.get(self._kind.name, np.float32))
        self._order = np.arange(self.shape[0])
        if heads:
            halves = self._order.reshape(heads, -1, 2)
            self._order = halves.swapaxes(1, 2).reshape(-1)

    def __getitem__(self, index: Any) -> np.ndarray:
        rows, *rest = whole_index(index, self.shape)
        data = self._data[self._order[rows]]
        if self._kind.name == "BF16":
            values = data.view(ml_dtypes.bfloat16)
        elif self._kind.name in _TYPES:
            values = data
        else:
            values = gguf.dequantize(data, self._kind)
        return values[(slice(None), *rest)]


class _TokenizerFiles(Mapping[str, bytes]):
    """The tokenizer's files, made when they are first read.

    A tokenizer that is not supported is an error only then: `Convert.vocabulary` can replace it.
    """

    def __init__(self, values: Mapping[str, Any], path: pathlib.Path):
        self._values, self._path = values, path

    @functools.cached_property
    def _files(self) -> dict[str, bytes]:
        return _tokenizer_files(self._values, self._path)

    def __getitem__(self, name: str) -> bytes:
        return self._files[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def open_gguf(path: pathlib.Path) -> tuple[DecoderConfig, dict[str, Tensor], Mapping[str, bytes]]:
    """The configuration, the tensors by Hugging Face's names, and the tokenizer's files.

    Raises:
      UserError: a damaged file, or an unsupported kind of model; when the tokenizer's files are
        first read: an unsupported tokenizer.
    """
    try:
        reader = gguf.GGUFReader(path)
    except FileNotFoundError as e:
        raise UserError(f"{path} is missing") from e
    except Exception as e:  # damaged bytes make the reader raise anything
        raise UserError(f"{path} is not a GGUF file, or damaged ({e}); copy it again") from e
    values = dict(reader.fields)
    architecture = _value(values, "general.architecture", path)
    form = huggingface_form_of(architecture)
    if form is None or architecture not in form.gguf:
        raise UserError(f"{path}: architecture {architecture!r} is not supported from GGUF")
    tensors: dict[str, Tensor] = {}
    divisors = None
    for tensor in reader.tensors:
        if tensor.name == _DIVISORS:
            divisors = GGUFTensor(tensor)[:]
            continue
        name = _huggingface_name(tensor.name, path)
        heads = 0
        if name.rsplit(".", 2)[-2] in form.gguf[architecture]:
            key = "attention.head_count" + ("_kv" if "k_proj" in name else "")
            heads = int(_value(values, f"{architecture}.{key}", path))
        tensors[name] = GGUFTensor(tensor, heads)
    fields = _config_values(values, architecture, tensors)
    config = form.config(fields, str(path))
    if divisors is not None:
        scaling = _llama3_scaling(divisors, config.head_dim, config.rope_theta)
        if scaling is None or "rope_scaling" in fields:
            raise UserError(
                f"{path}: {_DIVISORS} scales rotary positions otherwise than in Llama 3.1, 3.2 and "
                "3.3, and the metadata does not say how; convert the model's Hugging Face folder "
                "instead"
            )
        config = form.config({**fields, "rope_scaling": scaling}, str(path))
    return config, tensors, _TokenizerFiles(values, path)


def _llama3_scaling(divisors: np.ndarray, head_dim: int, theta: float) -> dict[str, Any] | None:
    """The `rope_scaling` of a published model that has these divisors; None: of none.

    The metadata lacks its parameters. Frequencies with few turns within the original length are
    divided by the factor, those with many are kept, and those between are blended.
    """
    low, high = _LLAMA3_SCALING["low_freq_factor"], _LLAMA3_SCALING["high_freq_factor"]
    original = _LLAMA3_SCALING["original_max_position_embeddings"]
    turns = original * theta ** -(np.arange(0, head_dim, 2) / head_dim) / (2 * math.pi)
    kept = np.clip((turns - low) / (high - low), 0, 1)
    for factor in _LLAMA3_FACTORS:
        expected = 1 / (kept + (1 - kept) / factor)
        # The file's were computed in float32; another factor or length differs by far more.
        if divisors.shape == expected.shape and np.allclose(divisors, expected, rtol=1e-5, atol=0):
            return {**_LLAMA3_SCALING, "factor": factor}
    return None


def _huggingface_name(name: str, path: pathlib.Path) -> str:
    match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
    if match is None or match[2] not in _NAMES:
        raise UserError(f"{path}: tensor {name} belongs to no model supported from GGUF")
    layer = "" if match[1] is None else f"model.layers.{match[1]}."
    return f"{layer}{_NAMES[match[2]]}.{match[3]}"


def _value(values: Mapping[str, Any], key: str, path: pathlib.Path) -> Any:
    if key not in values:
        raise UserError(f"{path}: the metadata lacks {key}")
    return values[key].contents()


def _config_values(
    values: Mapping[str, Any],
    architecture: str,
    tensors: Mapping[str, Tensor],
) -> dict[str, Any]:
    """The content of an equivalent config.json."""
    fields: dict[str, Any] = {"model_type": architecture}
    for theirs, key in _FIELDS.items():
        if f"{architecture}.{key}" in values:
            value = values[f"{architecture}.{key}"].contents()
            # Stored as float32: rounded so that 1e-5 is not read as 9.99999974e-6.
            fields[theirs] = float(str(np.float32(value))) if isinstance(value, float) else value
    fields["vocab_size"] = tensors["model.embed_tokens.weight"].shape[0]
    fields["tie_word_embeddings"] = "lm_head.weight" not in tensors
    for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        field = values.get(f"tokenizer.ggml.{key}_token_id")
        fields[f"{name}_token_id"] = None if field is None else field.contents()
    flag = values.get("tokenizer.ggml.add_bos_token")
    if flag is not None and not flag.contents():
        fields["bos_token_id"] = None  # no token precedes a text
    kind = values.get(f"{architecture}.rope.scaling.type")
    if kind is not None and kind.contents() != "none":
        scaling = {"rope_type": kind.contents()}
        for theirs, key in (
            ("factor", "factor"),
            ("original_max_position_embeddings", "original_context_length"),
        ):
            field = values.get(f"{architecture}.rope.scaling.{key}")
            if field is not None:
                scaling[theirs] = field.contents()
        fields["rope_scaling"] = scaling
    return fields


def _tokenizer_files(values: Mapping[str, Any], path: pathlib.Path) -> dict[str, bytes]:
    """tokenizer.json and tokenizer_config.json, as in a Hugging Face folder."""
    kind = _value(values, "tokenizer.ggml.model", path)
    pre = values["tokenizer.ggml.pre"].contents() if "tokenizer.ggml.pre" in values else "default"
    if kind != "gpt2" or pre not in _PRE_TOKENIZERS:
        raise UserError(
            f"{path}: its tokenizer ({kind}, {pre}) is not supported; set Convert.vocabulary to "
            "huggingface:<folder of the original model>"
        )
    tokens = _value(values, "tokenizer.ggml.tokens", path)
    kinds = _value(values, "tokenizer.ggml.token_type", path)
    named = {}
    for name, key in _IDS.items():
        field = values.get(f"tokenizer.ggml.{key}_token_id")
        if field is not None:
            named[name] = tokens[field.contents()]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [
        {"id": i, "content": token, **flags, "special": what == _CONTROL}
        for i, (token, what) in enumerate(zip(tokens, kinds, strict=True))
        if what in (_CONTROL, _USER_DEFINED)
    ]
    tokenizer = {
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": _PRE_TOKENIZERS[pre],
        "decoder": _WORDS,
        "model": {
            "type": "BPE",
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [
                merge.split(" ", 1) for merge in _value(values, "tokenizer.ggml.merges", path)
            ],
            "ignore_merges": pre in ("llama-bpe", "llama3"),
        },
    }
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **named}
    if "tokenizer.chat_template" in values:
        config["chat_template"] = values["tokenizer.chat_template"].contents()
    files = {"tokenizer.json": tokenizer, "tokenizer_config.json": config}
    return {name: json.dumps(content).encode() for name, content in files.items()}
