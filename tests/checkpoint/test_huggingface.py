"""Hugging Face folders: read, written, refused."""

import dataclasses
import json
import os
import pathlib
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors
from safetensors.numpy import load_file

from optiml_jax.checkpoint.huggingface import (
    fetch,
    read_config,
    write_huggingface,
)
from optiml_jax.errors import UserError
from optiml_jax.model.opt.config import OPTConfig

sys.path.append(str(pathlib.Path(__file__).parents[1] / "model"))
import opt_cases
from reading import read_model

ABSENT = "torch is not installed; the goldens of tests/goldens stand in"
PRE, POST = opt_cases.CASES["pre_norm"], opt_cases.CASES["post_norm_projected"]


def _assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, x), y in zip(jax.tree.leaves_with_path(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize("case", opt_cases.CASES)
def test_a_folder_comes_back_bit_for_bit(case, tmp_path):
    config = opt_cases.CASES[case]
    tensors = opt_cases.random_tensors(config)
    read, params = read_model(opt_cases.write_folder(tmp_path / "in", config))
    assert read == config
    write_huggingface(tmp_path / "out", read, params)
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert set(written) == set(tensors)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(written[name], tensor, err_msg=name)
    assert read_config(tmp_path / "out") == config


@pytest.mark.parametrize("case", opt_cases.CASES)
def test_transformers_loads_what_was_written(case, tmp_path):
    torch = pytest.importorskip("torch", reason=ABSENT)
    transformers = pytest.importorskip("transformers", reason=ABSENT)
    config = opt_cases.CASES[case]
    source = opt_cases.write_folder(tmp_path / "in", config)
    _, params = read_model(source)
    write_huggingface(tmp_path / "out", config, params, max_shard_bytes=20_000)
    tokens = opt_cases.random_tokens(config)
    ours = opt_cases.torch_outputs(tmp_path / "out", tokens)
    np.testing.assert_array_equal(ours["logits"], opt_cases.torch_outputs(source, tokens)["logits"])
    write_huggingface(tmp_path / "half", config, params, dtype="bfloat16")
    loaded, report = transformers.OPTForCausalLM.from_pretrained(
        tmp_path / "half", dtype="auto", output_loading_info=True
    )
    assert loaded.dtype == torch.bfloat16
    assert not any(report.values())


@pytest.mark.parametrize("case", opt_cases.CASES)
def test_what_transformers_writes_is_read(case, tmp_path):
    pytest.importorskip("torch", reason=ABSENT)
    pytest.importorskip("transformers", reason=ABSENT)
    config = opt_cases.CASES[case]
    source = opt_cases.write_folder(tmp_path / "in", config)
    opt_cases.torch_model(source).save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    assert (tmp_path / "theirs" / "model.safetensors.index.json").exists()
    read, params = read_model(tmp_path / "theirs")
    assert read == config
    _assert_equal(params, read_model(source)[1])


@pytest.mark.parametrize("config", [PRE, POST], ids=["pre_norm", "post_norm"])
def test_shards_hold_what_one_file_holds_and_each_is_small(config, tmp_path):
    _, params = read_model(opt_cases.write_folder(tmp_path / "in", config))
    write_huggingface(tmp_path / "out", config, params, max_shard_bytes=30_000)
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert len(files) > 3
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    sizes = []
    for file in files:
        held = load_file(tmp_path / "out" / file)
        assert {name for name, place in index["weight_map"].items() if place == file} == set(held)
        sizes.append(sum(x.nbytes for x in held.values()))
    assert max(sizes) <= 30_000
    assert sum(sizes) == index["metadata"]["total_size"] == 4 * config.num_params
    _assert_equal(read_model(tmp_path / "out")[1], params)


@pytest.mark.parametrize(("dtype", "numpy"), [("bfloat16", ml_dtypes.bfloat16), ("float16", "f2")])
def test_other_types_are_written_and_read(dtype, numpy, tmp_path):
    _, params = read_model(opt_cases.write_folder(tmp_path / "in", POST))
    write_huggingface(tmp_path / "out", POST, params, dtype=dtype)
    _, back = read_model(tmp_path / "out")
    _assert_equal(back, jax.tree.map(lambda x: np.asarray(x).astype(numpy).astype("f4"), params))
    _, kept = read_model(tmp_path / "out", dtype=dtype)
    assert {x.dtype for x in jax.tree.leaves(kept)} == {np.dtype(numpy)}


@pytest.mark.parametrize("prefix", ["", "decoder."])
def test_other_prefixes_are_read(prefix, tmp_path):
    tensors = opt_cases.random_tensors(PRE)
    renamed = {prefix + name.removeprefix("model.decoder."): x for name, x in tensors.items()}
    _, params = read_model(opt_cases.write_folder(tmp_path / "a", PRE, renamed))
    _assert_equal(params, read_model(opt_cases.write_folder(tmp_path / "b", PRE))[1])


def test_a_tied_head_may_stand_beside_or_for_the_embedding(tmp_path):
    tensors = opt_cases.random_tensors(PRE)
    expected = read_model(opt_cases.write_folder(tmp_path / "plain", PRE))[1]
    beside = {**tensors, "lm_head.weight": tensors["model.decoder.embed_tokens.weight"].copy()}
    _assert_equal(read_model(opt_cases.write_folder(tmp_path / "a", PRE, beside))[1], expected)
    instead = dict(beside)
    del instead["model.decoder.embed_tokens.weight"]
    _assert_equal(read_model(opt_cases.write_folder(tmp_path / "b", PRE, instead))[1], expected)
    beside["lm_head.weight"] += 1
    with pytest.raises(UserError, match=r"lm_head\.weight differs from .*says they are tied"):
        read_model(opt_cases.write_folder(tmp_path / "c", PRE, beside))


def _broken(folder, change):
    tensors = opt_cases.random_tensors(PRE)
    change(tensors)
    return opt_cases.write_folder(folder, PRE, tensors)


NAME = "model.decoder.layers.1.fc1.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(NAME), rf"tensor {NAME} is missing"),
        (
            lambda t: t.update({NAME: t[NAME].T.copy()}),
            rf"tensor {NAME} has shape \[32, 128\]; config\.json expects \[128, 32\]",
        ),
        (
            lambda t: t.update({"model.decoder.layers.9.fc1.bias": t[NAME]}),
            r"tensor model\.decoder\.layers\.9\.fc1\.bias belongs to no part of the model",
        ),
    ],
)
def test_a_missing_wrong_or_unknown_tensor_is_named(change, message, tmp_path):
    with pytest.raises(UserError, match=message):
        read_model(_broken(tmp_path, change))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("model_type", "t5", "model_type is 't5'"),
        ("activation_function", "gelu", "activation_function is 'gelu'"),
        ("enable_bias", False, "enable_bias is False"),
        ("tie_word_embeddings", False, "tie_word_embeddings is False"),
        ("hidden_size", None, "'hidden_size' is missing"),
    ],
)
def test_a_configuration_of_another_kind_is_refused(field, value, message, tmp_path):
    folder = opt_cases.write_folder(tmp_path, PRE)
    values = opt_cases.config_json(PRE) | {field: value}
    values = {k: v for k, v in values.items() if v is not None}
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=message):
        read_model(folder)


def test_a_folder_without_weights_is_refused(tmp_path):
    folder = opt_cases.write_folder(tmp_path, PRE)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has neither model\.safetensors nor .*pytorch_model"):
        read_model(folder)


def test_torchs_pickles_are_read(tmp_path):
    """pytorch_model.bin as torch writes it, whole and in shards, holds what safetensors hold."""
    torch = pytest.importorskip("torch", reason=ABSENT)
    folder = opt_cases.write_folder(tmp_path / "a", PRE)
    expected = read_model(folder)[1]
    tensors = {k: torch.from_numpy(v) for k, v in opt_cases.random_tensors(PRE).items()}
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    _assert_equal(read_model(folder)[1], expected)
    weight_map = {}
    for number in (0, 1):
        part = dict(list(tensors.items())[number::2])
        torch.save(part, folder / f"pytorch_model-{number}.bin")
        weight_map |= dict.fromkeys(part, f"pytorch_model-{number}.bin")
    (folder / "pytorch_model.bin").unlink()
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    _assert_equal(read_model(folder)[1], expected)


def test_buffers_that_transformers_ignores_are_left_aside(tmp_path, caplog):
    tensors = opt_cases.random_tensors(PRE)
    tensors["model.decoder.version"] = np.array([3.0], np.float32)
    expected = read_model(opt_cases.write_folder(tmp_path / "a", PRE))[1]
    with caplog.at_level("INFO"):
        _, params = read_model(opt_cases.write_folder(tmp_path / "b", PRE, tensors))
    _assert_equal(params, expected)
    assert "ignored, as transformers does: model.decoder.version" in caplog.text


def test_damaged_and_missing_files_are_named(tmp_path):
    folder = opt_cases.write_folder(tmp_path / "cut", PRE)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
        read_model(folder)
    index = {
        "weight_map": {"model.decoder.embed_tokens.weight": "model-00001-of-00002.safetensors"}
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"model-00001-of-00002\.safetensors is missing"):
        read_model(folder)
    with pytest.raises(UserError, match="configuration of a Hugging Face model not found"):
        read_config(tmp_path)


def test_nothing_is_overwritten_and_nothing_half_written_stays(tmp_path, monkeypatch):
    _, params = read_model(opt_cases.write_folder(tmp_path / "in", PRE))
    with pytest.raises(UserError, match=r"in exists already; choose a new folder"):
        write_huggingface(tmp_path / "in", PRE, params)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match=r"no space left on the disk of .*out"):
        write_huggingface(tmp_path / "out", PRE, params)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_what_hugging_face_has_no_form_for_is_refused(tmp_path):
    _, params = read_model(opt_cases.write_folder(tmp_path / "in", PRE))
    with pytest.raises(UserError, match="position offset 2, not 0"):
        write_huggingface(tmp_path / "a", dataclasses.replace(PRE, position_offset=0), params)
    with pytest.raises(UserError, match="no final layer norm when pre_layer_norm is off"):
        write_huggingface(tmp_path / "a", dataclasses.replace(PRE, pre_layer_norm=False), params)
    with pytest.raises(UserError, match="cannot write tensors as 'int8'"):
        write_huggingface(tmp_path / "a", PRE, params, dtype="int8")
    params["position_embedding"] = params["position_embedding"] * 1e6
    with pytest.raises(UserError, match=r"embed_positions\.weight has values too large"):
        write_huggingface(tmp_path / "a", PRE, params, dtype="float16")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_tokenizer_files_go_along(tmp_path):
    source = opt_cases.write_folder(tmp_path / "in", PRE)
    (source / "vocab.json").write_text("{}")
    (source / "merges.txt").write_text("#version: 0.2\n")
    (source / "notes.txt").write_text("mine")
    config, params = read_model(source)
    write_huggingface(tmp_path / "out", config, params, tokenizer_from=source)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "config.json",
        "generation_config.json",
        "merges.txt",
        "model.safetensors",
        "tokenizer_config.json",
        "vocab.json",
    ]


def test_metaseqs_vocabulary_becomes_a_tokenizer_with_opts_ids(tmp_path, real_data):
    import transformers

    config, params = read_model(opt_cases.write_folder(tmp_path / "in", PRE))
    folder = real_data / "gpt2_bpe"
    write_huggingface(tmp_path / "out", config, params, tokenizer_from=folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("Answer: yes")["input_ids"] == [2, 33683, 35, 4420]
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (2, 1)


class _Hub:
    """Stands in for huggingface_hub: a main branch without safetensors and a conversion."""

    def __init__(self, root):
        self.asked = []
        self.folders = {None: root / "main", "refs/pr/7": root / "converted"}
        (root / "main").mkdir()
        opt_cases.write_folder(root / "converted", PRE)

    def snapshot_download(self, name, revision, allow_patterns):
        assert not any(".bin" in pattern for pattern in allow_patterns)  # not before safetensors
        self.asked.append((name, revision))
        if revision not in self.folders:
            raise OSError(f"404: no revision {revision}\nmore lines")
        return str(self.folders[revision])

    def get_repo_discussions(self, name):
        pull = {"is_pull_request": True, "status": "open"}
        for number, author in ((3, "someone"), (7, "SFconvertbot")):
            yield _Namespace(author=author, git_reference=f"refs/pr/{number}", **pull)


class _Namespace:
    def __init__(self, **values):
        self.__dict__.update(values)


def test_a_name_on_the_hub_is_fetched_with_the_bots_conversion(tmp_path, monkeypatch):
    hub = _Hub(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert fetch("facebook/opt-125m") == tmp_path / "converted"
    assert fetch("facebook/opt-125m@refs/pr/7") == tmp_path / "converted"
    assert hub.asked == [("facebook/opt-125m", r) for r in (None, "refs/pr/7", "refs/pr/7")]
    with pytest.raises(UserError, match=r"facebook/opt-125m .*404: no revision x\); check") as e:
        fetch("facebook/opt-125m@x")
    assert "\n" not in str(e.value)
    with pytest.raises(UserError, match="neither a folder nor a model's name"):
        fetch(tmp_path / "absent" / "folder")


def test_the_written_metadata_is_what_transformers_needs(tmp_path):
    config = OPTConfig(vocab_size=16, d_model=8, num_layers=1, num_heads=2, max_positions=4)
    _, params = read_model(opt_cases.write_folder(tmp_path / "in", config))
    write_huggingface(tmp_path / "out", config, params)
    with safetensors.safe_open(tmp_path / "out" / "model.safetensors", "numpy") as f:
        assert f.metadata() == {"format": "pt"}
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert (generation["eos_token_id"], generation["pad_token_id"]) == (2, 1)
