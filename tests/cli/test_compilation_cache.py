"""Compiled programs are kept: a second process compiles nothing, and gets the same numbers."""

import os
import pathlib
import subprocess
import sys

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
PROGRAM = """
import sys
import jax
import jax.numpy as jnp
from jax._src import monitoring
from optiml_jax.cli.compilation_cache import CompilationCache
CompilationCache(folder={folder!r}).enable()
events = []
monitoring.register_event_listener(lambda name, **_: events.append(name))
x = jnp.arange(12.0).reshape(3, 4)
print(jax.jit(lambda x: jnp.sin(x @ x.T).sum())(x).item().hex())
print(events.count("/jax/compilation_cache/cache_hits"))
print(events.count("/jax/compilation_cache/cache_misses"))
"""


def run(folder: str | None, **environment: str) -> tuple[str, int, int]:
    """(result, programs found, programs compiled) of one process."""
    clean = {k: v for k, v in os.environ.items() if "CACHE" not in k}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(folder=folder)],
        capture_output=True,
        text=True,
        check=True,
        cwd=REPOSITORY,
        env=clean | environment,
    )
    result, hits, misses = done.stdout.split()
    return result, int(hits), int(misses)


def test_a_second_process_compiles_nothing(tmp_path):
    first = run(None, XDG_CACHE_HOME=str(tmp_path))
    second = run(None, XDG_CACHE_HOME=str(tmp_path))
    assert first[2] > 0
    assert second == (first[0], first[2], 0)
    (machine,) = (tmp_path / "optiml_jax" / "compiled").iterdir()
    assert any(machine.iterdir())


@pytest.mark.parametrize("variable", [False, True], ids=["setting", "environment"])
def test_the_folder_can_be_named_and_turned_off(tmp_path, variable):
    named = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "named")} if variable else {}
    run("" if not variable else str(tmp_path / "other"), XDG_CACHE_HOME=str(tmp_path), **named)
    assert [p.name for p in tmp_path.iterdir()] == (["named"] if variable else [])
