"""Gin files are settings: they run nothing, and every mistake is one line with file and line."""

import pathlib

import gin
import pytest

import optiml_jax.cli.settings
from optiml_jax.cli.gin_files import read_settings, without_macros
from optiml_jax.errors import UserError


def written(folder: pathlib.Path, **files: str) -> str:
    """Writes NAME.gin files; the path of the first one."""
    for name, text in files.items():
        (folder / f"{name}.gin").write_text(text, "utf-8")
    return str(folder / f"{next(iter(files))}.gin")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import subprocess\n", r"run.gin, line 1: 'import subprocess': gin files may set"),
        ("\nfrom __gin__ import dynamic_registration\n", r"line 2: .*import nothing"),
        ("a = 1\nimport os.path as p\n", r"line 2: .*import nothing"),
        ("Evaluate.shots = (0,\n", r"run.gin, line \d: a bracket is not closed"),
        ("Evaluate.shots = \n", r"run.gin, line 1: Unable to parse value"),
        ("Evaluate.shots = %unset\n", r"run.gin, line 1: %unset is not set"),
        ("\nEvaluate.shots = {'a': [%deep]}\n", r"line 2: %deep is not set"),
        ("Evaluate.shotz = 1\n", r"run.gin, line 1: .*shotz"),
        ("\nNothing.x = 1\n", r"run.gin, line 2: .*Nothing"),
        ("Evaluate.shots = @subprocess.getoutput()\n", r"run.gin.*subprocess.getoutput"),
        ("Evaluate.shots = @gin.singleton()\n", r"not a function of this project"),
        ("include 'other.gin'\n", r"run.gin, line 1: included file not found: other.gin"),
        ("include 'run.gin'\n", r"run.gin includes itself"),
        ("Evaluate.shots = " + "[" * 5000 + "]" * 5000, r"run.gin"),
    ],
)
def test_a_mistake_is_one_line_that_says_where(tmp_path, text, said):
    with pytest.raises(UserError, match=said) as e:
        read_settings([written(tmp_path, run=text)], [])
    assert "\n" not in str(e.value)


def test_files_that_are_no_text_are_named(tmp_path):
    (tmp_path / "run.gin").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"cannot read .*run.gin"):
        read_settings([str(tmp_path / "run.gin")], [])
    with pytest.raises(UserError, match=r"gin file not found: nowhere.gin"):
        read_settings(["nowhere.gin"], [])


def test_includes_lie_beside_the_including_file_and_later_lines_win(tmp_path):
    first = written(
        tmp_path,
        run="include 'base.gin'\nEvaluate.shots = (%most,)\n",
        base="\ufeffmost = 3\nEvaluate.shots = (9,)\nEvaluate.name = 'a'\n",
    )
    read_settings([first], ["most = 5"])
    assert gin.query_parameter("Evaluate.name") == "a"
    settings = optiml_jax.cli.settings.Evaluate()
    assert settings.shots == (5,)


def test_a_circle_of_files_is_named_whole(tmp_path):
    first = written(tmp_path, a="include 'b.gin'\n", b="include 'a.gin'\n")
    with pytest.raises(UserError, match=r"includes itself: .*a.gin -> .*b.gin -> .*a.gin"):
        read_settings([first], [])


def test_a_name_on_the_command_line_that_no_setting_has_is_refused(tmp_path):
    """`--gin.num_steps=3`: the class of TrainConfig.num_steps was forgotten."""
    first = written(tmp_path, run="most = 3\nunused = 1\nEvaluate.shots = (%most,)\n")
    read_settings([first], ["most = 5"])
    said = r"command line: 'num_steps' has no effect: .* --gin.CLASS.num_steps=VALUE"
    with pytest.raises(UserError, match=said):
        read_settings([first], ["num_steps = 3"])


def test_macros_are_replaced_by_their_values_at_any_depth(tmp_path):
    text = "a = 3\nb = {'x': [%a, (1, %a)]}\nEvaluate.shots = (%a,)\nMixture.shares = %b\n"
    found = without_macros(read_settings([written(tmp_path, run=text)], ["a = 4"]))
    assert found == {"Evaluate.shots": (4,), "Mixture.shares": {"x": [4, (1, 4)]}}
