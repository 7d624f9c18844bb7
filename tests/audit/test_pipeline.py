"""The whole audit: pool, Beam and restarts give the same bytes; what is counted and refused."""

import dataclasses
import errno
import hashlib
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys

import pytest
from audit_bench import evaluation, file_source

from optiml_jax.audit import pairs
from optiml_jax.audit.flags import read_flags
from optiml_jax.audit.pipeline import AuditError, audit
from optiml_jax.audit.words import AuditWords
from optiml_jax.errors import UserError, may_pass
from optiml_jax.files import write_sealed
from optiml_jax.one_writer import one_writer

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


def lines(seed: int, number: int) -> list[str]:
    draw = random.Random(seed)
    return [
        " ".join(f"w{draw.randrange(300)}" for _ in range(30)) + f"\tanswer {i}"
        for i in range(number)
    ]


def make_bench(folder: pathlib.Path):
    folder.mkdir(parents=True)
    held = {f"b/e{k}": lines(100 + k, 40) for k in range(3)}
    training = []
    for k in range(6):
        own = lines(k, 60)
        own[5 : 5 + k] = held["b/e1"][:k]  # task k holds k examples of e1
        training.append(file_source(folder / f"t{k}.tsv", f"b/t{k}", own))
    evaluated = [
        evaluation(file_source(folder / f"e{k}.tsv", t, held[t])) for k, t in enumerate(held)
    ]
    return training, evaluated


def digests(folder: pathlib.Path) -> dict[str, str]:
    files = sorted([*folder.glob("*.parquet"), *folder.glob("scans/*"), *folder.glob("index/*")])
    assert len(files) >= 3 + 6 + 7
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return make_bench(tmp_path_factory.mktemp("bench") / "files")


@pytest.fixture(scope="module")
def done(bench, tmp_path_factory):
    folder = tmp_path_factory.mktemp("audit")
    audit(*bench, folder, AuditWords(), num_workers=1)
    return folder


def test_pairs_are_counted_exactly(done):
    found = {(p.train_task, p.eval_task): p for p in pairs.read_pairs(done)}
    assert {key: p.overlap for key, p in found.items()} == {
        (f"b/t{k}", "b/e1"): k for k in range(1, 6)
    }
    pair = found["b/t4", "b/e1"]
    assert (pair.share, pair.train_examples, pair.eval_examples) == (0.1, 60, 40)
    assert [p.train_task for p in pairs.read_pairs(done)] == [f"b/t{k}" for k in range(5, 0, -1)]
    tasks = {row["eval_task"]: row for row in pairs.read_rows(done, "eval_tasks")}
    assert (tasks["b/e1"]["overlap"], tasks["b/e1"]["train_tasks"]) == (5, 5)
    assert (tasks["b/e0"]["examples"], tasks["b/e0"]["overlap"]) == (40, 0)
    rows = pairs.read_rows(done, "instances")
    assert {(r["train_task"], r["example_id"]) for r in rows} == {
        (f"b/t{k}", str(i)) for k in range(6) for i in range(k)
    }


def test_pool_and_beam_write_the_same_bytes(bench, done, tmp_path):
    audit(*bench, tmp_path / "pool", AuditWords(), num_workers=2)
    audit(*bench, tmp_path / "beam", AuditWords(), runner="DirectRunner")
    assert digests(tmp_path / "pool") == digests(done)
    assert digests(tmp_path / "beam") == digests(done)


def test_nothing_is_done_twice_and_what_changed_is_done_again(tmp_path):
    training, evaluated = make_bench(tmp_path / "files")
    folder = tmp_path / "audit"
    first = audit(training, evaluated, folder, AuditWords(), num_workers=1)
    assert {o.status for o in first.outcomes.values()} == {"scanned"}
    before = digests(folder)
    again = audit(training, evaluated, folder, AuditWords(), num_workers=1)
    assert {o.status for o in again.outcomes.values()} == {"unchanged"}
    assert digests(folder) == before
    file_source(tmp_path / "files" / "t2.tsv", "b/t2", lines(7, 10))
    changed = audit(training, evaluated, folder, AuditWords(), num_workers=1)
    assert [n for n, o in changed.outcomes.items() if o.status == "scanned"] == ["b/t2"]
    other = audit(training, evaluated, folder, AuditWords(n=8), num_workers=1)
    assert {o.status for o in other.outcomes.values()} == {"scanned"}


def test_killed_and_started_again_it_ends_with_the_same_bytes(bench, done, tmp_path):
    """Kills the process after different numbers of writes, then finishes."""
    files = pathlib.Path(bench[0][0].files[0]).parent
    code = f"""
import os, pathlib, signal, sys
sys.path[:0] = [{str(REPOSITORY)!r}, {str(pathlib.Path(__file__).parent)!r}]
from audit_bench import evaluation, file_source
import functools, audit_bench
from optiml_jax.audit.pipeline import audit
from optiml_jax.audit.words import AuditWords
from optiml_jax.data.example import TaskSource
def source(name):
    path = pathlib.Path({str(files)!r}) / (name + ".tsv")
    read = functools.partial(audit_bench.read_lines, str(path), "b/" + name)
    return TaskSource("b/" + name, ("train", "test"), (str(path),), read, None)
steps, stop = 0, int(sys.argv[1])
def count(event, _):
    global steps
    if event in ("os.rename", "os.remove", "os.mkdir"):
        steps += 1
        if steps == stop:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(count)
audit([source(f"t{{k}}") for k in range(6)], [evaluation(source(f"e{{k}}")) for k in range(3)],
      {str(tmp_path / "audit")!r}, AuditWords(), num_workers=1)
"""
    statuses = []
    for stop in (20, 67, 72, 73, 78, 10_000):
        run = subprocess.run(
            [sys.executable, "-c", code, str(stop)], capture_output=True, text=True, check=False
        )
        statuses.append(run.returncode)
    assert statuses[0] == -signal.SIGKILL
    assert statuses[-1] == 0, run.stderr
    assert digests(tmp_path / "audit") == digests(done)


def test_a_second_audit_in_the_folder_is_refused(bench, tmp_path):
    with (
        one_writer(tmp_path, "optiml audit"),
        pytest.raises(UserError, match="another `optiml audit` is at work in"),
    ):
        audit(*bench, tmp_path, AuditWords(), num_workers=1)


def test_a_task_that_cannot_be_read_is_named_and_the_others_are_scanned(tmp_path):
    training, evaluated = make_bench(tmp_path / "files")
    os.remove(tmp_path / "files" / "t3.tsv")
    said = r"1 of 6 training tasks .*b/t3: cannot read .*t3.tsv"
    with pytest.raises(AuditError, match=said) as raised:
        audit(training, evaluated, tmp_path / "audit", AuditWords(), num_workers=1)
    assert not may_pass(raised.value)


def test_a_file_system_that_is_away_may_be_there_later(tmp_path):
    training, evaluated = make_bench(tmp_path / "files")

    def read(split, drops):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        yield

    training[0] = dataclasses.replace(training[0], read=read)
    with pytest.raises(AuditError, match=r"1 of 6 training tasks .*Stale") as raised:
        audit(training, evaluated, tmp_path / "audit", AuditWords(), num_workers=1)
    assert may_pass(raised.value)
    assert len(list((tmp_path / "audit" / "scans").glob("*.json"))) == 5


def test_no_audit_and_a_damaged_one_are_told_apart(done, tmp_path):
    with pytest.raises(UserError, match=r"no audit in .*run optiml audit"):
        pairs.read_pairs(tmp_path)
    shutil.copytree(done, tmp_path / "audit")
    path = tmp_path / "audit" / "pairs.parquet"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(UserError, match=r"pairs.parquet is not as .* run optiml audit again"):
        pairs.read_pairs(tmp_path / "audit")


@pytest.mark.parametrize("there", ["trained.json", "tables.json"])
def test_an_audit_without_one_of_its_descriptions_is_not_no_audit(tmp_path, there):
    assert read_flags(tmp_path) is None
    write_sealed(tmp_path / there, {"tasks": [], "files": {}})
    with pytest.raises(UserError, match="run optiml audit"):
        read_flags(tmp_path)


def test_a_pipe_in_place_of_the_texts_is_not_waited_for(bench, done, tmp_path):
    folder = tmp_path / "audit"
    shutil.copytree(done, folder)
    (folder / "index" / "texts.bin").unlink()
    os.mkfifo(folder / "index" / "texts.bin")
    audit(*bench, folder, AuditWords(), num_workers=1)
    assert digests(folder) == digests(done)


@pytest.mark.parametrize(
    ("name", "scanned"),
    [
        ("index/hashes.bin", 0),
        ("index/texts.bin", 0),
        ("index/examples.parquet", 0),
        ("index/index.json", 0),
        ("scans/b.t2.parquet", 1),
        ("scans/b.t2.json", 1),
        ("instances.parquet", 0),
        ("tables.json", 0),
    ],
)
def test_a_flipped_bit_in_any_file_of_an_audit_is_noticed_and_mended(
    bench, done, tmp_path, caplog, name, scanned
):
    folder = tmp_path / "audit"
    shutil.copytree(done, folder)
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(bytes(data))
    if "/" not in name:
        with pytest.raises(UserError, match="run optiml audit again"):
            pairs.read_rows(folder, "instances")
    outcomes = audit(*bench, folder, AuditWords(), num_workers=1).outcomes.values()
    assert [o.status for o in outcomes].count("scanned") == scanned
    assert ("damaged" in caplog.text) == ("/" in name)
    assert digests(folder) == digests(done)


def test_the_progress_says_rate_and_time_left(bench, tmp_path, caplog):
    caplog.set_level("INFO", "optiml_jax")
    audit(*bench, tmp_path, AuditWords(), num_workers=1)
    assert any("6 of 6 tasks, 360 examples" in m and "s left" in m for m in caplog.messages)
