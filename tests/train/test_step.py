import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_run
from flax import nnx

from optiml_jax.data.loader import read_rows
from optiml_jax.data.plan import Plan
from optiml_jax.model.attention import DocumentMask
from optiml_jax.model.decoder import abstract_model, init_params
from optiml_jax.model.layers import product
from optiml_jax.sharding.mesh import MeshConfig, make_mesh
from optiml_jax.sharding.rules import batch_sharding, use_mesh
from optiml_jax.train.config import TrainConfig
from optiml_jax.train.optimizer import OptimizerConfig
from optiml_jax.train.programs import trace_train_step
from optiml_jax.train.state import TrainState, abstract_state
from optiml_jax.train.step import make_train_step

BATCH = 16


@pytest.fixture(scope="module")
def batches(plan_dir):
    """Five batches; the rows of one differ widely in the number of target tokens."""
    plan = Plan.load(plan_dir)
    batches = [read_rows(plan, range(step * BATCH, (step + 1) * BATCH)) for step in range(5)]
    for batch in batches:
        batch["loss_weights"][::2] *= np.arange(32) % 3 == 0
    return batches


@functools.cache
def initial_params(decoder="opt"):
    return jax.device_get(init_params(model_config(decoder), 3)[1])


def model_config(decoder, **changed):
    return tiny_run.configs("", "", model=tiny_run.DECODERS[decoder] | changed)[1]


def run(batches, mesh, microbatches=1, model=None, decoder="opt", **optimizer):
    """What every step measured, and the last parameters, after one step per batch."""
    config, start = model_config(decoder, **(model or {})), initial_params(decoder)
    mesh = make_mesh(MeshConfig(*mesh), jax.devices()[: np.prod(mesh)])
    # With a large epsilon Adam's update is a smooth function of the gradient: rounding stays small.
    smooth = {"learning_rate": 1e-2, "warmup_steps": 2, "epsilon": 1e-2}
    optimizer = OptimizerConfig(**(smooth | optimizer))
    function = make_train_step(
        abstract_model(config)[0],
        config,
        optimizer,
        num_steps=10,
        num_microbatches=microbatches,
        seed=3,
        chunk=8,
    )
    with use_mesh(mesh):
        abstract = abstract_state(config, optimizer, mesh, "standard")
        shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
        zeros = jax.tree.map(np.zeros_like, start)
        state = TrainState(np.int32(0), start, {"mu": zeros, "nu": zeros})
        state = jax.device_put(state, shardings)
        batches = [jax.device_put(batch, batch_sharding(mesh)) for batch in batches]
        step = jax.jit(function, donate_argnums=0, out_shardings=(shardings, None))
        # Compiling is most of the time of these tests.
        step = step.lower(state, batches[0]).compile({"xla_backend_optimization_level": 0})
        measured = []
        for batch in batches:
            state, numbers = step(state, batch)
            measured.append(jax.device_get(numbers))
    return measured, jax.device_get(state.params)


def series(measured, name):
    return np.array([numbers[name] for numbers in measured])


def assert_params_close(left, right, decoder):
    """They differ by at most a thousandth of what the updates changed, leaf by leaf.

    Another order of summation changes a float32 gradient by some 1e-5 of itself, and Adam passes
    that on; a wrong mean or a dropped row changes it by far more than 1e-3. A bound without the
    size of the updates would be the rounding of one processor.
    """

    def compare(a, b, start):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-3 * np.abs(b - start).max())

    jax.tree.map(compare, left, right, initial_params(decoder))


@pytest.fixture(scope="module")
def on_one_device(batches):
    """Decoder -> its run on one device."""
    return functools.cache(lambda decoder: run(batches, (1, 1, 1), decoder=decoder))


@pytest.mark.parametrize("decoder", tiny_run.DECODERS)
@pytest.mark.parametrize("mesh", [(1, 8, 1), (2, 2, 2), (8, 1, 1)])
def test_every_mesh_gives_the_same_losses_with_dropout_on(batches, on_one_device, mesh, decoder):
    measured, params = run(batches, mesh, decoder=decoder)
    expected, expected_params = on_one_device(decoder)
    for name in ("loss_sum", "gradient_norm", "loss_weight", "tokens"):
        np.testing.assert_allclose(series(measured, name), series(expected, name), rtol=1e-5)
    assert_params_close(params, expected_params, decoder)


@pytest.fixture(scope="module")
def without_dropout(batches):
    """Decoder -> its run on one device, without dropout."""
    still = {"dropout": 0.0}
    return functools.cache(lambda decoder: run(batches, (1, 1, 1), 1, still, decoder))


@pytest.mark.parametrize(
    ("mesh", "microbatches", "decoder"),
    [((1, 1, 1), 16, "opt"), ((2, 2, 1), 4, "opt"), ((2, 2, 1), 4, "llama")],
)
def test_accumulated_microbatches_are_the_big_batch(
    batches, without_dropout, mesh, microbatches, decoder
):
    whole, whole_params = without_dropout(decoder)
    model = {"dropout": 0.0, "remat": "offload"}  # which changes no number either
    pieces, pieces_params = run(batches, mesh, microbatches, model, decoder)
    parts = [(b, m) for b in batches for m in range(microbatches)]
    weights = [b["loss_weights"][m::microbatches].sum() for b, m in parts]
    assert max(weights) > 1.5 * min(weights)
    for name in ("loss_sum", "loss_weight", "gradient_norm"):
        np.testing.assert_allclose(series(pieces, name), series(whole, name), rtol=1e-5)
    assert_params_close(pieces_params, whole_params, decoder)


def test_microbatches_are_accumulated_in_one_tree_of_gradients():
    """XLA's own count of temporaries: the gradient of a microbatch is not beside their sum."""
    config = model_config("opt", d_model=128, num_layers=8, dropout=0.0)
    optimizer = OptimizerConfig(warmup_steps=1)
    mesh = make_mesh(MeshConfig(1, 2, 1), jax.devices()[:2])

    def temporaries(microbatches: int) -> int:
        run = TrainConfig(
            plan_dir="",
            run_dir="",
            num_steps=9,
            global_batch_size=2 * microbatches,
            num_microbatches=microbatches,
        )
        step = trace_train_step(run, config, optimizer, mesh, "standard", 32).lower().compile()
        return step.memory_analysis().temp_size_in_bytes

    one_tree = 4 * config.num_params / 2  # of one device
    assert temporaries(1) > one_tree  # the measure sees it
    assert temporaries(4) - temporaries(1) < 0.5 * one_tree


def test_gradients_of_kernels_are_added_up_in_the_type_of_the_kernel():
    """Sums of 4,096 products near 1: bfloat16, the type of the inputs, has 8 bits of them."""
    x = 1 + jax.random.uniform(jax.random.key(0), (4, 1024, 8)).astype("bfloat16")
    above = 1 + jax.random.uniform(jax.random.key(1), (4, 1024, 6)).astype("bfloat16")
    expected = np.einsum("bld,blf->df", np.asarray(x, "float64"), np.asarray(above, "float64"))
    for dtype, tolerance in (("float32", 1e-5), ("bfloat16", 2.0**-8)):
        kernel = jnp.ones((8, 6), dtype)
        gradient = jax.vjp(lambda kernel: product("bld,df->blf", x, kernel), kernel)[1](above)[0]
        assert gradient.dtype == dtype
        difference = np.abs(np.asarray(gradient, "float64") / expected - 1).max()
        assert difference < tolerance
    assert difference > 1e-4  # the last one was rounded


def test_bfloat16_gradients_train_as_float32_ones_to_rounding(batches, without_dropout):
    whole, whole_params = without_dropout("opt")
    measured, params = run(batches, (1, 4, 1), 2, {"dropout": 0.0}, gradient_dtype="bfloat16")
    norms, expected = (series(m, "gradient_norm") for m in (measured, whole))
    np.testing.assert_allclose(norms, expected, rtol=1e-2)
    assert (norms != expected).all()
    update = [
        np.concatenate([(a - b).ravel() for a, b in zip(*map(jax.tree.leaves, pair), strict=True)])
        for pair in ((params, initial_params()), (whole_params, initial_params()))
    ]
    assert np.linalg.norm(update[0] - update[1]) < 0.05 * np.linalg.norm(update[1])


def test_dropout_differs_between_steps_and_microbatches(batches):
    same = {name: np.repeat(rows[:1], BATCH, axis=0) for name, rows in batches[0].items()}
    first, second = series(run([same, same], (1, 1, 1), learning_rate=0.0)[0], "loss_sum")
    split = series(run([same], (1, 1, 1), 2)[0], "loss_sum")
    assert first != second
    assert split[0] not in (first, second)


@pytest.mark.parametrize("decoder", tiny_run.DECODERS)
def test_the_loss_is_the_negative_log_likelihood_of_the_target_tokens(
    batches, without_dropout, decoder
):
    batch = jax.tree.map(jnp.asarray, batches[0])
    model = nnx.merge(abstract_model(model_config(decoder))[0], initial_params(decoder))
    logits = model(batch["tokens"], batch["positions"], DocumentMask(batch["segment_ids"]))
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"])
    measured = without_dropout(decoder)[0][0]
    expected = jnp.sum(losses * batch["loss_weights"])
    np.testing.assert_allclose(measured["loss_sum"], expected, rtol=1e-5)
    assert measured["loss_weight"] == batches[0]["loss_weights"].sum()
    assert measured["tokens"] == (batches[0]["segment_ids"] != 0).sum()


def test_bfloat16_computes_the_same_loss_roughly_and_keeps_float32_state(batches, on_one_device):
    measured, params = run(batches, (1, 2, 1), 1, {"dtype": "bfloat16"})
    expected = series(on_one_device("opt")[0], "loss_sum")
    np.testing.assert_allclose(series(measured, "loss_sum"), expected, rtol=2e-2)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float32")}


def test_a_batch_without_targets_changes_nothing(batches):
    empty = batches[0] | {"loss_weights": np.zeros_like(batches[0]["loss_weights"])}
    measured, params = run([empty], (1, 1, 1))
    assert measured[0]["loss_sum"] == 0
    jax.tree.map(np.testing.assert_array_equal, params, initial_params())
