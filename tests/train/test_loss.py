import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optiml_jax.sharding.mesh import MeshConfig, make_mesh
from optiml_jax.sharding.rules import use_mesh
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


@pytest.mark.parametrize("devices", [1, 2])
def test_no_logits_are_computed_where_no_device_has_a_label(devices):
    """Rows of 12 positions with 36 labels, or 18 on each of two devices: two chunks of four."""
    rng = np.random.default_rng(1)
    hidden, table = rng.normal(size=(6, L, D)), rng.normal(size=(V, D))
    hidden, table = jnp.asarray(hidden, jnp.float32), jnp.asarray(table, jnp.float32)
    targets = jnp.asarray(rng.integers(0, V, (6, L)), jnp.int32)
    weights = np.zeros((6, L), np.float32)
    for row, labels in zip(weights, (4, 10, 4, 0, 9, 9), strict=True):
        row[rng.choice(L, labels, replace=False)] = rng.uniform(0.5, 1, labels)
    known = jnp.where(weights[..., None] > 0, hidden, 0)
    expected = jax.value_and_grad(plain, (0, 1), has_aux=True)(known, table, targets, weights)
    # What is read at another position makes everything NaN.
    hidden = jnp.where(weights[..., None] > 0, hidden, jnp.nan)
    mesh = make_mesh(MeshConfig(devices, 1, 1), jax.devices()[:devices])
    with use_mesh(mesh):
        function = functools.partial(chunked, chunk=3)
        found = jax.jit(jax.value_and_grad(function, (0, 1), has_aux=True))(
            hidden, table, targets, weights
        )
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_cotangent_and_a_table_that_is_not_trained(inputs):
    """Three times the loss has three times the gradient; without one, the table costs nothing."""
    _, expected = jax.vjp(lambda *x: plain(*x, *inputs[2:])[0], *inputs[:2])
    _, ours = jax.vjp(lambda *x: chunked(*x, *inputs[2:], 4)[0], *inputs[:2])
    for found, known in zip(ours(3.0), expected(3.0), strict=True):
        np.testing.assert_allclose(found, known, rtol=1e-5, atol=1e-6)

    def products(function):
        text = str(jax.make_jaxpr(function)(inputs[0]))
        return text.count("dot_general")

    fixed = products(jax.grad(lambda hidden: chunked(hidden, *inputs[1:], 4)[0]))
    assert fixed == 2  # logits, and the gradient of what they are made of
    both = jax.grad(lambda hidden, table: chunked(hidden, table, *inputs[2:], 4)[0], (0, 1))
    assert products(lambda hidden: both(hidden, inputs[1])) == 3


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
