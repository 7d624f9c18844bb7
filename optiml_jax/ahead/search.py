"""Searches for settings with which a program fits, cheapest first."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator

from optiml_jax.ahead.compile import TRAINING, Findings, compile_job, settings
from optiml_jax.ahead.worker import GIB, Job
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

    A candidate is not compiled if one that did not fit shows that it cannot fit either: its
    settings alone imply no less memory (less recomputation, smaller tensor groups, a residual
    stream that is not sharded), and fewer rows at a time cannot make the temporaries small enough
    (`_constant`).
    """
    failed, fitting = [found], []
    for job in candidates(found.job):
        if len(fitting) == wanted or tries == 0:
            break
        constant = _constant(job, [*failed, *fitting])
        if any(_cannot_fit(job, other, constant) for other in failed):
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
            failed.append(result)
    return fitting


def _of_training(job: Job) -> Iterator[tuple[float, Job]]:
    for mesh in _meshes(job):
        for remat in REMAT_POLICIES:
            for micro in _powers(job.config.global_batch_size):
                model = dataclasses.replace(job.model, remat=remat)
                config = dataclasses.replace(job.config, num_microbatches=micro)
                cost = _REPEATED[remat] + 0.02 * math.log2(micro)
                yield cost, dataclasses.replace(job, mesh=mesh, model=model, config=config)


def _of_evaluation(job: Job) -> Iterator[tuple[float, Job]]:
    for mesh in _meshes(job):
        for parts in _powers(job.tokens_per_batch // job.length):
            for dtype in (job.params_dtype, "bfloat16"):
                tokens = job.tokens_per_batch // parts
                cost = 0.02 * math.log2(parts) + 0.01 * (dtype != job.params_dtype)
                other = dataclasses.replace(job, tokens_per_batch=tokens, params_dtype=dtype)
                yield cost, dataclasses.replace(other, mesh=mesh)


def _meshes(job: Job) -> Iterator[MeshConfig]:
    tensors = {job.mesh.tensor, *(t for t in (1, 2, 4, 8, 16) if t <= job.target.node_size)}
    for tensor in sorted(tensors):
        for preset in ("standard", "sequence"):
            if preset == "standard" or tensor > 1:
                # By name, or gin would give what the file says a second time.
                yield MeshConfig(data=job.mesh.data, fsdp=-1, tensor=tensor, preset=preset)


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


def _powers(limit: int) -> list[int]:
    """1, 2, 4, ... up to `limit`."""
    return [2**i for i in range(max(limit, 1).bit_length())]


def _constant(job: Job, compiled: Iterable[Findings]) -> float:
    """GiB of temporaries of a training step that do not depend on the rows at a time, at least.

    They are the gradient, and of bfloat16 ones of several microbatches also their sum in float32;
    or what two compilations on the same mesh say that differ in the number of microbatches: if
    temporaries are constant + rest / number, two of them give the constant.
    """
    _, fsdp, tensor = mesh_shape(job.mesh, job.target.num_devices)
    several = job.config.num_microbatches > 1
    size = 4 if job.optimizer.gradient_dtype == "float32" else 6 if several else 2
    size = 0 if job.model.lora_rank else size
    constants = [size * job.model.num_params / (fsdp * tensor) / GIB]
    same_mesh = [
        (found.job.config.num_microbatches, found.temporaries, found.job.model.remat)
        for found in compiled
        if several and found.job.mesh == job.mesh and found.temporaries is not None
    ]
    for (one, of_one, remat), (two, of_two, also) in itertools.combinations(same_mesh, 2):
        if remat == also and one != two and min(one, two) > 1:
            constants.append((one * of_one - two * of_two) / (one - two))
    return max(constants)


def _cannot_fit(job: Job, failed: Findings, constant: float) -> bool:
    """Whether it needs too much because `failed` does; see `_constant`."""
    other = failed.job
    cut_less = job.mesh.preset in ("standard", other.mesh.preset)
    if not cut_less or job.mesh.tensor > other.mesh.tensor:
        return False
    if job.program not in TRAINING:
        same_type = job.params_dtype in ("float32", other.params_dtype)
        return same_type and job.tokens_per_batch >= other.tokens_per_batch
    order = REMAT_POLICIES.index
    if order(job.model.remat) > order(other.model.remat):
        return False
    shrink = job.config.num_microbatches / other.config.num_microbatches
    if shrink <= 1:
        return True
    if None in (failed.arguments, failed.temporaries, failed.usable):
        return False
    # At most what is not constant shrinks with the rows that are computed at a time.
    rest = max(failed.temporaries - constant, 0) / shrink
    return failed.arguments + constant + rest > failed.usable
