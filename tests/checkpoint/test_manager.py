import contextlib
import json
import resource
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from optiml_jax.checkpoint import checksums
from optiml_jax.checkpoint.manager import (
    CheckpointManager,
    _hash_for_first,
    find_checkpoint,
    load_metadata,
    load_params,
)
from optiml_jax.errors import UserError
from optiml_jax.sharding import processes


def tree(value=0.0, size=64):
    return {
        "a": {"kernel": jnp.arange(size * 8, dtype=jnp.float32).reshape(size, 8) + value},
        "b": jnp.full(8, value),
    }


def abstract(like, sharding=None, dtype=jnp.float32):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype, sharding=sharding), like)


def assert_equal(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


@pytest.fixture
def run_dir(tmp_path):
    """A run folder with the checkpoints 1, 2 and 3, whose numbers are their steps."""
    with contextlib.closing(CheckpointManager(tmp_path / "run" / "checkpoints")) as manager:
        for step in (1, 2, 3):
            items = {"params": tree(step), "optimizer": {"mu": tree(-step)}}
            manager.save(step, items, {"step": step, "name": "ü"})
    return tmp_path / "run"


def largest_file(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def truncate(folder):
    path = largest_file(folder / "params")
    path.write_bytes(path.read_bytes()[:-7])


def delete(folder):
    largest_file(folder / "optimizer").unlink()


def garble(folder):
    path = largest_file(folder / "params")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def garble_manifest(folder):
    path = folder / "optiml.json"
    path.write_text(path.read_text().replace('"step": 3', '"step": 4'))


def delete_manifest(folder):
    (folder / "optiml.json").unlink()


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def rename(folder):
    """The step before under the number of this one."""
    shutil.rmtree(folder)
    shutil.copytree(folder.with_name("2"), folder)


DAMAGES = [truncate, delete, garble, garble_manifest, delete_manifest, empty, rename]


def test_items_and_metadata_come_back(run_dir):
    manager = CheckpointManager(run_dir / "checkpoints")
    step = manager.latest_intact_step()
    assert step == 3
    assert manager.metadata(step) == {"step": 3, "name": "ü"}
    items = manager.restore(
        step, {"params": abstract(tree()), "optimizer": {"mu": abstract(tree())}}
    )
    assert_equal(items, {"params": tree(3), "optimizer": {"mu": tree(-3)}})
    manager.close()


def test_a_step_that_exists_is_not_written_over(run_dir):
    manager = CheckpointManager(run_dir / "checkpoints")
    with pytest.raises(UserError, match=r"checkpoints/3 exists \(other metadata\)"):
        manager.save(3, {"params": tree(9)}, {})
    manager.save(3, {"params": tree(9)}, manager.metadata(3))  # it is there already
    manager.close()
    assert_equal(load_params(run_dir, abstract(tree())), tree(3))


def test_numpy_arrays_are_saved_too(tmp_path):
    with contextlib.closing(CheckpointManager(tmp_path, async_save=False)) as manager:
        manager.save(0, {"params": jax.tree.map(np.asarray, tree(4))}, {})
    assert_equal(load_params(tmp_path, abstract(tree())), tree(4))


def test_an_empty_folder_has_no_step(tmp_path):
    with contextlib.closing(CheckpointManager(tmp_path)) as manager:
        assert manager.latest_intact_step() is None


def test_only_the_newest_are_kept(tmp_path):
    with contextlib.closing(CheckpointManager(tmp_path, keep=2)) as manager:
        for step in (5, 10, 15, 20):
            manager.save(step, {"params": tree(step)}, {})
    assert sorted(int(p.name) for p in tmp_path.iterdir()) == [15, 20]


@pytest.mark.parametrize("async_save", [True, False])
def test_donating_the_arrays_after_save_does_not_change_what_is_saved(tmp_path, async_save):
    add = jax.jit(lambda x: jax.tree.map(lambda a: a + 1, x), donate_argnums=0)
    params = add(tree(0, size=20_000))
    expected = jax.tree.map(lambda a: np.array(a, copy=True), params)
    with contextlib.closing(CheckpointManager(tmp_path, async_save=async_save)) as manager:
        manager.save(1, {"params": params}, {})
        for _ in range(50):
            params = add(params)
    assert_equal(load_params(tmp_path, abstract(expected)), expected)


def test_arrays_saved_on_one_mesh_are_restored_on_another(tmp_path):
    devices = np.array(jax.devices())
    eight = NamedSharding(Mesh(devices, ("x",)), PartitionSpec("x"))
    grid = NamedSharding(Mesh(devices.reshape(2, 4), ("x", "y")), PartitionSpec("y"))
    with contextlib.closing(CheckpointManager(tmp_path)) as manager:
        manager.save(1, {"params": jax.device_put(tree(7), eight)}, {})
    restored = load_params(tmp_path, abstract(tree(), grid))
    assert_equal(restored, tree(7))
    assert restored["b"].sharding == grid


def test_params_can_be_loaded_in_another_type(run_dir):
    restored = load_params(run_dir, abstract(tree(), dtype=jnp.bfloat16))
    assert_equal(restored, jax.tree.map(lambda a: a.astype(jnp.bfloat16), tree(3)))


def test_loading_parameters_reads_nothing_else(run_dir, monkeypatch):
    read = []
    original = checksums._read_checksum
    monkeypatch.setattr(
        checksums, "_read_checksum", lambda path: read.append(path) or original(path)
    )
    newest = run_dir / "checkpoints" / "3"
    largest = largest_file(newest / "optimizer")
    content = largest.read_bytes()
    largest.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert_equal(load_params(run_dir, abstract(tree())), tree(3))
    assert load_metadata(run_dir)["step"] == 3
    assert read
    assert not [path for path in read if "/optimizer/" in path]
    assert len(read) == len(set(read))
    assert find_checkpoint(run_dir).name == "2"  # all items, for a run that goes on


@pytest.mark.parametrize("inside", ["", "checkpoints", "checkpoints/3"])
def test_a_checkpoint_is_found_by_run_folder_checkpoints_folder_or_step(run_dir, inside):
    assert find_checkpoint(run_dir / inside) == run_dir / "checkpoints" / "3"
    assert load_metadata(run_dir / inside)["step"] == 3


def test_a_folder_without_checkpoints_is_refused(tmp_path):
    with pytest.raises(UserError, match=f"no checkpoint in {tmp_path}"):
        load_params(tmp_path, {})
    with pytest.raises(UserError, match="no checkpoint in"):
        load_metadata(tmp_path / "missing")


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_used(run_dir, damage, caplog):
    newest = run_dir / "checkpoints" / "3"
    damage(newest)
    assert find_checkpoint(run_dir).name == "2"
    assert str(newest) in caplog.text
    assert_equal(load_params(run_dir, abstract(tree())), tree(2))


def test_damage_is_noticed_in_files_that_were_checked_before(run_dir):
    assert find_checkpoint(run_dir).name == "3"
    garble(run_dir / "checkpoints" / "3")
    assert find_checkpoint(run_dir).name == "2"


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_step_is_saved_again_after_it_was_damaged(run_dir, damage, caplog):
    folder = run_dir / "checkpoints"
    damage(folder / "3")
    with contextlib.closing(CheckpointManager(folder, keep=2)) as manager:
        manager.set_aside_after(manager.latest_intact_step())
        manager.save(3, {"params": tree(33)}, {"step": 3})
    assert sorted(p.name for p in folder.iterdir()) == ["2", "3"]
    assert (run_dir / "checkpoints.damaged" / "3").is_dir()
    assert_equal(load_params(run_dir, abstract(tree())), tree(33))


def test_only_damaged_checkpoints_are_an_error_and_not_a_new_run(run_dir):
    for step in (1, 2, 3):
        truncate(run_dir / "checkpoints" / str(step))
    with pytest.raises(UserError, match=r"every checkpoint in .* is damaged .*checkpoints/1: "):
        find_checkpoint(run_dir)


def test_a_damaged_step_that_is_asked_for_is_an_error(run_dir):
    garble(run_dir / "checkpoints" / "2")
    with pytest.raises(UserError, match=r"checkpoints/2 is damaged .*has changed"):
        load_params(run_dir / "checkpoints" / "2", abstract(tree()))


def test_another_shape_is_one_line_that_names_the_parameter(run_dir):
    with pytest.raises(UserError, match=r"a\.kernel is \(64, 8\) in the .* \(32, 8\) in the model"):
        load_params(run_dir, abstract(tree(size=32)))
    with pytest.raises(UserError, match="c is missing in the checkpoint"):
        load_params(run_dir, abstract(tree() | {"c": jnp.zeros(1)}))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 3 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as e:
        pytest.skip(f"no tmpfs may be mounted here: {e}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def quota(monkeypatch):
    """Makes every disk look empty, so that only writing shows that there is no room."""
    usage = shutil.disk_usage("/")._replace(free=10**15)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)


# TensorStore reports the blocks that fail after the first one to an event loop that is gone.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("seen_before", [True, False])
@pytest.mark.parametrize("async_save", [True, False])
def test_a_full_disk_is_named_and_the_earlier_checkpoint_stays(
    small_disk, async_save, seen_before, caplog, request
):
    if not seen_before:
        request.getfixturevalue("quota")
    rng = np.random.default_rng(0)
    small, large = ({"w": jnp.asarray(rng.normal(size=n), jnp.float32)} for n in (10**5, 10**6))
    manager = CheckpointManager(small_disk / "checkpoints", async_save=async_save)
    manager.save(1, {"params": small}, {"step": 1})
    with pytest.raises(UserError, match=f"no space left on the disk of {small_disk}"):  # noqa: PT012
        manager.save(2, {"params": large}, {"step": 2})
        manager.wait()
    assert "Traceback" not in caplog.text
    assert [p.name for p in (small_disk / "checkpoints").iterdir()] == ["1"]
    assert_equal(load_params(small_disk, abstract(small)), small)
    manager.save(2, {"params": small}, {"step": 2})
    manager.close()
    assert load_metadata(small_disk) == {"step": 2}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_another_refusal_of_the_disk_is_one_line_too(tmp_path):
    noise = np.random.default_rng(0).normal(size=10**6)
    manager = CheckpointManager(tmp_path / "checkpoints", async_save=False)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**5, limits[1]))
    try:
        with pytest.raises(UserError, match=f"to {tmp_path}/checkpoints: File too large"):
            manager.save(1, {"params": {"w": jnp.asarray(noise, jnp.float32)}}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    manager.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_save_that_failed_in_the_background_is_reported_by_check(small_disk, quota):
    manager = CheckpointManager(small_disk / "checkpoints")
    noise = np.random.default_rng(0).normal(size=10**6)
    manager.check()
    manager.save(1, {"params": {"w": jnp.asarray(noise, jnp.float32)}}, {})
    with pytest.raises(UserError, match="no space left"):  # noqa: PT012
        for _ in range(10**6):
            manager.check()
    manager.close()


class _Job:
    """What two processes say to each other."""

    def __init__(self):
        self.said = {}

    def next_round(self):
        return 1

    def say(self, key, value):
        self.said[key] = value

    def hear(self, key):
        return self.said[key]


def test_an_error_of_another_process_that_hashes_its_files_is_that_of_the_save(
    tmp_path, monkeypatch
):
    file = tmp_path / "ocdbt.process_1" / "data"
    file.parent.mkdir()
    job, manager = _Job(), CheckpointManager(tmp_path / "checkpoints")
    monkeypatch.setattr(processes, "job", lambda: job)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    job.say("hash/0/1", json.dumps([str(tmp_path), ["ocdbt.process_1/data"]]))
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    _hash_for_first(job, 0)  # the file is not there
    monkeypatch.setattr(jax, "process_index", lambda: 0)
    with pytest.raises(UserError, match=r"process 1 cannot read what it saved: .*No such file"):
        manager._hash_together(tmp_path, ["ocdbt.process_1/data"])
    file.write_bytes(b"abc")
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    _hash_for_first(job, 0)
    monkeypatch.setattr(jax, "process_index", lambda: 0)
    found = manager._hash_together(tmp_path, ["ocdbt.process_1/data"])
    assert found == checksums.checksums_of(tmp_path, ["ocdbt.process_1/data"])
