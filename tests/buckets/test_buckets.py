"""Paths and claims in buckets, through gcsfs and s3fs, against the service in bucket_server.py."""

import os
import pathlib

import pytest

from optiml_jax.bucket_claim import BucketClaim
from optiml_jax.buckets import BucketPath
from optiml_jax.errors import UserError
from optiml_jax.files import atomic_path, read_json, write_json
from optiml_jax.one_writer import one_writer
from optiml_jax.paths import local_copies, local_copy, matching, path_of, remove_folder, sizes

both = pytest.mark.parametrize("scheme", ["gs", "s3"])


@both
def test_a_folder_in_a_bucket_behaves_like_one_of_pathlib(objects, tmp_path, scheme):
    for folder in (tmp_path / "plain", path_of(f"{scheme}://box/some/folder")):
        assert not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "a.json", {"text": "ü\u2028"})
        with atomic_path(folder / "deep/b.bin") as temporary:
            temporary.write_bytes(b"12345")
        assert folder.is_dir()
        assert (folder / "a.json").is_file()
        assert not (folder / "deep").is_file()
        assert read_json(folder / "a.json", "a test") == {"text": "ü\u2028"}
        assert sorted(path.name for path in folder.iterdir()) == ["a.json", "deep"]
        assert [path.name for path in folder.glob("*.json")] == ["a.json"]
        assert sizes(folder)["deep/b.bin"] == (folder / "deep/b.bin").stat().st_size == 5
        with (folder / "deep/b.bin").open("rb") as file:
            assert (file.read(2), file.read()) == (b"12", b"345")
        (folder / "deep").rename(folder / "other")
        assert sorted(sizes(folder)) == ["a.json", "other/b.bin"]
        (folder / "a.json").unlink()
        (folder / "a.json").unlink(missing_ok=True)
        for fails in (folder / "a.json").unlink, (folder / "a.json").read_bytes:
            with pytest.raises(FileNotFoundError):
                fails()
        remove_folder(folder)
        assert not folder.exists()
    with pytest.raises(UserError, match=f"a test not found: {scheme}://box/nothing"):
        read_json(f"{scheme}://box/nothing", "a test")


@both
def test_a_block_that_fails_writes_nothing(objects, scheme):
    def fails():
        with atomic_path(f"{scheme}://box/file") as temporary:
            temporary.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert not objects.content


@both
def test_local_copies_are_made_once_and_anew_when_the_content_changes(objects, scheme):
    folder = path_of(f"{scheme}://box/folder")
    (folder / "x").write_bytes(b"first")
    copy = local_copy(folder / "x")
    assert isinstance(copy, pathlib.Path)
    assert copy.read_bytes() == b"first"
    assert local_copy(folder / "x") == copy
    (folder / "x").write_bytes(b"other")
    (folder / "sub/y").write_bytes(b"y")
    assert local_copy(folder / "x").read_bytes() == b"other"
    assert copy.read_bytes() == b"first"
    assert sizes(local_copies(folder)) == {"x": 5, "sub/y": 1}
    assert local_copy(copy) == copy


@both
def test_a_bucket_that_cannot_be_used_is_said_in_one_line(objects, tmp_path, scheme):
    with pytest.raises(UserError, match=f"{scheme}://forbidden cannot be used .*; look at the"):
        path_of(f"{scheme}://forbidden/run")
    (tmp_path / "x").write_text("x")
    with pytest.raises(UserError, match=f"cannot write {scheme}://forbidden/x .*; look at the"):
        BucketPath(f"{scheme}://forbidden/x").upload(tmp_path / "x")


@both
def test_patterns_find_what_a_shell_would(objects, scheme):
    for name in ("a/1/x", "a/2/x", "b/1/x"):
        path_of(f"{scheme}://box/{name}").write_bytes(b"")
    found = sorted(map(str, matching(f"{scheme}://box/a/*")))
    assert found == [f"{scheme}://box/a/1", f"{scheme}://box/a/2"]
    assert sorted(map(str, matching(f"{scheme}://box/*/1/x"))) == [
        f"{scheme}://box/a/1/x",
        f"{scheme}://box/b/1/x",
    ]


@both
def test_a_bucket_folder_has_one_writer(objects, scheme):
    place = f"{scheme}://box/run"
    with one_writer(place, "optiml train", lease=2.0):
        with (
            pytest.raises(UserError, match=f"at work in {place}: process {os.getpid()} on"),
            one_writer(place, "optiml train", lease=2.0),
        ):
            pass
        with one_writer(place, "optiml evaluate", lease=2.0):
            assert len(objects.keys("box")) == 2
    assert not objects.content


def test_the_claim_of_a_dead_owner_is_taken_over_and_its_return_is_noticed(objects, monkeypatch):
    lost = []
    monkeypatch.setattr("optiml_jax.bucket_claim.stop_writing", lambda *why: lost.append(why))
    file = path_of("s3://box/run/.train.lock")
    file.write_bytes(b"host=elsewhere\npid=1\nid=0\n")  # never written anew
    claim = BucketClaim(file, lease=0.8)
    assert claim.acquire() is None
    file.write_bytes(b"host=elsewhere\npid=1\nid=0\nbeat=1\n")
    claim._thread.join(5)
    assert lost == [(str(file), "it is process 1 on elsewhere's now")]
    claim.release()
    assert file.exists()  # it is the other's
