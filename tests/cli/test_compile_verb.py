"""`optiml compile` on simulated devices says what is known of the program, or what is wrong."""

import dataclasses
import functools
import json
import re

import pytest

from optiml_jax.ahead import compile as ahead
from optiml_jax.ahead import search, worker
from optiml_jax.ahead.targets import parse_target
from optiml_jax.cli import compile as verb
from optiml_jax.cli.main import main

GIN = """
model_config.vocab_size = 64
model_config.d_model = 64
model_config.num_layers = 2
model_config.num_heads = 4
PlanConfig.sequence_length = 32
TrainConfig.num_steps = 100
TrainConfig.global_batch_size = 8
MeshConfig.tensor = 2
"""


def test_a_described_machine_answers_without_devices(tmp_path, capsys):
    gin_file = tmp_path / "tiny.gin"
    gin_file.write_text(GIN)
    output = tmp_path / "findings.json"
    arguments = [f"--gin_file={gin_file}", "--gin.Compile.target=cpu:4"]
    assert main(["compile", *arguments, f"--gin.Compile.output={output}"]) == 0
    said = capsys.readouterr().out
    found = json.loads(output.read_text())
    assert found["mesh"] == {"data": 1, "fsdp": 2, "tensor": 2}
    assert "fits" in said
    assert 0.9 < found["executed"] / found["useful"] < 1.6
    # Parameters and both moments in float32, cut in four but for norms, biases and positions.
    from optiml_jax.model.opt.config import OPTConfig

    params = OPTConfig(vocab_size=64, d_model=64, num_layers=2, num_heads=4).num_params
    assert params * 12 / 4 < found["arguments"] * 2**30 < params * 12


@pytest.mark.parametrize("program", ["score", "prefill", "decode"])
def test_programs_of_evaluation_are_compiled_as_they_are_run(tmp_path, capsys, program):
    """A batch of 4,096 tokens is 16 rows of 256; weights in bfloat16, a cache for each answer."""
    gin_file = tmp_path / "tiny.gin"
    gin_file.write_text(GIN + 'EvalConfig.tokens_per_batch = 4096\nmodel_config.dtype = "bfloat16"')
    output = tmp_path / "findings.json"
    arguments = [f"--gin_file={gin_file}", "--gin.Compile.target=cpu:4"]
    arguments += ["--gin.Compile.length=256", f"--gin.Compile.output={output}"]
    arguments += [f"--gin.Compile.program={program}"]
    assert main(["compile", *arguments]) == 0
    assert "16 rows of 256 tokens" in capsys.readouterr().out
    found = json.loads(output.read_text())
    from optiml_jax.model.opt.config import OPTConfig

    config = OPTConfig(vocab_size=64, d_model=64, num_layers=2, num_heads=4)
    cache = 2 * 2 * config.num_layers * 16 * 256 * config.d_model if program == "decode" else 0
    least = (2 * config.num_params + cache) / 4
    assert least < found["arguments"] * 2**30 < 3 * least
    assert 0.7 < found["executed"] / found["useful"] < 1.6


def test_changes_that_are_named_do_make_it_fit(tmp_path, capsys, monkeypatch):
    """On devices with little memory: status 1 and three changes, each of which gives status 0.

    Compiled in this process for its eight devices, each settings once: as true, and faster.
    """
    known = {}

    def compile_here(job):
        name = ahead.settings(job)
        if name not in known:
            known[name] = worker.findings(job)
        return ahead._findings(job, known[name])

    def small(text):
        cpu = dataclasses.replace(parse_target(text).accelerator, usable=usable)
        return dataclasses.replace(parse_target(text), accelerator=cpu)

    search_here = functools.partial(search.changes_that_fit, compile_one=compile_here)
    monkeypatch.setattr(verb, "compile_job", compile_here)
    monkeypatch.setattr(verb, "changes_that_fit", search_here)
    monkeypatch.setattr(verb, "parse_target", small)
    gin_file, output = tmp_path / "tiny.gin", tmp_path / "findings.json"
    gin_file.write_text(
        GIN + "PlanConfig.sequence_length = 64\nTrainConfig.global_batch_size = 256\n"
    )
    arguments = ["compile", f"--gin_file={gin_file}", "--gin.Compile.target=cpu:8"]
    usable = 100.0
    assert main([*arguments, f"--gin.Compile.output={output}"]) == 0
    usable = 0.8 * json.loads(output.read_text())["peak"]
    capsys.readouterr()
    assert main(arguments) == 1
    said = re.findall(r"^\d\. (.*): [\d.]+ GiB", capsys.readouterr().out, re.MULTILINE)
    assert len(set(said)) == 3
    for changes in said:
        bindings = [f"--gin.{binding}" for binding in changes.split()]
        assert main([*arguments, *bindings]) == 0


def test_mistakes_are_one_line(tmp_path, capsys):
    gin_file = tmp_path / "tiny.gin"
    gin_file.write_text(GIN)
    for target, message in (("gpu:v100:1x8", "no gpu 'v100'"), ("cpu:3", "does not fit 3")):
        assert main(["compile", f"--gin_file={gin_file}", f"--gin.Compile.target={target}"]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert "Traceback" not in error
