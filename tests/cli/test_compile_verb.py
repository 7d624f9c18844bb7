"""`optiml compile` on simulated devices says what is known of the program, or what is wrong."""

import json

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


def test_mistakes_are_one_line(tmp_path, capsys):
    gin_file = tmp_path / "tiny.gin"
    gin_file.write_text(GIN)
    for target, message in (("gpu:v100:1x8", "no gpu 'v100'"), ("cpu:3", "does not fit 3")):
        assert main(["compile", f"--gin_file={gin_file}", f"--gin.Compile.target={target}"]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert "Traceback" not in error
