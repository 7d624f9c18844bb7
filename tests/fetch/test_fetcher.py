"""Fetching from a local server that speaks the Hub's API, from archives and git repositories.

What comes is compared with the bytes that the server holds and the files that git committed.
"""

import dataclasses
import hashlib
import io
import json
import math
import os
import pathlib
import random
import signal
import subprocess
import sys
import tarfile
import time

import pytest
import yaml
from local_server import SHA, serving

from optiml_jax.errors import UserError, may_pass
from optiml_jax.fetch import provenance
from optiml_jax.fetch.fetcher import HUB, Fetcher, FetchSettings
from optiml_jax.fetch.http import FetchError
from optiml_jax.fetch.sources import read_sources, restricted

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
SITE = "https://data.example/"


def content(name: str, size: int) -> bytes:
    return random.Random(name).randbytes(size)


def archive(files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return packed.getvalue()


IN_ARCHIVE = {f"top/data/{i}.csv": content(f"csv{i}", 40_000) for i in range(4)}
IN_ARCHIVE["top/readme"] = b"not wanted"
PACKED = archive(IN_ARCHIVE)  # its bytes hold the time


@pytest.fixture
def server():
    with serving() as server:
        split = "/datasets/two_sets/{}/{}/{:04d}.parquet"
        for config in ("one", "two"):
            server.files[split.format(config, "train", 0)] = content(f"{config}0", 120_000)
            server.files[split.format(config, "train", 1)] = content(f"{config}1", 90_000)
            server.files[split.format(config, "test", 0)] = content(f"{config}t", 30_000)
        server.files[split.format("default", "train", 0).replace("two_sets", "own/flat")] = b"flat"
        server.files["/datasets/raw/data/a/train.csv"] = b"x,y\n1,2\n"
        server.files["/datasets/raw/README.md"] = b"about"
        server.files["/plain.jsonl"] = content("plain", 200_000)
        server.files["/packed.tar.gz"] = PACKED
        yield server


@pytest.fixture(scope="module")
def upstream(tmp_path_factory) -> tuple[str, str]:
    """(address, commit) of a git repository; a later commit changes everything."""
    folder = tmp_path_factory.mktemp("upstream")

    def git(*arguments: str) -> str:
        settings = ["-c", "user.name=t", "-c", "user.email=t@t", "-c", "protocol.version=2"]
        command = ["git", "-C", str(folder), *settings, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    git("config", "uploadpack.allowFilter", "true")
    git("config", "uploadpack.allowAnySHA1InWant", "true")
    for name in ("tasks/a.json", "tasks/b.json", "tasks/notes.txt", "other/c.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(f"first {name}")
    git("add", "."), git("commit", "-qm", "first")
    commit = git("rev-parse", "HEAD")
    (folder / "tasks/a.json").write_text("second")
    git("commit", "-qam", "second")
    return folder.as_uri(), commit


def sources_file(path: pathlib.Path, upstream: tuple[str, str]) -> pathlib.Path:
    rows = [
        {
            "name": "repo",
            "kind": "git",
            "address": "https://git.example/repo",
            "revision": upstream[1],
            "only": ["tasks/*.json"],
            "licence": "MIT",
        },
        {"name": "two", "kind": "hub", "address": "two_sets", "to": "two", "configs": ["one"]},
        {"name": "flat", "kind": "hub", "address": "own/flat", "to": "flat"},
        {
            "name": "raw",
            "kind": "hub",
            "address": "raw",
            "to": "raw",
            "revision": "main",
            "only": ["data/*"],
        },
        {"name": "plain", "kind": "http", "address": f"{SITE}plain.jsonl", "to": "plain"},
        {
            "name": "packed",
            "kind": "http",
            "address": f"{SITE}packed.tar.gz",
            "to": "packed",
            "start": "top/data",
            "only": ["*.csv"],
            "sha256": hashlib.sha256(PACKED).hexdigest(),
        },
        {"name": "by_form", "kind": "ask", "address": "write to them", "to": "by_form"},
    ]
    value = {"collections": {"bench": {"folder": "bench", "sources": rows}}}
    path.write_text(yaml.safe_dump(value))
    return path


@pytest.fixture
def setup(server, upstream, tmp_path):
    """(settings, sources) of the local server and repository, by mirrors."""
    mirrors = {HUB: server.url, SITE: f"{server.url}/", "https://git.example/repo": upstream[0]}
    settings = FetchSettings(tmp_path / "data", mirrors=mirrors, backoff=0.01, workers=3)
    return settings, read_sources(sources_file(tmp_path / "sources.yaml", upstream))["bench"]


def fetched(root: pathlib.Path) -> dict[str, bytes]:
    files = [p for p in root.rglob("*") if p.is_file() and p.name != provenance.FILE]
    return {str(p.relative_to(root)): p.read_bytes() for p in files}


def expected(server) -> dict[str, bytes]:
    hub = {k.removeprefix("/datasets/"): v for k, v in server.files.items()}
    return {
        "bench/tasks/a.json": b"first tasks/a.json",
        "bench/tasks/b.json": b"first tasks/b.json",
        "bench/two/one/train-00000-of-00002.parquet": hub["two_sets/one/train/0000.parquet"],
        "bench/two/one/train-00001-of-00002.parquet": hub["two_sets/one/train/0001.parquet"],
        "bench/two/one/test.parquet": hub["two_sets/one/test/0000.parquet"],
        "bench/flat/train.parquet": b"flat",
        "bench/raw/data/a/train.csv": b"x,y\n1,2\n",
        "bench/plain/plain.jsonl": server.files["/plain.jsonl"],
        **{f"bench/packed/{i}.csv": IN_ARCHIVE[f"top/data/{i}.csv"] for i in range(4)},
    }


def fetch(settings, sources) -> dict[str, FetchError]:
    fetcher = Fetcher(settings)
    steps = fetcher.plan(sources)
    fetcher.check(steps)
    return fetcher.run(steps)


def test_everything_comes_to_its_place_with_its_provenance(setup, server):
    settings, sources = setup
    of_a_killed_process = settings.root / "bench/two/.provenance.json.1.partial"
    of_a_killed_process.parent.mkdir(parents=True)
    of_a_killed_process.touch()
    assert fetch(settings, sources) == {}
    assert fetched(settings.root) == expected(server)
    known = provenance.load(settings.root / "bench/two")["bench/two"]
    assert (known["commit"], known["licence"]) == (SHA, "mit")
    path = settings.root / "bench/tasks/a.json"
    (source,) = provenance.sources_of([str(path)])
    assert (source["source"], source["licence"]) == ("bench/repo", "MIT")
    assert source["commit"] == sources[0].revision
    states = [step.state for step in Fetcher(settings).plan(sources)]
    assert states == ["there"] * 6 + ["ask"]
    before = server.served
    assert fetch(settings, sources) == {}
    assert server.served == before


def test_truncated_changed_and_vanished_files_are_named_and_come_again(setup, server, caplog):
    settings, sources = setup
    fetch(settings, sources)
    folder = settings.root / "bench/two/one"
    (folder / "test.parquet").write_bytes(content("onet", 30_000)[:-1])
    (folder / "train-00000-of-00002.parquet").write_bytes(b"?" * 120_000)
    (settings.root / "bench/packed/2.csv").unlink()
    assert fetch(settings, sources) == {}
    assert fetched(settings.root) == expected(server)
    for name, what in (
        ("one/test.parquet", "truncated"),
        ("one/train-00000-of-00002.parquet", "changed"),
        ("packed/2.csv", "missing"),
    ):
        assert f"{name} is {what} and comes again" in caplog.text


def test_busy_and_breaking_servers_are_tried_again_and_continued(setup, server):
    settings, sources = setup
    server.busy["/plain.jsonl"] = 2
    server.break_after["/datasets/two_sets/one/train/0000.parquet"] = 70_000
    server.break_after["/packed.tar.gz"] = 50_000
    assert fetch(settings, sources) == {}
    assert fetched(settings.root) == expected(server)
    total = sum(map(len, expected(server).values()))
    assert server.served < total + 40_000  # nothing came twice


def test_what_differs_from_its_checksum_or_is_gone_fails_and_the_rest_comes(setup, server):
    settings, sources = setup
    server.files["/packed.tar.gz"] = archive({"top/data/0.csv": b"another release"})
    del server.files["/plain.jsonl"]
    failures = fetch(settings, sources)
    assert sorted(failures) == ["bench/packed", "bench/plain"]
    assert "its SHA-256 is" in str(failures["bench/packed"])
    assert "404" in str(failures["bench/plain"])
    assert not any(map(may_pass, failures.values()))
    assert not (settings.root / "bench/packed").exists()
    assert (settings.root / "bench/two/one/test.parquet").exists()


def test_an_archive_that_came_damaged_comes_again_with_the_next_command(setup, server):
    settings, sources = setup
    packed = [dataclasses.replace(s, sha256="") for s in sources if s.name == "packed"]
    server.files["/packed.tar.gz"] = b"<html>Log in</html>"
    assert "is damaged or no archive" in str(fetch(settings, packed)["bench/packed"])
    assert not (settings.root / "bench/packed").exists()
    server.files["/packed.tar.gz"] = PACKED
    assert fetch(settings, packed) == {}
    assert set(fetched(settings.root)) == {f"bench/packed/{i}.csv" for i in range(4)}


def test_an_archive_that_was_kept_is_compared_with_its_checksum(setup):
    settings, sources = setup
    kept = settings.root / ".fetch/bench__packed/packed.tar.gz"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(archive({"top/data/0.csv": b"another release"}))
    assert fetch(settings, [s for s in sources if s.name == "packed"]) == {}
    found = fetched(settings.root)
    assert found["bench/packed/0.csv"] == IN_ARCHIVE["top/data/0.csv"]


def test_a_hub_that_does_not_answer_may_answer_later(setup, tmp_path):
    _, sources = setup
    nobody = FetchSettings(tmp_path, mirrors={HUB: "http://127.0.0.1:9"}, retries=0)
    failures = fetch(nobody, [s for s in sources if s.kind == "hub"])
    assert failures
    for failure in failures.values():
        assert str(failure).startswith("http://127.0.0.1:9 gives no answer now: ")
        assert may_pass(failure)


def test_a_file_that_changed_between_two_tries_starts_anew(setup, server):
    settings, sources = setup
    plain = [s for s in sources if s.name == "plain"]
    server.break_after["/plain.jsonl"] = 100_000
    never = FetchSettings(settings.root, mirrors=settings.mirrors, retries=0)
    broken = fetch(never, plain)["bench/plain"]
    assert "Connection broken" in str(broken)
    assert may_pass(broken)
    server.files["/plain.jsonl"] = content("another", 150_000)
    assert fetch(never, plain) == {}
    assert fetched(settings.root)["bench/plain/plain.jsonl"] == content("another", 150_000)


def test_restricted_licences_need_a_word_and_full_disks_are_said(setup, server):
    settings, sources = setup
    server.licences["two_sets"] = "cc-by-nc-4.0"
    with pytest.raises(UserError, match=r"bench/two: cc-by-nc-4.0.*Fetch.accept"):
        fetch(settings, sources)
    assert not fetched(settings.root)
    assert fetch(FetchSettings(**{**vars(settings), "accept": ("cc-by-nc-4.0",)}), sources) == {}
    huge = [type(s)(**{**vars(s), "size": 10**18, "name": "huge"}) for s in sources[:1]]
    with pytest.raises(UserError, match=r"free, about .* are needed"):
        fetch(settings, huge)
    assert not restricted("Apache-2.0")
    assert not restricted("bsd-3-clause")


def test_an_offline_folder_stands_in_for_the_hub(setup, server, tmp_path):
    settings, sources = setup
    for path, data in server.files.items():
        file = tmp_path / "mirror" / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    mirror = (tmp_path / "mirror").as_uri()
    mirrors = {**settings.mirrors, HUB: mirror, SITE: f"{mirror}/"}
    assert fetch(FetchSettings(**{**vars(settings), "mirrors": mirrors}), sources) == {}
    assert fetched(settings.root) == expected(server)
    assert server.served == 0


CHILD = """
import json, pathlib, sys
from optiml_jax.fetch.fetcher import Fetcher, FetchSettings
from optiml_jax.fetch.sources import read_sources
root, sources, mirrors = sys.argv[1:]
fetcher = Fetcher(FetchSettings(pathlib.Path(root), mirrors=json.loads(mirrors), workers=3))
steps = fetcher.plan(read_sources(pathlib.Path(sources))["bench"])
print("planned", flush=True)
assert fetcher.run(steps) == {}
"""


def test_ten_kills_at_random_moments_end_with_the_same_bytes(setup, server, tmp_path):
    settings, _ = setup
    arguments = [str(settings.root), str(tmp_path / "sources.yaml"), json.dumps(settings.mirrors)]
    command = [sys.executable, "-c", CHILD, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    moments = random.Random(5)
    for _ in range(10):
        server.hold_at = server.served + moments.randrange(60_000)
        child = subprocess.Popen(
            command, stdout=subprocess.PIPE, env=environment, start_new_session=True
        )
        child.stdout.readline()  # what comes before is importing
        while server.served < server.hold_at:
            assert child.poll() is None, "it was done before ten kills"
            time.sleep(0.001)
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    server.hold_at = math.inf
    subprocess.run(command, check=True, env=environment, capture_output=True)
    assert fetched(settings.root) == expected(server)
    assert not (settings.root / ".fetch").exists()


def test_the_list_of_sources_can_be_read_and_names_licences():
    sources = read_sources(REPOSITORY / "tasks" / "data" / "sources.yaml")
    assert {"superni", "promptsource", "flan", "bbh", "mmlu"} <= sources.keys()
    for source in (s for group in sources.values() for s in group):
        assert source.address
        if source.kind in ("git", "http"):
            assert source.licence != "unknown", source.id
    assert len({s.id for group in sources.values() for s in group}) > 250
