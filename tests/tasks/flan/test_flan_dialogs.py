"""FLAN v2's sets of dialogues, from files in the form of their releases with texts of our own.

What is expected was worked out by hand from google-research/FLAN, flan/v2: preprocessors.py
(`wiki_dialog`, `qrecc`, `task_master`, `format_dialog`, `format_dialog_non_deterministic`),
task_configs.py, tasks.py and mixtures.py; lists are compared with what Python makes of the file.
"""

import collections
import gzip
import itertools
import json

import flan_clone
import gin
import pytest

from optiml_jax.data.example import Drops
from optiml_jax.data.prompts import PromptConfig
from optiml_jax.data.training_prompts import training_prompt
from optiml_jax.errors import UserError
from tasks.flan.dialogs import Turns
from tasks.flan.facts import Extractor, read_dialog_facts
from tasks.flan.fields import UnusableError
from tasks.flan.templates_v2 import read_dialog_texts
from tasks.registry import find_sources
from tasks.splits import Manifest

CONFIG = PromptConfig(shots=(0.5, 0.0, 0.25, 0.25), demonstrations="train")
ROWS = 600


@pytest.fixture
def clone(tmp_path):
    gin.bind_parameter("FlanConfig.templates", "v2")
    gin.bind_parameter("FlanConfig.inverted", True)
    return flan_clone.write_clone(tmp_path / "flan")


def write(path, rows, lines=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    if lines:
        path.write_bytes(gzip.compress("".join(json.dumps(r) + "\n" for r in rows).encode()))
    else:
        path.write_text(json.dumps(rows))


def qrecc_row(turn: int, context: list[str]) -> dict:
    """As apple/ml-qrecc describes it in its README."""
    return {
        "Context": context,
        "Question": f"Question {turn}?",
        "Rewrite": f"Rewritten {turn}?",
        "Answer": f"Answer {turn}.",
        "Answer_URL": "web.archive.org/x",
        "Conversation_no": 74,
        "Turn_no": turn,
        "Conversation_source": "trec",
    }


def wiki_row(number: int) -> dict:
    """As TFDS's builder of WikiDialog describes its JSON; a dialogue of one question."""
    said = ["Hello, I am your assistant.", f"What is {number}?", f"It is the number {number}."]
    about = {"pid": f"p{number}", "title": "Numbers", "passage": said[2], "sentences": said[2:]}
    return about | {"utterances": said, "author_num": [0, 1, 0]}


def errand(*said: str) -> dict:
    """As TM-1-2019/sample.json of google-research-datasets/Taskmaster."""
    turns = [
        {"index": i, "speaker": ("USER", "ASSISTANT")[i % 2], "text": text, "segments": []}
        for i, text in enumerate(said)
    ]
    return {"conversation_id": "dlg-1", "instruction_id": "pizza-1", "utterances": turns}


def find(clone, task):
    sources = find_sources({"flan_dialog": str(clone)}, Manifest.load())
    return next(s for s in sources if s.name == f"flan_dialog/{task}")


def drawn(clone, task) -> tuple[list, Drops]:
    drops = Drops()
    return list(find(clone, task).read("train", drops)), drops


# --- releases


def test_qrecc_is_read_as_it_is_published(clone):
    said = [f"turn {i}" for i in range(8)]
    rows = [qrecc_row(6, said[:6]), qrecc_row(7, said), qrecc_row(9, ["alone"])]
    write(clone / "datasets/qrecc/qrecc_train.json", rows)
    write(clone / "datasets/qrecc/qrecc_test.json", [qrecc_row(8, said)])
    (example,), drops = drawn(clone, "qrecc")
    # Upstream takes rows after the sixth turn, and predicts an answer of their context.
    assert drops == {"Turn_no is not above 6": 1, "a dialogue of fewer than two turns": 1}
    answer = example.slots["answer"]
    assert answer in said[1::2]
    shown = said[: said.index(answer)]
    assert example.slots["dialog_"] == "DIALOG:\n" + "\n- ".join(shown) + "\n- "


def test_some_of_wikidialogs_files_are_enough(clone, caplog):
    for number in (1, 2):
        name = f"datasets/wiki_dialog/data_train.jsonl-{number:05}-of-00003.gz"
        write(clone / name, [wiki_row(number), wiki_row(10 + number)], lines=True)
    examples, _ = drawn(clone, "wiki_dialog")
    answers = [f"It is the number {n}." for n in (1, 11, 2, 12)]
    assert [e.slots["answer"] for e in examples] == answers
    assert {e.slots["dialog_"] for e in examples} == {
        f"DIALOG:\nWhat is {n}?\n- " for n in (1, 11, 2, 12)
    }  # without the assistant's first words
    assert "2 of the 3 files of split 'train' are there; rows of the others are not" in caplog.text


def test_all_three_taskmasters_are_read(clone):
    folder = clone / "datasets/task_master"
    write(folder / "TM-1-2019/self-dialogs.json", [errand("I want a large pizza.", "Which?")])
    write(folder / "TM-1-2019/woz-dialogs.json", [errand("I need a taxi at six.", "Where to?")])
    write(folder / "TM-1-2019/ontology.json", {"pizza": {}})
    write(
        folder / "TM-2-2020/data/flights.json",
        [errand("A flight to Oslo, please.", "When?"), errand("Hi.")],
    )
    write(
        folder / "TM-3-2020/data/data_00.json", [errand("Which films are there?", "Which cinema?")]
    )
    examples, drops = drawn(clone, "task_master")
    assert drops == {"a dialogue of fewer than two turns": 1}
    answers = ["Which?", "Where to?", "When?", "Which cinema?"]
    assert [e.slots["answer"] for e in examples] == answers
    assert {e.category for e in examples} == {"Dialogue Generation"}
    assert len({e.source_id for e in examples}) == len({e.example_id for e in examples}) == 4


def test_the_columns_of_tfds_are_known(tmp_path):
    import tensorflow_datasets as tfds

    facts = read_dialog_facts()
    for name, row in (
        ("qrecc", {"context": ["a?", "b"], "turn_id": 7}),
        ("wiki_dialog", {"utterances": ["hello", "a?", "b"]}),
    ):
        builder = tfds.builder(facts[name].tfds, data_dir=str(tmp_path))
        assert row.keys() <= builder.info.features.keys()
        found = Extractor(facts[name], name)(row)
        assert found.slots == {"dialog_": "DIALOG:\na?\n- ", "answer": "b"}


# --- turns


def test_any_answer_but_no_late_one_is_predicted():
    dialog = [f"turn {i}" for i in range(60)]

    def places(task, most=60):
        turns = read_dialog_facts()[task].turns
        return collections.Counter(turns.drawn(dialog[:most], f"key {i}") for i in range(4000))

    # tf.random.uniform(0, min(len / 2, 20)) * 2 + 1, and tf.random.uniform(1, min(len, 20))
    for task in ("qrecc", "wiki_dialog"):
        assert sorted(places(task)) == list(range(1, 40, 2))
        assert sorted(places(task, 7)) == [1, 3, 5]
    assert sorted(places("task_master")) == list(range(1, 20))
    assert sorted(places("task_master", 4)) == [1, 2, 3]
    shares = [n / 4000 for n in places("qrecc", 8).values()]
    assert shares == pytest.approx([0.25] * 4, abs=0.03)
    with pytest.raises(UnusableError, match="fewer than two turns"):
        Turns(step=1, most=19).drawn(["alone"], "key")


# --- prompts


def test_the_forms_of_lists_are_those_that_python_reads(clone):
    _, forms = read_dialog_texts(clone)
    python = flan_clone.executed()
    assert list(forms.starts) == python["DIALOG_START_STRING_CANDIDATES"]
    assert list(map(list, forms.marks)) == python["DIALOG_ITEM_NAME_CANDIDATES"]
    assert list(map(list, forms.ends)) == python["DIALOG_ITEM_END_STR_CANDIDATES"]
    found = {forms.drawn(["Hi", "Ho", "Hm"], f"key {i}") for i in range(200)}
    assert len(found) == 2 * 2 * 2
    assert "TALK:Talk:\nOne) Hi;\nTwo) Ho;\nOne) Hm;\nTwo) " in found
    assert "\n ~ Hi\n ~ Ho\n ~ Hm\n ~ " in found


def number_of(answer: str) -> int:
    return int(answer.removeprefix("It is the number ").removesuffix("."))


def test_prompts_are_those_of_upstreams_templates(clone):
    rows = [wiki_row(n) for n in range(ROWS)]
    write(clone / "datasets/wiki_dialog/data_train.jsonl-00000-of-00001.gz", rows, lines=True)
    examples, _ = drawn(clone, "wiki_dialog")
    assert len(examples) == ROWS
    kinds, seen = collections.Counter(), collections.defaultdict(set)
    for example in examples:
        prompt, shown = training_prompt(example, examples, "instance", CONFIG)
        pattern, kind = example.prompt_id.split("#")[0].rsplit(".", 1)
        kinds["inverted" if pattern.endswith("inversion") else "", kind] += 1
        n = str(number_of(example.slots["answer"]))
        text = f"{prompt.source()} >>> {prompt.target}"
        if not shown:
            seen[example.prompt_id].add(text.replace(f"What is {n}?", "Q?").replace(n, "N"))
            continue
        listed = f"DIALOG:\nWhat is {n}?\n-"
        assert prompt.query in {
            "wiki_dialog.fs_opt#0": {f"Heard: {listed} \n"},
            "wiki_dialog.fs_opt#1": {f"Next? {listed}\n\n!"},
        }.get(example.prompt_id, {prompt.query})
        assert len(shown) == (5 if kind == "fs_mix" else len(shown))
        assert all("DIALOG:\nWhat is" in d for d in prompt.demonstrations)
    # Zero-shot: both wordings with each of the drawn forms; one space before every target.
    forms = {
        start + "".join(marks[:1]) + "Q?" + end + marks[1].rstrip()
        for start, marks, end in itertools.product(
            ("", "TALK:Talk:"), (("\n ~ ", "\n ~ "), ("\nOne) ", "\nTwo) ")), ("", ";")
        )
    }
    target = " >>> It is the number N."
    assert seen["wiki_dialog.zs_opt#0"] == {f"{form.lstrip()}\n{target}" for form in forms}
    assert seen["wiki_dialog.zs_opt#1"] == {f"Go on: {form}{target}" for form in forms}
    assert seen["wiki_dialog_input_inversion.zs_opt#0"] == {
        f"What led to It is the number N.? >>> {form.strip()}" for form in forms
    }
    # Half without demonstrations; of the others half with five in templates of their own; the
    # inverted set weighs 0.3.
    for inverted, part in (("", 1 / 1.3), ("inverted", 0.3 / 1.3)):
        shares = {kind: n / ROWS for (i, kind), n in kinds.items() if i == inverted}
        expected = {"zs_opt": part / 2, "fs_opt": part / 4, "fs_mix": part / 4}
        assert shares == pytest.approx(expected, abs=0.05)


def test_templates_of_2021_are_refused(clone):
    gin.bind_parameter("FlanConfig.templates", "2021")
    with pytest.raises(UserError, match=r"only FLAN v2 has templates for dialogues; set FlanConf"):
        find(clone, "qrecc")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("x % 2 == 0", "x % 2 < 1", r"line \d+: lists of turns must be texts or simple compre"),
        ("x % 2 == 0", "x % 0 == 0", r"lists of turns must be"),
        ("DIALOG_START_STRING", "OTHER", r"assigns no DIALOG_START_STRING_CANDIDATES; give FLAN"),
    ],
)
def test_other_code_is_refused(clone, old, new, message):
    path = clone / "flan/v2/templates.py"
    path.write_text(flan_clone.TEMPLATES.replace(old, new))
    with pytest.raises(UserError, match=message):
        read_dialog_texts(clone)


def test_without_rows_the_folder_is_named(clone):
    with pytest.raises(UserError, match=r"no task of benchmark 'flan_dialog' in .* put rows into"):
        find_sources({"flan_dialog": str(clone)}, Manifest.load())
