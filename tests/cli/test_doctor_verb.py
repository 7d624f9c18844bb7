"""`optiml doctor` finds what is there and marks what is missing."""

import jax
import pytest

from optiml_jax.cli.main import main


def doctor(capsys, *arguments: str) -> tuple[int, str, str]:
    status = main(["doctor", *arguments])
    return status, *capsys.readouterr()


def test_versions_devices_and_missing_folders_are_said(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("OPTIML_NOWHERE", raising=False)
    (tmp_path / "there").mkdir()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/task.yaml").write_text("rows: x.jsonl")
    data = {"demo_superni": "there", "mine": "mine", "nonsense": "gone"}
    status, out, err = doctor(
        capsys,
        "--gin_file=gin/runs/quickstart.gin",
        f"--gin.Run.data={ {k: f'{tmp_path}/{v}' for k, v in data.items()} }",
        f"--gin.TrainConfig.init_from={tmp_path}/weights",
        f"--gin.TrainConfig.global_batch_size={len(jax.devices())}",
        f"--gin.Run.run_dir={tmp_path}/runs/new",
        f"--gin.Run.vocabulary=sentencepiece:{tmp_path}/vocabulary.model",
    )
    lines = {line[2:].split("  ")[0].strip(): line for line in out.splitlines()}
    assert jax.__version__ in lines["jax"]
    assert f"{len(jax.devices())} x cpu" in lines["devices"]
    assert {lines[f"data: {name}"][0] for name in ("demo_superni", "mine")} == {" "}
    assert "GiB free" in lines["run_dir"]
    marked = {name for name, line in lines.items() if line.startswith("!")}
    assert marked - {"open files"} == {"data: nonsense", "vocabulary", "init_from"}
    assert status == 2
    assert "need attention" in err


@pytest.mark.parametrize(
    ("vocabulary", "marked"),
    [
        ("checkpoint:checkpoints/gone", True),
        ("sentencepiece:gone/vocabulary.model", True),
        ("huggingface:facebook/opt-125m", False),  # a name on the Hub, which is not asked
    ],
)
def test_only_a_model_of_the_hub_needs_no_files_here(capsys, vocabulary, marked):
    _, out, _ = doctor(
        capsys, "--gin_file=gin/runs/quickstart.gin", f"--gin.Run.vocabulary={vocabulary}"
    )
    (line,) = (line for line in out.splitlines() if line[2:].startswith("vocabulary "))
    assert line.startswith("!") == marked


def test_without_a_gin_file_the_data_folder_is_listed(tmp_path, capsys, monkeypatch):
    (tmp_path / "flan").mkdir()
    monkeypatch.setenv("OPTIML_DATA", str(tmp_path))
    assert f"{tmp_path}: flan" in doctor(capsys)[1]
    monkeypatch.setenv("OPTIML_DATA", str(tmp_path / "gone"))
    status, out, _ = doctor(capsys)
    assert "gone not found" in out
    assert status == 2


@pytest.mark.parametrize("text", ["$OPTIML_NOWHERE/x"])
def test_a_variable_that_is_not_set_is_a_finding(capsys, text):
    status, out, _ = doctor(
        capsys, "--gin_file=gin/runs/quickstart.gin", f"--gin.Run.run_dir={text}"
    )
    assert "OPTIML_NOWHERE is not set" in out
    assert status == 2


@pytest.mark.parametrize(
    ("setting", "said", "marked"),
    [
        ("OptimizerConfig.transform='moun'", "'moun': choose one of adam", True),
        ("OptimizerConfig.warmup_steps=5000", "must be less than TrainConfig.num_steps", True),
        ("TrainConfig.num_microbatches=3", "is not divisible by", True),
        ("TrainConfig.num_steps=-1", "num_steps", True),
        ("MeshConfig.tensor=64", "does not fit", False),  # it may be meant for other machines
        ("TrainConfig.num_steps=500", "500 updates of", False),
    ],
)
def test_settings_that_training_would_refuse_are_findings(capsys, setting, said, marked):
    _, out, _ = doctor(
        capsys,
        "--gin_file=gin/runs/quickstart.gin",
        f"--gin.TrainConfig.global_batch_size={len(jax.devices())}",
        f"--gin.{setting}",
    )
    (line,) = (line for line in out.splitlines() if line[2:].startswith("training "))
    assert said in line
    assert line.startswith("!") == marked
