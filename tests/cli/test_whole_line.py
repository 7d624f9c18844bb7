"""The verbs one after the other on a tiny bench, as a user runs them, and again to continue."""

import json
import pathlib

import pytest
from tiny_bench import write_tiny_bench

from optiml_jax.cli.main import main


@pytest.fixture(scope="module")
def line(tmp_path_factory) -> pathlib.Path:
    """The folder after prepare, plan, evaluate (untrained), train, evaluate, report."""
    import gin

    root = tmp_path_factory.mktemp("line")
    gin_file = f"--gin_file={write_tiny_bench(root)}"
    for verb, *more in (
        ["prepare"],
        ["plan"],
        ["evaluate", "--gin.Evaluate.checkpoint=init"],
        ["train"],
        ["evaluate"],
        ["report"],
    ):
        assert main([verb, gin_file, *more]) == 0, verb
        gin.clear_config()
    return root


def test_prepare_keeps_unchanged_tasks(line, capsys):
    assert main(["prepare", f"--gin_file={line}/tiny.gin"]) == 0
    assert "0 tasks cached, 3 unchanged" in capsys.readouterr().out


def test_run_folder_holds_what_is_needed_to_understand_the_run(line):
    run = line / "run"
    assert "TrainConfig.num_steps = 4" in (run / "config.gin").read_text()
    assert (run / "checkpoints" / "4").is_dir()
    assert list((run / "tensorboard").glob("events.out.*"))
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
    assert "demo/demo903_program_execution_third" in rows


def test_training_again_finds_the_run_complete(line, capsys, caplog):
    assert main(["train", f"--gin_file={line}/tiny.gin"]) == 0
    assert "complete" in caplog.text


def test_another_number_of_steps_is_another_run(line, capsys):
    arguments = [f"--gin_file={line}/tiny.gin", "--gin.TrainConfig.batch=3"]
    assert main(["train", *arguments]) == 2
    assert "batch" in capsys.readouterr().err


def test_a_converted_checkpoint_goes_out_and_comes_back(line, tmp_path, capsys):
    import transformers

    out = tmp_path / "hf"
    arguments = [f"--gin.Convert.source={line}/run", f"--gin.Convert.destination={out}"]
    assert main(["convert", *arguments, "--gin.Convert.to=huggingface"]) == 0
    assert transformers.AutoConfig.from_pretrained(out).hidden_size == 16
