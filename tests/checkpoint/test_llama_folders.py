"""Hugging Face folders of Llama's kind: bfloat16, in shards, bit for bit; the published ones."""

import json
import pathlib
import sys

import gin
import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from optiml_jax.checkpoint.huggingface import read_config, write_huggingface
from optiml_jax.errors import UserError
from optiml_jax.train import start
from optiml_jax.train.config import check_initial_checkpoint

sys.path.append(str(pathlib.Path(__file__).parents[1] / "model"))
import llama_cases
from reading import read_model


def _load(folder):
    files = sorted(folder.glob("*.safetensors"))
    return {name: value for file in files for name, value in load_file(file).items()}, len(files)


@pytest.mark.parametrize("case", llama_cases.CASES)
def test_a_bfloat16_folder_comes_back_in_shards_with_every_bit(case, tmp_path):
    source = llama_cases.write_folder(tmp_path / "in", llama_cases.CASES[case])
    halves = {k: v.astype(ml_dtypes.bfloat16) for k, v in _load(source)[0].items()}
    save_file(halves, source / "model.safetensors", metadata={"format": "pt"})
    config, params = read_model(source, dtype="bfloat16")
    write_huggingface(tmp_path / "out", config, params, max_shard_bytes=20_000)
    tensors, number = _load(tmp_path / "out")
    assert number > 2
    assert tensors.keys() == halves.keys()
    for name, value in halves.items():
        assert tensors[name].dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(tensors[name].view("u2"), value.view("u2"), err_msg=name)
    again, back = read_model(tmp_path / "out", dtype="bfloat16")
    assert again == config
    jax.tree.map(np.testing.assert_array_equal, back, params)


@pytest.mark.parametrize("case", llama_cases.CASES)
def test_shards_of_transformers_are_read(case, tmp_path):
    pytest.importorskip("torch", reason="torch is not installed")
    source = llama_cases.write_folder(tmp_path / "in", llama_cases.CASES[case])
    theirs = llama_cases.torch_model(source)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    assert (tmp_path / "theirs" / "model.safetensors.index.json").exists()
    _, params = read_model(tmp_path / "theirs")
    jax.tree.map(np.testing.assert_array_equal, params, read_model(source)[1])


_QWEN = {"bos_token_id": 151643, "eos_token_id": 151643, "rms_norm_eps": 1e-6, "rope_theta": 1e6}
_QWEN |= {"tie_word_embeddings": True, "use_sliding_window": False, "vocab_size": 151936}
_LLAMA_3 = {"bos_token_id": 128000, "eos_token_id": 128001, "rms_norm_eps": 1e-5}
_LLAMA_3_ROPE = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def _shape(layers, width, ffn, heads, kv_heads, positions):
    return {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "intermediate_size": ffn,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": positions,
    }


# Size -> config.json as published (what decides anything), and what puts the begin token in front:
# the tokenizer's post-processor ("template") or nothing (None).
PUBLISHED = {
    "qwen2.5-0.5b": (
        {"model_type": "qwen2", **_QWEN, **_shape(24, 896, 4864, 14, 2, 32768)}
        | {"max_window_layers": 24, "sliding_window": 32768},
        None,
    ),
    "qwen3-0.6b": (
        {"model_type": "qwen3", **_QWEN, **_shape(28, 1024, 3072, 16, 8, 32768)}
        | {"head_dim": 128, "max_window_layers": 28, "rope_scaling": None, "sliding_window": None},
        None,
    ),
    "smollm2-135m": (
        {"model_type": "llama", **_shape(30, 576, 1536, 9, 3, 8192), "vocab_size": 49152}
        | {"bos_token_id": 0, "eos_token_id": 0, "rms_norm_eps": 1e-5, "rope_theta": 100000}
        | {"tie_word_embeddings": True, "initializer_range": 0.041666666666666664},
        None,
    ),
    "llama-3.2-1b": (
        {"model_type": "llama", **_LLAMA_3, **_shape(16, 2048, 8192, 32, 8, 131072)}
        | {"head_dim": 64, "rope_scaling": _LLAMA_3_ROPE, "rope_theta": 500000.0}
        | {"tie_word_embeddings": True, "vocab_size": 128256},
        "template",
    ),
    "mistral-7b": (
        {"model_type": "mistral", **_shape(32, 4096, 14336, 32, 8, 32768), "vocab_size": 32000}
        | {"bos_token_id": 1, "eos_token_id": 2, "rms_norm_eps": 1e-5, "rope_theta": 10000.0}
        | {"tie_word_embeddings": False, "sliding_window": 4096},
        "template",
    ),
}


def _write(folder, values, **more):
    folder.mkdir(exist_ok=True)
    for name, content in {"config": values, **more}.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def _tokenizer(bos, eos, front):
    """tokenizer.json and tokenizer_config.json of a tokenizer of one word."""
    template = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<begin>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<begin>": {"id": "<begin>", "ids": [bos], "tokens": ["<begin>"]}},
    }
    words = {"a": 5, "<begin>": bos, **({} if bos == eos else {"<end>": eos})}
    values = {
        "version": "1.0",
        "added_tokens": [],
        "post_processor": template if front == "template" else None,
        "padding": {
            "strategy": {"Fixed": 4},  # padding in front is no token of the text
            "direction": "Left",
            "pad_id": eos,
            "pad_type_id": 0,
            "pad_token": "<end>",
        },
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "a"},
    }
    config = {"bos_token": "<begin>", "add_bos_token": front == "flag"}
    return {"tokenizer": values, "tokenizer_config": config}


@pytest.mark.parametrize("size", PUBLISHED)
def test_training_of_a_published_size_starts_from_its_published_folder(size, tmp_path, monkeypatch):
    values, front = PUBLISHED[size]
    files = _tokenizer(values["bos_token_id"], values["eos_token_id"], front)
    stored = read_config(_write(tmp_path, values, **files))
    assert stored.bos_id == (values["bos_token_id"] if front else None)
    vocabulary = {"vocabulary": {"fingerprint": "1", "spec": "huggingface:there"}}
    metadata = {**vocabulary, "model": stored.to_dict()}
    monkeypatch.setattr(start, "load_metadata", lambda _: metadata)
    gin.bind_parameter("model_config.size", size)
    model = start.run_model(8, "there")
    check_initial_checkpoint("there", metadata, {**vocabulary, "model": model.to_dict()})


def test_the_tokenizers_flag_counts_where_it_has_no_post_processor(tmp_path):
    values = PUBLISHED["mistral-7b"][0]
    files = _tokenizer(9, 2, "flag")
    assert read_config(_write(tmp_path, values, **files)).bos_id == 9
    off = files["tokenizer_config"] | {"add_bos_token": False}
    assert read_config(_write(tmp_path, values, tokenizer_config=off)).bos_id is None
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"tokenizer\.json is damaged or unknown"):
        read_config(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    assert read_config(tmp_path).bos_id is None
    _write(tmp_path, values, tokenizer_config=files["tokenizer_config"])  # of SentencePiece's
    assert read_config(tmp_path).bos_id == 1


def test_without_a_tokenizer_only_qwens_begin_token_is_left_out(tmp_path):
    found = {
        size: read_config(_write(tmp_path, values)).bos_id
        for size, (values, _) in PUBLISHED.items()
    }
    assert (found["llama-3.2-1b"], found["mistral-7b"], found["smollm2-135m"]) == (128000, 1, 0)
    assert found["qwen2.5-0.5b"] is found["qwen3-0.6b"] is None


def test_every_end_in_generation_config_ends_a_text_and_is_exported(tmp_path):
    values = llama_cases.CASES["qwen_2"]
    folder = llama_cases.write_folder(tmp_path / "in", values)
    _write(folder, values, generation_config={"eos_token_id": [7, 2, 9]})
    config, params = read_model(folder)
    assert (config.eos_id, config.more_eos_ids) == (2, (7, 9))
    write_huggingface(tmp_path / "out", config, params)
    for name in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "out" / name).read_text())["eos_token_id"] == [2, 7, 9]


def test_a_model_without_an_end_of_text_is_refused_unless_generation_config_names_it(tmp_path):
    values = llama_cases.CASES["qwen_2"] | {"eos_token_id": None}
    with pytest.raises(UserError, match=r"config\.json: eos_token_id, .* is missing; write its id"):
        read_config(_write(tmp_path, values))
    _write(tmp_path, values, generation_config={"eos_token_id": 7})
    assert read_config(tmp_path).eos_ids == (7,)


_FULL, _SLIDING = "full_attention", "sliding_attention"
_WINDOW = {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 2}


@pytest.mark.parametrize(
    ("case", "changes", "window"),
    [
        ("qwen_3", {**_WINDOW, "layer_types": [_FULL] * 3}, None),
        ("qwen_3", {**_WINDOW, "layer_types": [_SLIDING] * 3}, 16),
        ("qwen_2", {"layer_types": [_FULL] * 3}, None),
        ("mistral", {"sliding_window": None, "layer_types": [_FULL] * 3}, None),
        ("mistral", {"layer_types": [_SLIDING] * 3}, 5),
    ],
)
def test_layer_types_that_are_all_alike_give_their_window(case, changes, window, tmp_path):
    values = llama_cases.CASES[case] | changes
    assert read_config(_write(tmp_path, values)).sliding_window == window


def _rope(**scaling):
    return {"rope_scaling": scaling}


@pytest.mark.parametrize(
    ("case", "changes", "message"),
    [
        (
            "qwen_3",
            {**_WINDOW, "layer_types": [_FULL, _SLIDING, _FULL]},
            "layer_types has full_att",
        ),
        ("mistral", {"layer_types": [_FULL, _SLIDING, _FULL]}, "layer_types has full_attention, s"),
        ("mistral", {"layer_types": [_FULL] * 3}, "full_attention only, but the sliding window is"),
        ("qwen_2", {"layer_types": [_SLIDING] * 3}, "sliding_attention only, but .* is None"),
        (
            "llama_3",
            {"layer_types": ["chunked_attention"] * 3},
            "layer_types has chunked_attention",
        ),
        ("qwen_2", _rope(type="linear"), "of type 'linear' have no factor"),
        ("qwen_2", _rope(type="linear", factor=None), "of type 'linear' have no factor"),
        (
            "qwen_2",
            _rope(type="yarn", original_max_position_embeddings=16),
            "'yarn' have no factor",
        ),
        ("qwen_2", _rope(type="yarn", factor=None), "'yarn' have no factor"),
    ],
)
def test_windows_and_factors_that_cannot_be_read_are_refused_by_name(
    case, changes, message, tmp_path
):
    with pytest.raises(UserError, match=rf"config\.json: .*{message}"):
        read_config(_write(tmp_path, llama_cases.CASES[case] | changes))


def test_a_null_factor_of_yarn_is_the_ratio_of_the_positions(tmp_path):
    scaling = _rope(type="yarn", factor=None, original_max_position_embeddings=16)
    config = read_config(_write(tmp_path, llama_cases.CASES["qwen_2"] | scaling))
    assert config.rope_factor == 64 / 16
