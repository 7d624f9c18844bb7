import hashlib
import json
import pathlib
import pickle
import re

import gin
import pytest

from optiml_jax.data.example import Drops
from optiml_jax.data.prompts import PromptConfig, render, select_demonstrations
from optiml_jax.errors import UserError
from tasks.splits import Manifest, category
from tasks.suites.bbh import find_tasks, read_prompt

MANIFEST = Manifest.load()
NOTICE = "KEEP OUT OF TRAINING. canary GUID 1\n-----\n"
COT = "A: Let's think step by step."
DEMONSTRATIONS = (
    f"Q: Is 2 even?\nOptions:\n- yes\n- no\n{COT}\n2 is 2 * 1. So the answer is yes.\n\n"
    f"Q: Is 3 even?\n{COT}\nIt says the answer is no. No, the answer is no.\nSo the answer is no."
)


def write(root, problems, prompt=f"{NOTICE}Say it.\n\n{DEMONSTRATIONS}", task="parity"):
    (root / "bbh").mkdir(exist_ok=True)
    (root / "cot-prompts").mkdir(exist_ok=True)
    content = json.dumps({"canary": "canary", "examples": problems})
    (root / "bbh" / f"{task}.json").write_text(content, "utf-8")
    if prompt is not None:
        (root / "cot-prompts" / f"{task}.txt").write_text(prompt, "utf-8")
    return root


def rendered(source, shots=3, drops=None):
    """Text of the prompt -> its example, as an evaluation with the manifest's row renders it."""
    protocol = MANIFEST.row(source).protocol
    config = PromptConfig(delimiter="\nOutput:", separator=protocol.separator).for_evaluation()
    pool = source.demonstrations()
    texts = {}
    for e in source.read("test", Drops() if drops is None else drops):
        chosen = select_demonstrations(e, pool, shots, config)
        texts[render(e, chosen, source.instruction_level, config).source()] = e
    return texts


def test_answer_only_prompts_show_the_answers_and_nothing_of_the_notice(tmp_path):
    write(tmp_path, [{"input": "Is 4 even?", "target": "yes"}])
    (source,) = find_tasks(tmp_path, MANIFEST)
    ((text, example),) = rendered(pickle.loads(pickle.dumps(source))).items()
    assert text == (
        "Say it.\n\nQ: Is 2 even?\nOptions:\n- yes\n- no\nA: yes\n\nQ: Is 3 even?\nA: no\n\n"
        "Q: Is 4 even?\nA:"
    )
    assert (source.name, example.target, example.references) == ("bbh/parity", "yes", ("yes",))
    assert (category(source), example.options) == ("BBH", None)


def test_chain_of_thought_is_a_benchmark_with_the_demonstrations_as_they_are(tmp_path):
    write(tmp_path, [{"input": "Is 4 even?", "target": "yes"}])
    (source,) = find_tasks(tmp_path, MANIFEST, "bbh_cot")
    (text,) = rendered(source)
    assert text == f"Say it.\n\n{DEMONSTRATIONS}\n\nQ: Is 4 even?\n{COT}"
    (direct,) = find_tasks(tmp_path, MANIFEST)
    assert source.settings["style"] != direct.settings["style"]


def test_direct_reasoning_and_self_consistency_are_never_in_one_column(tmp_path):
    rows = [MANIFEST.lookup(f"{b}/snarks", None) for b in ("bbh", "bbh_cot", "bbh_cot_sc")]
    assert len({row.category for row in rows}) == 3
    assert [row.protocol.samples for row in rows] == [0, 0, 40]
    assert [row.protocol.max_new_tokens for row in rows] == [None, 512, 512]
    assert {(row.metric, row.shots, row.protocol.stop) for row in rows} == {
        ("em_bbh", (3,), ("\n\n", "Q:"))
    }


def test_27_files_make_23_tasks_if_asked_for():
    wanted = {n: row for n, row in MANIFEST.evaluation_tasks().items() if n.startswith("bbh/")}
    assert len({row.aggregate_as or n for n, row in wanted.items()}) == len(wanted) == 27
    gin.bind_parameter("SplitConfig.bbh_23", True)
    rows = {n: row for n, row in Manifest.load().evaluation_tasks().items() if n in wanted}
    assert len(rows) == 27
    assert len({row.aggregate_as or n for n, row in rows.items()}) == 23


def test_damaged_problems_are_counted_and_free_answers_of_lists_are_kept(tmp_path):
    listed = "Which?\nOptions:\n(A) one\n(B) two"
    problems = [
        {"input": listed, "target": "(B)"},
        {"input": listed, "target": "three, four"},
        {"input": "no target"},
        {"input": "a list", "target": ["x"]},
        {"input": "x", "target": " "},
        {"input": listed, "target": "(B)"},
    ]
    write(tmp_path, problems)
    (source,) = find_tasks(tmp_path, MANIFEST)
    drops = Drops()
    examples = list(source.read("test", drops))
    assert [e.target for e in examples] == ["(B)", "three, four", "(B)"]
    assert len({e.example_id for e in examples}) == 3
    assert drops == {
        "malformed record": 2,
        "empty target": 1,
        "warning: target is none of the options": 1,
        "warning: repeated record": 1,
    }


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no bbh/\*\.json of benchmark 'bbh'"):
        find_tasks(tmp_path, MANIFEST)
    with pytest.raises(UserError, match="folder not found"):
        find_tasks(tmp_path / "nowhere", MANIFEST)
    write(tmp_path, [], prompt=None)
    with pytest.raises(UserError, match=r"1 prompt files .* missing, first: .*parity.txt"):
        find_tasks(tmp_path, MANIFEST)


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        f"{NOTICE}Say it.",
        f"{NOTICE}Say it.\n\n{DEMONSTRATIONS[:-70]}",  # cut off
        f"{NOTICE}Say it.\n\nQ: Is 2 even?\nA: So the answer is yes.",
        f"{NOTICE}Say it.\n\nQ: Is 2 even?\n{COT}\nSo the answer is .",
        b"Say it.\n\nQ: \xff",
    ],
)
def test_a_prompt_that_is_not_whole_is_refused(tmp_path, prompt):
    path = tmp_path / "parity.txt"
    path.write_bytes(prompt if isinstance(prompt, bytes) else prompt.encode())
    with pytest.raises(UserError, match=r"parity.txt is not .*download it again"):
        read_prompt(str(path), True)


def test_upstreams_prompts_come_out_byte_for_byte(real_data):
    """All problems of all files; the files of prompts are cut at their dashed line here."""
    counts, drops = {}, Drops()
    for source in find_tasks(real_data, MANIFEST, "bbh_cot"):
        problems, prompt = map(pathlib.Path, source.files)
        prompt = prompt.read_bytes().decode("utf-8").split("-----\n")[1]
        expected = [
            f"{prompt}\n\nQ: {item['input']}\nA: Let's think step by step."
            for item in json.loads(problems.read_text("utf-8"))["examples"]
        ]
        assert list(rendered(source, drops=drops)) == list(dict.fromkeys(expected))
        counts[source.name] = len(expected)
    assert (len(counts), sum(counts.values())) == (24, 5833)
    assert drops == {
        "warning: repeated record": 2,
        "warning: target is none of the options": 3,
    }


def test_answer_only_prompts_answer_in_the_form_of_the_targets(real_data):
    """And nothing but the reasoning is missing from them."""
    for source in find_tasks(real_data, MANIFEST):
        forms = {"(A)"} if "Options:\n(A)" in next(source.read("test", Drops())).input else None
        pool = source.demonstrations()
        assert len(pool) == 3
        targets = {e.target for e in source.read("test", Drops())}
        for shown in pool:
            answer = shown.target.removeprefix(" ")
            assert "canary" not in shown.instruction + shown.input
            if forms:
                assert re.fullmatch(r"\([A-Z]\)", answer)
            elif len(targets) < 5:  # yes and no, True and False, ...
                assert answer in targets
            assert answer == answer.strip().removesuffix(".")


def test_the_answer_only_prompt_is_the_one_that_upstream_ran(real_data):
    """The first input of code-davinci-002-direct/word_sorting..., by its hash."""
    prompt = read_prompt(str(real_data / "cot-prompts" / "word_sorting.txt"), False)
    question = "Sort the following words alphabetically: List: syndrome therefrom"
    shown = [text + answer for text, answer in prompt.demonstrations]
    text = "\n\n".join([prompt.instruction, *shown, prompt.before + question + prompt.after])
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "3f37d2e8b71e9043"
