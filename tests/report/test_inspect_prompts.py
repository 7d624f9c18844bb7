"""Spans of rendered prompts: whatever the settings, together they are the text trained on."""

import dataclasses
import io

import pytest

from optiml_jax.data import chat
from optiml_jax.data.example import Example, PromptForm, PromptText, TaskSource
from optiml_jax.data.prompts import PromptConfig, fit_example
from optiml_jax.data.training_prompts import render_for_training
from optiml_jax.report import inspect_terminal
from optiml_jax.report.inspect_prompts import END, Renderer, Span, TaskFacts, first_per_prompt


def example(i: int, prompt: str = "p", **fields) -> Example:
    return Example(
        **{
            "benchmark": "b",
            "task": "b/t",
            "category": "C",
            "prompt_id": prompt,
            "example_id": f"e{i}",
            "split": "train",
            "instruction": "Pick one.",
            "input": f"text {i}\nOPTIONS:\n- yes\n- no",
            "target": "yes",
            "references": ("yes",),
            "options": ("yes", "no"),
            "options_text": "OPTIONS:\n- yes\n- no",
            **fields,
        }
    )


def source(examples: list[Example], level: str = "task") -> TaskSource:
    return TaskSource(
        name="b/t",
        splits=("train",),
        files=(),
        read=lambda split, drops: iter(examples),
        demonstrations=lambda: examples,
        instruction_level=level,
    )


def encode(text: str) -> list[int]:
    """A token is a character: lengths can be counted by hand."""
    return [ord(c) for c in chat.shown(text)]


def renderer(length: int = 2000, **config) -> Renderer:
    def decode(ids):
        return "".join(map(chr, ids))

    return Renderer(PromptConfig(**config), encode, decode, length)


def joined(spans, *kinds: str) -> str:
    return "".join(s.text for s in spans if not kinds or s.kind in kinds)


CONFIGS = {
    "zero shots": {},
    "two shots": {"shots": (0, 0, 1.0)},
    "suffix loss": {"shots": (0, 0, 1.0), "loss": "suffix"},
    "options anew": {"option_format": "letters", "option_order": "shuffled"},
    "no delimiter": {"delimiter": ""},
    "a chat": {"chat": "<u>{prompt}</u>", "shots": (0, 0, 1.0)},
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("level", ["task", "instance", "verbatim"])
@pytest.mark.parametrize("length", [2000, 110, 60])
def test_spans_together_are_the_text_that_training_reads(config, level, length):
    examples = [example(i) for i in range(4)]
    make = renderer(length, **config)
    (view,) = make.views(source(examples, level), examples[:1], [None])
    prompt = render_for_training(examples[0], examples, level, make.config)
    read, trained = prompt.without_and_with_loss()
    pair = fit_example(prompt, encode(read), encode(trained), length, 3, encode)
    kept = [s for s in view.spans if s.kind != "cut"]
    assert joined(s for s in kept if not s.loss) == "".join(map(chr, pair[0]))
    assert joined(s for s in kept if s.loss) == "".join(map(chr, pair[1][:-1])) + END
    assert view.tokens == (len(pair[0]), len(pair[1]))
    assert view.fits


def formed(i: int, shots: tuple[int, ...]) -> Example:
    """An example in a template of its own, below a definition."""
    text = PromptText(source="Q {n}?", target="Ans: {n}", delimiter="\n> ")
    form = PromptForm(delimiter="\n> ", shots=shots, texts=(text,), separator="##", head_end="@@")
    fields = {"instruction": "Define.", "input": f"Q {i}?", "target": f"Ans: {i}"}
    return example(i, **fields, options_text="", form=form, slots={"n": str(i)})


OWN = {"plain": {}, "a chat": {"chat": "<u>{prompt}</u>"}, "suffix loss": {"loss": "suffix"}}


@pytest.mark.parametrize("config", OWN.values(), ids=OWN)
@pytest.mark.parametrize("level", ["task", "instance"])
@pytest.mark.parametrize(("length", "shots"), [(2000, 2), (70, 2), (20, 2), (2000, 0), (20, 0)])
def test_a_template_of_its_own_is_shown_as_training_reads_it(config, level, length, shots):
    examples = [formed(i, (shots,) if shots else ()) for i in range(4)]
    make = renderer(length, shots=(0.5, 0.5), demonstrations="train", **config)
    (view,) = make.views(source(examples, level), examples[:1], [None])
    prompt = render_for_training(examples[0], examples, level, make.config)
    read, trained = prompt.without_and_with_loss()
    pair = fit_example(prompt, encode(read), encode(trained), length, 3, encode)
    kept = [s for s in view.spans if s.kind != "cut"]
    assert joined(s for s in kept if not s.loss) == "".join(map(chr, pair[0]))
    assert joined(s for s in kept if s.loss) == "".join(map(chr, pair[1][:-1])) + END
    if length == 2000 and not config:
        shown = [f"Q {i[1:]}?\n> Ans: {i[1:]}" for i in prompt.demonstration_ids]
        assert len(shown) == shots
        assert joined(view.spans[:-1]) == "Define.@@" + "##".join((*shown, "Q 0?\n>"))


def test_every_part_has_its_kind():
    config = {"shots": (0, 1.0), "delimiter": "\nA:", "separator": "##"}
    examples = [example(0), example(1)]
    (view,) = renderer(**config).views(source(examples), examples[:1], [None])
    assert [(s.kind, s.text, s.loss) for s in view.spans] == [
        ("instruction", "Instructions: Pick one.", False),
        ("separator", "##", False),
        ("demonstration", "Input: text 1\nOPTIONS:\n- yes\n- no\nA:", False),
        ("answer", " yes", False),
        ("separator", "##", False),
        ("input", "Input: text 0", False),
        ("options", "\nOPTIONS:\n- yes\n- no", False),
        ("delimiter", "\nA:", False),
        ("target", f" yes{END}", True),
    ]


def test_prompts_that_upstream_wrote_are_shown_as_they_are():
    examples = [example(0, input="Q: 2?\nA:"), example(1, input="Q: 1?\nA:", target="\nIt is 1.")]
    make = renderer(separator="##", delimiter="\nOutput:")
    few, none = make.views(source(examples, "verbatim"), examples[:1], [1, 0])
    assert [(s.kind, s.text) for s in few.spans[:-2]] == [
        ("instruction", "Pick one."),
        ("separator", "##"),
        ("demonstration", "Q: 1?\nA:"),
        ("answer", "\nIt is 1."),
        ("separator", "##"),
    ]
    assert joined(none.spans) == f"Pick one.##Q: 2?\nA: yes{END}"


def test_suffix_loss_starts_at_the_first_demonstrations_answer():
    config = {"shots": (0, 0, 1.0), "loss": "suffix", "delimiter": "\nA:"}
    examples = [example(i) for i in range(3)]
    (view,) = renderer(**config).views(source(examples), examples[:1], [None])
    kinds = [s.kind for s in view.spans if s.loss]
    assert kinds[:3] == ["answer", "separator", "demonstration"]
    assert kinds[-1] == "target"
    (evaluated,) = renderer(**config).views(source(examples), examples[:1], [2])
    assert not any(s.loss for s in evaluated.spans)  # evaluation knows no loss


def test_an_evaluation_may_have_a_delimiter_of_its_own():
    examples = [example(0), example(1)]
    make = renderer(delimiter="\nA:")
    views = make.views(source(examples), examples[:1], [None, 1], {"delimiter": "\nAnswer:"})
    trained, evaluated = ([s.text for s in v.spans if s.kind == "delimiter"] for v in views)
    assert (trained, evaluated) == (["\nA:"], ["\nAnswer:"])


def test_options_that_are_listed_anew_are_found():
    (view,) = renderer(option_format="letters").views(source([example(0)]), [example(0)], [None])
    assert "A. yes\nB. no" in joined(view.spans, "options")


def test_what_does_not_fit_is_told_and_marked():
    long = example(0, input="x" * 100, options_text="", instruction="")
    (view,) = renderer(40, delimiter="").views(source([long]), [long], [None])
    assert view.dropped == (0, 107 + 4 + 1 - 40)  # "Input: " + x's, " yes", </s>
    assert joined(view.spans, "cut") == "Input: " + "x" * 65
    assert sum(view.tokens) == 40
    huge = dataclasses.replace(long, target="y" * 50, references=("y" * 50,))
    (view,) = renderer(40, delimiter="").views(source([huge]), [huge], [None])
    assert not view.fits
    text = inspect_terminal.prompt_text(view, 40, colour=False)
    assert "not trained on" in text


def test_plain_text_is_all_target():
    plain = example(0, instruction="", input="", options_text="", options=None, target="A text.")
    (view,) = renderer().views(source([plain]), [plain], [None])
    assert view.spans == (Span("target", f"A text.{END}", loss=True),)


def test_examples_are_gathered_by_prompt():
    examples = [example(i, prompt="abc"[i % 3]) for i in range(9)]
    chosen, left_out = first_per_prompt(source(examples), "train", 2, 2)
    assert [(e.prompt_id, e.example_id) for e in chosen] == [
        *(("a", "e0"), ("a", "e3"), ("b", "e1"), ("b", "e4"))
    ]
    assert left_out == 1


def test_terminal_names_every_span_without_colour_and_shows_control_characters():
    evil = example(0, input="red \x1b[31m text", options_text="")
    (view,) = renderer(delimiter="\nA:").views(source([evil]), [evil], [None])
    plain = inspect_terminal.prompt_text(view, 2000, colour=False)
    assert "\x1b" not in plain
    assert "input │ Input: red \\x1b[31m text" in plain
    assert "delimiter │ ⏎" in plain
    assert "target * │  yes</s>" in plain
    coloured = inspect_terminal.prompt_text(view, 2000, colour=True)
    assert "\x1b[1;32m yes</s>\x1b[0m" in coloured
    assert "\x1b[31m text" not in coloured


def test_colours_only_on_a_terminal_that_wants_them(monkeypatch):
    terminal = io.StringIO()
    assert not inspect_terminal.colours_wanted(terminal)
    terminal.isatty = lambda: True
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert inspect_terminal.colours_wanted(terminal)
    monkeypatch.setenv("NO_COLOR", "1")
    assert not inspect_terminal.colours_wanted(terminal)


def test_heading_tells_what_the_task_is_for():
    facts = TaskFacts("b/t", "b", "C", "fully_held_out", ("dev",), False, "rougeL", (0, 5))
    assert inspect_terminal.task_heading(facts, colour=False) == (
        "b/t\n  C; fully held out; role dev; rougeL at 0/5 shots"
    )
