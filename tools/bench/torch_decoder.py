"""Updates of a decoder of OPT's shape in PyTorch, for gpu.py to compare with.

float32 weights, autocast to bfloat16 on a GPU, fused AdamW, the model's dropout, no recomputation,
logits of all tokens, as Hugging Face's models compute them. Attention is per document: with
flash-attn's packed layout if it is installed, else with PyTorch's own attention, document by
document.
"""

import importlib.util
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from optiml_jax.model.config import DecoderConfig

FLASH = torch.cuda.is_available() and importlib.util.find_spec("flash_attn") is not None


def device_kind() -> str:
    """The name of the device, as JAX calls it too."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def seconds_of_an_update(
    config: DecoderConfig, batch: dict[str, np.ndarray], steps: int
) -> tuple[float, int | None, str] | None:
    """(seconds, peak bytes of memory, how attention is computed); None: it does not fit.

    Args:
      config: sizes of the model.
      batch: packed rows, as in `optiml_jax.train`.
      steps: updates measured, after a warm-up.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        step = make_step(config, batch, device)
        step()
        began = time.perf_counter()
        for _ in range(steps):
            step()
    except torch.cuda.OutOfMemoryError:
        torch.cuda.empty_cache()
        return None
    taken = (time.perf_counter() - began) / steps
    used = torch.cuda.max_memory_allocated() if device.type == "cuda" else None
    return taken, used, "flash-attn varlen" if FLASH else "SDPA by document"


def make_step(
    config: DecoderConfig, batch: dict[str, np.ndarray], device: torch.device
) -> Callable[[], None]:
    """One update, synchronised."""
    attend = _attention(batch["segment_ids"], device)
    tokens, targets, positions = (
        torch.as_tensor(batch[name].reshape(-1), dtype=torch.long, device=device)
        for name in ("tokens", "targets", "positions")
    )
    weights = torch.as_tensor(batch["loss_weights"].reshape(-1), device=device)
    with torch.device(device):
        blocks = torch.nn.ModuleList(Block(config, attend) for _ in range(config.num_layers))
        table = torch.nn.Embedding(config.vocab_size, config.d_model)
        places = torch.nn.Embedding(config.max_positions, config.d_model)
        norm = torch.nn.LayerNorm(config.d_model)
    cuda = device.type == "cuda"
    parameters = torch.nn.ModuleList([blocks, table, places, norm]).parameters()
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=cuda)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=cuda):
            x = functional.dropout(table(tokens) + places(positions), config.dropout)
            for block in blocks:
                x = block(x)
            logits = functional.linear(norm(x), table.weight)
            losses = functional.cross_entropy(logits.float(), targets, reduction="none")
        ((losses * weights).sum() / weights.sum()).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if cuda:
            torch.cuda.synchronize()

    return step


class Block(torch.nn.Module):
    """Layer norm before attention and before the feed-forward part."""

    def __init__(self, config: DecoderConfig, attend: Callable[..., Any]):
        super().__init__()
        width, wide = config.d_model, 4 * config.d_model
        self.norms = torch.nn.ModuleList(torch.nn.LayerNorm(width) for _ in range(2))
        self.into, self.out = torch.nn.Linear(width, 3 * width), torch.nn.Linear(width, width)
        self.wi, self.wo = torch.nn.Linear(width, wide), torch.nn.Linear(wide, width)
        self.heads = (-1, 3, config.num_heads, config.head_dim)
        self.attend, self.dropout = attend, config.dropout

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = self.into(self.norms[0](x)).view(self.heads).unbind(1)
        y = self.out(self.attend(query, key, value).reshape(x.shape))
        x = x + functional.dropout(y, self.dropout)
        y = self.wo(functional.relu(self.wi(self.norms[1](x))))
        return x + functional.dropout(y, self.dropout)


def _attention(segment_ids: np.ndarray, device: torch.device) -> Callable[..., torch.Tensor]:
    """Function of query, key and value [tokens, H, Dh] of all rows, concatenated."""
    rows = np.arange(len(segment_ids))[:, None] * (segment_ids.max() + 1)
    starts = np.flatnonzero(np.diff((segment_ids + rows).reshape(-1), prepend=-1))
    lengths = np.diff(np.append(starts, segment_ids.size)).tolist()
    if FLASH:
        from flash_attn import flash_attn_varlen_func

        ends = torch.as_tensor(
            np.append(starts, segment_ids.size), dtype=torch.int32, device=device
        )
        limits = (ends, ends, max(lengths), max(lengths))
        return lambda query, key, value: flash_attn_varlen_func(
            query, key, value, *limits, causal=True
        )

    def attend(query, key, value):
        pieces = []
        for document in zip(*(x.split(lengths) for x in (query, key, value)), strict=True):
            heads_first = (x.transpose(0, 1)[None] for x in document)
            out = functional.scaled_dot_product_attention(*heads_first, is_causal=True)
            pieces.append(out[0].transpose(0, 1))
        return torch.cat(pieces)

    return attend
