"""Archives are unpacked into their folder, whatever the names of their members."""

import io
import shutil
import tarfile
import zipfile

import pytest

from optiml_jax.fetch.archives import unpack
from optiml_jax.fetch.http import FetchError
from optiml_jax.fetch.sources import Source

SOURCE = Source("c", "n", "http", "c", "https://data.example/a.tar.gz")


def packed(folder, *names: str, link: str | None = None):
    file = folder / "a.tar.gz"
    with tarfile.open(file, "w:gz") as archive:
        if link:
            member = tarfile.TarInfo("link")
            member.type, member.linkname = tarfile.SYMTYPE, link
            archive.addfile(member)
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(name)
            archive.addfile(member, io.BytesIO(name.encode()))
    return file


def test_regular_files_come_to_their_places_and_links_do_not(tmp_path):
    file = packed(tmp_path, "./a/b.txt", "link/c.txt", link="..")
    tree = unpack(SOURCE, file, tmp_path / "deep" / "tree")
    found = {str(p.relative_to(tree)): p.read_text() for p in tree.rglob("*") if p.is_file()}
    assert found == {"a/b.txt": "./a/b.txt", "link/c.txt": "link/c.txt"}
    assert not (tree / "link").is_symlink()


@pytest.mark.parametrize("name", ["../outside", "a/../../outside", "{}/outside"])
def test_a_member_outside_of_the_folder_is_refused(tmp_path, name):
    file = packed(tmp_path, "inside", name.format(tmp_path))
    with pytest.raises(FetchError, match=r"cannot be unpacked: .*outside' would lie outside"):
        unpack(SOURCE, file, tmp_path / "deep" / "tree")
    assert not list(tmp_path.glob("**/outside"))


MODES = {".tar": "w", ".tar.gz": "w:gz", ".tgz": "w:gz", ".tar.bz2": "w:bz2", ".tar.xz": "w:xz"}


def two_files(folder, suffix: str):
    """An archive of two files, and where its second header and its end are, in the tar."""
    file = folder / f"a{suffix}"
    with tarfile.open(file, MODES[suffix]) as archive:
        for name in ("a", "b"):
            member = tarfile.TarInfo(name)
            member.size = 3000
            archive.addfile(member, io.BytesIO(name.encode() * 3000))
    with tarfile.open(file) as archive:
        second = archive.getmembers()[1].offset
        return file, second, archive.offset


@pytest.mark.parametrize("suffix", MODES)
def test_whole_archives_of_every_kind_are_unpacked(tmp_path, suffix):
    file, _, _ = two_files(tmp_path, suffix)
    tree = unpack(SOURCE, file, tmp_path / "tree")
    assert [(tree / name).read_text() for name in "ab"] == ["a" * 3000, "b" * 3000]


@pytest.mark.parametrize("zeros", [512, 1024, 50_000])
def test_the_end_of_an_archive_may_be_padded_or_one_block(tmp_path, zeros):
    file, _, end = two_files(tmp_path, ".tar")
    file.write_bytes(file.read_bytes()[:end] + bytes(zeros))
    assert sorted(p.name for p in unpack(SOURCE, file, tmp_path / "tree").iterdir()) == ["a", "b"]


def test_an_archive_that_is_cut_between_its_members_or_has_a_bad_header_is_refused(tmp_path):
    file, second, end = two_files(tmp_path, ".tar")
    whole = file.read_bytes()
    bad_header = whole[:second] + b"?" * 512 + whole[second + 512 :]
    for content in (whole[:second], whole[: second + 100], whole[:end], bad_header):
        file.write_bytes(content)
        with pytest.raises(
            FetchError, match=r"a\.tar of c/n cannot be unpacked: it is damaged or cut"
        ):
            unpack(SOURCE, file, tmp_path / "tree")


@pytest.mark.parametrize("suffix", [".tar.gz", ".tar.bz2", ".tar.xz"])
def test_the_end_of_a_compressed_archive_is_read_too(tmp_path, suffix):
    file, _, _ = two_files(tmp_path, suffix)
    whole = file.read_bytes()
    wrong_checksum = whole[:-6] + bytes([whole[-6] ^ 1]) + whole[-5:]
    for content in (whole[:-6], wrong_checksum, whole[: len(whole) // 2]):
        file.write_bytes(content)
        with pytest.raises(FetchError, match=f"a{suffix} of c/n cannot be unpacked: "):
            unpack(SOURCE, file, tmp_path / "tree")


def test_a_page_in_the_place_of_an_archive_is_refused(tmp_path):
    for name in ("page.zip", "page.tar.gz", "PAGE.TGZ", "page.tar"):
        file = tmp_path / name
        file.write_text("<!DOCTYPE html><title>Log in</title>")
        with pytest.raises(
            FetchError, match=r"no archive, .* look at https://data\.example/a\.tar"
        ):
            unpack(SOURCE, file, tmp_path / "tree")
    page = tmp_path / "page.html"
    page.write_text("wanted as it is")
    assert (unpack(SOURCE, page, tmp_path / "tree") / "page.html").exists()


def test_a_zip_archive_is_whole_or_refused(tmp_path):
    file = tmp_path / "a.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", "text " * 100)
    whole = file.read_bytes()
    assert (unpack(SOURCE, file, tmp_path / "tree") / "a").read_text() == "text " * 100
    for content in (whole[:-30], whole[:40] + b"\xff\xff" + whole[42:]):
        file.write_bytes(content)
        with pytest.raises(FetchError, match=r"a\.zip of c/n cannot be unpacked"):
            unpack(SOURCE, file, tmp_path / "tree")


def test_a_full_disk_is_no_damage(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    file, _, _ = two_files(tmp_path, ".tar")
    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(OSError, match="No space left"):
        unpack(SOURCE, file, tmp_path / "tree")
