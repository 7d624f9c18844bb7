"""Checkpoints of facebookresearch/metaseq, in every layout, read bit for bit; torch writes them."""

import pathlib
import sys

import ml_dtypes
import numpy as np
import pytest

sys.path.append(str(pathlib.Path(__file__).parents[1] / "model"))
import opt_cases
from reading import read_model

from optiml_jax.checkpoint.conversion import into_checkpoint, open_weights, out_of_checkpoint
from optiml_jax.checkpoint.manager import find_checkpoint, load_params
from optiml_jax.checkpoint.metaseq import open_metaseq
from optiml_jax.errors import UserError
from optiml_jax.sharding.rules import abstract_params

ABSENT = "torch, which writes these files, is not installed"
torch = pytest.importorskip("torch", reason=ABSENT)
metaseq_files = pytest.importorskip("metaseq_files", reason=ABSENT)

PRE, POST = opt_cases.CASES["pre_norm"], opt_cases.CASES["post_norm_projected"]
LAYOUTS = {
    "one_file": {"name": "restored"},
    "one_file_separate_qkv": {"fused": False},
    "two_parts": {"name": "reshard", "parts": 2},
    "two_parts_separate_qkv": {"parts": 2, "fused": False},
    "three_shards": {"shards": 3},
    "two_parts_of_five_shards": {"parts": 2, "shards": 5},
    "resharded_without_description": {"name": "reshard", "parts": 2, "shards": 5},
    "one_flat_file_per_part": {"name": "reshard", "parts": 4, "shards": 1},
}
LAYOUTS["resharded_without_description"]["described"] = False
LAYOUTS["one_flat_file_per_part"]["described"] = False


def _half(config):
    return {k: v.astype(np.float16) for k, v in opt_cases.random_tensors(config).items()}


def _assert_same(source, config, expected):
    with open_weights(str(source)) as weights:
        assert weights.config == config
        assert set(weights.tensors) == set(expected)
        for name, tensor in expected.items():
            assert weights.tensors[name].dtype == tensor.dtype
            np.testing.assert_array_equal(weights.tensors[name][:], tensor, err_msg=name)


# Without a description, the order of the modules is known of the published form only.
EVERY = [
    (layout, case)
    for layout, settings in LAYOUTS.items()
    for case in opt_cases.CASES
    if settings.get("described", True) or case == "pre_norm"
]


@pytest.mark.parametrize(("layout", "case"), EVERY)
def test_every_layout_of_every_variant_is_read(layout, case, tmp_path):
    config = opt_cases.CASES[case]
    settings = LAYOUTS[layout]
    expected = _half(config)
    metaseq_files.write(tmp_path, config, expected, **settings)
    _assert_same(tmp_path, config, expected)


@pytest.mark.parametrize("case", opt_cases.CASES)
def test_a_checkpoint_made_of_it_goes_to_hugging_face_bit_for_bit(case, tmp_path):
    config = opt_cases.CASES[case]
    expected = {k: v.astype(ml_dtypes.bfloat16) for k, v in _half(config).items()}
    as_torch = {k: torch.from_numpy(v.astype("f4")).bfloat16() for k, v in expected.items()}
    metaseq_files.write(tmp_path / "in", config, as_torch, parts=2, shards=3)
    with open_weights(str(tmp_path / "in")) as weights:
        into_checkpoint(weights, tmp_path / "ours", {"model": config.to_dict()})
    out_of_checkpoint(tmp_path / "ours", tmp_path / "out", config, max_shard_bytes=20_000)
    _assert_same(tmp_path / "out", config, expected)
    restored = load_params(tmp_path / "ours", abstract_params(config))
    _, params = read_model(tmp_path / "out")
    assert find_checkpoint(tmp_path / "ours").name == "0"
    for one, other in zip(_leaves(restored), _leaves(params), strict=True):
        np.testing.assert_array_equal(one, other)


def _leaves(tree):
    return [np.asarray(x) for _, x in sorted(_flat(tree))]


def _flat(tree, path=""):
    if not isinstance(tree, dict):
        return [(path, tree)]
    return [leaf for key, value in tree.items() for leaf in _flat(value, f"{path}.{key}")]


def test_nothing_in_a_file_is_run(tmp_path):
    marker = tmp_path / "was_run"
    more = {"extra_state": metaseq_files.Touch(marker), "criterion": torch.nn.Linear(2, 2)}
    expected = _half(PRE)
    metaseq_files.write(tmp_path, PRE, expected, more=more)
    _assert_same(tmp_path, PRE, expected)
    assert not marker.exists()
    torch.load(tmp_path / "checkpoint_last.pt", weights_only=False)  # what a pickle can do
    assert marker.exists()


def test_which_of_several_checkpoints(tmp_path):
    expected = _half(PRE)
    other = {name: tensor + 1 for name, tensor in expected.items()}
    metaseq_files.write(tmp_path, PRE, other, name="checkpoint_1_200", shards=2)
    metaseq_files.write(tmp_path, PRE, expected, name="checkpoint_1_300", shards=2)
    with pytest.raises(UserError, match=r"several checkpoints \(checkpoint_1_200, checkpoint_1_3"):
        open_metaseq(tmp_path)
    for place in ("checkpoint_1_300", "checkpoint_1_300-shard1.pt"):
        _assert_same(tmp_path / place, PRE, expected)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "checkpoint_last-model_part-1-shard2.pt").unlink(), "part 1 shard 2 first"),
        (
            lambda f: (f / "checkpoint_last-model_part-0-shard0.pt").write_bytes(b"PK\3\4abc"),
            r"shard0\.pt is damaged, or was written by torch before 1\.6",
        ),
        (
            lambda f: torch.save({"a": 1}, f / "checkpoint_last-model_part-0-shard0.pt"),
            "not a metaseq checkpoint: it has no entry 'model'",
        ),
    ],
)
def test_missing_and_damaged_files_are_named(damage, message, tmp_path):
    metaseq_files.write(tmp_path, PRE, _half(PRE), parts=2, shards=3)
    damage(tmp_path)
    with pytest.raises(UserError, match=message):
        open_metaseq(tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"no_scale_embedding": False}, "no_scale_embedding is False; OPT's is True"),
        ({"alibi": True}, "alibi is True; OPT's is False"),
    ],
)
def test_what_opt_does_not_compute_is_refused(values, message, tmp_path):
    def write(**more):
        fields = {**vars(metaseq_files.fields(PRE)), **more}
        metaseq_files.write(tmp_path, PRE, _half(PRE), more={"cfg": {"model": fields}})

    write(no_scale_embedding=True, alibi=False)
    _assert_same(tmp_path, PRE, _half(PRE))
    write(**values)
    with pytest.raises(UserError, match=message):
        open_metaseq(tmp_path)


def test_parts_that_disagree_and_unknown_orders_are_said(tmp_path, caplog):
    metaseq_files.write(tmp_path / "a", PRE, _half(PRE), parts=2)
    path = tmp_path / "a" / "checkpoint_last-model_part-1.pt"
    state = torch.load(path, weights_only=False)
    state["model"]["decoder.layers.0.fc2.bias"] += 1
    torch.save(state, path)
    open_metaseq(tmp_path / "a")
    assert "decoder.layers.0.fc2.bias differs between model parts 0 and 1" in caplog.text
    metaseq_files.write(tmp_path / "b", POST, _half(POST), shards=2, described=False)
    with pytest.raises(UserError, match=r"flattened.*with projections.*reshard_fsdp\.py"):
        open_metaseq(tmp_path / "b")
