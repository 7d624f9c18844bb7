"""Searches for settings with which a program fits, cheapest first."""

import dataclasses
import math
from collections.abc import Callable, Iterator

from optiml_jax.ahead.compile import TRAINING, Findings, compile_job, settings
from optiml_jax.ahead.worker import Job
from optiml_jax.errors import UserError
from optiml_jax.model.config import REMAT_POLICIES
from optiml_jax.sharding.mesh import MeshConfig, mesh_shape

# FLOPs that a policy recomputes, as a share of the step; "offload" also loads the link to the host.
_REPEATED = dict(zip(REMAT_POLICIES, (0.0, 0.02, 0.21, 0.23, 0.24), strict=True))


def candidates(job: Job) -> list[Job]:
    """Other settings, cheapest first.

    In training: remat, preset, microbatches and mesh; in evaluation: preset, mesh, tokens per batch
    and the type of the weights.
    The cost is an estimate: recomputation, weights gathered again for every microbatch, and
      communication in large tensor groups. Only settings that are valid together are listed.
    """
    others = _of_training(job) if job.program in TRAINING else _of_evaluation(job)
    priced: list[tuple[float, int, Job]] = []
    for cost, other in others:
        if settings(other) != settings(job) and _goes_together(other):
            pairs = zip(settings(job).split(), settings(other).split(), strict=True)
            cost += 0.03 * math.log2(other.mesh.tensor)
            priced.append((cost, sum(a != b for a, b in pairs), other))
    priced.sort(key=lambda item: (item[0], item[1]))
    return [other for _, _, other in priced]


def changes_that_fit(
    found: Findings,
    wanted: int = 3,
    tries: int = 12,
    compile_one: Callable[[Job], Findings] = compile_job,
    progress: Callable[[str], None] = lambda text: None,
) -> list[Findings]:
    """Up to `wanted` settings that fit, found by compiling at most `tries` candidates.

    A candidate whose settings alone imply more memory (less recomputation, fewer microbatches,
    smaller tensor groups, a residual stream that is not sharded) than one that did not fit is not
    compiled.
    """
    failed, fitting = [found.job], []
    for job in candidates(found.job):
        if len(fitting) == wanted or tries == 0:
            break
        if any(_needs_more(job, other) for other in failed):
            continue
        tries -= 1
        progress(f"trying {settings(job)}")
        try:
            result = compile_one(job)
        except UserError as e:
            progress(f"  {e}")
            continue
        if result.fits:
            fitting.append(result)
        else:
            failed.append(job)
    return fitting


def _of_training(job: Job) -> Iterator[tuple[float, Job]]:
    for mesh in _meshes(job):
        for remat in REMAT_POLICIES:
            for micro in (1, 2, 4, 8, 16):
                model = dataclasses.replace(job.model, remat=remat)
                config = dataclasses.replace(job.config, num_microbatches=micro)
                cost = _REPEATED[remat] + 0.02 * math.log2(micro)
                yield cost, dataclasses.replace(job, mesh=mesh, model=model, config=config)


def _of_evaluation(job: Job) -> Iterator[tuple[float, Job]]:
    for mesh in _meshes(job):
        for halved in range(5):
            for dtype in (job.params_dtype, "bfloat16"):
                tokens = max(job.tokens_per_batch >> halved, 1)
                cost = 0.02 * halved + 0.01 * (dtype != job.params_dtype)
                other = dataclasses.replace(job, tokens_per_batch=tokens, params_dtype=dtype)
                yield cost, dataclasses.replace(other, mesh=mesh)


def _meshes(job: Job) -> Iterator[MeshConfig]:
    tensors = {job.mesh.tensor, *(t for t in (1, 2, 4, 8, 16) if t <= job.target.node_size)}
    for tensor in sorted(tensors):
        for preset in ("standard", "sequence"):
            if preset == "standard" or tensor > 1:
                yield MeshConfig(job.mesh.data, -1, tensor, preset)


def _goes_together(job: Job) -> bool:
    model = job.model
    try:
        data, fsdp, tensor = mesh_shape(job.mesh, job.target.num_devices)
    except UserError:
        return False
    sizes = (model.num_heads, model.num_kv_heads, model.vocab_size, model.d_model, job.length)
    together = model.d_model % fsdp == 0 and all(size % tensor == 0 for size in sizes)
    if job.program in TRAINING:
        parts = data * fsdp * job.config.num_microbatches
        together = together and job.config.global_batch_size % parts == 0
    return together


def _needs_more(job: Job, failed: Job) -> bool:
    """Whether its settings alone imply at least the memory of `failed`."""
    if job.program in TRAINING:
        order = REMAT_POLICIES.index
        more = order(job.model.remat) <= order(failed.model.remat)
        more = more and job.config.num_microbatches <= failed.config.num_microbatches
    else:
        more = job.tokens_per_batch >= failed.tokens_per_batch
        more = more and job.params_dtype in ("float32", failed.params_dtype)
    cut_less = job.mesh.preset in ("standard", failed.mesh.preset)
    return more and cut_less and job.mesh.tensor <= failed.mesh.tensor
