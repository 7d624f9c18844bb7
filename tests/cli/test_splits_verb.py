"""`optiml splits`: what it counts and lists, with data and without."""

import re

import pytest

from optiml_jax.cli.main import main


@pytest.fixture
def output(capsys):
    def run(*bindings: str) -> str:
        assert main(["splits", *bindings]) == 0
        return capsys.readouterr().out

    return run


def cells(text: str, start: str) -> list[str]:
    """The cells of the only line that starts so."""
    (line,) = (line for line in text.splitlines() if line.startswith(start))
    return re.split(r"\s{2,}", line.strip())


def test_without_data_it_prints_what_the_manifest_expects(output):
    text = output()
    sizes = text.split("Sizes")[1]
    assert cells(sizes, "dev ") == ["dev", "36", "35", "10", "7"]  # MMLU on top
    assert cells(sizes, "test ")[:3] == ["test", "88", "87"]
    (row,) = (line for line in text.splitlines() if " flan/wsc " in line)
    expected = ["test", "fully held out", "Coreference Resolution", "flan/wsc", "acc_rank", "0"]
    assert re.split(r"\s{2,}", row)[:7] == [*expected, "10"]
    assert "demo_" not in text


def test_it_counts_the_real_tasks_and_lists_what_is_missing_or_left_out(output, real_data):
    folders = {b: str(real_data / b) for b in ("crossfit", "unifiedskg")}
    folders["superni"] = str(real_data / "super_natural_instructions")
    text = output(f"--gin.Run.data={folders}", "--gin.Splits.most_names=1")
    # benchmark, categories, tasks, then train, dev, test, test_max, test_extra, exclude
    assert cells(text, "superni") == ["superni", "26", "213", "30", "20", "44", "1", "86", "3"]
    assert cells(text, "unifiedskg") == ["unifiedskg", "3", "3", "2", "0", "2", "0", "0", "0"]
    assert cells(text, "train   ")[:3] == ["train", "34", "1,545"]
    assert cells(text, "fully held out        Textual") == [
        "fully held out",
        "Textual Entailment",
        "24",
    ]
    assert "  unifiedskg: 1: unifiedskg/multiwoz\n" in text
    assert "  opt14 (no data): 14: opt14/cb, ...\n" in text
    assert "  Textual Entailment is fully held out: 2: crossfit/superglue-cb, ...\n" in text
    assert "4 in category Misc.\n  superni: 4: superni/task305_jeopardy" in text
