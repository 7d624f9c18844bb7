"""A file of sources that lacks something is one line that names it."""

import pytest

from optiml_jax.errors import UserError
from optiml_jax.fetch.sources import read_sources


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("collection: {}", ": no key 'collections'; it has: collection"),
        ("collections: [c]", r": 'collections' must be a mapping, not \['c'\]"),
        ("collections: {c: {folder: c}}", ", c: no key 'sources'; it has: folder"),
        ("collections: {c: {sources: []}}", ", c: no key 'folder'; it has: sources"),
        ("collections: {c: [a]}", r", c: must be a mapping with the key 'folder', not \['a'\]"),
        ("collections: {c: {folder: c, sources: [a]}}", ", c: a source must be a mapping, not 'a'"),
        (
            "collections: {c: {folder: c, sources: [], tfds_sets: {sets: [a]}}}",
            ", c, tfds_sets: no key 'to'; it has: sets",
        ),
        (
            "collections: {c: {folder: c, sources: [], http_sets: {to: x, sets: [a]}}}",
            ", c, http_sets: no key 'address'; it has: to, sets",
        ),
        (
            "collections: {c: {folder: c, sources: [], hub_sets: {to: x, set: {a: []}}}}",
            ", c, hub_sets: no key 'sets'; it has: to, set",
        ),
    ],
)
def test_what_a_file_of_sources_lacks_is_named(tmp_path, text, message):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UserError, match=rf"mine\.yaml{message}"):
        read_sources(tmp_path / "mine.yaml")


def test_sets_are_sources_that_differ_in_their_names(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "collections: {c: {folder: c, sources: [],\n"
        "  hub_sets: {to: 'hub/{name}', sets: {a/b: [x, y]}},\n"
        "  tfds_sets: {to: tfds, sets: [d]},\n"
        "  http_sets: {to: web, licence: MIT, address: 'https://e.example/{name}.gz', sets: [f]}}}"
    )
    hub, tfds, http = read_sources(tmp_path / "mine.yaml")["c"]
    assert (hub.address, hub.folder, hub.configs) == ("a/b", "c/hub/a/b", ("x", "y"))
    assert (tfds.name, tfds.kind, tfds.folder) == ("d", "tfds", "c/tfds")
    assert (http.address, http.folder) == ("https://e.example/f.gz", "c/web")
    assert http.licence == "MIT"
