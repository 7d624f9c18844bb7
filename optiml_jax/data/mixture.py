"""Which tasks train together and how often each is drawn.

A mixture is globs over task names and the numbers that turn counts of examples into rates. It knows
neither files nor tokens: `plan.py` draws by these rates, the split manifest gives tasks their role.
"""

import dataclasses
import difflib
import fnmatch
import logging
from collections.abc import Iterable, Mapping
from typing import Literal

from optiml_jax.errors import UserError
from optiml_jax.settings import NotNegativeFloat, Positive, Seed, Share, configurable

logger = logging.getLogger(__name__)

_MEND_MISSING = (
    "name its folder in Run.data, or set Mixture.missing = 'renormalise' to go without it"
)


@configurable
@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixture:
    """Examples-proportional mixing with a maximum, within fixed shares of the benchmarks.

    Three kinds of benchmarks: `row_shares` fill packed rows of their own, `shares` are a part of
    the examples of all other rows, and `proportions` divide the rest of these examples.

    Attributes:
      name: the mixture's name, for messages and tables.
      tasks: globs over task names (`superni/*`); a task that matches any of them is in.
      roles: a task is in that has one of these roles in the split manifest. OPT-IML trains on
        "train", OPT-IML-Max on the tasks of other roles too (paper, section 6.1).
      without: globs over task names that are left out of `tasks`.
      eps: cap on the number of examples that counts for a task's rate; caps no data.
      benchmark_eps: benchmark -> its own `eps`.
      multiplicities: glob over task names -> how many times the capped count of a task counts; of
        several globs the last. An upstream that registers every prompt as a task of its own caps
        each of them.
      max_examples: a task with more examples keeps a seeded random subset of this size.
      benchmark_max_examples: benchmark -> its own `max_examples`.
      proportions: benchmark -> weight (any positive scale); None: a benchmark weighs as much as the
        capped counts of its tasks, so that the whole mixture is examples-proportional.
      shares: benchmark -> its share of the examples outside of `row_shares`.
      row_shares: benchmark -> its share of the packed rows, which hold nothing else: the paper's
        pre-training updates (section 4.5).
      missing: of a benchmark that this mixture names but that has no examples: "error", or
        "renormalise" the others.
      num_tasks: keeps so many instruction tasks, a random subset of those of a larger number.
      num_categories: keeps the instruction tasks of so many categories, the largest first.
      always_categories: the categories that come before the largest.
      seed: of the subsets of `max_examples` and `num_tasks`; the order of training has its own (the
        plan's).
    """

    name: str
    tasks: tuple[str, ...] = ("*",)
    roles: tuple[str, ...] = ("train",)
    without: tuple[str, ...] | None = None
    eps: Positive = 4096
    benchmark_eps: Mapping[str, Positive] | None = None
    multiplicities: Mapping[str, Positive] | None = None
    max_examples: Positive | None = 100_000
    benchmark_max_examples: Mapping[str, Positive] = dataclasses.field(default_factory=dict)
    proportions: Mapping[str, NotNegativeFloat] | None = None
    shares: Mapping[str, Share] = dataclasses.field(default_factory=dict)
    row_shares: Mapping[str, Share] = dataclasses.field(default_factory=dict)
    missing: Literal["error", "renormalise"] = "error"
    num_tasks: Positive | None = None
    num_categories: Positive | None = None
    always_categories: tuple[str, ...] = ()
    seed: Seed = 1234

    def __post_init__(self):
        kinds = {
            "proportions": self.proportions or {},
            "shares": self.shares,
            "row_shares": self.row_shares,
        }
        seen: dict[str, str] = {}
        for kind, weights in kinds.items():
            for benchmark in weights:
                if benchmark in seen:
                    self._refuse(f"{benchmark!r} is in {seen[benchmark]} and in {kind}; choose one")
                seen[benchmark] = kind
            if kind != "proportions" and sum(weights.values()) >= 1:
                self._refuse(f"{kind} leave nothing for the others; they must sum to less than 1")

    def _refuse(self, what: str) -> None:
        raise UserError(f"mixture {self.name!r}: {what}")

    def max_examples_of(self, task: str) -> int | None:
        """The cap on the examples of a task; None: no cap."""
        return self.benchmark_max_examples.get(benchmark_of(task), self.max_examples)

    def capped_count(self, task: str, count: int) -> int:
        """The number of a task's examples that counts for its rate: SeqIO's `maximum`."""
        eps = (self.benchmark_eps or {}).get(benchmark_of(task), self.eps)
        times = [n for g, n in (self.multiplicities or {}).items() if fnmatch.fnmatch(task, g)]
        return min(count, eps, self.max_examples_of(task) or count) * (times[-1] if times else 1)

    @property
    def weights(self) -> dict[str, float]:
        """Benchmark -> its weight, of all benchmarks that the mixture names."""
        return {**(self.proportions or {}), **self.shares, **self.row_shares}


def benchmark_of(task: str) -> str:
    return task.split("/", 1)[0]


def matching_tasks(mixture: Mixture, names: Iterable[str]) -> list[str]:
    """The sorted `names` that match a glob of the mixture.

    Raises:
      UserError: a glob matches nothing, unless its benchmark is missing and may be.
    """
    names = sorted(names)
    present = {benchmark_of(name) for name in names}
    matched: set[str] = set()
    for pattern in mixture.tasks:
        hits = fnmatch.filter(names, pattern)
        matched.update(hits)
        absent = benchmark_of(pattern) not in present
        if hits:
            continue
        if absent and mixture.missing == "renormalise":
            logger.warning("mixture %r: no task matches %r", mixture.name, pattern)
            continue
        close = difflib.get_close_matches(pattern, names, n=1)
        if absent and "/" in pattern and not close:
            hint = f"there are tasks of {', '.join(sorted(present))}; {_MEND_MISSING}"
        else:
            hint = f"did you mean {close[0]!r}?" if close else f"there are {len(names)} tasks"
        raise UserError(f"mixture {mixture.name!r}: no task matches {pattern!r}; {hint}")
    matched -= _left_out(mixture, matched)
    if not matched:
        raise UserError(f"mixture {mixture.name!r}: no task matches any of {mixture.tasks}")
    return sorted(matched)


def _left_out(mixture: Mixture, matched: set[str]) -> set[str]:
    """Those of `matched` that `Mixture.without` names; warns of globs that name none of them."""
    hits = {glob: fnmatch.filter(matched, glob) for glob in mixture.without or ()}
    if idle := [glob for glob, names in hits.items() if not names]:
        logger.warning(
            "mixture %r: Mixture.without leaves out nothing for %s: no task of the mixture matches",
            *(mixture.name, ", ".join(map(repr, idle))),
        )
    return {name for names in hits.values() for name in names}


def mixing_rates(counts: Mapping[str, int], mixture: Mixture) -> dict[str, float]:
    """The probability that one draw takes each task, in rows of the task's kind.

    Task t of benchmark b gets `w_b * min(n_t, eps) / sum_{t' in b} min(n_t', eps)`, with
    n_t = min(counts[t], max_examples): OPT-IML's sampling with its EPS (metaseq's
    `multicorpus_sampling_maximum`), and what nested SeqIO mixtures with
    `mixing_rate_num_examples(maximum=eps)` give. A task without examples gets 0; `multiplicities`
    multiply its capped count.

    The w_b of `shares` and `proportions` sum to 1: a share as it is, the proportions normalised to
    what the shares leave. A benchmark of `row_shares` has rows of its own and w_b = 1.

    Args:
      counts: task name (`<benchmark>/<id>`) -> number of its examples.
      mixture: the mixture; its globs are not applied again.

    Raises:
      UserError: a benchmark has tasks but no proportion, or a weight but no examples (unless that
        may be: `Mixture.missing`), or nothing is left to draw from.
    """
    capped = {task: mixture.capped_count(task, n) for task, n in counts.items()}
    totals: dict[str, int] = {}
    for task, n in capped.items():
        totals[benchmark_of(task)] = totals.get(benchmark_of(task), 0) + n
    if not any(totals.values()):
        raise UserError(f"mixture {mixture.name!r}: none of its {len(capped)} tasks has an example")
    weights = _benchmark_weights(mixture, totals)
    return {
        task: weights[b] * n / totals[b] if n else 0.0
        for task, n in capped.items()
        for b in [benchmark_of(task)]
    }


def check_present(mixture: Mixture, benchmarks: Iterable[str]) -> None:
    """Raises a UserError if a benchmark with a weight is none of `benchmarks` and must not miss."""
    benchmarks = sorted(benchmarks)
    absent = sorted(b for b, w in mixture.weights.items() if w and b not in benchmarks)
    if absent and mixture.missing == "error":
        raise UserError(
            f"mixture {mixture.name!r} gives benchmark {absent[0]!r} a weight, but there are only "
            f"examples of {', '.join(benchmarks)}; {_MEND_MISSING}"
        )


def _benchmark_weights(mixture: Mixture, totals: Mapping[str, int]) -> dict[str, float]:
    """Benchmark -> probability that a draw takes it in rows of its kind."""
    present = {b for b, n in totals.items() if n}
    check_present(mixture, present)
    mixed = {b: n for b, n in totals.items() if b not in {**mixture.shares, **mixture.row_shares}}
    if mixture.proportions is not None:
        if unnamed := sorted(set(mixed) - set(mixture.proportions)):
            raise UserError(
                f"mixture {mixture.name!r} has tasks of benchmark {unnamed[0]!r} but no proportion "
                "for it; add one to `proportions` (0 leaves it out)"
            )
        mixed = {b: mixture.proportions[b] if n else 0 for b, n in mixed.items()}
    shares = {b: share for b, share in mixture.shares.items() if b in present}
    left = 1 - sum(shares.values())
    drawn = _normalised(shares | {b: left * w for b, w in _normalised(mixed).items()})
    own = {b: float(share > 0) for b, share in mixture.row_shares.items() if b in present}
    if not any((drawn | own).values()):
        raise UserError(
            f"mixture {mixture.name!r}: all proportions are 0; give one of them a weight"
        )
    if absent := sorted(b for b, w in mixture.weights.items() if w and b not in present):
        resulting = ", ".join(f"{b} {w:.1%}" for b, w in drawn.items() if w)
        logger.warning(
            "mixture %r goes without %s; the shares that result: %s",
            mixture.name,
            ", ".join(absent),
            resulting,
        )
    return dict.fromkeys(totals, 0.0) | drawn | own


def _normalised(weights: Mapping[str, float]) -> dict[str, float]:
    whole = sum(weights.values())
    return {key: w / whole if whole else 0.0 for key, w in weights.items()}


@dataclasses.dataclass(frozen=True)
class Stream:
    """Rows that hold nothing but the tasks of this stream.

    Attributes:
      name: the benchmark of `row_shares`, or "" for the rows in which all the others are mixed.
      row_share: the part of all rows.
      rates: task -> probability that a draw for these rows takes it; sums to 1.
    """

    name: str
    row_share: float
    rates: Mapping[str, float]


def row_streams(rates: Mapping[str, float], row_shares: Mapping[str, float]) -> list[Stream]:
    """The streams that have a task with a rate; their shares of the rows sum to 1.

    Args:
      rates: task -> rate, of any positive scale within a stream (`mixing_rates`).
      row_shares: benchmark -> share of the rows.
    """
    by_stream: dict[str, dict[str, float]] = {"": {}} | {b: {} for b in sorted(row_shares)}
    for task, rate in rates.items():
        b = benchmark_of(task)
        by_stream[b if b in row_shares else ""][task] = rate
    shares = {"": 1 - sum(row_shares.values()), **row_shares}
    shares = _normalised({s: shares[s] if any(by_stream[s].values()) else 0 for s in by_stream})
    return [
        Stream(name, share, _normalised(by_stream[name])) for name, share in shares.items() if share
    ]


def example_rates(streams: Iterable[Stream], mean_lengths: Mapping[str, float]) -> dict[str, float]:
    """The probability that an example of the whole run is one of each task.

    Full rows of a stream hold row_share / (mean tokens of its examples) examples: a document of
    1,500 tokens is five times as rare as its rows when instructions have 300.

    Args:
      streams: from `row_streams`.
      mean_lengths: task -> mean tokens of its examples.
    """
    examples = {
        task: stream.row_share * rate / mean
        for stream in streams
        for mean in [sum(r * mean_lengths[task] for task, r in stream.rates.items() if r)]
        for task, rate in stream.rates.items()
    }
    return _normalised(examples)
