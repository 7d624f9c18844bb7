"""The documents: their site builds without warnings, their commands are understood or run."""

import itertools
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import gin
import pytest

from optiml_jax.cli.main import VERBS, parse_gin

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
DOCUMENTS = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md"]
DOCUMENTS += sorted((REPOSITORY / "docs").rglob("*.md"))
BLOCK = re.compile(r"(<!-- runs -->\n)?```sh\n(.*?)```", re.DOTALL)


def blocks(document, marked):
    found = BLOCK.findall(document.read_text("utf-8"))
    return [text for mark, text in found if bool(mark) == marked]


def commands(text):
    """The `optiml` commands of a shell block, as lists of words."""
    text = re.sub(r"<<'(\w+)'.*?^\1$", "", text, flags=re.DOTALL | re.MULTILINE)
    for line in text.replace("\\\n", " ").splitlines():
        for part in re.split(r"&&|;|\bdo\b", line):
            words = shlex.split(part.replace("...", "gin/runs/quickstart.gin"), comments=True)
            if words and words[0] == "optiml":
                yield words[1:]


def test_the_site_builds_without_warnings(tmp_path):
    pytest.importorskip("mkdocs", reason="requirements-docs.lock is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    pages = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.html")}
    assert {"index.html", "CONTRIBUTING.html", "reference/optiml_jax.train.html"} <= pages
    # From a docstring, and from an f-string: both reach the reader.
    assert "TrainConfig" in (tmp_path / "reference/optiml_jax.train.html").read_text("utf-8")
    assert "is longer than the model" in (tmp_path / "messages.html").read_text("utf-8")
    index = json.loads((tmp_path / "search/search_index.json").read_text("utf-8"))
    assert len(index["docs"]) > 500


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_that_are_not_run_name_verbs_files_and_settings_that_exist(document, monkeypatch):
    """Each is parsed as the program does: gin refuses files and settings that are not there."""
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setenv("OPTIML_DATA", "/nowhere")
    for text in blocks(document, marked=False):
        for words in commands(text):
            verbs = list(itertools.takewhile(lambda word: not word.startswith("-"), words))
            assert verbs == ["$verb"] or set(verbs) <= set(VERBS), verbs
            arguments = [os.path.expandvars(word) for word in words[len(verbs) :]]
            for chosen in [[verb] for verb in VERBS] if verbs == ["$verb"] else [verbs]:
                gin.clear_config()
                parse_gin(chosen, arguments)


def test_blocks_that_need_no_outside_data_run(tmp_path):
    """One after the other in a folder that has what a clone has; `<!-- runs -->` marks them.

    Those of first_run.md come first: they make the demo bench that others use.
    """
    for name in ("gin", "tasks"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, what in {"python": "", "optiml": "-m optiml_jax.cli.main"}.items():
        (programs / name).write_text(f'#!/bin/sh\nexec {sys.executable} {what} "$@"')
        (programs / name).chmod(0o755)
    environment = os.environ | {
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        "XLA_FLAGS": "",
    }
    documents = sorted(DOCUMENTS, key=lambda path: path.name != "first_run.md")
    script = "\n".join(["set -e", *(b for d in documents for b in blocks(d, marked=True))])
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert (tmp_path / "runs/short/report/report.html").is_file()
    for own in ("mine", "sums"):  # an evaluation each
        assert (tmp_path / "runs/quickstart/evaluation" / own / "tasks.json").is_file()
