"""Small models of Llama's kind in Hugging Face's form; shared by tests and make_golden.

config.json and the names and shapes of the tensors are written down here from Hugging Face's
models, apart from the library's own table, so that a mistake there is found.
"""

import json
import pathlib
import zlib

import numpy as np
from safetensors.numpy import save_file

_SMALL = {
    "hidden_act": "silu",
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "initializer_range": 0.02,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "torch_dtype": "float32",
}
_LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "attention_bias": False}
_LLAMA_3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
_YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
CASES: dict[str, dict] = {
    "llama_3": _SMALL
    | _LLAMA
    | {"tie_word_embeddings": False, "rope_theta": 500000.0, "rope_scaling": _LLAMA_3}
    | {"eos_token_id": [2, 5, 6]},
    # The form of transformers 5.
    "llama_tied_linear": _SMALL
    | _LLAMA
    | {"tie_word_embeddings": True}
    | {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}},
    "mistral": _SMALL
    | {"model_type": "mistral", "architectures": ["MistralForCausalLM"]}
    | {"tie_word_embeddings": False, "rope_theta": 10000.0, "sliding_window": 5},
    "qwen_2": _SMALL
    | {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
    | {"tie_word_embeddings": True, "rope_theta": 1e6, "use_sliding_window": False}
    | {"sliding_window": 32, "max_window_layers": 3, "rope_scaling": _YARN},
    "qwen_3": _SMALL
    | {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "attention_bias": False}
    | {"tie_word_embeddings": False, "rope_theta": 1e6, "head_dim": 16},
}


# The same families with the other kind of head.
OTHER_HEADS = {
    f"{name}_{'untied' if CASES[name]['tie_word_embeddings'] else 'tied'}": CASES[name]
    | {"tie_word_embeddings": not CASES[name]["tie_word_embeddings"]}
    for name in ("mistral", "qwen_2", "qwen_3")
}


def tensor_shapes(values: dict) -> dict[str, tuple[int, ...]]:
    """name -> shape of every tensor of the Hugging Face model of a config.json."""
    d, f, v = (values[k] for k in ("hidden_size", "intermediate_size", "vocab_size"))
    heads, kv_heads = values["num_attention_heads"], values["num_key_value_heads"]
    width = values.get("head_dim", d // heads)
    shapes = {"model.embed_tokens.weight": (v, d), "model.norm.weight": (d,)}
    if not values["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (v, d)
    for layer in range(values["num_hidden_layers"]):
        block = {
            "self_attn.q_proj.weight": (heads * width, d),
            "self_attn.k_proj.weight": (kv_heads * width, d),
            "self_attn.v_proj.weight": (kv_heads * width, d),
            "self_attn.o_proj.weight": (d, heads * width),
            "mlp.gate_proj.weight": (f, d),
            "mlp.up_proj.weight": (f, d),
            "mlp.down_proj.weight": (d, f),
            "input_layernorm.weight": (d,),
            "post_attention_layernorm.weight": (d,),
        }
        if values["model_type"] == "qwen2":
            block |= {
                f"self_attn.{x}_proj.bias": block[f"self_attn.{x}_proj.weight"][:1] for x in "qkv"
            }
        if values["model_type"] == "qwen3":
            block |= {f"self_attn.{x}_norm.weight": (width,) for x in "qk"}
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in block.items()}
    return shapes


def write_folder(folder: pathlib.Path, values: dict) -> pathlib.Path:
    """Writes a model folder in Hugging Face's form, by hand; weights depend on their names."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, shape in tensor_shapes(values).items():
        noise = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
        norm = "norm" in name
        tensors[name] = (0.3 * noise + (1.0 if norm else 0.0)).astype(np.float32)
    (folder / "config.json").write_text(json.dumps(values))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def random_tokens(values: dict) -> np.ndarray:
    """int64[3, 20] token ids."""
    return np.random.default_rng(7).integers(3, values["vocab_size"], (3, 20))


def torch_model(folder: pathlib.Path):
    """Hugging Face's own model of a folder, float32, in evaluation mode."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def torch_outputs(folder: pathlib.Path, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """{"logits", "hidden"} of Hugging Face's model, float32."""
    import torch

    model = torch_model(folder)
    with torch.no_grad():
        hidden = model.model(torch.asarray(tokens)).last_hidden_state
        return {"logits": model.lm_head(hidden).numpy(), "hidden": hidden.numpy()}
