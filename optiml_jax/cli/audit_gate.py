"""Paper mode: refuses to plan, train or evaluate while a pair of tasks is undecided.

A pair is undecided if the two share examples and no decision was made about it (tasks/audit.py).
`optiml plan` checks the audit and records the result with the plan; `optiml train`, which may run
without the data, uses that record.
"""

import pathlib
from collections.abc import Collection, Iterable, Sequence

from optiml_jax.audit import pairs
from optiml_jax.cli.settings import Audit, Run
from optiml_jax.data.example import TaskSource
from optiml_jax.errors import UserError
from optiml_jax.files import fingerprint, read_sealed, write_sealed
from optiml_jax.words import counted
from tasks.audit import Judged, judge
from tasks.splits import Manifest

_WAY_OUT = "decide with optiml audit --review, or pass --allow-undecided"


def check_decided(
    run: Run,
    sources: Iterable[TaskSource],
    manifest: Manifest,
    roles: Iterable[str],
    trained: Collection[str] = (),
    evaluated: Collection[str] = (),
) -> list[str]:
    """Checks that no pair is undecided; does nothing outside paper mode (`Audit.paper_mode`).

    Args:
      trained: the tasks that the mixture trains on.
      evaluated: the tasks that are evaluated.

    Returns:
      The undecided pairs in words, after printing them, if `Audit.allow_undecided` is set.

    Raises:
      UserError: there is no audit, it does not cover one of these tasks, or a pair is undecided and
        `Audit.allow_undecided` is not set.
    """
    settings = Audit()
    if not settings.paper_mode:
        return []
    folder = settings.folder_of(run)
    overlaps = pairs.read_pairs(folder)
    for what, asked, seen in (
        ("training", trained, pairs.scanned_tasks(folder)),
        ("evaluation", evaluated, pairs.indexed_tasks(folder)),
    ):
        if unseen := sorted({*asked} - seen):
            raise UserError(
                f"paper mode: the audit in {folder} does not cover "
                f"{counted(len(unseen), f'{what} task')} ({unseen[0]}"
                f"{', ...' if unseen[1:] else ''}); run optiml audit"
            )
    by_name = {s.name: s for s in sources}
    known = [o for o in overlaps if o.train_task in by_name and o.eval_task in by_name]
    judged = judge(known, by_name, manifest, settings.threshold, roles)
    undecided = [_in_words(j) for j in judged if j.state == "undecided"]
    _refuse(undecided, settings)
    return undecided


def write_seen(run: Run, undecided: Sequence[str]) -> None:
    """Records with the plan that it was made in paper mode, or removes an older record."""
    path, settings = _note(run), Audit()
    if settings.paper_mode:
        state = {"audit": _audit_state(run), "undecided": list(undecided)}
        write_sealed(path, state)
    else:
        path.unlink(missing_ok=True)


def check_plan_decided(run: Run) -> None:
    """Does what `check_decided` does for the plan of a run, from the record of `write_seen`.

    Raises:
      UserError: the plan was not made in paper mode, the audit has changed since, or a pair is
        undecided and `Audit.allow_undecided` is not set.
    """
    settings = Audit()
    if not settings.paper_mode:
        return
    path = _note(run)
    if not path.exists():
        raise UserError(
            f"paper mode: the plan in {path.parent} was made without it; run optiml plan with "
            "Audit.paper_mode = True"
        )
    seen = read_sealed(path, "the plan's record of the audit", "run optiml plan again")
    if settings.folder_of(run).exists() and seen["audit"] != _audit_state(run):
        raise UserError(
            f"paper mode: the audit in {settings.folder_of(run)} or the decisions changed since "
            f"the plan in {path.parent} was made; run optiml plan again"
        )
    _refuse(seen["undecided"], settings)


def _note(run: Run) -> pathlib.Path:
    return run.plan_dir("train").parent / "audit.json"


def _audit_state(run: Run) -> str:
    """A fingerprint of the audit's findings and the decisions."""
    decisions = Manifest.load().decisions
    rows = [[*d.train, "", *d.eval, "", d.decision] for d in decisions.rows]
    found = pairs.read_rows(Audit().folder_of(run), "pairs")
    return fingerprint([found, rows])


def _in_words(judged: Judged) -> str:
    overlap = judged.overlap
    names = f"{overlap.train_task} and {overlap.eval_task}"
    return f"{names}: {100 * overlap.share:.1f} % of the evaluation examples"


def _refuse(undecided: Sequence[str], settings: Audit) -> None:
    if not undecided:
        return
    if not settings.allow_undecided:
        first = undecided[0].partition(": ")[0]
        raise UserError(
            f"paper mode: undecided about {counted(len(undecided), 'pair')} of tasks with common "
            f"examples ({first}{', ...' if undecided[1:] else ''}); {_WAY_OUT}"
        )
    print(f"undecided about {counted(len(undecided), 'pair')} of tasks with common examples:")
    for pair in undecided:
        print(f"  {pair}")
