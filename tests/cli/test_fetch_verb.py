"""`optiml fetch` with a list of sources of one's own, whose files lie on this machine."""

import pathlib

import gin
import pytest
import yaml

from optiml_jax.cli.main import main


@pytest.fixture
def fetch(tmp_path):
    """Runs the verb with a list of two files and one source that must be asked for."""
    (tmp_path / "upstream").mkdir()
    for name in ("free", "bound"):
        (tmp_path / "upstream" / f"{name}.jsonl").write_text(f'{{"text": "{name}"}}\n')
    rows = [
        {"name": "free", "kind": "http", "address": "https://x.example/free.jsonl"},
        {
            "name": "bound",
            "kind": "http",
            "address": "https://x.example/bound.jsonl",
            "licence": "CC-BY-NC-4.0",
        },
        {"name": "form", "kind": "ask", "address": "write to them", "to": "form"},
    ]
    listed = {"collections": {"own": {"folder": "own", "sources": rows}}}
    (tmp_path / "sources.yaml").write_text(yaml.safe_dump(listed))

    def run(*arguments: str) -> int:
        gin.clear_config()
        mirror = {"https://x.example/": f"{(tmp_path / 'upstream').as_uri()}/"}
        own = [f"sources={tmp_path}/sources.yaml", f"root={tmp_path}/data", f"mirrors={mirror}"]
        settings = [f"--gin.Fetch.{a}" for a in own]
        return main(["fetch", *settings, *arguments])

    return run


def test_a_dry_run_prints_sizes_and_licences_and_brings_nothing(fetch, tmp_path, capsys):
    assert fetch("--gin.Fetch.collections=own", "--dry_run") == 0
    said = capsys.readouterr().out
    assert "own/bound" in said
    assert "CC-BY-NC-4.0" in said
    assert "ask: write to them" in said
    assert "2 of 3 sources would be downloaded: 35 B" in said
    assert not (tmp_path / "data").exists()


def test_consent_then_data_then_nothing_to_do(fetch, tmp_path, capsys):
    assert fetch("--gin.Fetch.collections=own") == 2
    assert "own/bound: CC-BY-NC-4.0" in capsys.readouterr().err
    assert fetch("--gin.Fetch.collections=own", "--gin.Fetch.accept=CC-BY-NC-4.0") == 0
    said = capsys.readouterr().out
    assert "own/form: only on request: write to them" in said
    assert "2 of 3 sources in" in said
    files = sorted(p.name for p in pathlib.Path(tmp_path / "data/own").iterdir())
    assert files == ["bound.jsonl", "free.jsonl", "provenance.json"]
    assert fetch("--gin.Fetch.collections=own/f*") == 0


@pytest.mark.parametrize(("place", "status"), [("file:///nowhere/", 2), ("http://127.0.0.1:9/", 1)])
def test_the_exit_status_says_whether_a_retry_can_help(fetch, capsys, place, status):
    mirror = f"--gin.Fetch.mirrors={ {'https://x.example/': place} }"
    assert fetch("--gin.Fetch.collections=own/free", mirror, "--gin.Fetch.retries=0") == status
    assert "failed: own/free: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("--gin.Fetch.workers=2", "choose what to fetch"),
        ("--gin.Fetch.collections=nothing", "nothing to fetch is called 'nothing'"),
    ],
)
def test_what_is_not_known_is_said(fetch, capsys, argument, said):
    assert fetch(argument) == 2
    assert said in capsys.readouterr().err
