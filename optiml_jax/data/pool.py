"""A pool of worker processes that ends with its parent, whatever ends that.

The caller decides what the workers do and in what order.
"""

import concurrent.futures
import multiprocessing
import multiprocessing.connection
import multiprocessing.forkserver
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from optiml_jax.errors import UserError


class Stopped(Exception):  # noqa: N818 - not an error: the run was asked to end
    """The work was cancelled."""


Job = TypeVar("Job")
Result = TypeVar("Result")


def run(
    work: Callable[[Job], Result],
    jobs: Sequence[Job],
    num_workers: int,
    preload: str,
    name: Callable[[Job], str] = str,
) -> Iterator[Result]:
    """Yields the results as they come in. Closing it early stops the work, and waits.

    Args:
      work: picklable; asks `stopped()` now and then, and raises `Stopped`.
      jobs: picklable, started in this order.
      num_workers: processes.
      preload: a module that is imported once, before the workers are forked.
      name: what a job is called in messages.

    Raises:
      UserError: a worker was killed, or died; names the jobs that were under way.
    """
    context = _context(preload)
    begin, stop = context.Event(), context.Event()
    executor = concurrent.futures.ProcessPoolExecutor(
        num_workers, mp_context=context, initializer=_start, initargs=(begin, stop)
    )
    futures: dict[concurrent.futures.Future, str] = {}
    try:
        for job in jobs:
            futures[executor.submit(_unless_stopped, work, job)] = name(job)
        # If one dies while another is being started, the executor may wait for that one for ever.
        begin.set()
        for future in concurrent.futures.as_completed(list(futures)):
            result = future.result()
            del futures[future]  # frees its result
            yield result
            del result, future
    except concurrent.futures.process.BrokenProcessPool as e:
        under_way = ", ".join(list(futures.values())[:num_workers])  # they begin in this order
        raise UserError(
            f"a worker process died, perhaps for lack of memory, at one of these: {under_way}; run "
            f"the same command again, with fewer than {num_workers} workers if it happens again, "
            "and without what is named if it still does"
        ) from e
    finally:
        stop.set()
        begin.set()
        executor.shutdown(wait=True, cancel_futures=True)


def stopped() -> bool:
    """Whether the parent of this worker wants it to stop; False in any other process."""
    return _stop is not None and _stop.is_set()


def _context(preload: str) -> Any:
    """Processes forked from a server that has imported everything, TensorFlow above all, once.

    Forking this process itself is not safe (JAX and TensorFlow run threads), and a spawned process
    pays seconds and 0.9 GB for its imports.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([preload])
    # What ignores Ctrl-C at its birth ignores it for ever: the parent alone says when to stop.
    in_main_thread = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN) if in_main_thread else None
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        if in_main_thread:
            signal.signal(signal.SIGINT, before)
    return context


_stop: Any = None  # a worker's view of the parent's event


def _start(begin: Any, stop: Any) -> None:
    global _stop
    _stop = stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core for each worker
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    begin.wait()


def _exit_with_parent() -> None:
    """A worker whose parent was killed must not write to folders another run may be using."""
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def _unless_stopped(work: Callable[[Job], Result], job: Job) -> Result:
    if stopped():
        raise Stopped
    return work(job)
