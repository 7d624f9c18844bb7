"""Table 1 of the OPT-IML paper on the user's data: the sizes of collections and bench.

Decisions where the paper is silent:
- Prompt lengths are in tokens of the run's vocabulary, of the zero-shot prompt without its target.
  On samples of five collections the means in OPT's tokens are .4 to .7 of the paper's, in words .3
  to .5, in characters 2 to 3 times the paper's.
- A test part has every prompt of every example: there examples are counted by their ids. Elsewhere
  the number of items of a task is the number of its examples, whatever the number of its prompts.
"""

import dataclasses
import itertools
import logging
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from optiml_jax.data.cache_records import distinct_ids
from optiml_jax.data.example import Drops, TaskSource
from optiml_jax.data.prompts import PromptConfig, render
from optiml_jax.data.store import CachedTask, Store
from optiml_jax.report.inspect_prompts import TaskFacts
from optiml_jax.report.tables import Table

logger = logging.getLogger(__name__)

_BATCH = 256
_NONE = "–"


@dataclasses.dataclass(frozen=True)
class Moments:
    """Number, sum and sum of squares of some lengths: they add up."""

    count: float = 0
    total: float = 0
    squares: float = 0

    @classmethod
    def of(cls, lengths: Sequence[int]) -> "Moments":
        values = np.asarray(lengths, np.int64)
        return cls(len(values), int(values.sum()), int((values * values).sum()))

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(
            self.count + other.count, self.total + other.total, self.squares + other.squares
        )

    def scaled(self, factor: float) -> "Moments":
        """As of a random part of the lengths."""
        return Moments(self.count * factor, self.total * factor, self.squares * factor)

    @property
    def mean(self) -> float:
        return self.total / self.count

    @property
    def std(self) -> float:
        """Of the population, as numpy's."""
        return math.sqrt(max(0.0, self.squares / self.count - self.mean**2))


@dataclasses.dataclass(frozen=True)
class TaskCount:
    """One task, counted.

    Attributes:
      prompts: different prompt ids.
      examples: split -> examples.
      lengths: split -> tokens of the prompts.
    """

    facts: TaskFacts
    prompts: int
    examples: Mapping[str, int]
    lengths: Mapping[str, Moments]


def count_tasks(
    sources: Sequence[TaskSource],
    facts: Mapping[str, TaskFacts],
    store: Store | None,
    config: PromptConfig,
    encode_batch: Callable[[Sequence[str]], list[list[int]]],
) -> tuple[list[TaskCount], list[str]]:
    """Counts tasks by the cache where they are in it, else by their files; and notes on that."""
    cached = set(store.tasks()) if store else set()
    counts, cuts = [], set()
    for i, source in enumerate(sources, 1):
        if store and source.name in cached:
            task = store.task(source.name)
            cuts.add(task.info["sequence_length"])
            counts.append(count_cached(store.cache_dir, task, facts[source.name]))
            continue
        logger.info("reading task %d of %d: %s", i, len(sources), source.name)
        counts.append(count_files(source, facts[source.name], config, encode_batch))
    by_cache = sum(source.name in cached for source in sources)
    notes = [f"{by_cache} tasks counted by the cache, {len(sources) - by_cache} by their files"]
    if cuts:
        notes.append(
            f"prompts in the cache are cut at {max(cuts):,} tokens, target included: "
            "--gin.Inspect.recount=True reads the files instead"
        )
    return counts, notes


def count_files(
    source: TaskSource,
    facts: TaskFacts,
    config: PromptConfig,
    encode_batch: Callable[[Sequence[str]], list[list[int]]],
) -> TaskCount:
    """Counts a task by reading its files once; memory holds its example ids at most."""
    prompts: set[str] = set()
    examples, lengths = {}, {}
    for split in source.splits:
        stream, ids, moments = source.read(split, Drops()), set(), Moments()
        while batch := list(itertools.islice(stream, _BATCH)):
            rendered = (render(e, [], source.instruction_level, config) for e in batch)
            moments += Moments.of([len(x) for x in encode_batch([r.source() for r in rendered])])
            prompts.update(e.prompt_id for e in batch)
            ids.update(e.example_id for e in batch)
        examples[split] = len(ids) if split == "test" else moments.count
        lengths[split] = moments
    return TaskCount(facts, len(prompts), examples, lengths)


def count_cached(cache_dir: str | os.PathLike, task: CachedTask, facts: TaskFacts) -> TaskCount:
    """Counts a task by its cache; sources there are cut to the length of a row."""
    prompts: set[bytes] = set()
    examples, lengths = {}, {}
    for split in task.info["splits"]:
        ids, own_prompts = distinct_ids(cache_dir, task, split)
        prompts |= own_prompts
        examples[split] = len(ids) if split == "test" else task.num_examples(split)
        lengths[split] = Moments.of(task.lengths(split)[:, 0])
    return TaskCount(facts, len(prompts), examples, lengths)


def table(
    counts: Sequence[TaskCount],
    paper: Mapping[str, Mapping[str, Mapping[str, Any]]],
    max_examples: Callable[[str], int | None],
    notes: Sequence[str],
) -> Table:
    """Table 1 with the paper's numbers next to ours.

    Args:
      counts: of all tasks.
      paper: "collections" and "bench" -> row -> the paper's numbers.
      max_examples: task -> the cap on its training examples.
      notes: how it was counted.
    """
    present = sorted({c.facts.benchmark for c in counts})
    names = [b for b in paper["collections"] if b in present]
    names += [b for b in present if b not in paper["collections"]]
    rows = []
    for name in names:
        own = [c for c in counts if c.facts.benchmark == name]
        numbers = _numbers(own, [(c, split, 1.0) for c in own for split in c.examples])
        rows.append(_row(name, numbers, paper["collections"].get(name, {})))
    with_prompts = [c for c in counts if any(m.total for m in c.lengths.values())]
    for role, split in (("train", "train"), ("dev", "test"), ("test", "test")):
        own = [c for c in with_prompts if role in c.facts.role and c.examples.get(split)]
        parts = [(c, split, _kept(c, split, max_examples) if role == "train" else 1) for c in own]
        rows.append(_row(f"bench ({role})", _numbers(own, parts), paper["bench"][role]))
    columns = ("clusters", "tasks", "examples", "prompts/task", "prompt length")
    own_and_paper = (name for column in columns for name in (column, "paper"))
    return Table(
        "Table 1 of the paper, on this data",
        ("collection", *own_and_paper),
        tuple(rows),
        notes=(
            "prompt length: mean ± standard deviation of the zero-shot prompts in tokens; clusters "
            "are categories of this project's taxonomy, the paper counts each collection's own",
            "bench: tasks of that role, without plain text and dialogues; training examples after "
            "the caps of the mixture",
            *notes,
        ),
    )


def _kept(count: TaskCount, split: str, max_examples: Callable[[str], int | None]) -> float:
    """The part of the examples that the cap leaves."""
    cap = max_examples(count.facts.task)
    return 1.0 if cap is None else min(1.0, cap / count.examples[split])


def _numbers(
    counts: Sequence[TaskCount], parts: Iterable[tuple[TaskCount, str, float]]
) -> tuple[str, ...]:
    """The cells of one row.

    Args:
      counts: the tasks.
      parts: what to count of them: split, and the share of it that counts.
    """
    if not counts:
        return (_NONE,) * 5
    examples, lengths = 0.0, Moments()
    for count, split, share in parts:
        examples += count.examples[split] * share
        lengths += count.lengths[split].scaled(share)
    return (
        str(len({c.facts.category for c in counts})),
        f"{len(counts):,}",
        f"{examples:,.0f}",
        f"{sum(c.prompts for c in counts) / len(counts):.1f}",
        f"{lengths.mean:.0f} ± {lengths.std:.0f}" if lengths.total else _NONE,
    )


def _row(name: str, own: Sequence[str], paper: Mapping[str, Any]) -> tuple[str, ...]:
    length = f"{paper['mean']} ± {paper['std']}" if "mean" in paper else _NONE
    printed = [
        f"{paper[k]:,}" if isinstance(paper.get(k), int) else str(paper.get(k, _NONE))
        for k in ("clusters", "tasks", "examples", "prompts")
    ]
    return (name, *(cell for pair in zip(own, [*printed, length], strict=True) for cell in pair))
