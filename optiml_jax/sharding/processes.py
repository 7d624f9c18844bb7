"""The processes of one job: joining, sharing what only one of them knows, ending together.

They communicate through the key-value service that `jax.distributed` runs in process 0. A thread of
each process polls it twice a second, so that a signal, an error or the death of one process is
known to all within seconds, even while they wait for each other in a collective.
"""

import contextlib
import ctypes
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jax
from jax._src import distributed  # the client has no public name

from optiml_jax import interrupt
from optiml_jax.errors import UserError
from optiml_jax.files import fingerprint

logger = logging.getLogger(__name__)

SILENCE = 30.0  # seconds without a heartbeat after which a process counts as dead
_PERIOD = 0.5  # seconds between polls
_PATIENCE = 24 * 3600.0  # seconds: a process that is late is alive, or ends the others
_STOPPED = "stopped by SIGTERM; the same command continues"
_COLLECTIVE_ERRORS = ("gloo", "nccl", "peer", "coordination", "socket", "connection", "heartbeat")


class Job:
    """This process as a member of a job of several, for one verb.

    Args:
      number: how many verbs of this command came before; what was said in those is not heard.

    Attributes:
      stopped_by: (process, name of the signal) once any process was asked to stop.
      stopped_at: when that became known here, in `time.monotonic`.
    """

    def __init__(self, client: Any, index: int, count: int, number: int = 0):
        self._client, self._index, self._count, self.number = client, index, count, number
        self._lock = threading.Lock()
        self._calls = 0
        self._last_call: int | None = None
        self._wish: str | None = None
        self._rounds = 0
        self._beat = 0
        self._beats: dict[str, tuple[str, float]] = {}  # of the others: the last, and since when
        self._ended = threading.Event()
        self.stopped_by: tuple[int, str] | None = None
        self.stopped_at: float | None = None
        self.leaves_at_once = False
        self._thread = threading.Thread(target=self._watch, name="optiml-job", daemon=True)
        self._thread.start()

    # ------------------------------------------------------------ agreeing

    def next_round(self) -> int:
        """Numbers the messages between processes, which all send the same sequence of them."""
        self._rounds += 1
        return self._rounds

    def say(self, key: str, value: str) -> None:
        """Publishes `value` under `key`; all threads watch keys in "watch/"."""
        self._client.key_value_set(self._key(key), value, allow_overwrite=True)

    def hear(self, key: str) -> str:
        """Waits for the value of `key`."""
        return self._client.blocking_key_value_get(self._key(key), int(_PATIENCE * 1000))

    def _key(self, key: str) -> str:
        return f"optiml/{self.number}/{key}"

    # ------------------------------------------------------------ stopping

    def ask_to_stop(self, signal_name: str) -> None:
        """Requests a stop; safe in a signal handler, since the thread passes it on."""
        self._wish = signal_name

    def reached(self) -> bool:
        """Whether to stop here; all processes call it equally often and get the same answer."""
        with self._lock:
            self._calls += 1
            return self._last_call is not None and self._calls >= self._last_call

    def _agree_to_stop(self, asked: str, said: dict[str, str]) -> None:
        """Agrees to stop at the first call of `reached` that no process has made yet.

        A process that is done has made all of its calls, and so there is nothing left to stop.
        """
        with self._lock:  # no process continues meanwhile
            self.say(f"watch/calls/{self._index}", str(self._calls))
            names = [f"calls/{i}" for i in range(self._count)]
            while any(name not in said for name in names):
                if any(key.startswith("done/") for key in said) or self._ended.wait(_PERIOD):
                    return
                said = self._poll()
            self._last_call = max(int(said[name]) for name in names) + 1
            process, signal_name = int(asked.removeprefix("stop/")), said[asked]
            self.stopped_by, self.stopped_at = (process, signal_name), time.monotonic()
        logger.warning("process %d got %s: all processes save and end", process, signal_name)

    # ------------------------------------------------------------ ending

    def end_all(self, reason: str) -> None:
        """Ends the other processes because this one cannot continue; returns once they know."""
        self._ended.set()  # from here on this process has its own reason
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # the service has ended: they know
            self.say(f"watch/failed/{self._index}", reason)
            # Process 0 hosts the service and leaves last: JAX aborts who is there without it.
            time.sleep((4 if self._index else 6) * _PERIOD)

    def blame(self) -> None:
        """After an error in a collective: waits until the thread names the cause and ends us.

        Returns if it finds none.
        """
        self._ended.wait(SILENCE + 10)

    def close(self) -> None:
        """Says that this process has finished."""
        if not self._ended.is_set():
            self.say(f"watch/done/{self._index}", "")
            self._ended.set()
            self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(_PERIOD):
            try:
                self._look(self._poll())
            except jax.errors.JaxRuntimeError as e:
                if not self._ended.is_set():
                    _end(f"process 0, which coordinates the job, has died ({_first_line(e)})")

    def _look(self, said: dict[str, str]) -> None:
        asked = sorted(key for key in said if key.startswith("stop/"))
        if asked and self.stopped_by is None:
            self._agree_to_stop(asked[0], said)
        if self._wish is not None:
            self.say(f"watch/stop/{self._index}", self._wish)
            self._wish = None

    def _poll(self) -> dict[str, str]:
        """Says that this process lives; returns what all said. Ends it if another one failed."""
        self._beat += 1
        self.say(f"watch/beat/{self._index}", str(self._beat))
        folder = self._key("watch/")
        said = {k.removeprefix(folder): v for k, v in self._client.key_value_dir_get(folder)}
        for key in sorted(said):
            kind, _, process = key.partition("/")
            if kind == "failed" and int(process) != self._index:
                self._follow(process, said[key])
            if kind == "beat" and self._index == 0 and f"done/{process}" not in said:
                self._check_beat(process, said[key])
        return said

    def _follow(self, process: str, reason: str) -> NoReturn:
        if self._index == 0:  # hosts the service: without it JAX would abort that process
            time.sleep(6 * _PERIOD)
        status = interrupt.STOPPED if reason == _STOPPED else 1
        _end(f"process {process} ended: {reason}", status)

    def _check_beat(self, process: str, beat: str) -> None:
        before, since = self._beats.get(process, ("", 0.0))
        if beat != before:
            self._beats[process] = beat, time.monotonic()
        elif time.monotonic() - since > SILENCE:
            reason = f"no heartbeat for {SILENCE:.0f} s (it was killed, or its machine failed)"
            self.say(f"watch/failed/{process}", reason)
            time.sleep(4 * _PERIOD)
            _end(f"process {process} ended: {reason}")


_job: Job | None = None
_handlers: list = []


def join() -> None:
    """Makes this process one of several; JAX itself recognises SLURM, Open MPI and TPU pods.

    Every verb of a command calls it; those after the first find the others as they left them.

    Raises:
      UserError: the others cannot be found.
    """
    global _job
    state = distributed.global_state
    if state.client is None:
        _connect()
        if state.process_id:
            _name_the_first_when_it_dies(state.coordinator_address)
    # JAX has made SIGTERM do nothing; while `StopRequest` listens, its handler replaces this one.
    signal.signal(signal.SIGTERM, _leave)
    if state.num_processes > 1:
        number = 0 if _job is None else _job.number + 1
        _job = Job(state.client, state.process_id, state.num_processes, number)
        interrupt.before_end(_job.end_all)


def _connect() -> None:
    names = {"num_processes": "JAX_NUM_PROCESSES", "process_id": "JAX_PROCESS_ID"}
    try:
        given = {k: int(os.environ[name]) for k, name in names.items() if name in os.environ}
        # Where the thread cannot end the processes, JAX does, with a longer message.
        jax.distributed.initialize(**given, heartbeat_timeout_seconds=int(SILENCE) + 20)
    except (ValueError, RuntimeError) as e:
        raise UserError(
            f"Run.distributed: cannot join the other processes ({_first_line(e)}); set "
            "JAX_COORDINATOR_ADDRESS (host:port of the first process), JAX_NUM_PROCESSES and "
            "JAX_PROCESS_ID"
        ) from e


def _leave(number: int, frame: object) -> None:
    """Answers SIGTERM where nothing is to be saved: all processes end."""
    interrupt.answered()
    end_at_once(_STOPPED, interrupt.STOPPED)


def _name_the_first_when_it_dies(address: str) -> None:
    """JAX aborts this process as soon as its connection to process 0 breaks; names the cause.

    JAX calls it "leader task", and is faster than any thread of ours. Other aborts are unchanged.
    """

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def aborted(_: int) -> None:
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
        except OSError:
            os.write(2, b"error: process 0, which coordinates the job, has died (killed, or its ")
            os.write(2, b"machine failed): all processes end; the same command continues\n")
            os._exit(1)

    _handlers.append(aborted)  # C holds no reference to it
    ctypes.CDLL(None).signal(signal.SIGABRT, aborted)


def job() -> Job | None:
    """This process's membership in a job of several; None if it is alone."""
    return _job


def is_first() -> bool:
    """Whether this is process 0, which writes and prints."""
    return jax.process_index() == 0


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
    """An error in one process ends the others, each with a line that names it."""
    try:
        yield
    except BaseException as e:
        # After a stop, all raise KeyboardInterrupt; another error is that of one process.
        if _job is None or (_job.stopped_by is not None and isinstance(e, KeyboardInterrupt)):
            raise
        if not isinstance(e, UserError) and _is_collective(e):
            _job.blame()
        _job.end_all(f"{type(e).__name__}: {_first_line(e)}")
        if not isinstance(e, UserError):
            traceback.print_exc()
        # Not raised: at exit JAX would wait for processes that have ended.
        _end(_first_line(e) or type(e).__name__, status=2 if isinstance(e, UserError) else 1)
    finally:
        if _job is not None:
            _job.close()
        if signal.getsignal(signal.SIGTERM) is _leave:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # also ends a wait inside JAX's exit


def on_first(function: Callable[[], Any]) -> Any:
    """What `function` returns on process 0, broadcast to all; JSON-able. Called by all.

    Raises:
      UserError: raised on process 0.
    """
    if _job is None:
        return function()
    key = f"first/{_job.next_round()}"
    if not is_first():
        kind, value = json.loads(_job.hear(key))
        if kind == "error":
            raise UserError(value)
        return value
    try:
        value = function()
    except UserError as e:
        _job.say(key, json.dumps(["error", str(e)]))
        raise
    _job.say(key, json.dumps(["value", value]))
    return value


def gather(value: Any) -> list[Any]:
    """Every process's `value` (JSON-able), in the order of processes. Called by all."""
    if _job is None:
        return [value]
    key = f"gather/{_job.next_round()}"
    _job.say(f"{key}/{jax.process_index()}", json.dumps(value))
    return on_first(
        lambda: [json.loads(_job.hear(f"{key}/{i}")) for i in range(jax.process_count())]
    )


def check_same(value: Any, what: str) -> None:
    """UserError on all processes if one has a different `value` (JSON-able) from process 0.

    Args:
      what: what is compared, e.g. "the prompts of task a/b".
    """
    if _job is None:
        return
    first, *others = gather(fingerprint(value))
    for process, other in enumerate(others, 1):
        if other != first:
            raise UserError(
                f"process {process} has different data from process 0: {what}; every machine must "
                "see the same files (Run.data, Run.vocabulary) and run the same version"
            )


class Leave(KeyboardInterrupt):
    """A stop in the middle of work; a BaseException, so that `except Exception` lets it through."""


def leave_if_asked() -> None:
    """Raises `Leave` if all processes are to stop inside `StopRequest.at_once`. Called by all."""
    if _job is not None and _job.leaves_at_once and _job.reached():
        raise Leave


def leave_now(reason: str) -> NoReturn:
    """Ends this process without waiting for its threads. Called by all."""
    if _job is not None and is_first():
        time.sleep(4 * _PERIOD)  # process 0 hosts the service
    _end(reason, status=interrupt.STOPPED)


def end_at_once(reason: str, status: int) -> NoReturn:
    """Ends this process and the others, from any thread, whatever they are waiting for."""
    if _job is not None:
        _job.end_all(reason)
    _end(reason, status)


def _is_collective(e: BaseException) -> bool:
    return any(word in str(e).lower() for word in _COLLECTIVE_ERRORS)


def _first_line(e: BaseException) -> str:
    return (str(e).splitlines() or [""])[0][:300]


def _end(reason: str, status: int = 1) -> NoReturn:
    """Ends this process, whatever its other threads are waiting for."""
    said = reason if status == interrupt.STOPPED else f"error: {reason}"
    print(said, file=sys.stderr, flush=True)
    logging.shutdown()
    os._exit(status)
