"""Paper mode: no plan and no evaluation while a pair of tasks with common examples is undecided."""

from collections.abc import Iterable

from optiml_jax.audit import pairs
from optiml_jax.cli.settings import Audit, Run
from optiml_jax.data.example import TaskSource
from optiml_jax.errors import UserError
from tasks.audit import judge
from tasks.splits import Manifest


def check_decided(
    run: Run,
    sources: Iterable[TaskSource],
    manifest: Manifest,
    roles: Iterable[str],
    trained: Iterable[str],
) -> None:
    """Does nothing outside of paper mode (`Audit.paper_mode`).

    Args:
      trained: the tasks that the mixture trains on.

    Raises:
      UserError: there was no audit, it did not see a training task, or a pair is undecided and
        `Audit.allow_undecided` does not hold.
    """
    settings = Audit()
    if not settings.paper_mode:
        return
    folder = settings.folder_of(run)
    overlaps = pairs.read_pairs(folder)
    unseen = sorted({*trained} - pairs.scanned_tasks(folder))
    if unseen:
        raise UserError(
            f"paper mode: the audit in {folder} did not see {len(unseen)} training tasks "
            f"({unseen[0]}{', ...' if unseen[1:] else ''}); run optiml audit"
        )
    by_name = {s.name: s for s in sources}
    known = [o for o in overlaps if o.train_task in by_name and o.eval_task in by_name]
    judged = judge(known, by_name, manifest, settings.threshold, roles)
    undecided = [j for j in judged if j.state == "undecided"]
    if not undecided:
        return
    names = [f"{j.overlap.train_task} and {j.overlap.eval_task}" for j in undecided]
    if not settings.allow_undecided:
        raise UserError(
            f"paper mode: {len(names)} pairs of tasks share examples and are undecided ({names[0]}"
            f"{', ...' if names[1:] else ''}); decide with optiml audit --review, or say "
            "--allow-undecided"
        )
    print(f"{len(names)} pairs of tasks share examples and are undecided:")
    for j, name in zip(undecided, names, strict=True):
        print(f"  {name}: {100 * j.overlap.share:.1f} % of the evaluation examples")
