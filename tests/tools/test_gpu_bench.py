"""tools/bench/gpu.py in tiny sizes: every part measures, and what it says holds."""

import argparse
import json
import pathlib
import sys

import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tools" / "bench"))
import gpu


@pytest.mark.parametrize("part", ["ceiling", "kernels", "train", "score", "decode", "torch"])
def test_a_part_gives_rows_that_can_be_written(part):
    if part == "torch":
        pytest.importorskip("torch")
    sizes = [] if part in ("ceiling", "kernels") else ["tiny"]
    rows = json.loads(json.dumps(list(gpu.PARTS[part](gpu.TINY, *sizes))))
    assert rows
    if part == "kernels":  # of the reference in float32, which is what the others are measured by
        assert {row["kernel"] for row in rows} == {"chunked", "reference"}
        assert max(row["error"] for row in rows) < 1e-5
    elif part == "train":
        first, last = map(float, rows[0]["loss"].split(" to "))
        assert last < first
        assert rows[0]["planned"] > 0
    elif part == "torch":
        assert rows[0]["attention"] in ("SDPA by document", "flash-attn varlen")
        assert rows[0]["tokens/s"] > 0
    assert "| " in gpu._markdown({"parts": {part: rows}})


def test_packed_rows_hold_their_documents_one_after_the_other():
    batch = gpu.packed_rows(3, 256, 100)
    for ids, positions in zip(batch["segment_ids"], batch["positions"], strict=True):
        assert [*np.unique(ids)] == [*range(gpu.DOCUMENTS + 1)]
        for number in range(1, gpu.DOCUMENTS + 1):
            places = np.flatnonzero(ids == number)
            np.testing.assert_array_equal(positions[places], places - places[0])


def test_a_part_that_fails_is_said_and_the_others_go_on(tmp_path, capsys):
    options = argparse.Namespace(
        out=tmp_path, minutes=5.0, sizes=["13c"], parts=["ceiling", "train"]
    )
    options.tiny = True
    assert gpu.measure(options, gpu.TINY) == 0
    parts = json.loads((tmp_path / "results.json").read_text())["parts"]
    assert parts["ceiling"][0]["TFLOP/s"] > 0
    assert "unknown model size '13c'" in parts["train 13c"][0]["said"]
    assert "unknown model size" in (tmp_path / "results.md").read_text()
