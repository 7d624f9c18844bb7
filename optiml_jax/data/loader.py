"""Batches of packed rows by step: reads the plan's examples from the cache and lays them out.

Which example lies in which row is decided in `plan.py`; devices and sharding are the trainer's.
"""

from collections.abc import Sequence
from types import TracebackType

import grain
import numpy as np

from optiml_jax.data.plan import Plan
from optiml_jax.errors import UserError
from optiml_jax.words import counted

Batch = dict[str, np.ndarray]


class PlanLoader:
    """Iterates over the batches of a plan, read ahead by background threads (Grain).

    The global batch of step s is rows s*B ... s*B+B-1 of the plan whatever the number of processes;
    a process reads those of them that it asks for. So the state of the loader is the step.

    Every batch is a dict of arrays [R, L] (see `assemble`). Close it, or use it in a `with`
    block, to stop its threads; the last batch closes it too.
    """

    def __init__(
        self,
        plan: Plan,
        global_batch_size: int,
        start_step: int = 0,
        num_steps: int | None = None,
        rows: Sequence[int] | None = None,
        prefetch: int = 2,
    ):
        """Opens the cache; starts reading at the first `next`.

        Args:
          plan: the plan.
          global_batch_size: rows per step over all processes (B), at least 1.
          start_step: the first step to yield.
          num_steps: the step to end before; None: the last whole batch of the plan.
          rows: which of 0 ... B - 1 are read (`sharding.rules.held_rows`); None: all of them.
          prefetch: batches read ahead, each by a thread of its own; 0 reads in the caller's thread.

        Raises:
          UserError: the plan has fewer rows than num_steps * B, or a task was cached again since
            the plan was made.
        """
        steps = plan.num_rows // global_batch_size if num_steps is None else num_steps
        check_rows(plan, global_batch_size, max(steps, 1))
        source = StepSource(plan, global_batch_size, rows)
        options = grain.ReadOptions(num_threads=prefetch, prefetch_buffer_size=prefetch)
        wanted = grain.MapDataset.source(source)[start_step:steps]
        self._batches = iter(wanted.to_iter_dataset(options))

    def __iter__(self) -> "PlanLoader":
        return self

    def __next__(self) -> Batch:
        try:
            return next(self._batches)
        except StopIteration:
            self.close()
            raise

    def close(self) -> None:
        """Stops the threads: a batch being read is finished and thrown away."""
        self._batches.close()

    def __enter__(self) -> "PlanLoader":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def check_rows(plan: Plan, global_batch_size: int, num_steps: int) -> None:
    """UserError if the plan has fewer rows than so many steps take."""
    wanted = num_steps * global_batch_size
    if plan.num_rows < wanted:
        raise UserError(
            f"the plan in {plan.folder} has {counted(plan.num_rows, 'row')}, too few for "
            f"{counted(num_steps, 'step')} of {counted(global_batch_size, 'row')}; plan at least "
            f"{wanted} (PlanConfig.num_rows)"
        )


class StepSource:
    """Random access by step to some rows of the global batch: a Grain data source.

    A whole batch is one element, so that its rows are laid out together (one scatter per feature)
    and not stacked afterwards.
    """

    def __init__(self, plan: Plan, global_batch_size: int, rows: Sequence[int] | None = None):
        self._plan = plan
        self._global_batch_size = global_batch_size
        self._rows = np.asarray(range(global_batch_size) if rows is None else rows)
        plan.cached_tasks  # noqa: B018 - opened here: threads must not race for it, errors come now

    def __len__(self) -> int:
        return self._plan.num_rows // self._global_batch_size

    def __getitem__(self, step: int) -> Batch:
        return read_rows(self._plan, step * self._global_batch_size + self._rows)


def read_rows(plan: Plan, rows: Sequence[int] | np.ndarray) -> Batch:
    """The rows of these numbers, as arrays [R, L]: see `assemble`.

    Raises:
      UserError: the cache was changed or damaged since the plan was made.
    """
    config, rows = plan.config, np.asarray(rows)
    starts, ends = plan.row_offsets[rows], plan.row_offsets[rows + 1]
    entries = np.concatenate([np.arange(*ends_of) for ends_of in zip(starts, ends, strict=True)])
    tasks, indices = plan.entry_tasks[entries], plan.entry_examples[entries]
    examples: list[tuple[np.ndarray, np.ndarray]] = [None] * len(tasks)
    by_task = np.argsort(tasks, kind="stable")
    changes = np.flatnonzero(np.diff(tasks[by_task]))
    for places in np.split(by_task, changes + 1):
        task = plan.cached_tasks[tasks[places[0]]]
        read = task.read(plan.meta["split"], indices[places].tolist())
        for place, example in zip(places.tolist(), read, strict=True):
            examples[place] = example
    return assemble(examples, ends - starts, config.sequence_length, config.bos_id, config.pad_id)


def assemble(
    examples: Sequence[tuple[np.ndarray, np.ndarray]],
    examples_per_row: np.ndarray,
    sequence_length: int,
    bos_id: int | None = 2,
    pad_id: int = 1,
) -> Batch:
    """Lays examples out in packed rows.

    A segment is `bos + source + target` without its last token against `source + target`; the
    target ends with the end-of-text token. An empty source (plain text) has loss everywhere.
    Without a `bos`, a segment is `source + target` against the same one place further on: its first
    token is predicted by nothing, its last slot predicts nothing.

    Args:
      examples: per example its (source, target) token ids, 1-D integer arrays, row after row.
      examples_per_row: int[R], how many of them lie in each row; a row's tokens fit L.
      sequence_length: L.
      bos_id: the token in front of every segment; None: none.
      pad_id: token and target of empty slots.

    Raises:
      ValueError: the examples of a row do not fit it.

    Returns:
      Arrays [R, L]: `tokens`, `targets`, `segment_ids` (1, 2, ... in a row; 0: empty slot),
      `positions` (from 0 in every segment; 0 in empty slots), all int32, and `loss_weights` float32
      (1 on the target with its </s>, else 0).
    """
    sources = np.array([len(source) for source, _ in examples])
    lengths = sources + np.array([len(target) for _, target in examples])
    ends = np.cumsum(lengths)
    starts = ends - lengths
    targets = np.concatenate([part for pair in examples for part in pair], dtype=np.int32)
    slots = np.arange(len(targets))
    positions = slots - np.repeat(starts, lengths)
    has_loss = positions >= np.repeat(sources, lengths)
    if bos_id is None:
        tokens = targets
        targets, has_loss = np.roll(targets, -1), np.roll(has_loss, -1)
        targets[ends - 1], has_loss[ends - 1] = pad_id, False
    else:
        tokens = np.roll(targets, 1)
        tokens[starts] = bos_id

    num_rows = len(examples_per_row)
    row_of = np.repeat(np.arange(num_rows), examples_per_row)
    first_of_row = np.cumsum(examples_per_row) - examples_per_row
    row_starts = starts[first_of_row][row_of]  # of each example's row, in the flat arrays
    if np.add.reduceat(lengths, first_of_row).max() > sequence_length:
        raise ValueError(f"a row's examples have more than {sequence_length} tokens")
    slots += np.repeat(row_of * sequence_length - row_starts, lengths)
    segments = np.arange(len(examples)) - first_of_row[row_of] + 1

    def scatter(values: np.ndarray, empty: int, dtype: type) -> np.ndarray:
        out = np.full(num_rows * sequence_length, empty, dtype)
        out[slots] = values
        return out.reshape(num_rows, sequence_length)

    return {
        "tokens": scatter(tokens, pad_id, np.int32),
        "targets": scatter(targets, pad_id, np.int32),
        "segment_ids": scatter(np.repeat(segments, lengths), 0, np.int32),
        "positions": scatter(positions, 0, np.int32),
        "loss_weights": scatter(has_loss, 0, np.float32),
    }
