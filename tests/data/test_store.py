import ast
import concurrent.futures
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from optiml_jax.data import cache_writer, store
from optiml_jax.errors import UserError


def random_examples(num_examples, seed=0, high=50_000):
    rng = np.random.default_rng(seed)
    return [
        (
            rng.integers(3, high, rng.integers(0, 30)).tolist(),
            [*rng.integers(3, high, rng.integers(0, 5)).tolist(), 2],
        )
        for _ in range(num_examples)
    ]


def write_task(cache_dir, task, splits, dtype="uint16"):
    with cache_writer.task_folder(cache_dir, task) as folder:
        info = {"format_version": store.FORMAT_VERSION, "task": task, "dtype": dtype}
        info["splits"] = {}
        for split, examples in splits.items():
            writer = cache_writer.SplitWriter(folder, split, dtype)
            for source, target in examples:
                writer.add(source, target)
            assert len(writer.close()) == len(examples)
            info["splits"][split] = {"examples": len(examples)}
        cache_writer.write_info(folder, info)
    return cache_dir / task.replace("/", ".")


def as_lists(examples):
    return [(source.tolist(), target.tolist()) for source, target in examples]


def test_reads_what_was_written_in_the_order_asked_for(tmp_path):
    examples = random_examples(200)
    write_task(tmp_path, "a/one", {"train": examples, "test": examples[:3]})
    task = store.Store(tmp_path).task("a/one")
    indices = [7, 199, 0, 7]
    assert as_lists(task.read("train", indices)) == [examples[i] for i in indices]
    assert as_lists(task.read("test", np.array([2, 0]))) == [examples[2], examples[0]]
    assert task.lengths("train").dtype == np.int32
    assert task.lengths("train").tolist() == [[len(s), len(t)] for s, t in examples]


def test_splits_longer_than_a_file_are_read_across_their_files(tmp_path, monkeypatch):
    for module in (store, cache_writer):
        monkeypatch.setattr(module, "RECORDS_PER_FILE", 10)
    examples = random_examples(30)  # exactly three full files
    folder = write_task(tmp_path, "a/one", {"train": examples, "test": examples[:25]})
    assert (folder / "train.array_record-00002-of-00003").exists()
    task = store.Store(tmp_path).task("a/one")
    order = np.random.default_rng(0).permutation(30)
    assert as_lists(task.read("train", order)) == [examples[i] for i in order]
    assert as_lists(task.read("test", range(25))) == examples[:25]


def test_ids_beyond_uint16_and_empty_splits_are_kept(tmp_path):
    examples = random_examples(5, high=200_000)
    write_task(tmp_path, "a/one", {"train": examples, "validation": []}, "uint32")
    task = store.Store(tmp_path).task("a/one")
    assert as_lists(task.read("train", range(5))) == examples
    assert task.lengths("validation").shape == (0, 2)
    assert task.read("validation", []) == []


def test_indices_outside_the_split_are_refused(tmp_path):
    write_task(tmp_path, "a/one", {"train": random_examples(5)})
    task = store.Store(tmp_path).task("a/one")
    for index in (5, -1):
        with pytest.raises(IndexError, match="a/one"):
            task.read("train", [index])
    with pytest.raises(UserError, match=r"a/one.*no split 'test'"):
        task.lengths("test")


def test_few_files_stay_open_and_many_threads_may_read(tmp_path):
    data = {f"a/t{k}": random_examples(20, seed=k) for k in range(12)}
    for task, examples in data.items():
        write_task(tmp_path, task, {"train": examples})
    cache = store.Store(tmp_path)
    cache._readers = store._Readers(limit=4)
    before = len(os.listdir("/proc/self/fd"))

    def read(k):
        task = f"a/t{k % 12}"
        return as_lists(cache.task(task).read("train", [k % 20])) == [data[task][k % 20]]

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(600)))
    assert len(os.listdir("/proc/self/fd")) - before <= 4


def test_threads_that_read_do_not_share_the_parser_of_python(tmp_path, monkeypatch):
    """Until Python 3.11.8 two threads in `ast`, as in np.load, could be a SystemError."""
    examples = random_examples(3)
    write_task(tmp_path, "a/one", {"train": examples})
    task = store.Store(tmp_path).task("a/one")
    with monkeypatch.context() as patch:
        patch.setattr(ast, "parse", None)
        found = task.read("train", range(3))
    assert as_lists(found) == examples


def test_more_files_than_the_process_may_open(tmp_path, monkeypatch):
    """500 files of two stores, of which a process of at most 96 descriptors reads in any order."""
    for module in (store, cache_writer):
        monkeypatch.setattr(module, "RECORDS_PER_FILE", 1)
    for name in ("a/one", "a/two"):
        write_task(tmp_path, name, {"train": random_examples(250)})
    code = f"""
import resource
import numpy as np
from optiml_jax.data import store
store.RECORDS_PER_FILE = 1
resource.setrlimit(resource.RLIMIT_NOFILE, (96, 96))
tasks = [store.Store({str(tmp_path)!r}).task(name) for name in ("a/one", "a/two")]
for seed in range(2):
    for i in np.random.default_rng(seed).permutation(250):
        for task in tasks:
            task.read("train", [i])
print(sum(int(s.sum()) + int(t.sum()) for s, t in tasks[1].read("train", range(250))))
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not done.stderr
    assert int(done.stdout) == sum(sum(s) + sum(t) for s, t in random_examples(250))


def test_lists_whole_tasks_and_names_incomplete_and_foreign_folders(tmp_path):
    write_task(tmp_path, "b/two", {"train": random_examples(2)})
    write_task(tmp_path, "a/one", {"train": random_examples(2)})
    (tmp_path / "plans").mkdir()
    assert store.Store(tmp_path).tasks() == ["a/one", "b/two"]

    (tmp_path / "a.one" / "COMPLETED").unlink()
    with pytest.raises(UserError, match=r"a\.one.*incomplete.*optiml prepare"):
        store.Store(tmp_path).tasks()
    with pytest.raises(UserError, match=r"'a/one'.*incomplete.*optiml prepare"):
        store.Store(tmp_path).task("a/one")

    (tmp_path / "c.three").mkdir()
    (tmp_path / "c.three" / "COMPLETED").touch()
    with pytest.raises(UserError, match=r"'c/three'.*not written by `optiml prepare`"):
        store.Store(tmp_path).task("c/three")
    with pytest.raises(UserError, match=r"'d/four' is not in the cache"):
        store.Store(tmp_path).task("d/four")
    with pytest.raises(UserError, match=r"no cache of prepared tasks at .*nowhere"):
        store.Store(tmp_path / "nowhere")


def test_another_task_under_the_same_folder_name_is_refused(tmp_path):
    write_task(tmp_path, "a/one.two", {"train": random_examples(1)})
    with pytest.raises(UserError, match=r"holds task 'a/one.two', not 'a.one/two'"):
        store.Store(tmp_path).task("a.one/two")


def test_another_format_version_is_refused(tmp_path):
    folder = write_task(tmp_path, "a/one", {"train": random_examples(1)})
    info = json.loads((folder / "optiml.json").read_text())
    (folder / "optiml.json").write_text(json.dumps(info | {"format_version": 0}))
    with pytest.raises(UserError, match=r"'a/one'.*another cache format"):
        store.Store(tmp_path).task("a/one")


@pytest.mark.parametrize("damage", ["missing", "cut", "flipped", "lengths cut", "lengths wrong"])
def test_damaged_files_are_named_never_read_as_other_tokens(tmp_path, damage):
    examples = random_examples(50)
    folder = write_task(tmp_path, "a/one", {"train": examples})
    records, lengths = folder / "train.array_record-00000-of-00001", folder / "train.lengths.npy"
    data = records.read_bytes()
    if damage == "missing":
        records.unlink()
    elif damage == "cut":
        records.write_bytes(data[: len(data) // 2])
    elif damage == "flipped":
        at = data.index(np.array(examples[20][0], np.uint16).tobytes())
        records.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    elif damage == "lengths cut":
        lengths.write_bytes(lengths.read_bytes()[:-8])
    else:
        np.save(lengths, np.array([[len(s) + 1, len(t)] for s, t in examples], np.int32))
    with pytest.raises(UserError, match=r"'a/one'.*optiml prepare"):
        store.Store(tmp_path).task("a/one").read("train", range(50))


def test_no_bit_of_a_length_table_can_flip_unnoticed(tmp_path):
    folder = write_task(tmp_path, "a/one", {"train": random_examples(50)})
    path, rng = folder / "train.lengths.npy", np.random.default_rng(1)
    data = path.read_bytes()
    for bit in rng.integers(0, 8 * len(data), 40):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bytes(flipped))
        with pytest.raises(UserError, match=r"lengths.npy is damaged; run `optiml prepare`"):
            store.Store(tmp_path).task("a/one").lengths("train")


def test_a_failed_write_leaves_the_old_task_and_no_temporary(tmp_path):
    examples = random_examples(3)
    folder = write_task(tmp_path, "a/one", {"train": examples})
    with pytest.raises(TypeError), cache_writer.task_folder(tmp_path, "a/one") as new:
        cache_writer.SplitWriter(new, "train", np.uint16).add(None, [2])
    assert as_lists(store.Store(tmp_path).task("a/one").read("train", range(3))) == examples
    assert list(tmp_path.iterdir()) == [folder]
    write_task(tmp_path, "a/one", {"train": examples[:1]})
    assert as_lists(store.Store(tmp_path).task("a/one").read("train", [0])) == examples[:1]
    assert list(tmp_path.iterdir()) == [folder]
