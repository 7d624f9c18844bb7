"""The verbs one after the other on a tiny bench, as a user runs them, and again to continue."""

import json
import pathlib

import gin
import jax
import numpy as np
import pytest
from tiny_bench import write_tiny_bench

from optiml_jax.checkpoint.manager import load_metadata, load_params
from optiml_jax.cli.main import main
from optiml_jax.model.architectures import config_from_dict
from optiml_jax.sharding.rules import abstract_params


@pytest.fixture(scope="module")
def line(tmp_path_factory) -> pathlib.Path:
    """The folder after prepare, plan, evaluate (untrained), train, evaluate, report."""
    root = tmp_path_factory.mktemp("line")
    gin_file = f"--gin_file={write_tiny_bench(root)}"
    for arguments in (
        ["prepare"],
        ["plan"],
        ["evaluate", "--gin.Evaluate.checkpoint=init"],
        ["train", "evaluate", "report"],
    ):
        assert main([*arguments, gin_file]) == 0, arguments
        gin.clear_config()
    return root


def test_prepare_keeps_unchanged_tasks(line, capsys):
    assert main(["prepare", f"--gin_file={line}/tiny.gin"]) == 0
    assert "0 tasks cached, 3 unchanged" in capsys.readouterr().out


def test_a_beam_runner_caches_the_same(line, tmp_path):
    arguments = [f"--gin_file={line}/tiny.gin", f"--gin.Run.cache_dir={tmp_path}/cache"]
    assert main(["prepare", *arguments, "--runner=DirectRunner"]) == 0
    shards = sorted(p.relative_to(line / "cache") for p in (line / "cache").rglob("*.npy"))
    assert len(shards) == 3 * 2 + 2  # every task has train and test, two have validation
    for shard in shards:
        assert (line / "cache" / shard).read_bytes() == (tmp_path / "cache" / shard).read_bytes()


def test_run_folder_holds_what_is_needed_to_understand_the_run(line):
    run = line / "run"
    assert "TrainConfig.num_steps = 4" in (run / "config.gin").read_text()
    assert (run / "checkpoints" / "4").is_dir()
    events = b"".join(p.read_bytes() for p in (run / "tensorboard").glob("events.out.*"))
    assert b"config_gin" in events
    assert b"_hparams_/session_start_info" in events
    assert list((run / "tensorboard" / "evaluation").glob("events.out.*"))


def test_both_evaluations_cover_every_task_and_number_of_shots(line):
    for name in ("init", "step_4"):
        records = sorted((line / "run" / "evaluation" / name / "records").glob("*.jsonl"))
        assert len(records) == 3 * 2
        for path in records:
            *instances, last = path.read_text().splitlines()
            assert len(instances) == 3
            assert json.loads(last)["summary"]["num_instances"] == 3


def test_report_has_levels_of_both_checkpoints(line):
    text = (line / "run" / "report" / "report.md").read_text()
    for expected in ("init", "step_4", "fully supervised", "partially held-out"):
        assert expected in text.lower()
    rows = (line / "run" / "report" / "report.csv").read_text()
    assert "demo_superni/demo903_program_execution_third" in rows


def test_training_again_finds_the_run_complete(line, capsys, caplog):
    assert main(["train", f"--gin_file={line}/tiny.gin"]) == 0
    assert "complete" in caplog.text


def test_another_seed_is_another_run(line, capsys):
    assert main(["train", f"--gin_file={line}/tiny.gin", "--gin.TrainConfig.seed=7"]) == 2
    assert "seed is 1234 there and 7 now" in capsys.readouterr().err


def test_a_checkpoint_goes_to_hugging_face_and_comes_back(line, tmp_path):
    def convert(**settings) -> None:
        gin.clear_config()
        assert main(["convert", *(f"--gin.Convert.{k}={v}" for k, v in settings.items())]) == 0

    out, back = tmp_path / "out", tmp_path / "back"
    convert(source=line / "run", destination=out, to="huggingface")
    spec = f"sentencepiece:{line}/vocabulary.model"
    convert(source=out, destination=back, vocabulary=spec)
    config = config_from_dict(load_metadata(back)["model"])
    before, after = (load_params(path, abstract_params(config)) for path in (line / "run", back))
    jax.tree.map(np.testing.assert_array_equal, before, after)


def test_training_starts_from_a_converted_checkpoint(line, tmp_path, caplog):
    """init_from at a learning rate of (almost) 0 evaluates as the weights it started from."""
    arguments = [f"--gin_file={line}/tiny.gin", f"--gin.TrainConfig.init_from={line}/run"]
    arguments += [f"--gin.Run.run_dir={tmp_path}/run", "--gin.OptimizerConfig.learning_rate=1e-30"]
    for verb in ("plan", "train"):
        gin.clear_config()
        assert main([verb, *arguments]) == 0
    config = config_from_dict(load_metadata(tmp_path / "run")["model"])
    folders = (line / "run", tmp_path / "run")
    before, after = (load_params(path, abstract_params(config)) for path in folders)
    jax.tree.map(np.testing.assert_array_equal, before, after)


def test_where_the_vocabulary_is_gone_every_verb_takes_that_of_a_named_checkpoint(
    line, tmp_path, caplog
):
    gone = "--gin.Run.vocabulary=sentencepiece:/nowhere/vocabulary.model"
    own = [f"--gin.Run.{name}={tmp_path}/{name}" for name in ("run_dir", "cache_dir")]
    for verb, *more in (
        ["prepare"],
        ["plan"],
        ["inspect", "--gin.Inspect.row=0"],
        ["export"],
        ["export", "--gin.Export.what=training"],
        ["train"],
    ):
        gin.clear_config()
        named = f"--gin.TrainConfig.init_from={line}/run"
        assert main([verb, f"--gin_file={line}/tiny.gin", gone, *own, named, *more]) == 0, verb
        assert f"using the vocabulary of the checkpoint {line}/run" in caplog.text
        caplog.clear()
    rows = (tmp_path / "run_dir/export/requests_jsonl/requests.jsonl").read_text("utf-8")
    assert rows.count("\n") == 3 * 2 * 3
