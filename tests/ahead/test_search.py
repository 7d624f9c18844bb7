"""Settings that fit are found cheapest first, and hopeless ones are not compiled."""

import dataclasses

import pytest

from optiml_jax.ahead.compile import Findings, settings
from optiml_jax.ahead.search import candidates, changes_that_fit
from optiml_jax.ahead.targets import parse_target
from optiml_jax.ahead.worker import Job
from optiml_jax.model.architectures import model_config
from optiml_jax.sharding.mesh import MeshConfig
from optiml_jax.train.config import TrainConfig
from optiml_jax.train.optimizer import OptimizerConfig


@pytest.fixture
def job():
    return Job(
        target=parse_target("gpu:a100-40g:8x8"),
        program="train",
        config=TrainConfig(plan_dir="", run_dir="", num_steps=4000, global_batch_size=256),
        model=model_config("30b", dtype="bfloat16", remat="full"),
        optimizer=OptimizerConfig(),
        mesh=MeshConfig(tensor=2),
        length=2048,
    )


def findings(job, peak):
    return Findings(
        job,
        64,
        {},
        5.0,
        peak - 5,
        peak,
        0.0,
        256,
        2048,
        job.target.accelerator.usable,
        (),
        2e18,
        1e18,
        None,
        1,
        1,
    )


def test_candidates_go_together_and_differ(job):
    others = candidates(job)
    assert len({settings(other) for other in others}) == len(others) > 20
    for other in others:
        assert settings(other) != settings(job)
        fsdp = 64 // other.mesh.tensor
        assert 256 % (fsdp * other.config.num_microbatches) == 0
        assert 56 % other.mesh.tensor == 0


def test_three_changes_are_found_and_hopeless_ones_skipped(job):
    tried = []

    def compile_one(job):
        tried.append(job)
        return findings(job, 30.0 if job.config.num_microbatches >= 2 else 60.0)

    fitting = changes_that_fit(findings(job, 60.0), compile_one=compile_one)
    assert [f.fits for f in fitting] == [True] * 3
    assert all(f.job.config.num_microbatches >= 2 for f in fitting)
    # Without tensor groups, a standard preset and the same microbatches need only more.
    assert not any(
        t.config.num_microbatches == 1 and t.mesh.tensor <= 2 and t.mesh.preset == "standard"
        for t in tried
    )


def test_many_small_microbatches_are_reached_in_few_tries(job):
    """1.3B with 256 rows an update on one device: the activations of 8 rows at a time fit."""
    job = dataclasses.replace(
        job,
        target=parse_target("gpu:a100-40g:1x1"),
        model=model_config("1.3b", dtype="bfloat16", remat="full"),
        mesh=MeshConfig(),
    )
    kept = {"none": 4000, "dots": 3000, "attention": 700, "full": 500, "offload": 400}

    def compile_one(job):
        temporaries = 3 + kept[job.model.remat] / job.config.num_microbatches
        return findings(job, 5 + temporaries)

    fitting = changes_that_fit(compile_one(job), compile_one=compile_one)
    costs = [(f.job.model.remat, f.job.config.num_microbatches) for f in fitting]
    assert costs == [("none", 256), ("dots", 128), ("dots", 256)]


def test_what_microbatches_do_not_shrink_is_known_or_learnt(job):
    """6.7B on two A100-80, with temporaries as its compilations show: most are constant."""
    job = dataclasses.replace(
        job,
        target=parse_target("gpu:a100-80g:1x2"),
        model=model_config("6.7b", dtype="bfloat16", remat="offload"),
        mesh=MeshConfig(tensor=2, preset="sequence"),
    )
    of_all_rows = {"none": 1400, "dots": 660, "attention": 660, "full": 115, "offload": 77}

    def compile_one(job):
        micro = job.config.num_microbatches
        temporaries = (36.3 if micro > 1 else 24.9) + of_all_rows[job.model.remat] / micro
        made = findings(job, 37.2 + temporaries)
        return dataclasses.replace(made, arguments=37.2, temporaries=temporaries)

    fitting = changes_that_fit(compile_one(job), compile_one=compile_one)
    assert len(fitting) >= 2
    assert {f.job.model.remat for f in fitting} <= {"dots", "attention", "full", "offload"}


def test_changes_of_an_evaluation_are_smaller_batches_and_weights(job):
    job = dataclasses.replace(job, program="decode", tokens_per_batch=65536)

    def compile_one(job):
        return findings(job, 30.0 if job.tokens_per_batch <= 16384 else 60.0)

    fitting = changes_that_fit(findings(job, 60.0), compile_one=compile_one)
    assert [f.fits for f in fitting] == [True] * 3
    assert max(f.job.tokens_per_batch for f in fitting) == fitting[0].job.tokens_per_batch == 16384
    assert {f.job.config for f in fitting} == {job.config}
    assert "EvalConfig.tokens_per_batch=16384" in settings(fitting[0].job)


def test_bounds_are_those_of_the_data_sheet(job):
    bounds = findings(job, 20.0).bounds()
    assert bounds["compute"] == pytest.approx(2e18 / 64 / 312e12)
    assert bounds["memory"] == pytest.approx(2 * 5 * 2**30 / 1555e9)
    # TF32 at half the rate, float8 at twice it; TPUs multiply float32 as bfloat16.
    for target, dtype, matmul, rate in (
        ("gpu:h100:8x8", "float32", "dtype", 989e12 / 2),
        ("gpu:h100:8x8", "bfloat16", "float8", 989e12 * 2),
        ("tpu:v5p:4x4x4", "float32", "dtype", 459e12),
    ):
        model = dataclasses.replace(job.model, dtype=dtype, matmul=matmul)
        other = dataclasses.replace(job, target=parse_target(target), model=model)
        found = findings(other, 20.0).bounds()["compute"]
        assert found == pytest.approx(2e18 / 64 / rate, rel=0.01)
    assert not dataclasses.replace(findings(job, 50.0)).fits
