"""Files are written whole, whatever lies in their place."""

import pytest

from optiml_jax.errors import UserError
from optiml_jax.files import read_json, write_json


def test_an_empty_folder_in_the_place_of_a_file_gives_way_and_one_with_content_is_named(tmp_path):
    place = tmp_path / "a.json"
    place.mkdir()
    write_json(place, {"a": 1})
    assert read_json(place, "a") == {"a": 1}
    full = tmp_path / "b.json"
    (full / "own").mkdir(parents=True)
    with pytest.raises(UserError, match=f"cannot write a JSON file to {full}: Is a directory"):
        write_json(full, {})
    assert (full / "own").is_dir()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "b.json"]
