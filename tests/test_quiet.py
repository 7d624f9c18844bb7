"""TensorFlow's start-up notes stay off the terminal, whoever imports it; nothing else does."""

import os
import pathlib
import subprocess
import sys

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent


def run(*arguments, **environment):
    kept = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=REPOSITORY,
        env=kept | environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("module", ["optiml_jax.cli.plan", "tasks.demo"])
def test_a_verb_or_script_run_as_a_module_prints_no_notes(module):
    done = run("-X", "importtime", "-m", module, "--help")
    lines = [x for x in done.stderr.splitlines() if not x.startswith("import time:")]
    assert (done.returncode, lines) == (0, [])


def test_tensorflow_is_imported_without_notes():
    done = run("-X", "importtime", "-c", "import optiml_jax, tensorflow")
    lines = [x for x in done.stderr.splitlines() if not x.startswith("import time:")]
    assert (done.returncode, lines) == (0, [])
    assert "tensorflow.python" in done.stderr  # it was imported


# In the place of TensorFlow: what its libraries write, among other lines.
STAND_IN = """
import os, sys
os.write(2, b"WARNING: All log messages before absl::InitializeLog() is called are written\\n")
os.write(2, b"E0000 00:00:1795850562.057408   32160 cuda_platform.cc:52] failed call to cuInit\\n")
print("something else", file=sys.stderr)
if os.environ.get("BREAKS"):
    raise RuntimeError("a library is missing")
"""


def test_other_lines_are_shown_and_after_an_error_all_of_them(tmp_path):
    (tmp_path / "tensorflow.py").write_text(STAND_IN)
    code = "import optiml_jax, sys; import tensorflow; print('after', file=sys.stderr)"
    where = {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(REPOSITORY)])}
    assert run("-c", code, **where).stderr == "something else\nafter\n"
    broken = run("-c", code, **where, BREAKS="1")
    assert broken.returncode == 1
    assert "failed call to cuInit" in broken.stderr
    assert "a library is missing" in broken.stderr
