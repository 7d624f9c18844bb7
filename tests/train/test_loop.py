import logging
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest
import tiny_run

from optiml_jax import interrupt
from optiml_jax.checkpoint.manager import load_metadata, load_params
from optiml_jax.errors import UserError
from optiml_jax.model.decoder import init_params
from optiml_jax.model.lora import split_params
from optiml_jax.sharding.rules import abstract_params
from optiml_jax.train import loop
from optiml_jax.train.goodput import KINDS
from optiml_jax.train.loop import train

# The tests run with 8 devices; rows of a batch are shared by all.
PURE_DATA = {"data": 8, "fsdp": 1}


@pytest.fixture
def run(plan_dir, compiled_once, caplog):
    """run(run_dir, *evaluation, **options of tiny_run.configs) -> log text."""
    caplog.set_level(logging.INFO)

    def run(run_dir, *evaluation, plan=plan_dir, mesh=PURE_DATA, **options):
        caplog.clear()
        assert train(*tiny_run.configs(plan, run_dir, mesh=mesh, **options), *evaluation) == 0
        return caplog.text

    return run


@pytest.fixture(scope="module")
def finished(plan_dir, compiled_once, tmp_path_factory):
    """A finished run of 12 steps with checkpoints 4, 8 and 12. To be copied, not changed."""
    run_dir = tmp_path_factory.mktemp("finished")
    assert train(*tiny_run.configs(plan_dir, run_dir, mesh=PURE_DATA)) == 0
    return run_dir


def params_of(path, model=None):
    """What was trained, from a checkpoint of a run with these options of the model."""
    config = tiny_run.configs("", "", model=model)[1]
    params = abstract_params(config)
    return jax.device_get(
        load_params(path, split_params(params)[0] if config.lora_rank else params)
    )


def test_a_run_reports_itself_on_lines_and_to_tensorboard(run, plan_dir, tmp_path, monkeypatch):
    train_options = {
        "profile_steps": (3, 4),
        "validation_plan_dir": str(plan_dir),
        "validate_every": 6,
        "validation_batches": 2,
        "peak_flops": 1e9,
    }
    stop_trace, hooks = jax.profiler.stop_trace, []

    def stop():
        hooks.append((sys.getprofile(), threading.getprofile()))
        stop_trace()

    monkeypatch.setattr(jax.profiler, "stop_trace", stop)
    said = run(tmp_path, train=train_options)
    assert hooks == [(None, None)]  # the profiler's are not safe beside the threads of a save
    assert "step 12/12: loss" in said
    trace = next((tmp_path / "tensorboard" / "plugins" / "profile").rglob("*.xplane.pb"))
    assert b"train_step" in trace.read_bytes()
    scalars = tiny_run.read_scalars(tmp_path)
    assert set(scalars) == {
        "loss",
        "perplexity",
        "gradient_norm",
        "learning_rate",
        "tokens_per_second",
        "non_pad_fraction",
        "step_seconds",
        "mfu",
        *(f"time/{name}" for name in ("goodput", "restarts")),
        *(f"time/{kind}_seconds" for kind in KINDS),
        "validation/loss",
        "validation/perplexity",
    }
    values = {tag: dict(points) for tag, points in scalars.items()}
    assert list(values["loss"]) == [2, 4, 6, 8, 10, 12]
    assert list(values["validation/loss"]) == [6, 12]
    assert values["loss"][12] < values["loss"][2]
    assert values["validation/loss"][12] < values["validation/loss"][6] < math.log(64)
    assert values["perplexity"][8] == pytest.approx(math.exp(values["loss"][8]), rel=1e-5)
    assert values["learning_rate"][2] == pytest.approx(1e-2 * 2 / 3)
    assert 0.8 < values["non_pad_fraction"][4] <= 1
    rate, seconds = values["tokens_per_second"][6], values["step_seconds"][6]
    assert rate * seconds == pytest.approx(8 * 32, rel=1e-4)
    model = tiny_run.configs("", "")[1]
    expected = model.flops_per_token(32) * rate / (8 * 1e9)
    assert values["mfu"][6] == pytest.approx(expected, rel=1e-4)
    for tag in ("time/checkpoint_seconds", "time/starting_seconds", "time/validation_seconds"):
        assert 0 < values[tag][12] < 600
    assert 0 < values["time/goodput"][12] < 1
    assert re.search(r"12 of 12 is saved in .*; goodput .* % of .* since the first start", said)


def test_validation_is_the_same_however_its_rows_are_cut(run, plan_dir, tmp_path):
    losses = []
    for name, microbatches in (("whole", 1), ("pieces", 2)):
        options = {"validation_plan_dir": str(plan_dir), "validate_every": 1, "num_steps": 4}
        options |= {"global_batch_size": 16, "num_microbatches": microbatches}
        run(tmp_path / name, train=options, model={"dropout": 0.0})
        losses.append([v for _, v in tiny_run.read_scalars(tmp_path / name)["validation/loss"]])
    np.testing.assert_allclose(*losses, rtol=1e-4)


def test_checkpoints_say_what_they_belong_to(finished, plan_dir):
    metadata = load_metadata(finished)
    assert metadata["step"] == 12
    assert metadata["seed"] == 1234
    assert metadata["bos_id"] == 2
    assert metadata["model"]["d_model"] == 32
    assert metadata["vocabulary"]["fingerprint"] == "tiny"
    assert metadata["plan_fingerprint"]


def test_a_finished_run_is_not_trained_further(run, finished):
    before = sorted(str(p) for p in finished.rglob("*"))
    assert "is complete: all 12 steps are done" in run(finished)
    assert sorted(str(p) for p in finished.rglob("*")) == before


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"train": {"seed": 5}}, "seed is 1234 there and 5 now"),
        ({"train": {"global_batch_size": 16}}, "global_batch_size is 8 there and 16 now"),
        ({"train": {"num_steps": 20}}, "num_steps is 12 there and 20 now"),
        ({"model": {"dropout": 0.2}}, "dropout is 0.1 there and 0.2 now"),
        ({"optimizer": {"learning_rate": 0.5}}, "'learning_rate': 0.01.* now"),
    ],
)
def test_a_changed_run_is_refused(run, finished, options, named):
    with pytest.raises(UserError, match=rf"{finished} holds another run: .*{named}.* new run_dir"):
        run(finished, **options)


@pytest.mark.parametrize(
    "optimizer",
    [
        {"transform": "adafactor", "options": {"min_dim_size_to_factor": 8}},
        {"transform": "lion", "state_dtype": "bfloat16"},
        {"transform": "muon", "schedule": "cosine"},
    ],
    ids=["adafactor", "lion", "muon with adapters"],
)
def test_every_optimiser_resumes_exactly_and_learns(run, finished, tmp_path, optimizer):
    mesh, train_options = {"fsdp": 4, "tensor": 2}, {"num_steps": 6, "checkpoint_every": 3}
    options = {"train": train_options, "optimizer": optimizer, "mesh": mesh}
    adapters = optimizer["transform"] == "muon"
    if adapters:
        train_options["init_from"] = str(finished)
        options["model"] = {"lora_rank": 4}
    run(tmp_path, **options)
    loss = dict(tiny_run.read_scalars(tmp_path)["loss"])
    assert loss[6] < (1.1 if adapters else 1) * loss[2]  # what they adapt was trained before
    last = tmp_path / "checkpoints" / "6"
    whole = params_of(last, options.get("model"))
    shutil.rmtree(last)
    assert "at step 3" in run(tmp_path, **options)
    jax.tree.map(np.testing.assert_array_equal, params_of(last, options.get("model")), whole)
    if optimizer["transform"] == "lion":
        with pytest.raises(UserError, match=r"'transform': 'lion'.* there and .*'adam'.* now"):
            run(tmp_path, **options | {"optimizer": {}})


def test_another_plan_is_refused(run, finished, tmp_path):
    other = tiny_run.make_plan(tmp_path, seed=8)
    with pytest.raises(UserError, match=r"plan_fingerprint is .* there and .* now"):
        run(finished, plan=other)


def test_a_longer_plan_and_another_remat_are_the_same_run(run, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "12")
    longer = tiny_run.make_plan(tmp_path, num_rows=500)
    assert "resuming" in run(tmp_path / "run", plan=longer, model={"remat": "full"})
    here, there = params_of(tmp_path / "run"), params_of(finished)
    # Recomputation may round otherwise: far less than the four updates it is done for change.
    before = params_of(finished / "checkpoints" / "8")["token_embedding"]
    change = np.abs(there["token_embedding"] - before).max()
    difference = here["token_embedding"] - there["token_embedding"]
    assert np.abs(difference).max() < 1e-2 * change


def test_a_run_starts_from_the_params_of_another_with_a_fresh_optimizer(run, finished, tmp_path):
    still = {"learning_rate": 0.0}
    said = run(tmp_path, train={"init_from": str(finished)}, optimizer=still)
    assert f"starting from the parameters of {finished}" in said
    jax.tree.map(np.testing.assert_array_equal, params_of(tmp_path), params_of(finished))


def test_a_run_starts_from_the_random_params_of_its_seed(run, tmp_path):
    run(tmp_path, optimizer={"learning_rate": 0.0})
    expected = jax.device_get(init_params(tiny_run.configs("", "")[1], 1234)[1])
    jax.tree.map(np.testing.assert_array_equal, params_of(tmp_path), expected)


def test_weights_that_mean_something_else_are_refused(run, finished, tmp_path):
    other = tiny_run.make_plan(tmp_path, vocabulary="other")
    start = {"train": {"init_from": str(finished)}}
    with pytest.raises(UserError, match=r"vocabulary is sentencepiece:tiny there and .*:other in"):
        run(tmp_path / "a", plan=other, **start)
    with pytest.raises(UserError, match="pre_layer_norm is True there and False now"):
        run(tmp_path / "b", model={"pre_layer_norm": False, "final_layer_norm": True}, **start)
    with pytest.raises(UserError, match="no checkpoint in"):
        run(tmp_path / "c", train={"init_from": str(tmp_path)})


def test_a_vocabulary_of_another_size_than_the_model_is_refused(run, tmp_path):
    with pytest.raises(UserError, match=r"sentencepiece:tiny of 64 ids, .* vocab_size 128"):
        run(tmp_path, model={"vocab_size": 128})


def test_rows_longer_than_the_model_are_refused(run, tmp_path):
    with pytest.raises(UserError, match=r"rows of 32 tokens, the model only max_positions 16"):
        run(tmp_path, model={"max_positions": 16})


@pytest.mark.parametrize(("batch", "pieces", "parts"), [(12, 1, 8), (8, 2, 16), (24, 2, 16)])
def test_a_batch_that_cannot_be_shared_out_is_refused(run, tmp_path, batch, pieces, parts):
    options = {"global_batch_size": batch, "num_microbatches": pieces}
    with pytest.raises(UserError, match=f"global_batch_size={batch} is not divisible by {parts} "):
        run(tmp_path, train=options)
    assert not list(tmp_path.iterdir())


def test_a_plan_too_short_for_the_run_is_refused(run, tmp_path):
    with pytest.raises(UserError, match="400 rows, too few for 100 steps of 8 rows"):
        run(tmp_path, train={"num_steps": 100})


def test_a_validation_plan_of_less_than_a_batch_is_refused_before_anything_is_trained(
    run, tmp_path
):
    small = tiny_run.make_plan(tmp_path, num_rows=4)
    options = {"validation_plan_dir": str(small), "validate_every": 10}
    with pytest.raises(UserError, match=f"{small} has 4 rows, too few for 1 step of 8 rows"):
        run(tmp_path / "run", train=options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("value", [0, -1])
def test_numbers_that_make_no_sense_are_refused(value):
    with pytest.raises(UserError, match=f"log_every = {value} .int. must be"):
        tiny_run.configs("", "", train={"log_every": value})


def test_a_loss_that_is_not_finite_stops_the_run_and_is_not_saved(run, tmp_path):
    with pytest.raises(UserError, match=r"loss_sum and gradient_norm of step 2 not finite"):
        run(tmp_path, optimizer={"learning_rate": 1e38}, train={"log_every": 50})
    assert not list((tmp_path / "checkpoints").iterdir())


def test_parameters_that_are_not_finite_are_not_saved_though_every_loss_was(run, tmp_path):
    blown_up = {"learning_rate": 3e38, "weight_decay": 1e4, "warmup_steps": 0}
    with pytest.raises(UserError, match=r"params\.\S+ after step 1 is not finite"):
        run(tmp_path, optimizer=blown_up, train={"num_steps": 1})
    assert not list((tmp_path / "checkpoints").iterdir())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_the_first_step_leaves_the_run_as_it_was(
    plan_dir, run, tmp_path, monkeypatch, number
):
    def compile_programs(*arguments):
        os.kill(os.getpid(), number)

    arguments = tiny_run.configs(plan_dir, tmp_path, mesh=PURE_DATA, train={"num_steps": 4})
    for _ in range(2):  # the second one once made every later start fail
        with monkeypatch.context() as patch:
            patch.setattr(loop, "compile_programs", compile_programs)
            if number == signal.SIGTERM:
                assert train(*arguments) == interrupt.STOPPED
            else:
                with pytest.raises(KeyboardInterrupt, match="stopped before the first update"):
                    train(*arguments)
        assert not list((tmp_path / "checkpoints").iterdir())
    assert "step 4 of 4 is saved" in run(tmp_path, train={"num_steps": 4})


def test_a_full_disk_stops_the_run_and_the_earlier_checkpoint_stays(run, tmp_path, caplog):
    command = ["mount", "-t", "tmpfs", "-o", "size=2000k", "tmpfs", str(tmp_path)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as e:
        pytest.skip(f"no tmpfs may be mounted here: {e}")
    try:
        with pytest.raises(UserError, match=f"no space left on the disk of {tmp_path}"):
            run(tmp_path)
        assert "Traceback" not in caplog.text
        subprocess.run([*command[:4], "remount,size=9m", *command[5:]], check=True)
        step = load_metadata(tmp_path)["step"]
        assert step in (4, 8)
        assert f"at step {step}" in run(tmp_path)
        assert load_metadata(tmp_path)["step"] == 12
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
