"""Adapters as PEFT's folders, both ways, against the `peft` library with torch."""

import json
import pathlib
import sys

import gin
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

sys.path.append(str(pathlib.Path(__file__).parents[1] / "model"))
import llama_cases
import opt_cases

from optiml_jax.checkpoint.adapters import (
    describe_base,
    load_model_params,
    read_peft,
    write_peft,
)
from optiml_jax.checkpoint.conversion import into_checkpoint, open_weights, save_params
from optiml_jax.checkpoint.huggingface import read_config
from optiml_jax.cli.main import main
from optiml_jax.errors import UserError
from optiml_jax.model.attention import DocumentMask
from optiml_jax.model.config import DecoderConfig
from optiml_jax.model.decoder import abstract_model
from optiml_jax.model.lora import split_params
from optiml_jax.sharding.rules import abstract_params

CASES = {
    "opt": (opt_cases, opt_cases.CASES["pre_norm"], ("k_proj", "fc2")),
    "llama_3": (llama_cases, llama_cases.CASES["llama_3"], ("q_proj", "o_proj", "down_proj")),
}
ABSENT = "peft or torch is not installed"


@pytest.fixture(params=CASES)
def folder(request, tmp_path):
    """(Hugging Face folder, tokens, names of matrices that shall be adapted)."""
    module, case, targets = CASES[request.param]
    module.write_folder(tmp_path / "hf", case)
    return tmp_path / "hf", module.random_tokens(case), targets


def _checkpoint(folder: pathlib.Path, destination: pathlib.Path) -> DecoderConfig:
    with open_weights(str(folder)) as weights:
        metadata = {"model": weights.config.to_dict(), "vocabulary": {"spec": "none"}, "bos_id": 0}
        into_checkpoint(weights, destination, metadata)
        return weights.config


def _save(adapters, config, base, destination) -> None:
    metadata = {"model": config.to_dict(), "base": describe_base(base)}
    metadata |= {"vocabulary": {"spec": "none"}, "bos_id": 0, "step": 0}
    save_params(jax.tree.map(jnp.asarray, adapters), destination, metadata, None)


def _logits(config: DecoderConfig, params, tokens) -> np.ndarray:
    model = nnx.merge(abstract_model(config)[0], params)
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    return np.asarray(
        model(jnp.asarray(tokens, jnp.int32), positions, DocumentMask(jnp.ones_like(positions)))
    )


def _torch_logits(model, tokens) -> np.ndarray:
    import torch

    with torch.no_grad():
        return model(torch.asarray(tokens)).logits.numpy()


def _random(tree):
    generator = np.random.default_rng(5)
    return jax.tree.map(
        lambda x: (0.2 * generator.standard_normal(x.shape)).astype(np.float32), tree
    )


def test_peft_loads_our_adapters_with_equal_logits(folder, tmp_path):
    peft = pytest.importorskip("peft", reason=ABSENT)
    pytest.importorskip("torch", reason=ABSENT)
    source, tokens, _ = folder
    plain = _checkpoint(source, tmp_path / "base")
    values = {**plain.to_dict(), "lora_rank": 4, "lora_alpha": 8.0}
    adapted = type(plain)(**{k: v for k, v in values.items() if k != "architecture"})
    _save(
        _random(split_params(abstract_params(adapted))[0]),
        adapted,
        tmp_path / "base",
        tmp_path / "a",
    )
    (tmp_path / "peft").mkdir()
    write_peft(tmp_path / "a", tmp_path / "peft", str(source))
    theirs = peft.PeftModel.from_pretrained(llama_cases.torch_model(source), tmp_path / "peft")
    params = load_model_params(tmp_path / "a", abstract_params(plain))
    logits, expected = _logits(plain, params, tokens), _torch_logits(theirs.eval(), tokens)
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    without = _logits(plain, load_model_params(tmp_path / "base", abstract_params(plain)), tokens)
    assert np.abs(logits - without).max() > 0.1
    # And the merged model as Hugging Face's.
    gin.clear_config()
    settings = {"source": tmp_path / "a", "destination": tmp_path / "out", "to": "huggingface"}
    assert main(["convert", *(f"--gin.Convert.{k}={v}" for k, v in settings.items())]) == 0
    merged = _torch_logits(llama_cases.torch_model(tmp_path / "out"), tokens)
    np.testing.assert_allclose(merged, expected, atol=1e-4)


@pytest.mark.parametrize("rslora", [False, True])
def test_adapters_of_peft_are_read_with_equal_logits(folder, rslora, tmp_path):
    peft = pytest.importorskip("peft", reason=ABSENT)
    torch = pytest.importorskip("torch", reason=ABSENT)
    source, tokens, targets = folder
    torch.manual_seed(0)
    config = peft.LoraConfig(
        r=3, lora_alpha=5, target_modules=[*targets], use_rslora=rslora, init_lora_weights=False
    )
    theirs = peft.get_peft_model(llama_cases.torch_model(source), config).eval()
    theirs.save_pretrained(tmp_path / "peft")
    plain = _checkpoint(source, tmp_path / "base")
    adapted, adapters = read_peft(tmp_path / "peft", plain)
    assert len(adapted.lora_targets) == len(targets)
    _save(adapters, adapted, tmp_path / "base", tmp_path / "a")
    params = load_model_params(tmp_path / "a", abstract_params(plain))
    expected = _torch_logits(theirs, tokens)
    np.testing.assert_allclose(_logits(plain, params, tokens), expected, atol=1e-4)
    # And back: every number as it was.
    (tmp_path / "again").mkdir()
    write_peft(tmp_path / "a", tmp_path / "again", "x")
    import safetensors.numpy as files

    before, after = (
        files.load_file(tmp_path / name / "adapter_model.safetensors") for name in ("peft", "again")
    )
    assert before.keys() == after.keys()
    for name in before:
        np.testing.assert_array_equal(before[name], after[name])


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"use_dora": True}, "use_dora is True; only False"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3'; only 'LORA'"),
        ({"alora_invocation_tokens": [5, 6]}, "alora_invocation_tokens is .5, 6.; only None"),
        ({"layer_replication": [[0, 1], [0, 1]]}, "layer_replication is .*; only None"),
        ({"kasa_config": {"beta": 1}}, "kasa_config is .*; only None"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is .'lm_head'.; only None"),
    ],
)
def test_what_is_not_plain_lora_is_refused(values, named, tmp_path):
    llama_cases.write_folder(tmp_path, llama_cases.CASES["llama_3"])
    values = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, **values}
    (tmp_path / "adapter_config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=named):
        read_peft(tmp_path, read_config(tmp_path))


def test_adapters_of_a_base_that_their_initialisation_changed_are_refused(tmp_path):
    llama_cases.write_folder(tmp_path, llama_cases.CASES["llama_3"])

    def read(init):
        values = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "init_lora_weights": init}
        (tmp_path / "adapter_config.json").write_text(json.dumps(values))
        read_peft(tmp_path, read_config(tmp_path))

    for init in ("pissa", "pissa_niter_4", "olora", "OLoRA", "corda", "lora_ga", "loftq"):
        with pytest.raises(UserError, match=f"init_lora_weights is '{init}'.*changed base"):
            read(init)
    for init in (True, False, "gaussian", "eva", "orthogonal", "mica"):  # the base is as it was
        with pytest.raises(UserError, match=r"adapter_model\.safetensors is missing"):
            read(init)
