"""Which tasks a mixture holds, given the split manifest; and the mixture as SeqIO knows it."""

import collections
import fnmatch
import hashlib
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from optiml_jax.data.example import TaskSource
from optiml_jax.data.mixture import (
    Mixture,
    benchmark_of,
    check_present,
    example_rates,
    matching_tasks,
    mixing_rates,
    row_streams,
)
from optiml_jax.data.prompts import PromptConfig
from optiml_jax.errors import UserError
from tasks.registry import registered_name
from tasks.splits import Manifest, category, check_roles

if TYPE_CHECKING:
    import seqio

logger = logging.getLogger(__name__)


def select(sources: Sequence[TaskSource], mixture: Mixture, manifest: Manifest) -> list[TaskSource]:
    """The tasks that the mixture trains on, sorted by name.

    Those with one of its roles whose names match one of its globs, and of these the subset of tasks
    or categories that it asks for.

    Raises:
      UserError: a glob matches no task of these roles, a weight names a benchmark without data, or
        a training task shares a category with a task of `sources` that is fully held out.
    """
    check_roles(mixture.roles, "Mixture.roles")
    by_name = {s.name: s for s in sources if manifest.row(s).trained_by(mixture.roles)}
    if not by_name:
        roles = " or ".join(repr(role) for role in mixture.roles)
        raise UserError(f"mixture {mixture.name!r}: no task has the role {roles}")
    chosen = [by_name[name] for name in matching_tasks(mixture, by_name)]
    check_present(mixture, {s.benchmark for s in chosen})
    _warn_of_idle_settings(mixture, chosen)
    chosen = _subset(chosen, mixture, manifest)
    if "train" in mixture.roles:
        held_out = [s for s in sources if s.name not in by_name]
        manifest.check_held_out([*chosen, *held_out], mixture.roles)
    return chosen


def _warn_of_idle_settings(mixture: Mixture, chosen: Sequence[TaskSource]) -> None:
    """Names what settings say of benchmarks and tasks that are not there, perhaps misspelt."""
    by_benchmark = {
        "Mixture.benchmark_max_examples": mixture.benchmark_max_examples,
        "Mixture.benchmark_eps": mixture.benchmark_eps,
        "PromptConfig.without_options": PromptConfig().without_options,
    }
    present = {s.benchmark for s in chosen}
    idle = {key: sorted((value or {}).keys() - present) for key, value in by_benchmark.items()}
    names = [s.name for s in chosen]
    globs = mixture.multiplicities or ()
    idle["Mixture.multiplicities"] = [g for g in globs if not fnmatch.filter(names, g)]
    for setting, lost in idle.items():
        if lost:
            logger.warning(
                "mixture %r: %s names %s, of which there is no task in the mixture",
                *(mixture.name, setting, ", ".join(map(repr, lost))),
            )


def _subset(chosen: Sequence[TaskSource], mixture: Mixture, manifest: Manifest) -> list[TaskSource]:
    """The tasks of the scaling studies (paper, section 4.4), sorted by name.

    Only the benchmarks without a share of their own are cut down. A smaller subset of tasks is part
    of a larger one, whatever other data there is: the order is by hash. Fully supervised dev tasks
    come first, as the categories do that are always in.
    """
    aside = {*mixture.shares, *mixture.row_shares}
    tasks = [s for s in chosen if s.benchmark not in aside]
    if mixture.num_categories:
        sizes = collections.Counter(map(category, tasks))
        always = mixture.always_categories
        if absent := sorted({*always} - {*sizes}):
            logger.warning(
                "mixture %r: no task has a category of Mixture.always_categories: %s",
                *(mixture.name, ", ".join(absent)),
            )
        order = sorted(sizes, key=lambda c: (c not in always, -sizes[c], c))
        kept = set(order[: mixture.num_categories])
        _warn_if_fewer(mixture, len(kept), mixture.num_categories, "categories")
        tasks = [s for s in tasks if category(s) in kept]
    if mixture.num_tasks:
        supervised = {s.name for s in tasks if _is_supervised_dev(s, manifest)}
        number = max(mixture.num_tasks, len(supervised))
        tasks.sort(key=lambda s: (s.name not in supervised, _draw(s.name, mixture.seed)))
        tasks = tasks[:number]
        _warn_if_fewer(mixture, len(tasks), mixture.num_tasks, "tasks")
    names = {s.name for s in tasks}
    return [s for s in chosen if s.name in names or s.benchmark in aside]


def _is_supervised_dev(source: TaskSource, manifest: Manifest) -> bool:
    row = manifest.row(source)
    return row.level == "fully_supervised" and "dev" in row.role


def _draw(name: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}/{name}".encode()).digest()


def _warn_if_fewer(mixture: Mixture, found: int, asked: int, what: str) -> None:
    if found < asked:
        logger.warning("mixture %r: only %d of %d %s are here", mixture.name, found, asked, what)


def register_mixture(
    mixture: Mixture, counts: Mapping[str, int], mean_lengths: Mapping[str, float] | None = None
) -> "seqio.Mixture":
    """Registers the mixture with SeqIO, over registered training tasks, at the plan's own rates.

    A sub-mixture `<name>.<benchmark>` for every benchmark, its tasks at the rates of
    `mixing_rate_num_examples(maximum=eps)`. SeqIO has no rows of one kind: `row_shares` become the
    rates of examples that fill so many rows on average, mixed with the others. Nor does it take
    subsets of tasks above `max_examples`.

    For small mixtures: SeqIO's live mixer takes minutes and gigabytes for thousands of tasks.

    Args:
      mixture: names it and gives the rates.
      counts: task name -> number of its training examples.
      mean_lengths: task name -> mean tokens of an example; only needed with `row_shares`.
    """
    streams = row_streams(mixing_rates(counts, mixture), mixture.row_shares)
    if len(streams) > 1 and mean_lengths is None:
        raise UserError(
            f"mixture {mixture.name!r} gives {', '.join(mixture.row_shares)} a share of the rows, "
            "which is a share of the examples only by their lengths; give mean_lengths"
        )
    rates = example_rates(streams, mean_lengths or dict.fromkeys(counts, 1.0))
    members: dict[str, list[tuple[str, float]]] = {}
    totals: collections.Counter = collections.Counter()
    for task, rate in rates.items():
        if rate:
            count = float(mixture.capped_count(task, counts[task]))
            members.setdefault(benchmark_of(task), []).append((registered_name(task), count))
            totals[benchmark_of(task)] += rate
    for benchmark, tasks in members.items():
        _register(f"{mixture.name}.{benchmark}", tasks)
    return _register(mixture.name, [(f"{mixture.name}.{b}", totals[b]) for b in members])


def _register(name: str, members: Sequence[tuple[str, float]]) -> "seqio.Mixture":
    import seqio  # here, since it brings TensorFlow: seconds, and most of a gigabyte

    seqio.MixtureRegistry.remove(name)
    return seqio.MixtureRegistry.add(name, members)
