"""YAML of unknown origin: one line about what is wrong, in bounded time and memory."""

import pytest
import yaml

from optiml_jax.errors import UserError
from optiml_jax.yaml_files import read_yaml


def bomb(levels):
    """Nine copies of nine copies of ... in a line each: 9 ** levels values."""
    lines = ["x0: &x0 [a]"]
    lines += [f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 9)}]" for i in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (bomb(12), "more than 500,000 values or 100 levels, aliases written out"),
        ("[" * 100_000, "more than 500,000 values or 100 levels"),
        ("a: &a [*a]", "holds itself: .* alias 'a'"),
        ("a: !!python/object/apply:os.getcwd []", "is not YAML: .*line 1"),
        ("a: 2024-99-99", "is not YAML"),
        ("a: 1\nb:\n  c: 2\n  c: 3", "is not YAML: .*line 4: the key 'c' is there twice"),
        ("- a", "is not a mapping"),
        (b"a: \xff", "is not UTF-8"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, text, message):
    path = tmp_path / "a.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message) as e:
        read_yaml(path, "the file")
    assert "\n" not in str(e.value)


def test_aliases_of_ordinary_files_are_read(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(text := "a: &x {b: [1, 2]}\nc: *x\nd: {<<: *x, e: f}\n" + bomb(4))
    assert read_yaml(path, "the file") == yaml.safe_load(text)


def test_a_folder_and_a_missing_file_are_named(tmp_path):
    with pytest.raises(UserError, match="is not a file"):
        read_yaml(tmp_path, "the file")
    with pytest.raises(UserError, match="the file not found"):
        read_yaml(tmp_path / "b", "the file")
