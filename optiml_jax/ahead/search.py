"""Changes of settings that make a training step fit, cheapest first."""

import dataclasses
import math
from collections.abc import Callable, Iterator

from optiml_jax.ahead.compile import Findings, compile_job, settings
from optiml_jax.ahead.worker import Job
from optiml_jax.errors import UserError
from optiml_jax.model.config import REMAT_POLICIES
from optiml_jax.sharding.mesh import MeshConfig, mesh_shape

# Work that a policy repeats, as a share of the step; from the FLOPs that are executed.
_REPEATED = dict(zip(REMAT_POLICIES, (0.0, 0.02, 0.21, 0.23), strict=True))


def candidates(job: Job) -> list[Job]:
    """Other settings of remat, preset, microbatches and mesh, the cheapest first.

    The cost is an estimate: repeated work, weights that are gathered again for every microbatch,
    and exchanges of large tensor groups. Only settings that go together are listed.
    """
    count = job.target.num_devices
    priced: list[tuple[float, int, Job]] = []
    for remat, preset, micro, tensor in _grid(job):
        mesh = MeshConfig(job.mesh.data, -1, tensor, preset)
        other = dataclasses.replace(
            job,
            mesh=mesh,
            model=dataclasses.replace(job.model, remat=remat),
            config=dataclasses.replace(job.config, num_microbatches=micro),
        )
        if settings(other) == settings(job) or not _goes_together(other, count):
            continue
        cost = _REPEATED[remat] + 0.02 * math.log2(micro) + 0.03 * math.log2(tensor)
        changes = (remat != job.model.remat) + (preset != job.mesh.preset)
        changes += (micro != job.config.num_microbatches) + (tensor != job.mesh.tensor)
        priced.append((cost, changes, other))
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

    A candidate that needs more memory by its settings alone (less is computed again, fewer
    microbatches, smaller tensor groups, a residual stream that is not cut) than one that was
    compiled and did not fit is not compiled.
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


def _grid(job: Job) -> Iterator[tuple[str, str, int, int]]:
    tensors = {job.mesh.tensor, *(t for t in (1, 2, 4, 8, 16) if t <= job.target.node_size)}
    for remat in REMAT_POLICIES:
        for micro in (1, 2, 4, 8, 16):
            for tensor in sorted(tensors):
                for preset in ("standard", "sequence"):
                    if preset == "standard" or tensor > 1:
                        yield remat, preset, micro, tensor


def _goes_together(job: Job, num_devices: int) -> bool:
    model = job.model
    try:
        data, fsdp, tensor = mesh_shape(job.mesh, num_devices)
    except UserError:
        return False
    parts = data * fsdp * job.config.num_microbatches
    sizes = (model.num_heads, model.num_kv_heads, model.vocab_size, model.d_model, job.length)
    whole = job.config.global_batch_size % parts == 0
    return whole and model.d_model % fsdp == 0 and all(size % tensor == 0 for size in sizes)


def _needs_more(job: Job, other: Job) -> bool:
    order = REMAT_POLICIES.index
    return (
        order(job.model.remat) <= order(other.model.remat)
        and job.config.num_microbatches <= other.config.num_microbatches
        and job.mesh.tensor <= other.mesh.tensor
        and (job.mesh.preset == other.mesh.preset or job.mesh.preset == "standard")
    )
