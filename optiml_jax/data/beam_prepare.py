"""`optiml prepare --runner=...`: the tasks of a run as one Apache Beam pipeline.

The function that caches a task is the same as on the process pool (`cache_task.py`). Beam is
imported here only.
"""

import dataclasses
import json
from collections.abc import Iterator, Sequence

import apache_beam as beam

from optiml_jax.data import beam_run
from optiml_jax.data.cache_task import CacheSettings, TaskOutcome, cache_task
from optiml_jax.data.example import TaskSource
from optiml_jax.paths import path_of


def run(
    jobs: Sequence[TaskSource],
    settings: CacheSettings,
    runner: str,
    runner_options: Sequence[str],
) -> Iterator[TaskOutcome]:
    """Caches the tasks on a Beam runner and yields their outcomes; errors as of `beam_run.run`."""
    folder = path_of(settings.cache_dir).absolute()
    settings = dataclasses.replace(settings, cache_dir=str(folder))
    for outcome in beam_run.run(jobs, beam.Map(_cache, settings), folder, runner, runner_options):
        yield TaskOutcome(**outcome)


def _cache(source: TaskSource, settings: CacheSettings) -> str:
    return json.dumps(dataclasses.asdict(cache_task(source, settings)))
