"""`optiml generate`: one prompt, a file of them, and a conversation, with an untrained model."""

import builtins
import json
import pathlib

import gin
import pytest
from tiny_bench import write_tiny_bench

from optiml_jax.cli import generate as verb
from optiml_jax.cli.main import main
from optiml_jax.evaluate.records import RunFolder

INIT = ("model_config.init_std=0.5", "Evaluate.checkpoint=init", "Generate.checkpoint=init")


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> pathlib.Path:
    root = tmp_path_factory.mktemp("bench")
    write_tiny_bench(root)
    return root


def optiml(name: str, root: pathlib.Path, *more: str) -> int:
    gin.clear_config()
    settings = (*INIT, "Evaluate.shots=(0,)", *more)
    return main([name, f"--gin_file={root}/tiny.gin", *(f"--gin.{s}" for s in settings)])


@pytest.fixture(scope="module")
def exported(bench) -> pathlib.Path:
    assert optiml("export", bench) == 0
    return bench / "run/export/requests_jsonl/requests.jsonl"


def test_answers_to_exported_requests_are_those_of_the_evaluation(bench, exported, tmp_path):
    output = tmp_path / "by_generate.jsonl"
    asked = (f"Generate.prompts={exported}", f"Generate.output={output}")
    assert optiml("generate", bench, *asked) == 0
    assert optiml("evaluate", bench) == 0
    assert optiml("evaluate", bench, f"Evaluate.answers={output}") == 0
    ours, theirs = (RunFolder(bench / "run/evaluation" / n) for n in ("init", "by_generate"))
    for info in ours.load()[1]:
        mine, back = (f.read(info.task, 0)[0] for f in (ours, theirs))
        assert [r.prediction for r in mine] == [r.prediction for r in back]
        assert [r.score for r in mine] == [r.score for r in back]
    assert any(r.prediction for r in mine)


def test_draws_depend_on_their_seeds_and_stops_end_answers(bench, tmp_path):
    rows = [{"prompt": "Input: red green", "seed": s, "max_new_tokens": 8} for s in (1, 2, 1)]
    rows.append({"prompt": "Input: red green", "seed": 1, "max_new_tokens": 8, "stop": ["e", "r"]})
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = (f"Generate.prompts={tmp_path}/in.jsonl", f"Generate.output={tmp_path}/out.jsonl")
    assert optiml("generate", bench, *asked, "Generate.temperature=1.0") == 0
    out = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    texts = [row["text"] for row in out]
    assert texts[0] == texts[2] != texts[1]
    places = [texts[0].find(s) for s in "er" if s in texts[0]]
    assert texts[3] == (texts[0][: min(places)] if places else texts[0])
    assert [row["id"] for row in out] == ["1", "2", "3", "4"]


def test_a_conversation_keeps_what_was_said_and_ctrl_c_stops_an_answer(bench, capsys, monkeypatch):
    lines = iter(["one", "two", "/clear", "three", "four"])
    seen = []

    def typed(prompt=""):
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    original = verb.show_answer

    def show(generator, prompt):
        seen.append(prompt.text)
        if prompt.text == "three":
            raise KeyboardInterrupt
        return original(generator, prompt)

    monkeypatch.setattr(builtins, "input", typed)
    monkeypatch.setattr(verb, "show_answer", show)
    assert optiml("generate", bench, "Generate.max_new_tokens=4", "Generate.separator=|") == 0
    printed = capsys.readouterr().out.split("\n")
    assert seen[0] == "one"
    assert seen[1].startswith("one")
    assert seen[1].endswith("|two")
    assert seen[2:] == ["three", "four"]
    assert " (stopped)" in printed


def test_one_prompt_is_answered_on_the_terminal_on_a_mesh(bench, capsys):
    asked = ("Generate.prompt='Input: red blue'", "Generate.max_new_tokens=20")
    assert optiml("generate", bench, *asked) == 0
    alone = capsys.readouterr().out
    mesh = ("MeshConfig.data=2", "MeshConfig.fsdp=2", "MeshConfig.tensor=2")
    assert optiml("generate", bench, *asked, *mesh) == 0
    assert capsys.readouterr().out == alone


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (("Generate.prompts=nowhere.jsonl",), "set Generate.output"),
        (("Generate.prompts=nowhere.jsonl", "Generate.output=x"), "cannot read the prompts"),
        (("Generate.prompt=a", "Generate.max_new_tokens=500"), "leave no room for a prompt"),
        (("Generate.top_p=2.0",), "top_p = 2.0 (float) must be a number above 0 and at most 1"),
    ],
)
def test_mistakes_are_said_in_a_line(bench, capsys, settings, said):
    assert optiml("generate", bench, *settings) == 2
    assert said in capsys.readouterr().err
