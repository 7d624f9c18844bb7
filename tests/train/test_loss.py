import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optiml_jax.train.loss import label_loss

B, L, D, V = 3, 12, 8, 50


@pytest.fixture
def inputs():
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(B, L, D)), jnp.float32)
    table = jnp.asarray(rng.normal(size=(V, D)), jnp.float32)
    targets = jnp.asarray(rng.integers(0, V, (B, L)), jnp.int32)
    weights = jnp.asarray(rng.integers(0, 2, (B, L)), jnp.float32).at[1].set(0)
    return hidden, table, targets, weights


def chunked(hidden, table, targets, weights, chunk):
    return label_loss(hidden, lambda h: h @ table.T, targets, weights, chunk)


def plain(hidden, table, targets, weights):
    log_probabilities = jax.nn.log_softmax(hidden @ table.T)
    picked = jnp.take_along_axis(log_probabilities, targets[..., None], -1)[..., 0]
    return -jnp.sum(picked * weights), jnp.sum(weights)


@pytest.mark.parametrize("chunk", [1, 4, 5, 12, 1000])
def test_chunks_give_the_loss_and_gradient_of_the_whole(inputs, chunk):
    (total, weight), gradients = jax.value_and_grad(chunked, (0, 1), has_aux=True)(*inputs, chunk)
    (expected, count), expected_gradients = jax.value_and_grad(plain, (0, 1), has_aux=True)(*inputs)
    assert weight == count
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    assert not np.any(gradients[0][np.asarray(inputs[3]) == 0])


def sizes(jaxpr):
    """The number of elements of every float value in a jaxpr and the ones inside it."""
    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            if jnp.issubdtype(variable.aval.dtype, jnp.floating):
                yield variable.aval.size
        for inner in jax.core.jaxprs_in_params(equation.params):
            yield from sizes(inner)


def test_the_logits_of_a_whole_batch_never_exist(inputs):
    def gradient(chunk):
        function = jax.grad(lambda *x: chunked(*x, chunk)[0], (0, 1))
        return max(sizes(jax.make_jaxpr(function)(*inputs).jaxpr))

    assert gradient(chunk=L) >= B * L * V  # the measure sees them where they do exist
    assert gradient(chunk=3) <= B * 3 * V


def test_float32_is_used_for_bfloat16_logits(inputs):
    hidden, table, targets, weights = inputs
    low = chunked(hidden.astype(jnp.bfloat16), table.astype(jnp.bfloat16), targets, weights, 4)
    assert low[0].dtype == jnp.float32
    np.testing.assert_allclose(low[0], plain(*inputs)[0], rtol=2e-2)
