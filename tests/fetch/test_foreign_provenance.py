"""The file of provenance, and those of other programs that have its name."""

import json

import pytest

from optiml_jax.fetch import provenance
from optiml_jax.fetch.fetcher import Fetcher, FetchSettings
from optiml_jax.fetch.sources import Source

FOREIGN = [
    {"builder": "a workflow", "steps": []},
    {"sources": ["a.csv"]},
    {"sources": {"a.csv": "https://data.example"}},
    {"sources": {"a.csv": {"address": "https://data.example"}}},
    ["a.csv"],
]


@pytest.mark.parametrize("content", FOREIGN)
def test_the_provenance_of_another_program_is_named_once_and_not_used(tmp_path, content, caplog):
    file = tmp_path / provenance.FILE
    file.write_text(json.dumps(content))
    data = tmp_path / "deep" / "train.jsonl"
    for _ in range(2):
        assert provenance.sources_of([str(data)]) == []
        assert provenance.load(tmp_path) == {}
    assert caplog.text.count(f"{file} is not the provenance of fetched data") == 1


def test_the_provenance_of_another_program_is_not_overwritten(tmp_path):
    (tmp_path / "data/c").mkdir(parents=True)
    (tmp_path / "a.txt").write_text("text")
    file = tmp_path / "data/c" / provenance.FILE
    file.write_text('{"steps": []}')
    source = Source("c", "n", "http", "c", (tmp_path / "a.txt").as_uri())
    fetcher = Fetcher(FetchSettings(tmp_path / "data"))
    failures = fetcher.run(fetcher.plan([source]))
    assert f"{file} is another program's; move it" in str(failures["c/n"])
    assert file.read_text() == '{"steps": []}'
    file.unlink()
    assert fetcher.run(fetcher.plan([source])) == {}
    assert provenance.load(tmp_path / "data/c").keys() == {"c/n"}
