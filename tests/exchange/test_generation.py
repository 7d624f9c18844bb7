"""Files of prompts for `optiml generate`: what a line may set, and what is wrong in one line."""

import json

import pytest

from optiml_jax.errors import UserError
from optiml_jax.exchange.generation import TextPrompt, read_prompts

USUAL = TextPrompt("", max_new_tokens=4, stop=("end",), seed=7)


def prompts(folder, *rows):
    file = folder / "in.jsonl"
    file.write_text("".join(json.dumps({"prompt": "a"} | row) + "\n" for row in rows))
    return [prompt for batch in read_prompts(file, USUAL) for prompt in batch]


def test_fields_of_a_line_go_before_the_settings(tmp_path):
    rows = ({}, {"stop": "zen"}, {"stop": ["z", "e"], "seed": 1}, {"stop": None, "seed": None})
    found = prompts(tmp_path, *rows)
    assert [p.stop for p in found] == [("end",), ("zen",), ("z", "e"), ("end",)]
    assert [p.seed for p in found] == [7, 8, 1, 10]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"max_new_tokens": 0}, r"line 2: max_new_tokens = 0 .* must be a whole number .* 1"),
        ({"max_new_tokens": "a"}, "line 2: max_new_tokens = 'a'"),
        ({"stop": 5}, "line 2: stop = 5"),
        ({"stop": [""]}, "line 2: an empty stop string"),
        ({"seed": 1.5}, "line 2: seed = 1.5"),
    ],
)
def test_a_field_that_makes_no_sense_is_named_with_its_line(tmp_path, row, said):
    with pytest.raises(UserError, match=said):
        prompts(tmp_path, {}, row)


def test_requests_for_votes_are_answered_once_and_that_is_said(tmp_path, caplog):
    assert len(prompts(tmp_path, {"samples": 40}, {"samples": 0})) == 2
    assert "1 prompt asks for several samples; one answer is made for each" in caplog.text
