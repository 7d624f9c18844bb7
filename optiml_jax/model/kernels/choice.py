"""Which kernel computes an attention: by platform and shape, or as the settings say."""

import logging
import re

import jax

from optiml_jax.model import axes
from optiml_jax.model.attention import DocumentMask
from optiml_jax.model.config import DecoderConfig
from optiml_jax.model.kernels.chunked import Chunked
from optiml_jax.model.kernels.contract import Case, Kernel, Keys
from optiml_jax.model.kernels.reference import Reference
from optiml_jax.model.kernels.splash import Splash
from optiml_jax.model.kernels.triton import Triton

logger = logging.getLogger(__name__)

# In the order in which they are tried; the last one refuses nothing.
KERNELS: dict[str, Kernel] = {k.name: k for k in (Splash(), Triton(), Chunked(), Reference())}
_said: set[tuple[str, ...]] = set()


def attend(
    query: jax.Array,
    mask: DocumentMask,
    parts: list[Keys],
    *,
    kernel: str = "auto",
    window: int | None = None,
    dropout: float = 0.0,
    dropout_key: jax.Array | None = None,
) -> jax.Array:
    """Softmax attention over documents, by the kernel that `choose` finds.

    Args:
      query: [B, H, L, Dh], already divided by sqrt(Dh).
      mask: of the queries, fields [B, L].
      parts: all keys, as one sequence for the softmax; the last part is the queries' own.
      kernel: see `choose`.
      window: see `DecoderConfig.sliding_window`.
      dropout: probability of dropping an attention weight; needs `dropout_key`.
      dropout_key: key of the dropout; None turns it off.

    Returns:
      [B, H, L, Dh] in the type of `query`.
    """
    if dropout_key is None:
        dropout = 0.0
    case = case_of(query, mask, parts, window, dropout)
    chosen = choose(case, kernel)
    return chosen.attend(query, mask, parts, window, dropout, dropout_key)


def choose(case: Case, kernel: str = "auto") -> Kernel:
    """The kernel for a case.

    Args:
      kernel: a key of `KERNELS`: that one wherever it does not refuse; "auto": the first one meant
        for the platform that does not refuse and pays.
    """
    if kernel != "auto":
        reason = KERNELS[kernel].refuses(case)
        if reason is None:
            return _say(KERNELS[kernel], case, "as set")
        _say_refusal(kernel, case, reason)
    return next(
        _say(k, case, "auto")
        for k in KERNELS.values()
        if case.platform in k.platforms and k.refuses(case) is None and k.pays(case)
    )


def explain(case: Case) -> list[tuple[str, str]]:
    """(kernel, what it says to the case) for every kernel, in the order in which they are tried."""
    said = []
    for k in KERNELS.values():
        reason = k.refuses(case)
        if reason is None and case.platform not in k.platforms:
            reason = f"only when asked for: meant for {', '.join(k.platforms)}"
        if reason is None and not k.pays(case):
            reason = "does not pay at this size"
        said.append((k.name, reason or "can"))
    return said


def case_of(
    query: jax.Array, mask: DocumentMask, parts: list[Keys], window: int | None, dropout: float
) -> Case:
    """What kernels are told of arrays."""
    rows, heads, length, head_dim = query.shape
    kv_heads = parts[-1].key.shape[1]
    device = axes.device()
    return Case(
        platform=platform(device),
        capability=capability(device),
        dtype=str(query.dtype),
        rows=rows,
        length=length,
        heads=heads // axes.parts(heads, "heads"),
        kv_heads=kv_heads // axes.parts(kv_heads, "kv_heads"),
        head_dim=head_dim,
        earlier=sum(part.key.shape[2] for part in parts[:-1]),
        window=window,
        branches=mask.branch_ids is not None,
        dropout=dropout > 0,
    )


def training_case(config: DecoderConfig, length: int, device: jax.Device) -> Case:
    """Attention in training, on one device, of a row of `length` tokens."""
    return Case(
        platform=platform(device),
        capability=capability(device),
        dtype=config.dtype,
        rows=1,
        length=length,
        heads=config.num_heads,
        kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        window=config.sliding_window,
        dropout=config.attention_dropout > 0,
    )


def platform(device: jax.Device) -> str:
    """What JAX calls it, and "gpu" for GPUs of any maker."""
    return "gpu" if device.platform in ("cuda", "rocm") else device.platform


def capability(device: jax.Device) -> tuple[int, int] | None:
    """The compute capability of a GPU, e.g. (9, 0); None: unknown, or no GPU."""
    numbers = re.fullmatch(r"(\d+)\.(\d+)", str(getattr(device, "compute_capability", "")))
    return (int(numbers[1]), int(numbers[2])) if numbers else None


def _say(kernel: Kernel, case: Case, why: str) -> Kernel:
    shape = f"{case.heads} heads of {case.head_dim} in {case.dtype}, {case.platform}"
    key = (kernel.name, shape, "long" if case.length > 1 else "one token")
    if key not in _said and case.length > 1:
        _said.add(key)
        logger.info(
            "attention of %d tokens (%s): kernel %s (%s)", case.length, shape, kernel.name, why
        )
    return kernel


def _say_refusal(kernel: str, case: Case, reason: str) -> None:
    if (kernel, reason) not in _said and case.length > 1:
        _said.add((kernel, reason))
        logger.warning(
            "attention of %d tokens: the kernel %s refuses: %s", case.length, kernel, reason
        )
