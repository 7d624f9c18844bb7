"""`optiml audit --runner=...`: the scans as one Apache Beam pipeline, the index broadcast.

Every worker maps the index into its memory in `setup` and calls the same function as the process
pool. Beam is imported here only.
"""

import dataclasses
import json
import pathlib
import shutil
from collections.abc import Iterator, Sequence

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from optiml_jax.audit.index import Index
from optiml_jax.audit.scan import ScanOutcome, scan_task
from optiml_jax.data.example import TaskSource
from optiml_jax.errors import UserError


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
    """Scans the tasks on a Beam runner and yields their outcomes when all are done.

    Raises:
      UserError: Beam does not know the runner, or the pipeline failed.
    """
    if not jobs:
        return
    folder = folder.absolute()
    outcomes = folder / ".outcomes.partial"
    try:
        options = PipelineOptions([f"--runner={runner}", *runner_options])
        with beam.Pipeline(options=options) as pipeline:
            _ = (
                pipeline
                | "tasks" >> beam.Create(list(jobs))
                | "spread" >> beam.Reshuffle()
                | "scan" >> beam.ParDo(_Scan(str(folder)))
                | "outcomes" >> beam.io.WriteToText(str(outcomes / "outcome"))
            )
        for file in sorted(outcomes.iterdir()):
            for line in file.read_text("utf-8").splitlines():
                yield ScanOutcome(**json.loads(line))
    except (RuntimeError, ValueError, TypeError) as e:
        reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        raise UserError(f"the Beam pipeline on {runner} failed: {reason}") from e
    finally:
        shutil.rmtree(outcomes, ignore_errors=True)
