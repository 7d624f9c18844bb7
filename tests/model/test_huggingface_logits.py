"""Logits and gradients equal those of Hugging Face's models, stored and, where torch is, live."""

import pathlib

import jax
import jax.numpy as jnp
import llama_cases
import numpy as np
import opt_cases
import pytest
from flax import nnx
from reading import read_model

from optiml_jax.model.attention import DocumentMask
from optiml_jax.model.decoder import abstract_model, huggingface_tensors

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"
ABSENT = "torch is not installed; the goldens of tests/goldens stand in"


# Golden file -> (the module that writes its folder, what it writes).
CASES = {f"opt_{name}": (opt_cases, case) for name, case in opt_cases.CASES.items()}
CASES |= {name: (llama_cases, case) for name, case in llama_cases.CASES.items()}


def _outputs(folder, tokens):
    config, params = read_model(folder)
    tokens = jnp.asarray(tokens, jnp.int32)
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    graphdef, _ = abstract_model(config)

    @jax.jit
    def run(params):
        model = nnx.merge(graphdef, params)
        mask = DocumentMask(jnp.ones_like(tokens))
        return model(tokens, positions, mask), model.hidden(tokens, positions, mask)

    logits, hidden = run(params)
    return {"logits": np.asarray(logits), "hidden": np.asarray(hidden)}


@pytest.mark.parametrize("name", CASES)
def test_outputs_equal_the_stored_ones_of_hugging_face(name, tmp_path):
    cases, case = CASES[name]
    outputs = _outputs(cases.write_folder(tmp_path, case), cases.random_tokens(case))
    with np.load(GOLDENS / f"{name}.npz") as golden:
        assert set(golden) == set(outputs)
        for part in golden:
            assert np.abs(golden[part]).max() > 1  # a golden of zeros would prove nothing
            np.testing.assert_allclose(outputs[part], golden[part], atol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_outputs_equal_hugging_face_live(name, tmp_path):
    pytest.importorskip("torch", reason=ABSENT)
    pytest.importorskip("transformers", reason=ABSENT)
    cases, case = CASES[name]
    tokens = cases.random_tokens(case)
    outputs = _outputs(cases.write_folder(tmp_path, case), tokens)
    live = cases.torch_outputs(tmp_path, tokens)
    with np.load(GOLDENS / f"{name}.npz") as golden:
        for part in outputs:
            np.testing.assert_allclose(outputs[part], live[part], atol=1e-4)
            np.testing.assert_allclose(golden[part], live[part], atol=1e-4)


@pytest.mark.parametrize("name", llama_cases.CASES)
def test_left_padding_changes_no_logits(name, tmp_path):
    """Padding in front, as Hugging Face batches prompts; the positions begin behind it."""
    case = llama_cases.CASES[name]
    config, params = read_model(llama_cases.write_folder(tmp_path, case))
    tokens = llama_cases.random_tokens(case).astype(np.int32)
    padding = np.array([0, 4, 9])
    segments = (np.arange(20) >= padding[:, None]).astype(np.int32)
    positions = np.maximum(np.arange(20) - padding[:, None], 0)
    model = nnx.merge(abstract_model(config)[0], params)
    logits = model(tokens, positions, DocumentMask(jnp.asarray(segments)))
    for row, start in enumerate(padding):
        alone = _outputs(tmp_path, tokens[row : row + 1, start:])["logits"]
        np.testing.assert_allclose(logits[row, start:], alone[0], atol=1e-4)


LLAMAS = llama_cases.CASES | llama_cases.OTHER_HEADS


@pytest.mark.parametrize("name", LLAMAS)
def test_logits_and_gradients_equal_those_of_torch_in_double_precision(name, tmp_path):
    torch = pytest.importorskip("torch", reason=ABSENT)
    folder = llama_cases.write_folder(tmp_path, LLAMAS[name])
    tokens = llama_cases.random_tokens(LLAMAS[name])
    theirs = llama_cases.torch_model(folder).double()
    output = theirs(torch.asarray(tokens), labels=torch.asarray(tokens))
    output.loss.backward()
    expected = {key: value.grad.numpy() for key, value in theirs.named_parameters()}
    config, params = read_model(folder)
    graphdef = abstract_model(config)[0]
    ids = jnp.asarray(tokens, jnp.int32)
    positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)

    def loss(params):
        logits = nnx.merge(graphdef, params)(ids, positions, DocumentMask(jnp.ones_like(ids)))
        logprobs = jax.nn.log_softmax(logits[:, :-1])
        return -jnp.take_along_axis(logprobs, ids[:, 1:, None], -1).mean(), logits

    gradient, logits = jax.jit(jax.grad(loss, has_aux=True))(params)
    np.testing.assert_allclose(logits, output.logits.detach().numpy(), atol=1e-4)
    compared = 0
    for layout in huggingface_tensors(config):
        ours = gradient
        for key in layout.path:
            ours = ours[key]
        for i, key in enumerate(layout.names()):
            value = np.asarray(ours if layout.num_layers is None else ours[i])
            np.testing.assert_allclose(layout.theirs(value), expected[key], atol=1e-5)
            compared += 1
    assert compared == len(expected)
