"""Archives are unpacked into their folder, whatever the names of their members."""

import io
import tarfile

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
