"""`optiml prepare --runner=...`: the tasks of a run as one Apache Beam pipeline.

The function that caches a task is the same as on the process pool (`cache_task.py`). Beam is
imported here only.
"""

import dataclasses
import json
import pathlib
import shutil
from collections.abc import Iterator, Sequence

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from optiml_jax.data.cache_task import CacheSettings, TaskOutcome, cache_task
from optiml_jax.data.example import TaskSource
from optiml_jax.errors import UserError

_OUTCOMES = ".outcomes.partial"  # cleared like every temporary if the run is killed


def run(
    jobs: Sequence[TaskSource],
    settings: CacheSettings,
    runner: str,
    runner_options: Sequence[str],
) -> Iterator[TaskOutcome]:
    """Caches the tasks on a Beam runner and yields their outcomes when all are done.

    Outcomes come back through files in the cache folder, which every machine must see anyway.

    Raises:
      UserError: Beam does not know the runner, or the pipeline failed.
    """
    if not jobs:
        return
    folder = pathlib.Path(settings.cache_dir).absolute() / _OUTCOMES
    settings = dataclasses.replace(settings, cache_dir=str(folder.parent))
    try:
        options = PipelineOptions([f"--runner={runner}", *runner_options])
        with beam.Pipeline(options=options) as pipeline:
            _ = (
                pipeline
                | "tasks" >> beam.Create(list(jobs))
                | "spread" >> beam.Reshuffle()
                | "cache" >> beam.Map(_cache, settings)
                | "outcomes" >> beam.io.WriteToText(str(folder / "outcome"))
            )
        for file in sorted(folder.iterdir()):
            for line in file.read_text("utf-8").splitlines():
                yield TaskOutcome(**json.loads(line))
    except (RuntimeError, ValueError, TypeError) as e:
        reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        raise UserError(f"the Beam pipeline on {runner} failed: {reason}") from e
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _cache(source: TaskSource, settings: CacheSettings) -> str:
    return json.dumps(dataclasses.asdict(cache_task(source, settings)))
