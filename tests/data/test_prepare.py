import contextlib
import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import seqio
from toy_tasks import toy_source, write_task_file

from optiml_jax.data import example, made_of, pool, prepare, preprocessors, store, vocabulary
from optiml_jax.data.prompts import PromptConfig
from optiml_jax.errors import UserError
from optiml_jax.one_writer import one_writer

# Every draw that a prompt can have.
METAICL = PromptConfig(
    shots=(0.4, 0.3, 0.3),
    demonstrations="train",
    loss="suffix",
    separator=("\n\n\n", "\n"),
    option_order="shuffled",
    option_format="random",
)


@pytest.fixture(scope="module")
def vocabulary_spec(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary") / "toy.model"
    texts = [f"Instructions: Say the number. t{i} says number {i} is" for i in range(200)]
    vocabulary.train_sentencepiece(texts, path, 320)
    return f"sentencepiece:{path}"


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    return [write_task_file(folder, f"t{k}", 10 + 5 * k) for k in range(4)]


@pytest.fixture
def run(tmp_path, vocabulary_spec):
    """Calls prepare on sources or files."""

    def call(sources, cache_dir=tmp_path / "cache", prompts=None, **kwargs):
        sources = [toy_source(s) if isinstance(s, pathlib.Path) else s for s in sources]
        spec = kwargs.pop("vocabulary_spec", vocabulary_spec)
        return prepare.prepare(sources, spec, prompts or PromptConfig(), cache_dir, **kwargs)

    return call


def contents(cache_dir):
    """Everything a reader of the cache can see: (task, split) -> examples."""
    cache = store.Store(cache_dir)
    found = {}
    for name in cache.tasks():
        task = cache.task(name)
        for split, row in task.info["splits"].items():
            examples = task.read(split, range(row["examples"]))
            found[name, split] = [(s.tolist(), t.tolist()) for s, t in examples]
    return found


def temporaries(cache_dir):
    return [p for p in pathlib.Path(cache_dir).rglob(".*") if p.name != ".prepare.lock"]


def statuses(summary):
    return {task: outcome.status for task, outcome in summary.outcomes.items()}


def records(task, split, use_cached):
    dataset = task.get_dataset(None, split, shuffle=False, use_cached=use_cached)
    return [
        {name: np.asarray(value).tolist() for name, value in record.items()}
        for record in dataset.as_numpy_iterator()
    ]


# ---- what the cache holds ------------------------------------------------------------------------


def test_seqio_reads_the_cache_and_finds_the_examples_of_the_live_task(
    tmp_path, files, run, vocabulary_spec
):
    source = toy_source(files[3])
    run([source], prompts=METAICL)
    vocab = vocabulary.load_vocabulary(vocabulary_spec)
    name = example.seqio_name(source.name)
    task = preprocessors.seqio_task(name, source, vocab, METAICL, 2048)
    with contextlib.ExitStack() as stack:
        before = list(seqio.get_global_cache_dirs())
        stack.callback(seqio.set_global_cache_dirs, before)
        seqio.set_global_cache_dirs([str(tmp_path / "cache")])
        for split in source.splits:
            live, cached = (records(task, split, use_cached) for use_cached in (False, True))
            assert live
            assert cached == live
            stored = [(e["inputs"], e["targets"]) for e in live]
            assert contents(tmp_path / "cache")[source.name, split] == stored
            stats = task.get_cached_stats(split)
            assert stats["examples"] == len(live)
            assert stats["inputs_tokens"] == sum(len(e["inputs"]) for e in live)
            assert stats["targets_max_tokens"] == max(len(e["targets"]) - 1 for e in live)


def test_description_tells_what_was_kept_dropped_and_with_which_vocabulary(
    tmp_path, files, run, vocabulary_spec
):
    with files[0].open("a") as f:
        f.write("no tab here\nnor here\nodd\t\t5\n")
        f.write("too long\t" + "9 " * 80 + "\n")
    summary = run(files[:1], sequence_length=64)
    rows = [tuple(row.values()) for row in summary.rows()]
    dropped, warned = {"no target": 2, "target too long": 1}, {"warning: two tabs": 1}
    assert rows == [
        ("toy/t0", "train", "cached", 9, dropped, warned),
        ("toy/t0", "test", "cached", 2, {}, {}),
    ]
    info = store.Store(tmp_path / "cache").task("toy/t0").info
    assert info["splits"]["train"]["drops"] == dropped | warned
    assert info["category"] == "Numbers"
    assert info["benchmark"] == "toy"
    assert info["vocabulary"]["spec"] == vocabulary_spec
    lengths = store.Store(tmp_path / "cache").task("toy/t0").lengths("train")
    assert info["splits"]["train"]["source_tokens"] == lengths[:, 0].sum()
    assert info["splits"]["train"]["target_tokens"] == lengths[:, 1].sum()
    assert summary.dropped() == dropped
    assert str(summary).endswith("11 examples kept; dropped: 2 no target, 1 target too long")


def test_pool_and_beam_write_the_same_cache_as_this_process(tmp_path, files, run):
    with files[2].open("a") as f:
        f.write("CUT\n")
    found = {}
    for name, how in {
        "alone": {"num_workers": 1},
        "pool": {"num_workers": 2},
        "beam": {"runner": "DirectRunner"},
    }.items():
        with pytest.raises(prepare.PrepareError, match=r"1 of 4 tasks.*toy/t2: .*line 21.*cut"):
            run(files, tmp_path / name, prompts=METAICL, **how)
        found[name] = contents(tmp_path / name)
        assert not temporaries(tmp_path / name)
    assert len(found["alone"]) == 6
    assert found["pool"] == found["alone"]
    assert found["beam"] == found["alone"]


# ---- what is done again --------------------------------------------------------------------------


def test_only_tasks_whose_inputs_changed_are_cached_again(tmp_path, files, run, vocabulary_spec):
    other_model = tmp_path / "other.model"
    vocabulary.train_sentencepiece(["Say a number, any number"] * 9, other_model, 280)
    run(files)

    def changed(sources=None, **kwargs):
        summary = run(sources or files, **kwargs)
        return sorted(t for t, status in statuses(summary).items() if status == "cached")

    every = [f"toy/t{k}" for k in range(4)]
    assert changed() == []
    os.utime(files[1])
    assert changed() == []
    files[1].write_text(files[1].read_text().replace("says", "asks"))  # the same size
    assert changed() == ["toy/t1"]
    sources = [toy_source(file) for file in files]
    sources[2] = toy_source(files[2], held_out=True)
    assert changed(sources) == ["toy/t2"]
    sources[3] = dataclasses.replace(sources[3], splits=("train",))
    assert changed(sources) == ["toy/t3"]
    assert changed() == ["toy/t2", "toy/t3"]
    assert changed(prompts=PromptConfig(seed=5)) == every
    assert changed(prompts=PromptConfig(seed=5), sequence_length=1024) == every
    assert changed(prompts=PromptConfig(seed=5), sequence_length=1024) == []
    assert changed(vocabulary_spec=f"sentencepiece:{other_model}") == every


def test_moved_data_and_vocabulary_need_no_new_cache(tmp_path, files, run, vocabulary_spec):
    run(files)
    moved = (tmp_path / "data").rename(tmp_path / "moved")
    copy = tmp_path / "copy.model"
    copy.write_bytes(pathlib.Path(vocabulary_spec.split(":")[1]).read_bytes())
    summary = run(sorted(moved.iterdir()), vocabulary_spec=f"sentencepiece:{copy}")
    assert set(statuses(summary).values()) == {"unchanged"}
    info = store.Store(tmp_path / "cache").task("toy/t0").info
    assert info["vocabulary"]["spec"] == f"sentencepiece:{copy}"


def test_files_are_not_read_again_while_size_and_time_stand(files, run, monkeypatch):
    for file in files:
        os.utime(file, (1e9, 1e9))
    run(files)

    def refuse(*_):
        raise AssertionError("hashed")

    monkeypatch.setattr(made_of.hashlib, "file_digest", refuse)
    assert set(statuses(run(files)).values()) == {"unchanged"}


@pytest.mark.parametrize(
    "name", ["train.lengths.npy", "train.array_record-00000-of-00001", "optiml.json"]
)
def test_what_has_changed_in_the_cache_is_mended_by_the_command_that_the_message_names(
    tmp_path, files, run, name
):
    run(files)
    before = contents(tmp_path / "cache")
    path = next(path / name for path in sorted((tmp_path / "cache").glob("*")) if path.is_dir())
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    assert sorted(statuses(run(files)).values()) == ["cached", *["unchanged"] * (len(files) - 1)]
    assert contents(tmp_path / "cache") == before


def test_a_task_made_with_other_settings_is_gone_before_the_others_are_made(tmp_path, files, run):
    run(files)
    files[1].unlink()
    with pytest.raises(prepare.PrepareError, match=r"toy/t1: cannot read .*t1\.tsv"):
        run(files, sequence_length=512)
    assert "toy/t1" not in store.Store(tmp_path / "cache").tasks()


# ---- what goes wrong -----------------------------------------------------------------------------


def test_every_failed_task_is_named_and_only_those_are_tried_again(tmp_path, files, run):
    good = [file.read_text() for file in files]
    files[0].write_text(good[0] + "CUT\n")
    files[1].write_text("nothing\nhere\nof use\n")
    files[3].write_bytes(b"caf\xe9\tx\n")
    with pytest.raises(prepare.PrepareError) as error:
        run(files)
    message = str(error.value)
    assert "\n" not in message
    assert "3 of 4 tasks" in message
    for reason in (
        "toy/t0: ",
        "line 11: the file is cut in half",
        "toy/t1: no usable record",
        "3 no target",
        "toy/t3: UnicodeDecodeError",
    ):
        assert reason in message
    assert store.Store(tmp_path / "cache").tasks() == ["toy/t2"]
    for file, text in zip(files, good, strict=True):
        file.write_text(text)
    assert sorted(t for t, s in statuses(run(files)).items() if s == "cached") == [
        "toy/t0",
        "toy/t1",
        "toy/t3",
    ]


def test_folders_of_others_are_not_overwritten(tmp_path, files, run):
    foreign = tmp_path / "cache" / "toy.t1"
    foreign.mkdir(parents=True)
    (foreign / "notes.txt").write_text("mine")
    with pytest.raises(prepare.PrepareError, match=r"1 of 4.*toy\.t1 is in the way"):
        run(files)
    assert (foreign / "notes.txt").read_text() == "mine"
    with pytest.raises(UserError, match=r"notes\.txt is not a folder"):
        run(files, foreign / "notes.txt")


def test_two_runs_do_not_write_to_one_cache(tmp_path, files, run):
    with (
        one_writer(tmp_path / "cache", "optiml prepare"),
        pytest.raises(UserError, match=r"another `optiml prepare` is at work in .*cache"),
    ):
        run(files)
    run(files)


def test_tasks_of_one_name_are_refused(files, run):
    with pytest.raises(UserError, match="same registered name"):
        run([files[0], files[0]])


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small tmpfs is not permitted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_full_disk_is_named_and_nothing_half_written_is_trusted(
    small_disk, tmp_path, run, num_workers
):
    files = [write_task_file(tmp_path, f"t{k}", 2000) for k in range(3)]
    with pytest.raises(
        UserError, match=f"no space left on the disk of {small_disk}/cache"
    ) as error:
        run(files, small_disk / "cache", num_workers=num_workers)
    assert not isinstance(error.value, prepare.PrepareError)
    assert not temporaries(small_disk)
    for examples in contents(small_disk / "cache").values():
        assert len(examples) in (2, 1998)
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    run(files, small_disk / "cache", num_workers=num_workers)
    assert len(contents(small_disk / "cache")) == 6


# ---- interruptions -------------------------------------------------------------------------------


def _prepare_in_child(files, pause, spec, cache_dir, num_workers, kill_at):
    """Runs prepare; kills its own process at the `kill_at`-th step that touches the file system."""
    os.setsid()
    steps = 0

    def count(event, _):
        nonlocal steps
        if event in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree"):
            steps += 1
            if steps == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sources = [toy_source(file, pause) for file in files]
    vocabulary.load_vocabulary(spec)
    if kill_at:
        sys.addaudithook(count)
    prepare.prepare(sources, spec, PromptConfig(), cache_dir, num_workers=num_workers)


def start_child(files, spec, cache_dir, pause=0.0, num_workers=1, kill_at=0):
    context = pool._context("optiml_jax.data.worker_imports")
    args = (files, pause, spec, cache_dir, num_workers, kill_at)
    child = context.Process(target=_prepare_in_child, args=args)
    child.start()
    return child


def wait_for(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def processes_of(session):
    """Ids of the processes of a session that are not zombies."""
    found = []
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rsplit(")", 1)[1].split()
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(int(stat.parent.name))
    return found


def test_killed_at_any_step_the_cache_is_sound_and_the_next_run_completes_it(
    tmp_path, files, run, vocabulary_spec
):
    files = files[:2]
    run(files, tmp_path / "reference")
    expected = contents(tmp_path / "reference")
    cache_dir = tmp_path / "cache"
    killed = 0
    for kill_at in range(1, 400, 3):
        if kill_at % 2:  # every second time the cache of the first task is an old one
            run(files[:1], cache_dir, prompts=PromptConfig(seed=9))
        child = start_child(files, vocabulary_spec, cache_dir, kill_at=kill_at)
        child.join()
        if cache_dir.exists():
            for key, examples in contents(cache_dir).items():  # none is incomplete
                assert len(examples) == len(expected[key])
        run(files, cache_dir)
        assert contents(cache_dir) == expected
        assert not temporaries(cache_dir)
        subprocess.run(["rm", "-r", str(cache_dir)], check=True)
        if child.exitcode == 0:
            break
        assert child.exitcode == -signal.SIGKILL
        killed += 1
    assert child.exitcode == 0  # the last one lived: every step before was tried
    assert killed > 10


def check_continued(run, files, cache_dir):
    done = store.Store(cache_dir).tasks()
    assert 1 <= len(done) < len(files)
    summary = run(files, cache_dir)
    assert sorted(t for t, s in statuses(summary).items() if s == "unchanged") == done
    assert len(contents(cache_dir)) == 2 * len(files)
    assert not temporaries(cache_dir)


def test_workers_end_with_a_killed_parent_and_the_run_is_continued(tmp_path, run, vocabulary_spec):
    files = [write_task_file(tmp_path, f"t{k}", 12) for k in range(6)]
    cache_dir = tmp_path / "cache"
    child = start_child(files, vocabulary_spec, cache_dir, pause=0.02, num_workers=2)
    wait_for(lambda: list(cache_dir.glob("toy.*")))
    assert len(processes_of(child.pid)) >= 3  # itself and its workers
    child.kill()
    child.join()
    wait_for(lambda: not processes_of(child.pid))
    check_continued(run, files, cache_dir)


def test_ctrl_c_stops_the_pool_without_a_trace_and_the_run_is_continued(tmp_path, run):
    files = [write_task_file(tmp_path, f"t{k}", 12) for k in range(6)]
    cache_dir = tmp_path / "cache"

    def interrupt():
        wait_for(lambda: list(cache_dir.glob("toy.*")))
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run([toy_source(file, pause=0.05) for file in files], cache_dir, num_workers=2)
    thread.join()
    assert not temporaries(cache_dir)
    check_continued(run, files, cache_dir)
