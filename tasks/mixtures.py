"""Which tasks a mixture holds, given the split manifest; and the mixture as SeqIO knows it."""

from collections.abc import Mapping, Sequence

import seqio

from optiml_jax.data.example import TaskSource
from optiml_jax.data.mixture import Mixture, matching_tasks, mixing_rates
from optiml_jax.errors import UserError
from tasks.registry import registered_name
from tasks.splits import Manifest


def select(sources: Sequence[TaskSource], mixture: Mixture, manifest: Manifest) -> list[TaskSource]:
    """The tasks with the mixture's role whose names match one of its globs, sorted by name.

    Raises:
      UserError: a glob matches no task of that role, a proportion names an unknown benchmark, or a
        training task shares a category with a fully held-out task of `sources`.
    """
    by_name = {s.name: s for s in sources if mixture.role in manifest.row(s).role}
    if not by_name:
        raise UserError(f"mixture {mixture.name!r}: no task has the role {mixture.role!r}")
    known = {s.benchmark for s in sources}
    for benchmark in mixture.proportions or {}:
        if benchmark not in known:
            raise UserError(
                f"mixture {mixture.name!r} gives a proportion to benchmark {benchmark!r}, which "
                f"has no data here; there is: {', '.join(sorted(known))}"
            )
    chosen = [by_name[name] for name in matching_tasks(mixture, by_name)]
    if mixture.role == "train":
        manifest.check_held_out([*chosen, *(s for s in sources if not manifest.row(s).trained)])
    return chosen


def register_mixture(mixture: Mixture, counts: Mapping[str, int]) -> seqio.Mixture:
    """Registers the mixture with SeqIO, over registered training tasks, at the plan's own rates.

    For small mixtures: SeqIO's live mixer takes minutes and gigabytes for thousands of tasks.

    Args:
      mixture: names it and gives the rates.
      counts: task name -> number of its training examples.
    """
    rates = mixing_rates(counts, mixture)
    seqio.MixtureRegistry.remove(mixture.name)
    members = [(registered_name(task), rate) for task, rate in rates.items() if rate]
    return seqio.MixtureRegistry.add(mixture.name, members)
