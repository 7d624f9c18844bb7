"""Targets are read from text, and what is unknown or missing is one line."""

import pytest

from optiml_jax.ahead import targets
from optiml_jax.errors import UserError
from optiml_jax.sharding.hardware import accelerators


@pytest.mark.parametrize(
    ("text", "devices", "node"),
    [("tpu:v5p:4x4x8", 128, 128), ("gpu:a100-40g:8x8", 64, 8), ("cpu:64", 64, 64)],
)
def test_a_target_says_its_devices(text, devices, node):
    target = targets.parse_target(text)
    assert (target.num_devices, target.node_size, target.name) == (devices, node, text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v5p", "use tpu:v5p:4x4x8"),
        ("gpu:a100-40g", "use tpu:v5p:4x4x8"),
        ("gpu:v100:1x8", "no gpu 'v100' is described; known are a100-40g"),
        ("tpu:h100:1x8", "no tpu 'h100' is described"),
        ("gpu:h100:8", "the shape does not fit"),
        ("cpu:0", "use tpu:v5p:4x4x8"),
    ],
)
def test_a_target_that_is_none_is_refused(text, message):
    with pytest.raises(UserError, match=message):
        targets.parse_target(text)


def test_a_missing_compiler_is_named_with_the_command(monkeypatch):
    monkeypatch.setattr(targets.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"install it: pip install --no-deps jax-cuda13-plugin=="):
        targets.check_installed(targets.parse_target("gpu:h100:1x8"))
    with pytest.raises(UserError, match="install it: pip install --no-deps libtpu"):
        targets.check_installed(targets.parse_target("tpu:v4:4x4x8"))
    targets.check_installed(targets.parse_target("cpu:8"))


def test_every_accelerator_has_what_the_bounds_need():
    for accelerator in accelerators().values():
        assert accelerator.usable < accelerator.memory
        assert min(accelerator.flops, accelerator.bandwidth, accelerator.fast) > 1e11
        assert accelerator.network < accelerator.fast
        assert (accelerator.xla is not None) == (accelerator.platform == "gpu")
