"""The hand-written instruction sentences of tasks whose upstream has none (data/instructions.yaml).

The paper (section 2.2) wrote one for each task of such benchmarks and published none; these are
this project's own.
"""

import functools
import pathlib

import yaml

INSTRUCTIONS_FILE = pathlib.Path(__file__).parent / "data" / "instructions.yaml"


@functools.cache
def instructions(benchmark: str) -> dict[str, str]:
    """Task (without the benchmark) -> its sentence. Shared: do not change it."""
    return yaml.safe_load(INSTRUCTIONS_FILE.read_text("utf-8"))[benchmark]
