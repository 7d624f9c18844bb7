"""Which tasks train together and how often each is drawn.

A mixture is globs over task names and the numbers that turn counts of examples into rates. It knows
neither files nor tokens: `plan.py` draws by these rates, the split manifest gives tasks their role.
"""

import dataclasses
import difflib
import fnmatch
import math
from collections.abc import Iterable, Mapping

import gin

from optiml_jax.errors import UserError


@gin.configurable
@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixture:
    """Examples-proportional mixing with a maximum, within fixed shares of the benchmarks.

    Attributes:
      name: the mixture's name, for messages and tables.
      tasks: globs over task names (`superni/*`); a task that matches any of them is in.
      role: the role in the split manifest that a task must have.
      eps: cap on the number of examples that counts for a task's rate; caps no data.
      max_examples: a task with more examples keeps a seeded random subset of this size.
      proportions: benchmark -> weight (any positive scale); None: a benchmark weighs as much as the
        capped counts of its tasks, so that the whole mixture is examples-proportional.
      seed: of the subsets of `max_examples`; the order of training has its own (the plan's).
    """

    name: str
    tasks: tuple[str, ...] = ("*",)
    role: str = "train"
    eps: int = 4096
    max_examples: int | None = 100_000
    proportions: Mapping[str, float] | None = None
    seed: int = 1234

    def __post_init__(self):
        if isinstance(self.tasks, str):  # one glob, not a sequence of letters
            object.__setattr__(self, "tasks", (self.tasks,))
        if self.eps < 1 or (self.max_examples is not None and self.max_examples < 1):
            raise UserError(
                f"mixture {self.name!r}: eps and max_examples must be at least 1, "
                f"not {self.eps} and {self.max_examples}"
            )
        for benchmark, weight in (self.proportions or {}).items():
            if not isinstance(weight, int | float) or not 0 <= weight < math.inf:
                raise UserError(
                    f"mixture {self.name!r}: the proportion of {benchmark!r} is {weight!r}; "
                    "give a number of 0 or more"
                )


def matching_tasks(mixture: Mixture, names: Iterable[str]) -> list[str]:
    """The sorted `names` that match a glob of the mixture.

    Raises:
      UserError: a glob matches nothing.
    """
    names = sorted(names)
    matched: set[str] = set()
    for pattern in mixture.tasks:
        hits = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
        if not hits:
            close = difflib.get_close_matches(pattern, names, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {len(names)} tasks"
            raise UserError(f"mixture {mixture.name!r}: no task matches {pattern!r}; {hint}")
        matched.update(hits)
    return sorted(matched)


def mixing_rates(counts: Mapping[str, int], mixture: Mixture) -> dict[str, float]:
    """The probability that one draw takes each task; sums to 1.

    Task t of benchmark b gets `prop_b * min(n_t, eps) / sum_{t' in b} min(n_t', eps)`, with
    n_t = min(counts[t], max_examples) and the proportions normalised to 1: OPT-IML's sampling with
    its EPS (metaseq's `multicorpus_sampling_maximum`), and what nested SeqIO mixtures with
    `mixing_rate_num_examples(maximum=eps)` give. A task without examples gets 0.

    Args:
      counts: task name (`<benchmark>/<id>`) -> number of its examples.
      mixture: the mixture; its globs are not looked at again.

    Raises:
      UserError: a benchmark has tasks but no proportion, or a proportion but no examples, or
        nothing is left to draw from.
    """
    cap = min(mixture.eps, mixture.max_examples or mixture.eps)
    capped = {task: min(n, cap) for task, n in counts.items()}
    totals: dict[str, int] = {}
    for task, n in capped.items():
        benchmark = task.split("/", 1)[0]
        totals[benchmark] = totals.get(benchmark, 0) + n
    if not any(totals.values()):
        raise UserError(f"mixture {mixture.name!r}: none of its {len(capped)} tasks has an example")
    proportions = totals if mixture.proportions is None else mixture.proportions
    _check_proportions(mixture.name, proportions, totals)
    whole = sum(proportions.values())
    return {
        task: proportions[b] / whole * n / totals[b] if n else 0.0
        for task, n in capped.items()
        for b in [task.split("/", 1)[0]]
    }


def _check_proportions(
    name: str, proportions: Mapping[str, float], totals: Mapping[str, int]
) -> None:
    for benchmark, weight in proportions.items():
        if benchmark not in totals:
            raise UserError(
                f"mixture {name!r} gives benchmark {benchmark!r} a proportion, but none of its "
                f"tasks is of that benchmark; they are of: {', '.join(sorted(totals))}"
            )
        if weight and not totals[benchmark]:
            raise UserError(
                f"mixture {name!r} gives benchmark {benchmark!r} a proportion, but none of its "
                "tasks has an example; set it to 0 or prepare that benchmark"
            )
    missing = sorted(set(totals) - set(proportions))
    if missing:
        raise UserError(
            f"mixture {name!r} has tasks of benchmark {missing[0]!r} but no proportion for it; "
            "add one to `proportions` (0 leaves it out)"
        )
    if not sum(proportions.values()) > 0:
        raise UserError(f"mixture {name!r}: all proportions are 0; give one of them a weight")
