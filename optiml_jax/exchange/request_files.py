"""Requests in files: as JSON lines, and as batch files of the OpenAI API.

Every folder also gets `export.json`: settings, number of requests per task and number of shots, and
what failed or cannot be asked in this form.
"""

import contextlib
import json
import logging
import pathlib
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, Self, TextIO

import tqdm

from optiml_jax.data.prompts import PromptConfig
from optiml_jax.errors import UserError, may_pass, reason_of
from optiml_jax.evaluate.config import EvalConfig
from optiml_jax.evaluate.evaluator import EvalTask
from optiml_jax.exchange.requests import Tokens, request_rows
from optiml_jax.files import atomic_path, disk_errors, write_json

_log = logging.getLogger(__name__)

# Limits of the OpenAI API for one batch file; the second with some room.
MAX_BATCH_REQUESTS = 50_000
MAX_BATCH_BYTES = 190_000_000
_MAX_STOPS = 4  # of the OpenAI API
_SPOOL_BYTES = 64 * 2**20  # of a task's requests are in memory, the rest on disk
_CHOOSE = "Reply with exactly one of these answers and nothing else:\n"


class RequestWriter(Protocol):
    """Takes the requests of tasks, one (task, shots) after the other; a context manager.

    Files appear under their names when they are whole.
    """

    def __enter__(self) -> "RequestWriter": ...

    def __exit__(self, *error: Any) -> None: ...

    def refusal(self, row: dict[str, Any]) -> str:
        """Why this form cannot express requests like this one; "" if it can."""

    def write(self, row: dict[str, Any]) -> None:
        """Takes a request."""


class FileStack:
    """Files that are opened one by one and appear when they are closed without an error."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self._stack = contextlib.ExitStack()

    def open(self, name: str) -> TextIO:
        return self._stack.enter_context(_open_lines(self.folder / name))

    def close(self) -> None:
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)


class JsonLines(FileStack):
    """`requests.jsonl`: the rows as they are."""

    def __init__(self, folder: pathlib.Path):
        super().__init__(folder)
        self._file = self.open("requests.jsonl")

    def refusal(self, row: dict[str, Any]) -> str:
        return ""

    def write(self, row: dict[str, Any]) -> None:
        self._file.write(json_line(row))


class OpenAIBatches(FileStack):
    """`batch_00001.jsonl`, ...: requests to `/v1/chat/completions`, the id as `custom_id`.

    The prompt is the user's message, unchanged. The API gives no log-probability of a given text,
    so that where candidates are ranked a system message asks for one of them, word for word.

    Args:
      model: the name of the model in every request.
    """

    def __init__(self, folder: pathlib.Path, model: str):
        super().__init__(folder)
        self._model = model
        self._file, self._files = None, 0
        self._requests = self._bytes = 0

    def refusal(self, row: dict[str, Any]) -> str:
        if "prompts" in row:
            return "partial scoring needs log-probabilities, which the API does not give"
        return ""

    def write(self, row: dict[str, Any]) -> None:
        request = {"custom_id": row["id"], "method": "POST", "url": "/v1/chat/completions"}
        line = json_line(request | {"body": self._body(row)})
        size = len(line.encode())
        full = self._requests == MAX_BATCH_REQUESTS or self._bytes + size > MAX_BATCH_BYTES
        if self._file is None or full:
            self.close()
            self._files += 1
            self._file = self.open(f"batch_{self._files:05d}.jsonl")
            self._requests = self._bytes = 0
        self._file.write(line)
        self._requests += 1
        self._bytes += size

    def _body(self, row: dict[str, Any]) -> dict[str, Any]:
        messages = [{"role": "user", "content": row["prompt"]}]
        body = {"model": self._model, "messages": messages, "temperature": 0.0}
        if row["kind"] == "rank":
            listed = "\n".join(f"- {text}" for text in row["candidates"])
            messages.insert(0, {"role": "system", "content": _CHOOSE + listed})
            # A token is at least a byte, so no candidate is cut.
            return body | {"max_tokens": max(len(c.encode()) for c in row["candidates"]) + 8}
        body |= {"max_tokens": row["max_new_tokens"], "temperature": row["temperature"]}
        if row["stop"]:
            body["stop"] = row["stop"][:_MAX_STOPS]  # all of them cut the answer when it comes back
        if row["samples"]:
            body["n"] = row["samples"]
        return body


def export_requests(
    tasks: Sequence[EvalTask],
    writer: RequestWriter,
    folder: pathlib.Path,
    config: EvalConfig,
    prompts: PromptConfig,
    tokens: Tokens,
) -> dict[str, Any]:
    """Writes the requests of all tasks, streaming; returns what `export.json` holds.

    A task that cannot be asked is a failure with its reason, and none of its requests is written.
    """
    cells, failures = [], []
    with (
        writer,
        tqdm.tqdm(
            total=sum(len(t.info.shots) for t in tasks), disable=not sys.stderr.isatty()
        ) as bar,
    ):
        for task in tasks:
            for shots in task.info.shots:
                own = {"task": task.info.task, "shots": shots}
                try:
                    rows = request_rows(task, shots, config, prompts, tokens)
                    number, cut = _write(writer, rows)
                    cells.append(own | {"requests": number, "cut": cut})
                except Exception as e:  # the task's own, whatever it is
                    _log.debug("the failure of %s:", own, exc_info=e)
                    failures.append(own | {"reason": reason_of(e), "may_pass": may_pass(e)})
                bar.update()
    written = {
        "delimiter": config.delimiter,
        "max_examples": config.max_examples,
        "positions": tokens.positions if tokens.positions < 2**62 else None,
        "tasks": cells,
        "failures": failures,
    }
    write_json(folder / "export.json", written)
    return written


def _write(writer: RequestWriter, rows: Iterator[dict[str, Any]]) -> tuple[int, int]:
    """Writes the rows, all of them or none; returns their number, and how many prompts were cut."""
    number = cut = 0
    with tempfile.SpooledTemporaryFile(_SPOOL_BYTES, "w+", encoding="utf-8") as spool:
        for row in rows:
            if refused := writer.refusal(row):
                raise UserError(refused)
            spool.write(json_line(row))
            number += 1
            cut += row["is_cut"]
        spool.seek(0)
        for line in spool:
            writer.write(json.loads(line))
    return number, cut


def json_line(row: dict[str, Any]) -> str:
    """The row as a line of JSON."""
    return json.dumps(row, ensure_ascii=False) + "\n"


@contextlib.contextmanager
def _open_lines(path: pathlib.Path) -> Iterator[TextIO]:
    """A file to write lines to that appears under its name when it is whole."""
    with (
        disk_errors(path, "exported requests"),
        atomic_path(path) as temporary,
        open(temporary, "w", encoding="utf-8") as file,
    ):
        yield file
