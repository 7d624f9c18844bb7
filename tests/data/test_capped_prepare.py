"""A cap on a task's examples reaches reader and cache, whatever the number of workers.

The expectation is the uncapped cache of the same task: the capped one must be a subset of it.
"""

import json
import pathlib

import pytest

from optiml_jax.data.prepare import prepare
from optiml_jax.data.prompts import PromptConfig
from optiml_jax.data.store import Store
from optiml_jax.data.vocabulary import train_sentencepiece
from optiml_jax.errors import UserError
from optiml_jax.one_writer import one_writer
from tasks.registry import find_sources
from tasks.splits import Manifest

NUMBER, CAP = 3000, 40


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> pathlib.Path:
    root = tmp_path_factory.mktemp("capped")
    for name in ("a", "b"):
        folder = root / "mine" / name
        folder.mkdir(parents=True)
        rows = [{"q": f"what is {i} of {name}", "a": f"it is {i}"} for i in range(NUMBER)]
        rows[5:9] = [{"q": "", "a": "dropped"}] * 4
        (folder / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        (root / "mine" / f"{name}.yaml").write_text(
            f"rows: {name}\nprompt: '{{{{ q }}}}'\ntarget: '{{{{ a }}}}'\n"
            "level: train_only\nrole: [train]\n"
        )
    train_sentencepiece(["what is it of 0123456789 a b"] * 9, root / "v.model", 290)
    return root


def run(bench, cache, cap, seed=1234, **more):
    sources = find_sources({"mine": str(bench / "mine")}, Manifest.load())
    caps = {s.name: cap for s in sources}
    return prepare(
        sources,
        f"sentencepiece:{bench}/v.model",
        PromptConfig(delimiter=""),
        cache,
        sequence_length=64,
        max_examples=caps,
        subset_seed=seed,
        **more,
    )


def texts(cache, task="mine/a") -> list[bytes]:
    cached = Store(cache).task(task)
    pairs = cached.read("train", range(cached.num_examples("train")))
    return [source.tobytes() + b"|" + target.tobytes() for source, target in pairs]


def test_the_cap_is_what_is_cached_and_the_same_for_any_number_of_workers(bench, tmp_path):
    run(bench, tmp_path / "whole", None)
    for workers in (1, 2):
        run(bench, tmp_path / f"w{workers}", CAP, num_workers=workers)
    whole, capped = texts(tmp_path / "whole"), texts(tmp_path / "w1")
    assert len(capped) == CAP
    assert capped == texts(tmp_path / "w2")
    for file in (tmp_path / "w1" / "mine.a").glob("*record-*"):
        assert file.read_bytes() == (tmp_path / "w2" / "mine.a" / file.name).read_bytes()
    places = [whole.index(text) for text in capped]
    assert places == sorted(set(places))
    assert max(places) > NUMBER // 2  # not the first ones
    fingerprints = {
        Store(tmp_path / name).task("mine/a").info["fingerprint"] for name in ("whole", "w1")
    }
    assert len(fingerprints) == 2


def test_what_was_cached_serves_a_smaller_cap_and_no_larger_one(bench, tmp_path):
    assert "2 tasks cached" in str(run(bench, tmp_path, CAP))
    assert "2 unchanged" in str(run(bench, tmp_path, CAP))
    assert "2 unchanged" in str(run(bench, tmp_path, CAP - 10))
    assert "2 tasks cached" in str(run(bench, tmp_path, CAP + 10))
    assert "2 tasks cached" in str(run(bench, tmp_path, CAP, seed=7))
    assert "2 tasks cached" in str(run(bench, tmp_path, None))
    assert "2 unchanged" in str(run(bench, tmp_path, CAP))


def test_a_cap_that_many_dropped_rows_stand_in_the_way_of_is_reached_all_the_same(bench, tmp_path):
    folder = tmp_path / "mine" / "c"
    folder.mkdir(parents=True)
    rows = [{"q": f"what {i}" if i % 100 == 0 else "", "a": "it"} for i in range(20_000)]
    (folder / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "mine/c.yaml").write_text(
        (bench / "mine/a.yaml").read_text().replace("a\n", "c\n", 1)
    )
    (tmp_path / "v.model").write_bytes((bench / "v.model").read_bytes())
    run(tmp_path, tmp_path / "cache", 150)
    assert len(texts(tmp_path / "cache", "mine/c")) == 150


def test_parts_may_be_prepared_side_by_side(bench, tmp_path):
    cache = tmp_path / "cache"
    with one_writer(cache, "optiml prepare-part-1"):  # another part is at work
        left = cache / ".x.1.new.partial"
        left.mkdir()
        with pytest.raises(UserError, match="another `optiml prepare-part-1` is at work"):
            run(bench, cache, CAP)  # all tasks: not beside a part
        run(bench, cache, CAP, part=0)
        assert left.exists()  # it may be the other's
    assert len(texts(cache)) == CAP
    run(bench, cache, CAP)
    assert not left.exists()
