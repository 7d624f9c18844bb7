"""Jobs of one task each, as `prepare` and `audit` run them: their sizes and their progress."""

import logging
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

import tqdm

from optiml_jax.data.example import TaskSource

_SECONDS_BETWEEN_LINES = 10.0


def input_bytes(source: TaskSource) -> int:
    """The size of a task's input files."""
    return sum(os.path.getsize(file) for file in source.files if os.path.exists(file))


class Progress:
    """A bar over the bytes of the input files, or a line now and then; failures as they happen.

    Args:
      verb: stands before every line.
      jobs: the tasks to work on.
      unchanged: the number of the others.
      logger: of the caller.
    """

    def __init__(
        self, verb: str, jobs: Sequence[TaskSource], unchanged: int, logger: logging.Logger
    ):
        self._verb, self._unchanged, self._logger = verb, unchanged, logger
        self._sizes = {s.name: input_bytes(s) or 1 for s in jobs}
        self._examples = self._done = self._bytes = 0
        self._total = sum(self._sizes.values())
        self._start = self._last_line = time.monotonic()
        self._bar = tqdm.tqdm(
            total=self._total,
            desc=verb,
            unit="B",
            unit_scale=True,
            disable=not sys.stderr.isatty() or not jobs,
        )

    def __enter__(self) -> "Progress":
        self._logger.info(
            "%s: %d tasks to do, %d unchanged", self._verb, len(self._sizes), self._unchanged
        )
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.close()

    def advance(self, task: str, examples: int, error: str) -> None:
        """One job has ended; `error` says why it failed, "" that it did not."""
        self._done += 1
        self._examples += examples
        self._bytes += self._sizes[task]
        self._bar.update(self._sizes[task])
        now = time.monotonic()
        rate = self._examples / max(now - self._start, 1e-9)
        self._bar.set_postfix_str(f"{rate:,.0f} examples/s", refresh=False)
        if error:
            with tqdm.tqdm.external_write_mode():
                self._logger.error("%s: %s: %s", self._verb, task, error)
        is_last = self._done == len(self._sizes)
        if self._bar.disable and (is_last or now - self._last_line > _SECONDS_BETWEEN_LINES):
            self._last_line = now
            left = (now - self._start) * (self._total / max(self._bytes, 1) - 1)
            self._logger.info(
                "%s: %d of %d tasks, %d examples, %.0f a second, %.0f s left",
                *(self._verb, self._done, len(self._sizes), self._examples, rate, left),
            )
