"""TPU: splash attention of JAX's Pallas library, with the documents as its segment ids."""

import dataclasses

import jax
import jax.numpy as jnp

from optiml_jax.model import axes
from optiml_jax.model.attention import DocumentMask
from optiml_jax.model.kernels.contract import SAVED, Case, Keys, cut_alike, declaring

_LANES = 128  # of a TPU's registers: lengths and widths are multiples of it
_BLOCK = 512


@dataclasses.dataclass(frozen=True)
class Splash:
    """Skips what is later than a block, not what is another document.

    Attributes:
      interpret: compute in plain operations on any platform, for tests.
    """

    interpret: bool = False
    name: str = dataclasses.field(default="splash", init=False)
    platforms: tuple[str, ...] = dataclasses.field(default=("tpu",), init=False)

    def refuses(self, case: Case) -> str | None:
        if case.platform != "tpu" and not self.interpret:
            return "it runs on TPUs only"
        if case.dropout:
            return "it drops no attention weights"
        if case.branches:
            return "its segment ids know no branches"
        if case.earlier:
            return "it does not support a cache besides the row's own keys"
        if case.length % _LANES:
            return f"the length {case.length} is not a multiple of {_LANES}"
        return None

    def pays(self, case: Case) -> bool:
        return case.length >= _LANES

    def attend(
        self,
        query: jax.Array,
        mask: DocumentMask,
        parts: list[Keys],
        window: int | None,
        dropout: float,
        dropout_key: jax.Array | None,
    ) -> jax.Array:
        """See `Kernel`."""
        from jax.experimental.pallas.ops.tpu.splash_attention import SegmentIds

        key, value = cut_alike(query, parts[-1])

        def pieces(query, key, value, segment_ids):
            heads, length, width = query.shape[1:]
            kernel = jax.vmap(_kernel(heads, length, window, self.interpret))
            ids = SegmentIds(segment_ids, segment_ids)
            query, key, value = (_wide(x) for x in (query, key, value))
            kernel = declaring("share", share(length, window), kernel)
            return (kernel(query, key, value, ids)[..., :width],)

        rows, heads = ("batch", "heads", None, None), ("batch", "kv_heads", None, None)
        arguments = (query, key, value, mask.segment_ids)
        return axes.per_device(pieces, arguments, (rows, heads, heads, ("batch", None)), (rows,))[0]


def _kernel(heads: int, length: int, window: int | None, interpret: bool):
    """Splash attention of one row [H, L, Dh]; its mask is a table of blocks, made while tracing."""
    # Imported late: no other platform should wait for it.
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    if window is None:
        mask = splash.CausalMask((length, length))
    else:
        mask = splash.LocalMask((length, length), (window - 1, 0), offset=0)
    return splash.make_splash_mha(
        splash.MultiHeadMask([mask] * heads),
        block_sizes=splash.BlockSizes(*(_block(length),) * 8),
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=SAVED,
        interpret=interpret,
    )


def share(length: int, window: int | None) -> float:
    """What the kernel runs of its grid: blocks of queries by the most blocks of keys of one."""
    block = _block(length)
    first = [max(0, i * block - (window or length) + 1) // block for i in range(length // block)]
    runs = [i + 1 - j for i, j in enumerate(first)]
    return sum(runs) / (len(runs) * max(runs))


def _block(length: int) -> int:
    return next(b for b in (_BLOCK, 256, _LANES) if length % b == 0)


def _wide(x: jax.Array) -> jax.Array:
    """`x` [..., Dh] with zeros after it, to whole registers: no score changes."""
    missing = -x.shape[-1] % _LANES
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)]) if missing else x
