"""Hugging Face folders of Llama's kind: bfloat16, in shards, onto a mesh, bit for bit."""

import pathlib
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from optiml_jax.checkpoint.huggingface import write_huggingface

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
