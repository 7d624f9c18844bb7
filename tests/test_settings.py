"""What a user sets is what runs: every setting takes its declared type, and nothing else."""

import dataclasses
import inspect
import pathlib
import typing

import gin
import pytest

import optiml_jax.cli.settings as cli_settings
import tasks.flan.templates
import tasks.promptsource.templates
import tasks.splits
from optiml_jax.cli.main import main
from optiml_jax.data.mixture import Mixture
from optiml_jax.data.plan import PlanConfig
from optiml_jax.data.prompts import PromptConfig, zipf_shots
from optiml_jax.errors import UserError
from optiml_jax.evaluate.config import EvalConfig
from optiml_jax.model.architectures import model_config
from optiml_jax.model.opt.config import OPTConfig
from optiml_jax.settings import convert
from optiml_jax.sharding.mesh import MeshConfig
from optiml_jax.train.config import TrainConfig
from optiml_jax.train.optimizer import OptimizerConfig

REQUIRED = {
    "Run": {"data": {"a": "b"}, "vocabulary": "opt:x", "cache_dir": "c", "run_dir": "r"},
    "Compile": {"target": "cpu:8"},
    "Convert": {"source": "a", "destination": "b"},
    "Mixture": {"name": "m"},
    "PlanConfig": {"num_rows": 1},
    "Study": {"name": "s", "base": "b.gin", "variants": {"a": ("X.y = 1",)}},
    "TrainConfig": {"plan_dir": "", "run_dir": "", "num_steps": 1, "global_batch_size": 1},
}
CLASSES = [
    *(c for _, c in inspect.getmembers(cli_settings, dataclasses.is_dataclass)),
    *(Mixture, PlanConfig, PromptConfig, EvalConfig, MeshConfig, TrainConfig, OptimizerConfig),
    tasks.splits.SplitConfig,
    tasks.flan.templates.FlanConfig,
    tasks.promptsource.templates.PromptSourceConfig,
]
# None of these has a field that takes all of them.
BAD = ("text", "", -1, 1.5, float("nan"), float("inf"), True, (1, "x"), {"a": ()}, object())


def fields():
    return [(c, f.name) for c in dict.fromkeys(CLASSES) for f in dataclasses.fields(c)]


def made_or_error(make, **given):
    """What is made, or the message of the UserError; any other exception fails the test."""
    try:
        return make(**given), ""
    except UserError as e:
        return None, str(e)


@pytest.mark.parametrize(("cls", "field"), fields(), ids=lambda v: getattr(v, "__name__", v))
def test_a_value_is_taken_as_declared_or_refused_by_name(cls, field):
    refused = 0
    for value in BAD:
        gin.clear_config()
        gin.bind_parameter(f"{cls.__name__}.{field}", value)
        required = {k: v for k, v in REQUIRED.get(cls.__name__, {}).items() if k != field}
        made, error = made_or_error(cls, **required)
        if error:
            refused += 1
            assert field in error
        else:
            assert_is(getattr(made, field), typing.get_type_hints(cls)[field])
    assert refused


def assert_is(value, hint):
    """Python's own `isinstance` on the parts of the annotation."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is typing.Any:
        return
    if origin is None:
        assert isinstance(value, hint), (value, hint)
        assert not (isinstance(value, bool) and hint is not bool)
    elif origin is typing.Literal:
        assert value in arguments
    elif origin in (typing.Union, type(int | str)):
        assert any(_is(value, a) for a in arguments), (value, hint)
    elif isinstance(value, tuple):
        for item in value:
            assert_is(item, arguments[0])
    else:
        assert isinstance(value, dict)
        for item in value.values():
            assert_is(item, arguments[1])


def _is(value, hint) -> bool:
    try:
        assert_is(value, hint)
    except AssertionError:
        return False
    return True


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(OPTConfig)])
def test_a_field_of_the_model_is_taken_as_declared_or_refused_by_name(field):
    for value in BAD:
        gin.clear_config()
        gin.bind_parameter(f"model_config.{field}", value)
        made, error = made_or_error(model_config)
        if error:
            assert field in error
        else:
            assert_is(getattr(made, field), typing.get_type_hints(OPTConfig)[field])


@pytest.mark.parametrize(
    ("value", "declared", "expected"),
    [
        ("a/*", tuple[str, ...], ("a/*",)),
        (["a", "b"], tuple[str, ...], ("a", "b")),
        (2, tuple[int, ...], (2,)),
        (1e6, int, 1_000_000),
        (1, float, 1.0),
        ("latest", str | int | tuple[str | int, ...], "latest"),
        (("10", 20), str | int | tuple[str | int, ...], ("10", 20)),
        (pathlib.Path("a/b"), str, "a/b"),
        (None, int | None, None),
        ({"a": 1}, dict[str, float], {"a": 1.0}),
    ],
)
def test_what_loses_nothing_is_converted(value, declared, expected):
    converted = convert(value, declared, "x")
    assert converted == expected
    assert type(converted) is type(expected)


@pytest.mark.parametrize(
    ("value", "declared", "message"),
    [
        ("ten", int, "x = 'ten' (text) must be a whole number"),
        (1.5, int | None, "x = 1.5 (float) must be a whole number or None"),
        (True, int, "x = True (bool) must be a whole number"),
        ("true", bool, "x = 'true' (text) must be True or False"),
        ((1, "b"), tuple[int, ...], "x[1] = 'b' (text) must be a whole number"),
        ({"a": "b"}, dict[str, float], "x['a'] = 'b' (text) must be a number"),
        ("c", typing.Literal["a", "b"], "x = 'c' (text) must be one of 'a', 'b'"),
    ],
)
def test_a_refusal_names_setting_value_and_type(value, declared, message):
    with pytest.raises(UserError) as e:
        convert(value, declared, "x")
    assert str(e.value) == message


def test_functions_check_their_arguments_too():
    with pytest.raises(UserError, match=r"zipf_shots\.a = 'two'"):
        zipf_shots("two")


def test_the_command_line_says_it_in_one_line(capsys):
    assert main(["plan", "--gin.Run.data='/folder'", "--gin.Run.vocabulary=x"]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert error == ["error: Run.data = '/folder' (text) must be a dictionary from text to text"]
