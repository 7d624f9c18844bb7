"""`optiml convert`: any vocabulary size and tokenizer form, whole checkpoints, whole exports."""

import json
import pathlib
import shutil
import sys

import gin
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

sys.path.append(str(pathlib.Path(__file__).parents[1] / "model"))
sys.path.append(str(pathlib.Path(__file__).parents[1] / "data"))
import dataclasses

import opt_cases
from flax import nnx
from test_vocabulary import opt_entries, write_opt

from optiml_jax.checkpoint.manager import load_metadata, load_params
from optiml_jax.cli.main import main
from optiml_jax.model.architectures import config_from_dict
from optiml_jax.model.attention import DocumentMask
from optiml_jax.model.decoder import abstract_model
from optiml_jax.sharding.rules import abstract_params

NAMES = ("vocab.json", "merges.txt")
ENTRIES = len(opt_entries())


def convert(**settings) -> int:
    gin.clear_config()
    return main(["convert", *(f"--gin.Convert.{k}={v}" for k, v in settings.items())])


def source(folder, rows, dtype="float32", **more):
    """A Hugging Face OPT folder whose embedding has so many rows."""
    config = dataclasses.replace(opt_cases.CASES["pre_norm"], vocab_size=rows)
    tensors = {k: v.astype(dtype) for k, v in opt_cases.random_tensors(config).items()}
    opt_cases.write_folder(folder, config, tensors)
    values = {**opt_cases.config_json(config), **more}
    (folder / "config.json").write_text(json.dumps(values))
    write_opt(folder, names=NAMES)
    return tensors


@pytest.mark.parametrize("rows", [ENTRIES, ENTRIES + 1, ENTRIES + 15])
def test_any_vocabulary_size_comes_back_bit_for_bit(rows, tmp_path):
    tensors = source(tmp_path / "in", rows, "float16", eos_token_id=[2, 5])
    assert convert(source=tmp_path / "in", destination=tmp_path / "ours") == 0
    shutil.rmtree(tmp_path / "in")  # what the checkpoint needs lies in it
    model = config_from_dict(load_metadata(tmp_path / "ours")["model"])
    assert model.vocab_size % 8 == 0
    assert model.vocab_size - model.vocab_padding == rows
    assert (model.eos_id, model.more_eos_ids) == (2, (5,))
    (tmp_path / "ours").rename(tmp_path / "moved")
    out = tmp_path / "out"
    assert convert(source=tmp_path / "moved", destination=out, to="huggingface") == 0
    written = load_file(out / "model.safetensors")
    assert set(written) == set(tensors)
    for name, tensor in tensors.items():
        assert written[name].dtype == np.float16
        np.testing.assert_array_equal(written[name], tensor, err_msg=name)
    config = json.loads((out / "config.json").read_text())
    assert (config["vocab_size"], config["eos_token_id"]) == (rows, [2, 5])
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == [2, 5]
    assert {*NAMES, "tokenizer_config.json", "README.md"} <= {p.name for p in out.iterdir()}
    assert "weights read from `" in (out / "README.md").read_text()


@pytest.mark.parametrize("form", ["pair", "whole", "added"])
def test_every_form_of_tokenizer_goes_there_and_back_with_equal_ids(form, tmp_path):
    """Against transformers on the folders; the source is gone when the export is made."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    from test_tokenizer_vocabulary import AWKWARD, opt_folder

    folder = tmp_path / "in"
    tensors = source(folder, ENTRIES + 3)
    if form != "pair":
        for name in NAMES:
            (folder / name).unlink()
        config = (folder / "config.json").read_bytes()
        opt_folder(folder, added=["foo bar"] if form == "added" else ())
        (folder / "config.json").write_bytes(config)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    expected = [tokenizer.encode(text, add_special_tokens=False) for text in AWKWARD]
    assert convert(source=folder, destination=tmp_path / "ours") == 0
    shutil.rmtree(folder)
    out = tmp_path / "out"
    assert convert(source=tmp_path / "ours", destination=out, to="huggingface") == 0
    after = transformers.AutoTokenizer.from_pretrained(out)
    assert [after.encode(text, add_special_tokens=False) for text in AWKWARD] == expected
    written = load_file(out / "model.safetensors")
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(written[name], tensor, err_msg=name)


def test_padding_rows_change_no_probability(tmp_path):
    """The padded model gives the words what transformers gives them, and the padding nothing."""
    pytest.importorskip("torch", reason="torch is not installed")
    source(tmp_path / "in", ENTRIES + 1)
    tokens = np.random.default_rng(7).integers(3, ENTRIES, (3, 20))
    theirs = opt_cases.torch_outputs(tmp_path / "in", tokens)["logits"]
    assert convert(source=tmp_path / "in", destination=tmp_path / "ours") == 0
    config = config_from_dict(load_metadata(tmp_path / "ours")["model"])
    params = load_params(tmp_path / "ours", abstract_params(config))
    model = nnx.merge(abstract_model(config)[0], params)
    positions = np.broadcast_to(np.arange(20), tokens.shape)
    logits = model(tokens.astype("i4"), positions, DocumentMask(np.ones(tokens.shape, "i4")))
    np.testing.assert_allclose(logits[..., : ENTRIES + 1], theirs, atol=1e-4)
    assert config.vocab_padding
    assert not np.exp(jax.nn.log_softmax(logits)[..., ENTRIES + 1 :]).any()


def test_the_stored_type_is_chosen(tmp_path):
    tensors = source(tmp_path / "in", ENTRIES + 3)
    assert convert(source=tmp_path / "in", destination=tmp_path / "a", dtype="bfloat16") == 0
    assert convert(source=tmp_path / "a", destination=tmp_path / "b", to="huggingface") == 0
    written = load_file(tmp_path / "b" / "model.safetensors")
    assert {str(tensor.dtype) for tensor in written.values()} == {"bfloat16"}
    name = "model.decoder.embed_tokens.weight"
    expected = tensors[name].astype(written[name].dtype)
    np.testing.assert_array_equal(written[name], expected)
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    assert "bfloat16" in (config.get("torch_dtype"), config.get("dtype"))


def test_mistakes_are_one_line(tmp_path, capsys):
    source(tmp_path / "in", ENTRIES - 3)
    assert convert(source=tmp_path / "in", destination=tmp_path / "a") == 2
    assert f"an embedding of {ENTRIES - 3} rows" in capsys.readouterr().err
    assert convert(source=tmp_path / "in", destination=tmp_path / "in") == 2
    assert "exists already" in capsys.readouterr().err
    source(tmp_path / "good", ENTRIES)
    assert convert(source=tmp_path / "good", destination=tmp_path / "a", dtype="int4") == 2
    assert "cannot store tensors as 'int4'" in capsys.readouterr().err
    assert convert(source=tmp_path / "good", destination=tmp_path / "a") == 0
    *most, one, two = opt_entries()
    entries = {token: i for i, token in enumerate([*most, two, one])}
    other = write_opt(tmp_path / "other", entries=entries)
    there = {"to": "huggingface", "vocabulary": f"opt:{other}"}
    assert convert(source=tmp_path / "a", destination=tmp_path / "b", **there) == 2
    assert "not the vocabulary that" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "good", "in", "other"]
