"""Checkpoints in metaseq's layouts, written by torch.save; shared by tests and a benchmark.

Written down from facebookresearch/metaseq (scripts/reshard.py, reshard_mp.py,
distributed/stitch_fsdp_ckpt.py), apart from the library's own reader, so that a mistake there is
found.
"""

import argparse
import math
import os
import pathlib

import torch

ORDER = (  # of the parameters of a layer in metaseq's modules
    "self_attn.qkv_proj.weight",
    "self_attn.qkv_proj.bias",
    "self_attn.out_proj.weight",
    "self_attn.out_proj.bias",
    "self_attn_layer_norm.weight",
    "self_attn_layer_norm.bias",
    "fc1.weight",
    "fc1.bias",
    "fc2.weight",
    "fc2.bias",
    "final_layer_norm.weight",
    "final_layer_norm.bias",
)
RENAMED = {
    "decoder.final_layer_norm.": "decoder.layer_norm.",
    "decoder.project_in.": "decoder.project_in_dim.",
    "decoder.project_out.": "decoder.project_out_dim.",
}


class Touch:
    """Pickled, it asks its reader to run a command."""

    def __init__(self, path: pathlib.Path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def model(tensors: dict, fused: bool = True) -> dict[str, torch.Tensor]:
    """Hugging Face's tensors under metaseq's names; keys, values and queries in one where fused."""
    out = {}
    for name, tensor in tensors.items():
        name = name.removeprefix("model.")
        for theirs, ours in RENAMED.items():
            if name.startswith(theirs):
                name = ours + name.removeprefix(theirs)
        out[name] = torch.as_tensor(tensor)
    for name in list(out):
        if fused and ".q_proj." in name:
            parts = [out.pop(name.replace("q_proj", kind)) for kind in ("k_proj", "v_proj")]
            out[name.replace("q_proj", "qkv_proj")] = torch.cat([*parts, out.pop(name)])
    out["decoder.version"] = torch.tensor([3.0])
    return out


def model_part(whole: dict[str, torch.Tensor], part: int, parts: int) -> dict[str, torch.Tensor]:
    """What Megatron's layers keep on one of several tensor-parallel ranks."""
    out = {}
    for name, tensor in whole.items():
        if "qkv_proj" in name:
            thirds = [third.chunk(parts)[part] for third in tensor.chunk(3)]
            out[name] = torch.cat(thirds)
        elif any(word in name for word in ("embed_tokens", "fc1", "k_proj", "v_proj", "q_proj")):
            out[name] = tensor.chunk(parts)[part].clone()
        elif name.endswith(("fc2.weight", "out_proj.weight")):
            out[name] = tensor.chunk(parts, dim=1)[part].clone()
        else:
            out[name] = tensor
    return out


def fsdp_shards(
    tensors: dict[str, torch.Tensor], shards: int, described: bool = True
) -> list[dict]:
    """The states of FSDP ranks: each wrapped layer, and the rest, as a flat array in pieces."""
    modules: dict[str, list[str]] = {"": []}
    for name in tensors:
        if name == "decoder.version":
            continue
        path = ".".join(name.split(".")[:3]) if ".layers." in name else ""
        modules.setdefault(path, []).append(name)
    states = [
        {"model": {"decoder.version": tensors["decoder.version"]}, "shard_metadata": {}}
        for _ in range(shards)
    ]
    for state in states:
        state["shard_metadata"] = {"buffer_names": ["decoder.version"], "param_metadata": []}
    for path, names in modules.items():
        if path:
            short = {name.removeprefix(path + "."): name for name in names}
            names = [short[n] for n in ORDER if n in short] + [
                name for n, name in short.items() if n not in ORDER
            ]
        else:
            first = ["decoder.embed_tokens.weight", "decoder.embed_positions.weight"]
            names = first + sorted((n for n in names if n not in first), reverse=True)
        flat = torch.cat([tensors[name].flatten() for name in names])
        size = math.ceil(len(flat) / shards)
        for rank, state in enumerate(states):
            piece = flat[rank * size : (rank + 1) * size]
            padding = size - len(piece)
            piece = torch.nn.functional.pad(piece, [0, padding])
            key = f"{path}.flat_param_0" if path else "flat_param_0"
            state["model"][key] = piece.clone()
            inner = [name.removeprefix(path + ".") if path else name for name in names]
            info = {
                "names": inner,
                "shapes": [tensors[name].shape for name in names],
                "numels": [tensors[name].numel() for name in names],
                "padding": padding,
            }
            entry = {"fsdp_path": path, "params": {"flat_param_0": info}, "shared_param_info": []}
            state["shard_metadata"]["param_metadata"].append(entry)
    if not described:
        for state in states:
            del state["shard_metadata"]
    return states


def fields(config) -> argparse.Namespace:
    """metaseq's own fields of a model."""
    return argparse.Namespace(
        arch="transformer_lm_megatron",
        activation_fn="relu",
        decoder_attention_heads=config.num_heads,
        decoder_embed_dim=config.d_model,
        decoder_ffn_embed_dim=config.ffn_dim,
        decoder_input_dim=config.embed_dim,
        decoder_layers=config.num_layers,
        decoder_normalize_before=config.pre_layer_norm,
        max_target_positions=config.max_positions,
        vocab_size=config.vocab_size,
        dropout=0.1,
        attention_dropout=0.0,
    )


def write(
    folder: pathlib.Path,
    config,
    tensors: dict,
    *,
    name: str = "checkpoint_last",
    parts: int = 0,
    shards: int = 0,
    fused: bool = True,
    described: bool = True,
    more: dict | None = None,
) -> pathlib.Path:
    """Writes a checkpoint; 0 parts or shards: without such in the file names."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = model(tensors, fused)
    for part in range(parts or 1):
        held = model_part(whole, part, parts) if parts else whole
        states = fsdp_shards(held, shards, described) if shards else [{"model": held}]
        for shard, state in enumerate(states):
            path = name + (f"-model_part-{part}" if parts else "")
            path += f"-shard{shard}" if shards else ""
            state["cfg"] = {"model": fields(config), "_name": None}
            torch.save({**state, **(more or {})}, folder / f"{path}.pt")
    return folder
