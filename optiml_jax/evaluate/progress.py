"""Progress of a running evaluation."""

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator

import tqdm

from optiml_jax.sharding import processes

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def progress(
    num_tasks: int,
) -> Iterator[tuple[Callable[[int], object], Callable[[int], object]]]:
    """Two functions to call with the tasks and with the rows that were done.

    On a terminal they move a bar; elsewhere a line is logged every half minute.
    """
    rows, tasks, last = 0, 0, time.monotonic()
    quiet = not (processes.is_first() and sys.stderr.isatty())
    with tqdm.tqdm(total=num_tasks, unit="task", desc="evaluate", disable=quiet) as bar:

        def task_done(n: int) -> None:
            nonlocal tasks
            tasks += n
            bar.update(n)

        def rows_done(n: int) -> None:
            nonlocal rows, last
            processes.leave_if_asked()
            rows += n
            bar.set_postfix(rows=rows)
            if bar.disable and time.monotonic() - last > 30:
                last = time.monotonic()
                _log.info("%d of %d tasks, %d rows through the model", tasks, num_tasks, rows)

        yield task_done, rows_done
