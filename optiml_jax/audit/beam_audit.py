"""`optiml audit --runner=...`: the scans as one Apache Beam pipeline, the index broadcast.

Every worker maps the index into its memory in `setup` and calls the same function as the process
pool. Beam is imported here only.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Sequence

import apache_beam as beam

from optiml_jax.audit.index import Index
from optiml_jax.audit.scan import ScanOutcome, scan_task
from optiml_jax.data import beam_run
from optiml_jax.data.example import TaskSource


class _Scan(beam.DoFn):
    def __init__(self, folder: str):
        self._folder = folder
        self._index: Index | None = None

    def setup(self) -> None:
        self._index = Index(pathlib.Path(self._folder) / "index")

    def process(self, source: TaskSource) -> Iterator[str]:
        yield json.dumps(dataclasses.asdict(scan_task(source, self._folder, self._index)))


def run(
    jobs: Sequence[TaskSource], folder: pathlib.Path, runner: str, runner_options: Sequence[str]
) -> Iterator[ScanOutcome]:
    """Scans the tasks on a Beam runner and yields their outcomes; errors as of `beam_run.run`."""
    folder = folder.absolute()
    step = beam.ParDo(_Scan(str(folder)))
    for outcome in beam_run.run(jobs, step, folder, runner, runner_options):
        yield ScanOutcome(**outcome)
