"""The page of final configurations says what the gin files say, and they say what table 3 does."""

import pathlib
import sys

import pytest
import yaml

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tools"))
import configurations as page


def test_the_page_is_what_the_gin_files_give():
    stale = "docs/configurations.md is not what the gin files say: python tools/configurations.py"
    assert page.PAGE.read_text("utf-8") == page.page(), stale


@pytest.mark.parametrize("run", ["optiml_30b", "optiml_175b"])
def test_the_settings_are_those_of_table_3(run):
    facts = yaml.safe_load(page.TABLE_3.read_text("utf-8"))
    printed, text, ours = facts["models"][run], facts["text"], page.settings(run)
    assert ours["rows per update"] == str(printed["batch"])
    assert ours["steps"] == f"{printed['steps']:,}"
    rate = f"{printed['learning_rate']:g}, {printed['warmup']} steps of warm-up"
    assert ours["learning rate"].startswith(rate)
    assert f"betas {text['beta1']:g} and {text['beta2']:g}" in ours["optimiser"]
    assert ours["dropout"].startswith(f"{text['dropout']:g},")
    assert ours["row length"] == f"{text['row_length']:,}"
    billions = float(ours["slots"].split()[0])
    assert round(billions) == int(printed["tokens"].removesuffix("B"))
