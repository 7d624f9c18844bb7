"""Runs that train adapters only: what is saved, what stays as it was, resuming, other meshes."""

import pathlib
import shutil

import jax
import numpy as np
import pytest
import tiny_run

from optiml_jax.checkpoint.adapters import load_model_params
from optiml_jax.checkpoint.manager import load_metadata, load_params
from optiml_jax.errors import UserError
from optiml_jax.model.lora import split_params
from optiml_jax.sharding.rules import abstract_params
from optiml_jax.train.loop import train

DECODERS = {
    "opt": {},
    "llama": {"architecture": "llama", "num_kv_heads": 2, "tied": False, "dropout": 0.1},
}
LORA = {"lora_rank": 4, "lora_alpha": 8.0}
TARGETS = {"opt": ["query", "value", "wo"], "llama": []}
DATA = {"data": 8, "fsdp": 1}


@pytest.fixture(scope="module", params=DECODERS)
def runs(request, plan_dir, compiled_once, tmp_path_factory):
    """(start, model without adapters, folder of its weights, folder of a finished run of adapters).

    start(run_dir, mesh, **train) trains adapters on those weights.
    """
    folder, size = tmp_path_factory.mktemp("lora"), DECODERS[request.param]
    adapted = {**size, **LORA, "lora_targets": TARGETS[request.param]}
    base = folder / "base"
    settings = {"num_steps": 4, "checkpoint_every": 4}
    train(*tiny_run.configs(plan_dir, base, model=size, mesh=DATA, train=settings))

    def start(run_dir, mesh=DATA, **settings):
        settings = {"init_from": str(base), **settings}
        options = {"model": adapted, "mesh": mesh, "train": settings}
        assert (
            train(*tiny_run.configs(plan_dir, run_dir, optimizer=tiny_run.SMOOTH, **options)) == 0
        )

    start(folder / "run")
    return start, tiny_run.configs("", "", model=size)[1], base, folder / "run"


def _adapters(run_dir, step=12):
    folder = pathlib.Path(run_dir) / "checkpoints" / str(step)
    config = tiny_run.configs("", "", model=load_metadata(folder)["model"])[1]
    return jax.device_get(load_params(folder, split_params(abstract_params(config))[0]))


def test_checkpoints_hold_adapters_alone_and_the_base_is_untouched(runs):
    _, config, base, run_dir = runs
    before = jax.device_get(load_params(base, abstract_params(config)))
    # Whole parameters of the adapted model: everything without an adapter is the base, bit for bit.
    whole = jax.device_get(load_model_params(run_dir, abstract_params(config)))
    names = {path[-3].key for path, _ in jax.tree.leaves_with_path(_adapters(run_dir))}
    for (path, there), here in zip(
        jax.tree.leaves_with_path(before), jax.tree.leaves(whole), strict=True
    ):
        adapted = path[0].key == "blocks" and path[-2].key in names and path[-1].key == "kernel"
        assert np.array_equal(here, there) != adapted, jax.tree_util.keystr(path)
    kinds = {path[-1].key for path, _ in jax.tree.leaves_with_path(_adapters(run_dir))}
    assert kinds == {"a", "b"}
    with pytest.raises(UserError, match=r"does not fit the model: .* missing in the"):
        load_params(run_dir, abstract_params(config))


def test_a_resumed_run_ends_with_the_same_bits(runs, tmp_path):
    start, _, _, run_dir = runs
    shutil.copytree(run_dir, tmp_path / "run")
    for step in (8, 12):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / str(step))
    start(tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, _adapters(tmp_path / "run"), _adapters(run_dir))


def test_another_mesh_trains_the_same_adapters(runs, tmp_path):
    start, _, _, run_dir = runs
    start(tmp_path, mesh={"data": 1, "fsdp": 4, "tensor": 2})
    there, before = _adapters(run_dir), _adapters(run_dir, 4)
    tiny_run.assert_same_parameters(_adapters(tmp_path), there, before)


@pytest.mark.parametrize("runs", ["opt"], indirect=True)
def test_another_base_under_the_adapters_is_refused(runs, plan_dir, tmp_path):
    start, config, base, run_dir = runs
    shutil.copytree(base, tmp_path / "kept")
    try:
        settings = {"num_steps": 4, "checkpoint_every": 4, "init_from": str(tmp_path / "kept")}
        shutil.rmtree(base)
        model = {k: v for k, v in config.to_dict().items() if not k.startswith("lora")}
        train(*tiny_run.configs(plan_dir, base, model=model, mesh=DATA, train=settings))
        with pytest.raises(UserError, match="is not the checkpoint that the adapters in"):
            load_model_params(run_dir, abstract_params(config))
        with pytest.raises(UserError, match=f"{run_dir} holds another run: base is"):
            start(run_dir, num_steps=12)
    finally:
        shutil.rmtree(base)
        (tmp_path / "kept").rename(base)


def test_adapters_of_random_weights_are_refused(plan_dir, tmp_path):
    with pytest.raises(UserError, match=r"lora_rank trains adapters only; set TrainConfig.init_f"):
        train(*tiny_run.configs(plan_dir, tmp_path, model=LORA, mesh=DATA))
