import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optiml_jax.errors import UserError
from optiml_jax.model.architectures import model_config
from optiml_jax.model.lora import split_params
from optiml_jax.sharding.mesh import MeshConfig, make_mesh
from optiml_jax.sharding.rules import abstract_params, logical_axes
from optiml_jax.train import transforms
from optiml_jax.train.optimizer import (
    OptimizerConfig,
    apply_gradient,
    learning_rate_at,
)


def test_learning_rate_is_exact_at_the_boundaries():
    config = OptimizerConfig(learning_rate=5e-5, warmup_steps=60)
    rate = [float(learning_rate_at(config, 4000, step)) for step in range(4001)]
    assert rate[0] == pytest.approx(5e-5 / 60)
    assert rate[59] == pytest.approx(5e-5)
    assert rate[60] == pytest.approx(5e-5)
    assert rate[30] == pytest.approx(5e-5 * 31 / 60)
    assert rate[2030] == pytest.approx(5e-5 / 2)
    assert rate[3999] == pytest.approx(5e-5 / 3940, rel=1e-5)
    assert rate[4000] == 0
    assert min(rate[:4000]) > 0


def test_without_warm_up_the_first_update_has_the_peak():
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=0)
    assert [float(learning_rate_at(config, 4, s)) for s in range(5)] == [1, 0.75, 0.5, 0.25, 0]


@pytest.mark.parametrize(
    ("settings", "pieces"),  # of Optax: (from, to, updates) in peaks
    [
        ({"schedule": "constant"}, [(1, 1, 16)]),
        ({"continued": {12: "constant"}}, [(1, 0, 8), (1 / 8, 1 / 8, 8)]),
        ({"continued": {12: "decay"}}, [(1, 0, 8), (8 / 16, 0, 8)]),
        (
            {"continued": {8: "decay", 12: "constant"}},
            [(1, 0, 4), (4 / 8, 0, 4), (1 / 8,) * 2 + (8,)],
        ),
        ({"schedule": "constant", "continued": {12: "decay"}}, [(1, 1, 8), (1, 0, 8)]),
        ({"schedule": "constant", "continued": {12: "constant"}}, [(1, 1, 16)]),
    ],
)
def test_continued_runs_have_the_learning_rates_that_were_asked_for(settings, pieces):
    config = OptimizerConfig(learning_rate=0.5, warmup_steps=4, **settings)
    config.check(20)
    ends = np.cumsum([4] + [piece[2] for piece in pieces])
    rising = optax.linear_schedule(0.5 / 4, 0.5 * 5 / 4, 4)
    parts = [rising] + [optax.linear_schedule(0.5 * a, 0.5 * b, n) for a, b, n in pieces]
    expected = optax.join_schedules(parts, ends[:-1].tolist())
    for step in range(20):
        rate = float(learning_rate_at(config, 20, jnp.int32(step)))
        assert rate == pytest.approx(float(expected(step)), rel=1e-5), step


def test_a_continued_cosine_takes_up_that_of_the_longer_run():
    def rates(num_steps, **more):
        config = OptimizerConfig(warmup_steps=4, schedule="cosine", **more)
        return [float(learning_rate_at(config, num_steps, jnp.int32(s))) for s in range(num_steps)]

    short, long = rates(12), rates(20)
    np.testing.assert_allclose(rates(20, continued={12: "decay"}), short + long[12:], rtol=1e-6)
    held = short + [short[-1]] * 8
    np.testing.assert_allclose(rates(20, continued={12: "constant"}), held, rtol=1e-6)


@pytest.mark.parametrize("continued", [{20: "decay"}, {12: "decay", 8: "constant"}, {3: "decay"}])
def test_ends_that_are_out_of_order_are_refused(continued):
    with pytest.raises(UserError, match=r"OptimizerConfig\..*TrainConfig.num_steps=20"):
        OptimizerConfig(warmup_steps=4, continued=continued).check(20)


def test_a_warm_up_longer_than_the_run_is_refused():
    with pytest.raises(UserError, match=r"warmup_steps=60 .*num_steps=50"):
        OptimizerConfig().check(50)


@pytest.mark.parametrize("gradient_scale", [1e-3, 10.0])
def test_updates_are_those_of_optax_adamw_after_clipping(gradient_scale):
    config = OptimizerConfig(learning_rate=1e-2, warmup_steps=2, weight_decay=0.1)
    reference = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(lambda n: learning_rate_at(config, 9, n), 0.9, 0.95, 1e-8, weight_decay=0.1),
    )
    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.normal(size=(4, 3)), jnp.float32), "b": jnp.ones(3)}
    expected, expected_state = params, reference.init(params)
    state = transforms.init_state(config.made(), params)
    for step in range(5):
        gradient = jax.tree.map(lambda p: gradient_scale * jnp.cos(p * 7), expected)
        updates, expected_state = reference.update(gradient, expected_state, expected)
        expected = optax.apply_updates(expected, updates)
        params, state, measured = apply_gradient(
            config, 9, jnp.int32(step), params, state, gradient
        )
        assert measured["gradient_norm"] == pytest.approx(float(optax.global_norm(gradient)))
        for name in params:
            np.testing.assert_allclose(params[name], expected[name], rtol=1e-5, atol=1e-7)
    assert jax.tree.all(jax.tree.map(lambda m: m.dtype == jnp.float32, state))


def test_schedules_after_the_warm_up_are_those_of_optax():
    cosine = OptimizerConfig(learning_rate=0.3, warmup_steps=2, schedule="cosine")
    reference = optax.cosine_decay_schedule(0.3, 10)
    for step in range(2, 12):
        rate = learning_rate_at(cosine, 12, step)
        assert rate == pytest.approx(float(reference(step - 2)), rel=1e-5)
    constant = OptimizerConfig(learning_rate=0.3, warmup_steps=2, schedule="constant")
    rates = [float(learning_rate_at(constant, 12, step)) for step in (0, 1, 7, 11)]
    assert rates == pytest.approx([0.15, 0.3, 0.3, 0.3])


MODEL = model_config("125m", vocab_size=512, d_model=128, num_layers=2, num_heads=4)
ADAFACTOR = optax.chain(optax.scale_by_factored_rms(decay_rate=0.7), optax.clip_by_block_rms(1.0))


@pytest.mark.parametrize(
    ("transform", "options", "reference"),
    [
        ("adafactor", {"decay_rate": 0.7}, ADAFACTOR),
        ("lion", {"b1": 0.8}, optax.scale_by_lion(b1=0.8)),
        ("optax.scale_by_rms", {}, optax.scale_by_rms()),
    ],
)
def test_named_transformations_are_those_of_optax(transform, options, reference):
    config = OptimizerConfig(
        learning_rate=1e-2, warmup_steps=0, clip_norm=0.0, transform=transform, options=options
    )
    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.normal(size=(2, 128, 130)), jnp.float32), "b": jnp.ones(3)}
    state, expected_state = transforms.init_state(config.made(), params), reference.init(params)
    expected = params
    for step in range(3):
        gradient = jax.tree.map(lambda p: jnp.cos(p * 7), expected)
        direction, expected_state = reference.update(gradient, expected_state, expected)
        rate = learning_rate_at(config, 9, step)
        expected = jax.tree.map(lambda p, d, rate=rate: p - rate * d, expected, direction)
        params, state, _ = apply_gradient(config, 9, jnp.int32(step), params, state, gradient)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), params, expected)


def test_muon_turns_the_kernels_of_blocks_into_nearly_orthogonal_updates():
    """Singular values near 0.2 * sqrt(larger side); tables take the step of Optax's NAdam."""
    config = OptimizerConfig(warmup_steps=0, clip_norm=0.0, transform="muon", learning_rate=1.0)
    axes, abstract = logical_axes(MODEL), abstract_params(MODEL)
    rng = np.random.default_rng(0)
    gradient = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), abstract)
    transform = config.made(axes)
    state = transforms.init_state(transform, gradient)
    update = jax.jit(lambda *rest: transforms.update(transform, *rest))
    direction, after = update(gradient, state, gradient, jnp.int32(0))
    blocks = direction["blocks"]
    query = blocks["attention"]["query"]["kernel"].reshape(2, 128, 128)
    for update in (query, blocks["wi"]["kernel"], blocks["wo"]["kernel"]):
        largest = 0.2 * np.sqrt(max(update.shape[1:]))
        values = np.linalg.svd(np.asarray(update), compute_uv=False)
        assert np.median(values) > 0.6 * largest
        assert values.max() < 1.3 * largest
    tables = {name: gradient[name] for name in ("token_embedding", "position_embedding")}
    nadam = optax.scale_by_adam(nesterov=True)
    expected = nadam.update(tables, nadam.init(tables))[0]
    for name, table in expected.items():
        np.testing.assert_allclose(direction[name], table, rtol=1e-4)
    assert jax.tree.structure(after) == jax.tree.structure(state)


LLAMA = model_config(
    architecture="llama",
    vocab_size=512,
    d_model=128,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
)


@pytest.mark.parametrize("transform", ["adam", "adafactor", "lion", "muon"])
@pytest.mark.parametrize("model", [MODEL, LLAMA], ids=["opt", "llama"])
def test_states_lie_as_their_parameters_and_have_the_type_asked_for(model, transform):
    config = OptimizerConfig(transform=transform, state_dtype="bfloat16")
    mesh = make_mesh(MeshConfig(1, 4, 2))
    params = abstract_params(model, mesh)
    made = config.made(logical_axes(model))
    abstract = transforms.abstract_state(made, params)
    real = jax.eval_shape(lambda p: transforms.init_state(made, p), params)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), abstract) == jax.tree.map(
        lambda x: (x.shape, x.dtype), real
    )
    for path, leaf in jax.tree.leaves_with_path(abstract):
        leaf.sharding.shard_shape(leaf.shape)  # divides
        names = [entry.key for entry in path]
        assert leaf.dtype == (jnp.float32 if "ns_coeffs" in names else jnp.bfloat16)
        if names[-2:] == ["wi", "kernel"]:
            param = params["blocks"]["wi"]["kernel"]
            if leaf.shape == param.shape:
                assert leaf.sharding == param.sharding
            elif leaf.size > 1:  # a factor: layers and one more dimension
                cut = set(leaf.sharding.spec) - {None}
                assert cut
                assert cut <= set(param.sharding.spec)


def test_muon_takes_both_matrices_of_an_adapter():
    """They get no second moment, which Adam would keep."""
    model = dataclasses.replace(MODEL, lora_rank=4)
    adapters, _ = split_params(abstract_params(model))
    state = jax.eval_shape(
        OptimizerConfig(transform="muon").made(logical_axes(model)).init, adapters
    )
    moments = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim > 1]
    assert len(moments) == len(jax.tree.leaves(adapters))


def test_unknown_transformations_and_options_are_refused_with_what_there_is():
    with pytest.raises(UserError, match=r"transform='adamw'.*adam, adafactor, lion, muon"):
        OptimizerConfig(transform="adamw").check(100)
    with pytest.raises(UserError, match=r"'lion'.*beta.*its arguments are b1, b2"):
        OptimizerConfig(transform="lion", options={"beta": 0.9}).check(100)
    with pytest.raises(UserError, match="does not return an optax"):
        OptimizerConfig(transform="optax.global_norm", options={"updates": 1.0}).check(100)
