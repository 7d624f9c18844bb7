"""Tasks as one Apache Beam pipeline: what `optiml prepare --runner` and `audit --runner` share.

Beam is imported here and in the modules beside it that use this one, which are imported late.
"""

import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from optiml_jax.data.example import TaskSource
from optiml_jax.errors import UserError
from optiml_jax.paths import remove_folder

# What Beam's DirectRunner comes to in the end. Asked for by that name, it first downloads a program
# from GitHub without a limit of time, and would run it.
DIRECT_RUNNER = "apache_beam.runners.portability.fn_api_runner.fn_runner.FnApiRunner"
_OUTCOMES = ".outcomes.partial"  # cleared like every temporary if the run is killed


def run(
    jobs: Sequence[TaskSource],
    step: beam.PTransform,
    folder: pathlib.Path,
    runner: str,
    runner_options: Sequence[str],
) -> Iterator[dict[str, Any]]:
    """Runs `step` on every task and yields what it gave when all are done.

    Args:
      jobs: the tasks.
      step: from a task to its outcome as a line of JSON.
      folder: outcomes come back through files in it, which every machine must see.
      runner, runner_options: of Beam. Its DirectRunner runs in this process and downloads nothing.

    Raises:
      UserError: Beam does not know the runner, or the pipeline failed.
    """
    if not jobs:
        return
    outcomes = folder / _OUTCOMES
    try:
        name = DIRECT_RUNNER if runner == "DirectRunner" else runner
        options = PipelineOptions([f"--runner={name}", *runner_options])
        with beam.Pipeline(options=options) as pipeline:
            _ = (
                pipeline
                | "tasks" >> beam.Create(list(jobs))
                | "spread" >> beam.Reshuffle()
                | "work" >> step
                | "outcomes" >> beam.io.WriteToText(str(outcomes / "outcome"))
            )
        for file in sorted(outcomes.iterdir()):
            for line in file.read_text("utf-8").splitlines():
                yield json.loads(line)
    except (RuntimeError, ValueError, TypeError) as e:
        reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        raise UserError(f"the Beam pipeline on {runner} failed: {reason}") from e
    finally:
        remove_folder(outcomes)
