import pathlib
import subprocess
import sys
import types

import pytest
import tiny_run

from optiml_jax.errors import UserError
from optiml_jax.model.architectures import model_config
from optiml_jax.model.opt.config import SIZES
from optiml_jax.train.metrics import MFU_FORMULA, SummaryWriter, peak_flops

REPOSITORY = pathlib.Path(__file__).parents[2]


def test_scalars_and_texts_are_read_by_tensorboard(tmp_path):
    writer = SummaryWriter(tmp_path / "tensorboard", 1)
    writer.text(1, "mfu_formula", MFU_FORMULA)
    for step in (1, 2):
        writer.scalars(step, {"loss": 1 / step, "validation/loss": step})
    writer.close()
    scalars = tiny_run.read_scalars(tmp_path)
    assert scalars == {"loss": [(1, 1.0), (2, 0.5)], "validation/loss": [(1, 1.0), (2, 2.0)]}
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert events.SummaryMetadata("mfu_formula").plugin_data.plugin_name == "text"
    assert events.Tensors("mfu_formula")[0].tensor_proto.string_val == [MFU_FORMULA.encode()]


def session_groups(logdir: pathlib.Path) -> dict:
    """What TensorBoard's own HPARAMS plugin shows of a folder: run -> (settings, metrics)."""
    sys.modules.setdefault("tensorboard.compat.notf", types.ModuleType("notf"))
    from tensorboard import context
    from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
    from tensorboard.plugins import base_plugin
    from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups

    runs = plugin_event_multiplexer.EventMultiplexer().AddRunsFromDirectory(str(logdir))
    provider = data_provider.MultiplexerDataProvider(runs.Reload(), str(logdir))
    backend = backend_context.Context(base_plugin.TBContext(data_provider=provider))
    request = api_pb2.ListSessionGroupsRequest(slice_size=9, allowed_statuses=[0, 1, 2, 3])
    reply = list_session_groups.Handler(context.RequestContext(), backend, "e", request).run()
    return {
        group.name: (
            {k: getattr(v, v.WhichOneof("kind")) for k, v in group.hparams.items()},
            {f"{m.name.group}:{m.name.tag}": m.value for m in group.metric_values},
        )
        for group in reply.session_groups
    }


def test_runs_are_compared_by_their_settings_and_final_scores(tmp_path):
    for name, rate in (("a", 0.25), ("b", 0.5)):
        folder = tmp_path / name / "tensorboard"
        writer = SummaryWriter(folder, 1)
        settings = {"optimizer": {"learning_rate": rate, "betas": (0.9, 0.95)}, "seed": 3}
        writer.hparams(1, settings | {"init_from": None, "tied": True}, name)
        for step in (1, 2):
            writer.scalars(step, {"loss": rate / step})
        writer.close()
        writer = SummaryWriter(folder / "evaluation", 0)
        for step in (1, 2):
            writer.scalars(step, {"eval/level/held_out": 100 * rate * step})
        writer.close()
    groups = session_groups(tmp_path)
    assert groups["a"][0] == {"optimizer.learning_rate": 0.25, "seed": 3, "tied": True}
    assert groups["a"][1] == {":loss": 0.125, "evaluation:eval/level/held_out": 50.0}
    assert groups["b"][1] == {":loss": 0.25, "evaluation:eval/level/held_out": 100.0}


def test_a_resumed_writer_replaces_the_steps_after_its_first(tmp_path):
    for first, last, value in ((1, 6, 0.0), (4, 5, 1.0), (5, 8, 2.0)):
        writer = SummaryWriter(tmp_path / "tensorboard", first)
        for step in range(first, last + 1):
            writer.scalars(step, {"loss": value})
        writer.flush()  # a killed run never closes its file
    expected = [(1, 0.0), (2, 0.0), (3, 0.0), (4, 1.0), (5, 2.0), (6, 2.0), (7, 2.0), (8, 2.0)]
    assert tiny_run.read_scalars(tmp_path)["loss"] == expected


def test_writing_events_imports_no_tensorflow(tmp_path):
    code = (
        "import sys\n"
        "from optiml_jax.train.metrics import SummaryWriter\n"
        f"writer = SummaryWriter({str(tmp_path)!r}, 1)\n"
        "writer.scalars(1, {'loss': 1.0}); writer.text(1, 'a', 'b'); writer.close()\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises((UserError, FileExistsError, NotADirectoryError), match="file"):
        SummaryWriter(tmp_path / "file", 1)


@pytest.mark.parametrize(("size", "billions"), [("1.3b", 1.3), ("30b", 30.0), ("175b", 175.0)])
def test_flops_are_six_per_parameter_and_attention(size, billions):
    assert size in SIZES
    config = model_config(size)
    attention = 12 * config.num_layers * config.d_model * 2048
    rest = config.flops_per_token(2048) - attention
    assert rest == pytest.approx(6e9 * billions, rel=0.03)


def test_peak_flops_are_known_by_name_for_half_precision_only():
    assert peak_flops("NVIDIA A100-SXM4-40GB", "bfloat16") == 312e12
    assert peak_flops("TPU v5 lite", "bfloat16") == 197e12
    assert peak_flops("TPU v5", "bfloat16") == 459e12
    assert peak_flops("NVIDIA A100-SXM4-40GB", "float32") is None
    assert peak_flops("cpu", "bfloat16") is None
