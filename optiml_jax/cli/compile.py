"""`optiml compile`: what a run needs on a machine, before you rent it."""

import dataclasses
import json
import pathlib
import sys
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from optiml_jax.ahead.compile import Findings, compile_job, settings
from optiml_jax.ahead.search import changes_that_fit
from optiml_jax.ahead.targets import parse_target
from optiml_jax.ahead.worker import PROGRAMS, Job
from optiml_jax.cli import main as command_line
from optiml_jax.cli.checkpoints import params_dtype
from optiml_jax.cli.settings import Compile, Evaluate, configured
from optiml_jax.data.plan import PlanConfig
from optiml_jax.errors import UserError
from optiml_jax.evaluate.config import EvalConfig
from optiml_jax.files import atomic_path, disk_errors
from optiml_jax.model.architectures import model_config
from optiml_jax.sharding.mesh import MeshConfig
from optiml_jax.train.config import TrainConfig
from optiml_jax.train.optimizer import OptimizerConfig

T = TypeVar("T")


def main() -> int:
    chosen = configured(Compile)
    if chosen.program not in PROGRAMS:
        raise UserError(f"Compile.program={chosen.program!r}: choose one of {', '.join(PROGRAMS)}")
    model = model_config()
    job = Job(
        target=parse_target(chosen.target),
        program=chosen.program,
        config=configured(TrainConfig, plan_dir="", run_dir=""),
        model=model,
        optimizer=OptimizerConfig(),
        mesh=MeshConfig(),
        length=chosen.length or PlanConfig(num_rows=1).sequence_length,
        tokens_per_batch=EvalConfig().tokens_per_batch,
        params_dtype=params_dtype(configured(Evaluate), model),
    )
    job.optimizer.check(job.config.num_steps)
    try:
        found = _watched(lambda: compile_job(job), f"compiling for {job.target.name}")
    except UserError as e:
        if "install it" not in str(e):
            raise
        return _on_cpu(job, e)
    print("\n".join(found.lines()))
    _save(chosen.output, found)
    if found.fits:
        return 0
    if chosen.search and job.program != "validate":
        _print_changes(found)
    return 1


def _on_cpu(job: Job, missing: UserError) -> int:
    """The answer for as many simulated CPU devices if the target's compiler is missing."""
    print(f"error: {missing}", file=sys.stderr)
    print("until then, the same program on as many simulated CPU devices:")
    cpu = parse_target(f"cpu:{job.target.num_devices}")
    found = _watched(
        lambda: compile_job(dataclasses.replace(job, target=cpu)), f"compiling for {cpu.name}"
    )
    print("\n".join(found.lines()))
    return 2


def _print_changes(found: Findings) -> None:
    print("searching for settings that fit")
    fitting = changes_that_fit(
        found, progress=lambda text: print(f"  {text}", file=sys.stderr, flush=True)
    )
    if not fitting:
        print("none of the settings tried fits: use more devices, or devices with more memory")
    for number, other in enumerate(fitting, 1):
        print(f"{number}. {settings(other.job)}: {other.peak:.2f} GiB per device")


def _watched(function: Callable[[], T], what: str) -> T:
    """Calls the function and reports every few seconds on stderr that it is still running."""
    done, began = threading.Event(), time.monotonic()

    def say() -> None:
        while not done.wait(10):
            print(f"{what}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)

    thread = threading.Thread(target=say, daemon=True)
    thread.start()
    try:
        return function()
    finally:
        done.set()
        thread.join()


def _save(output: str | None, found: Findings) -> None:
    if output is None:
        return
    path = pathlib.Path(output)
    values = {
        "target": found.job.target.name,
        "settings": settings(found.job),
        "fits": found.fits,
        "bounds_seconds": found.bounds(),
    }
    names = (
        "devices",
        "mesh",
        "arguments",
        "temporaries",
        "peak",
        "host",
        "usable",
        "executed",
        "useful",
    )
    values |= {name: getattr(found, name) for name in (*names, "seconds", "own_memory")}
    values["collectives"] = [{**vars(c), "total": c.total} for c in found.collectives]
    with disk_errors(path, "the findings"), atomic_path(path) as temporary:
        temporary.write_text(json.dumps(values, indent=1), "utf-8")


if __name__ == "__main__":
    sys.exit(command_line.main([pathlib.Path(__file__).stem, *sys.argv[1:]]))
