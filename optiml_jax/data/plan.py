"""The plan: which cached examples lie in which packed row, for the whole run, before it starts.

Mixture rates -> endless seeded streams of draws -> packed rows. A plan is a pure function of the
counts and lengths in the cache, the rates and the seed, and it is computed as a stream, so a plan
of more rows has the shorter one as its prefix. `loader.py` turns rows into arrays; nothing here
reads a token.

Decisions:
- Draws of tasks are independent (multinomial), as in SeqIO and metaseq, not exact-proportional:
  interleaving by largest deficit makes a periodic order that can fall into step with the batch, and
  the noise of n draws is small (plan.json holds asked and planned shares side by side). Within a
  task the order is exact: every epoch is a full permutation of its examples.
- A benchmark with a share of the rows is a stream of its own: its rows hold nothing else. Which
  stream a row comes from is drawn beforehand, within a row of the share in every 64 rows
  (`draws.draw_streams`), so that the share holds for every batch too; the rows of a stream are the
  same, in the same order, whatever the shares.
- Rows of a stream stand in the order in which the packer closes them, which nearly is the order of
  the draws. On lognormal lengths neighbouring rows are not alike (the number of examples of a row
  correlates by -.15 to .02 with the next and below .04 with later ones), so batches are, if
  anything, more even than of shuffled rows, and a shuffle would only move rows away from their
  epoch.
- Examples that still wait when the last row closes are left out; a longer plan goes on with them.
  So a plan lacks at most `lookahead` of the examples drawn for it.
"""

import dataclasses
import functools
import logging
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from optiml_jax import files
from optiml_jax.data import draws
from optiml_jax.data import mixture as mixtures
from optiml_jax.data.checked_array import CheckedArray, block_checksums
from optiml_jax.data.packing import LookaheadPacker
from optiml_jax.data.plan_summary import summarise
from optiml_jax.data.store import CachedTask, Store
from optiml_jax.errors import UserError
from optiml_jax.frozen import by_name, refuse_changes
from optiml_jax.paths import local_copy, path_of
from optiml_jax.settings import NotNegative, Positive, Seed, configurable

logger = logging.getLogger(__name__)

FORMAT = 3  # enters the fingerprint; to be raised when the same inputs give other rows
PLAN_FILE = "plan.json"  # written last: without it there is no plan
ARRAYS = {"row_offsets": "int64", "entry_tasks": "int32", "entry_examples": "int32"}
Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]


@configurable
@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """How the rows of a plan are made.

    Attributes:
      num_rows: rows of the plan: at least steps * global_batch_size.
      sequence_length: slots of a row (L), at least as many as the longest cached example.
      seed: of the draws of tasks and of each task's order.
      bos_id: token in front of every example, in training as in evaluation; None: none. `optiml
        plan` takes it from the model, like pad_id, where gin does not set it.
      pad_id: token of empty slots.
      lookahead: drawn examples that wait for a row they fill; more fill better and wait longer.
    """

    num_rows: Positive
    sequence_length: Positive = 2048
    seed: Seed = 1234
    bos_id: NotNegative | None = 2
    pad_id: NotNegative = 1
    lookahead: Positive = 256


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """A plan on disk. Row r holds the entries row_offsets[r] ... row_offsets[r + 1] - 1.

    Attributes:
      folder: where it lies.
      meta: plan.json: fingerprint, config, tasks, vocabulary, summary (see `build_plan`).
      row_offsets: int64[R + 1].
      entry_tasks: int32[N], index into `meta["tasks"]`.
      entry_examples: int32[N], index of the example in the task's cached split.
      What is read of the three is verified; a UserError says that it has changed on the disk.
    """

    folder: pathlib.Path
    meta: dict[str, Any]
    row_offsets: CheckedArray
    entry_tasks: CheckedArray
    entry_examples: CheckedArray

    @classmethod
    def load(cls, plan_dir: str | os.PathLike) -> "Plan":
        """Opens the plan in `plan_dir`.

        Raises:
          UserError: there is none, it is damaged, or another version of this code wrote it.
        """
        folder = path_of(plan_dir)
        again = "run `optiml plan` again"
        if not (folder / PLAN_FILE).is_file():
            raise UserError(f"no finished plan in {folder}; {again}")
        meta = files.read_json(folder / PLAN_FILE, "plan", dict)
        if meta.get("format") != FORMAT or "arrays" not in meta:
            raise UserError(f"the plan in {folder} has format {meta.get('format')}; {again}")
        meta = files.opened_seal(meta, folder / PLAN_FILE, "the plan", again)
        arrays = {
            name: CheckedArray(_array_file(folder, name), dtype, *meta["arrays"][name], again)
            for name, dtype in ARRAYS.items()
        }
        return cls(folder=folder, meta=meta, **arrays)

    @functools.cached_property
    def config(self) -> PlanConfig:
        return PlanConfig(**self.meta["config"])

    @property
    def num_rows(self) -> int:
        return len(self.row_offsets) - 1

    @property
    def fingerprint(self) -> str:
        """Of everything the rows depend on, except how many there are.

        So of two plans with the same fingerprint one is a prefix of the other, and a run may be
        resumed with a longer plan.
        """
        return self.meta["fingerprint"]

    @property
    def configuration(self) -> str:
        """Of everything but how many rows there are and the seeds: plans of one configuration."""
        return self.meta.get("configuration", self.fingerprint)

    @property
    def summary(self) -> dict[str, Any]:
        """What the plan holds: see `plan_summary.summarise`.

        And `row_shares`: benchmark ("" for the mixed rows) -> asked and planned share of the rows.
        """
        return self.meta["summary"]

    def row(self, row: int) -> list[tuple[str, int]]:
        """The (task name, example index) pairs of one row, in their order."""
        entries = range(self.row_offsets[row], self.row_offsets[row + 1])
        names = self.meta["tasks"]
        return [(names[self.entry_tasks[i]]["task"], int(self.entry_examples[i])) for i in entries]

    @functools.cached_property
    def cached_tasks(self) -> list[CachedTask | None]:
        """The cached tasks that `entry_tasks` points into; None for those that are never drawn.

        Raises:
          UserError: a task was cached again, or removed, since the plan was made.
        """
        store = Store(self.meta["cache_dir"])
        return [
            self._cached_task(store, row) if row["rate"] else None for row in self.meta["tasks"]
        ]

    def _cached_task(self, store: Store, row: Mapping[str, Any]) -> CachedTask:
        task = store.task(row["task"])
        if task.info["fingerprint"] != row["fingerprint"]:
            raise UserError(
                f"task {row['task']} was cached again after the plan in {self.folder} was made; "
                "run `optiml plan` again"
            )
        return task


def plan_mixture(
    cache_dir: str | os.PathLike,
    tasks: Sequence[str],
    mixture: mixtures.Mixture,
    split: str,
    config: PlanConfig,
    plan_dir: str | os.PathLike,
    settings: Mapping[str, Any] | None = None,
) -> Plan:
    """Plans `tasks` at the rates of `mixture`: `mixing_rates`, then `build_plan`."""
    counts = {n: t.num_examples(split) for n, t in _cached(Store(cache_dir), tasks).items()}
    return build_plan(
        cache_dir,
        tasks,
        mixtures.mixing_rates(counts, mixture),
        split,
        config,
        plan_dir,
        row_shares=mixture.row_shares,
        max_examples={name: mixture.max_examples_of(name) for name in counts},
        subset_seed=mixture.seed,
        settings={**by_name(mixture), **(settings or {})},
    )


def build_plan(
    cache_dir: str | os.PathLike,
    tasks: Sequence[str],
    rates: Mapping[str, float],
    split: str,
    config: PlanConfig,
    plan_dir: str | os.PathLike,
    *,
    row_shares: Mapping[str, float] | None = None,
    max_examples: Mapping[str, int | None] | None = None,
    subset_seed: int = 1234,
    settings: Mapping[str, Any] | None = None,
) -> Plan:
    """Computes a plan and writes it to `plan_dir`, replacing the one there.

    Args:
      cache_dir: the folder of the cached tasks.
      tasks: names of the tasks; their order does not matter.
      rates: task -> probability that a draw for a row of its kind takes it (any positive scale; 0:
        never).
      split: the cached split to draw from.
      config: rows, their length, the seed.
      plan_dir: gets plan.json and one .npy file per array of `Plan`.
      row_shares: benchmark -> share of the rows, which then hold nothing else.
      max_examples: task -> cap: with more examples it keeps a random subset of this size; the
        subset of a smaller cap is part of that of a larger one.
      subset_seed: of these subsets.
      settings: what else decided on tasks and rates, by its names in gin; kept with the plan.

    Raises:
      UserError: a task is not cached, has no examples, was cached with other prompts or another
        vocabulary than the others, or holds an example longer than a row.
    """
    cached = _cached(Store(cache_dir), tasks)
    lengths = {name: task.lengths(split) for name, task in cached.items()}
    _check_lengths(lengths, rates, config, split)
    pools = {
        name: draws.random_subset(len(table), (max_examples or {}).get(name), subset_seed, name)
        for name, table in lengths.items()
    }
    streams = mixtures.row_streams({name: rates[name] for name in cached}, row_shares or {})
    means = {
        name: lengths[name][pool].sum(axis=1).mean() for name, pool in pools.items() if len(pool)
    }
    expected = mixtures.example_rates(streams, means)
    meta = {
        "format": FORMAT,
        "split": split,
        "cache_dir": str(path_of(cache_dir).resolve()),
        "config": dataclasses.asdict(config),
        "row_shares": {stream.name: stream.row_share for stream in streams},
        "subset_seed": subset_seed,
        "vocabulary": _common_vocabulary(cached),
        "settings": {
            **_common_settings(cached),
            **by_name(config, without=("num_rows",)),
            **(settings or {}),
        },
        "tasks": [
            {
                "task": name,
                "benchmark": task.info["benchmark"],
                "category": task.info["category"],
                "fingerprint": task.info["fingerprint"],
                "rate": float(expected.get(name, 0)),
                "examples": len(pools[name]),
                "examples_in_cache": len(lengths[name]),
            }
            for name, task in cached.items()
        ],
    }
    meta["fingerprint"] = _fingerprint(meta)
    meta["configuration"] = _fingerprint(meta | {"fingerprint": "", "subset_seed": 0}, seed=0)
    tables = _LengthTables(list(lengths.values()))
    which = draws.draw_streams([s.row_share for s in streams], config.num_rows, config.seed)
    arrays = _rows(which, streams, pools, tables, config)
    meta["summary"] = summarise(
        meta["tasks"], arrays[1], tables.get(*arrays[1:]), config.num_rows, config.sequence_length
    )
    meta["summary"]["row_shares"] = {
        stream.name: {"asked": stream.row_share, "planned": float(np.mean(which == i))}
        for i, stream in enumerate(streams)
    }
    for what in ("tasks_without_examples", "tasks_never_drawn"):
        if names := meta["summary"][what]:
            shown = ", ".join(names[:5] + ["..."] * (len(names) > 5))  # all of them: plan.json
            logger.warning("plan of split %s: %d %s: %s", split, len(names), what, shown)
    _write(path_of(plan_dir), meta, arrays)
    return Plan.load(plan_dir)


def _array_file(folder: pathlib.Path, name: str) -> pathlib.Path:
    try:
        return local_copy(folder / f"{name}.npy")
    except FileNotFoundError as e:
        raise UserError(
            f"the plan in {folder} is damaged ({name}.npy is missing); run `optiml plan` again"
        ) from e


class _LengthTables:
    """The length tables of all tasks as one: (task, example) -> tokens, without a Python loop."""

    def __init__(self, tables: Sequence[np.ndarray]):
        self._starts = np.cumsum([0, *map(len, tables)])
        self._all = np.concatenate(tables)

    def get(self, tasks: np.ndarray, examples: np.ndarray) -> np.ndarray:
        """int32[n, 2]: tokens of the source, and of the target with its </s>."""
        return self._all[self._starts[tasks] + examples]


def _rows(
    which: np.ndarray,
    streams: Sequence[mixtures.Stream],
    pools: Mapping[str, np.ndarray],
    tables: _LengthTables,
    config: PlanConfig,
) -> Arrays:
    """The arrays of `Plan`: row r is the next one of stream `which[r]`."""
    parts = []
    for i, stream in enumerate(streams):
        rates = [stream.rates.get(name, 0.0) for name in pools]
        drawn = draws.draw_examples(
            list(pools), list(pools.values()), rates, config.seed, stream.name
        )
        parts.append(_pack(drawn, tables, config, np.count_nonzero(which == i)))
    return _interleave(which, parts)


def _pack(
    stream: Iterator[tuple[np.ndarray, np.ndarray]],
    tables: _LengthTables,
    config: PlanConfig,
    num_rows: int,
) -> Arrays:
    """Packs draws until `num_rows` rows are closed; returns the arrays of `Plan`."""
    packer = LookaheadPacker(config.sequence_length, config.lookahead)
    blocks = []
    while len(packer.row_ends) < num_rows or not blocks:
        blocks.append(next(stream))
        # The leading </s> takes a slot, the final one is only a target: source + target slots.
        packer.add(tables.get(*blocks[-1]).sum(axis=1).tolist())
    tasks, examples = map(np.concatenate, zip(*blocks, strict=True))
    offsets = np.array([0, *packer.row_ends[:num_rows]])
    items = np.array(packer.items[: offsets[-1]], np.int64)
    return offsets, tasks[items], examples[items]


def _interleave(which: np.ndarray, parts: Sequence[Arrays]) -> Arrays:
    """The rows of all streams, whose arrays are `parts`, in the order of `which`."""
    sizes = np.empty(len(which), np.int64)
    for i, (offsets, _, _) in enumerate(parts):
        sizes[which == i] = np.diff(offsets)
    stream_of_entry = np.repeat(which, sizes)
    tasks, examples = np.empty((2, len(stream_of_entry)), np.int32)
    for i, (_, part_tasks, part_examples) in enumerate(parts):
        tasks[stream_of_entry == i] = part_tasks
        examples[stream_of_entry == i] = part_examples
    return np.cumsum([0, *sizes]), tasks, examples


def _cached(store: Store, tasks: Sequence[str]) -> dict[str, CachedTask]:
    return {name: store.task(name) for name in sorted(set(tasks))}


def _check_lengths(
    lengths: Mapping[str, np.ndarray], rates: Mapping[str, float], config: PlanConfig, split: str
) -> None:
    for name, table in lengths.items():
        if name not in rates:
            raise UserError(f"task {name!r} is to be planned but has no mixing rate")
        if rates[name] and not len(table):
            raise UserError(f"task {name!r} has a mixing rate but no example in split {split!r}")
        longest = table.sum(axis=1).max(initial=0)
        if longest > config.sequence_length:
            raise UserError(
                f"task {name!r} holds an example of {longest} tokens, a row of the plan "
                f"{config.sequence_length}; set PlanConfig.sequence_length to what the cache was "
                "prepared with, or prepare it with a smaller one"
            )
    if not any(rates[name] for name in lengths):
        raise UserError("nothing to plan: no task has a mixing rate above 0")


def _common_vocabulary(cached: Mapping[str, CachedTask]) -> dict[str, Any]:
    """The vocabulary of all tasks: {"spec", "fingerprint", "padded_size"}."""
    first, *others = cached.values()
    vocabulary = first.info["vocabulary"]
    for task in others:
        if task.info["vocabulary"]["fingerprint"] != vocabulary["fingerprint"]:
            raise UserError(
                f"tasks {first.name!r} and {task.name!r} were cached with different vocabularies "
                f"({vocabulary['spec']} and {task.info['vocabulary']['spec']}); "
                "run `optiml prepare` with one vocabulary for both"
            )
    return vocabulary


def _common_settings(cached: Mapping[str, CachedTask]) -> dict[str, Any]:
    """The prompts of all tasks, by their names in gin."""
    first, *others = cached.values()
    for task in others:
        refuse_changes(f"task {task.name!r}", task.settings, first.settings, "prepare both alike")
    return {k: v for k, v in first.settings.items() if k.startswith("PromptConfig.")}


def _fingerprint(meta: Mapping[str, Any], **changed: Any) -> str:
    config = {k: v for k, v in meta["config"].items() if k != "num_rows"} | changed
    # The folder may move and the same vocabulary may lie elsewhere; what the settings gave is here.
    apart = ("cache_dir", "vocabulary", "settings")
    dependencies = {k: v for k, v in meta.items() if k not in apart}
    vocabulary = meta["vocabulary"]["fingerprint"]
    return files.fingerprint(dependencies | {"config": config, "vocabulary": vocabulary})


def _write(
    folder: pathlib.Path,
    meta: Mapping[str, Any],
    arrays: Arrays,
) -> None:
    """Writes the arrays, then plan.json; until then the folder holds no plan."""
    with files.disk_errors(folder, "a plan"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / PLAN_FILE).unlink(missing_ok=True)
        table = {}
        for (name, dtype), array in zip(ARRAYS.items(), arrays, strict=True):
            array = np.asarray(array, dtype)
            table[name] = [len(array), block_checksums(array)]
            with (
                files.atomic_path(folder / f"{name}.npy") as temporary,
                temporary.open("wb") as f,
            ):
                np.save(f, array)
        files.write_sealed(folder / PLAN_FILE, {**meta, "arrays": table})
