"""Logits equal those of Hugging Face's OPTForCausalLM: stored ones always, live where torch is."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import opt_cases
import pytest
from flax import nnx

from optiml_jax.checkpoint.huggingface import read_huggingface
from optiml_jax.model.attention import DocumentMask
from optiml_jax.model.decoder import abstract_model

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"
ABSENT = "torch is not installed; the goldens of tests/goldens stand in"


def _outputs(folder):
    config, params = read_huggingface(folder)
    tokens = jnp.asarray(opt_cases.random_tokens(config), jnp.int32)
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    graphdef, _ = abstract_model(config)

    @jax.jit
    def run(params):
        model = nnx.merge(graphdef, params)
        mask = DocumentMask(jnp.ones_like(tokens))
        return model(tokens, positions, mask), model.hidden(tokens, positions, mask)

    logits, hidden = run(params)
    return {"logits": np.asarray(logits), "hidden": np.asarray(hidden)}


@pytest.mark.parametrize("case", opt_cases.CASES)
def test_outputs_equal_the_stored_ones_of_hugging_face(case, tmp_path):
    outputs = _outputs(opt_cases.write_folder(tmp_path, opt_cases.CASES[case]))
    with np.load(GOLDENS / f"opt_{case}.npz") as golden:
        assert set(golden) == set(outputs)
        for name in golden:
            assert np.abs(golden[name]).max() > 1  # a golden of zeros would prove nothing
            np.testing.assert_allclose(outputs[name], golden[name], atol=1e-4)


@pytest.mark.parametrize("case", opt_cases.CASES)
def test_outputs_equal_hugging_face_live(case, tmp_path):
    pytest.importorskip("torch", reason=ABSENT)
    pytest.importorskip("transformers", reason=ABSENT)
    config = opt_cases.CASES[case]
    outputs = _outputs(opt_cases.write_folder(tmp_path, config))
    live = opt_cases.torch_outputs(tmp_path, opt_cases.random_tokens(config))
    with np.load(GOLDENS / f"opt_{case}.npz") as golden:
        for name in outputs:
            np.testing.assert_allclose(outputs[name], live[name], atol=1e-4)
            np.testing.assert_allclose(golden[name], live[name], atol=1e-4)
