"""Small OPT models with known weights, in Hugging Face's form; shared by tests and make_golden.

Names and shapes are written down here from Hugging Face's model, apart from the library's own
table, so that a mistake there is found.
"""

import json
import pathlib
import zlib

import numpy as np
from safetensors.numpy import save_file

from optiml_jax.model.opt.config import OPTConfig

_SMALL = {"vocab_size": 96, "d_model": 32, "num_layers": 3, "num_heads": 4, "max_positions": 40}
CASES = {
    "pre_norm": OPTConfig(**_SMALL),
    "post_norm_projected": OPTConfig(**_SMALL, embed_dim=16, pre_layer_norm=False),
    "pre_norm_no_final": OPTConfig(**_SMALL, ffn_dim=48, final_layer_norm=False),
}


def tensor_shapes(config: OPTConfig) -> dict[str, tuple[int, ...]]:
    """name -> shape of every tensor of `transformers.OPTForCausalLM`, the tied head left out."""
    d, e, f = config.d_model, config.embed_dim, config.ffn_dim
    shapes = {"embed_tokens.weight": (config.vocab_size, e)}
    shapes["embed_positions.weight"] = (config.max_positions + 2, d)
    if e != d:
        shapes |= {"project_in.weight": (d, e), "project_out.weight": (e, d)}
    if config.final_layer_norm:
        shapes |= {"final_layer_norm.weight": (d,), "final_layer_norm.bias": (d,)}
    for layer in range(config.num_layers):
        linears = {f"self_attn.{name}_proj": (d, d) for name in ("q", "k", "v", "out")}
        linears |= {"fc1": (f, d), "fc2": (d, f)}
        for name, shape in linears.items():
            shapes[f"layers.{layer}.{name}.weight"] = shape
            shapes[f"layers.{layer}.{name}.bias"] = shape[:1]
        for name in ("self_attn_layer_norm", "final_layer_norm"):
            shapes[f"layers.{layer}.{name}.weight"] = (d,)
            shapes[f"layers.{layer}.{name}.bias"] = (d,)
    return {f"model.decoder.{name}": shape for name, shape in shapes.items()}


def random_tensors(config: OPTConfig) -> dict[str, np.ndarray]:
    """float32 weights that depend on nothing but their names and shapes."""
    tensors = {}
    for name, shape in tensor_shapes(config).items():
        values = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
        norm = name.endswith("layer_norm.weight")
        tensors[name] = (0.2 * values + (1.0 if norm else 0.0)).astype(np.float32)
    return tensors


def random_tokens(config: OPTConfig) -> np.ndarray:
    """int64[3, 20] token ids."""
    return np.random.default_rng(7).integers(3, config.vocab_size, (3, 20))


def config_json(config: OPTConfig) -> dict:
    """The config.json of the published OPT models, with this model's sizes."""
    return {
        "_remove_final_layer_norm": config.pre_layer_norm and not config.final_layer_norm,
        "activation_dropout": 0.0,
        "activation_function": "relu",
        "architectures": ["OPTForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": 2,
        "do_layer_norm_before": config.pre_layer_norm,
        "dropout": 0.1,
        "eos_token_id": 2,
        "ffn_dim": config.ffn_dim,
        "hidden_size": config.d_model,
        "init_std": 0.02,
        "layerdrop": 0.0,
        "max_position_embeddings": config.max_positions,
        "model_type": "opt",
        "num_attention_heads": config.num_heads,
        "num_hidden_layers": config.num_layers,
        "pad_token_id": 1,
        "prefix": "</s>",
        "torch_dtype": "float32",
        "use_cache": True,
        "vocab_size": config.vocab_size,
        "word_embed_proj_dim": config.embed_dim,
    }


def write_folder(
    folder: pathlib.Path, config: OPTConfig, tensors: dict[str, np.ndarray] | None = None
) -> pathlib.Path:
    """Writes a model folder in Hugging Face's form, by hand."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = random_tensors(config) if tensors is None else tensors
    (folder / "config.json").write_text(json.dumps(config_json(config)))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def torch_model(folder: pathlib.Path):
    """Hugging Face's own model of a folder, float32, in evaluation mode."""
    import torch
    from transformers import OPTForCausalLM

    return OPTForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def torch_outputs(folder: pathlib.Path, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """{"logits", "hidden"} of Hugging Face's model, float32."""
    import torch

    model = torch_model(folder)
    with torch.no_grad():
        hidden = model.model(torch.asarray(tokens)).last_hidden_state
        return {"logits": model.lm_head(hidden).numpy(), "hidden": hidden.numpy()}
