"""The record files: what is stored, what counts as done, what is refused."""

import dataclasses
import json

import pytest
import toy_evaluation as toy

from optiml_jax.cli.settings import Evaluate
from optiml_jax.data.prompts import PromptConfig
from optiml_jax.errors import UserError
from optiml_jax.evaluate.config import EvalConfig
from optiml_jax.evaluate.protocol import RULE_NAMES, Protocol
from optiml_jax.evaluate.records import (
    GIN_NAMES,
    RULES,
    Candidate,
    Record,
    RunFolder,
    TaskInfo,
    choose,
    prompt_key,
    rescore,
)

INFO = TaskInfo("b/t 1", "b", "C", "fully_held_out", "acc_rank")
SUMMARY = {
    "metric": "acc_rank",
    "protocol": dataclasses.asdict(Protocol()) | {"stop": []},
    "best_constant": {"answer": "a", "score": 0.5},
}


def candidates():
    rows = [
        ("a", -1.2, 1, 3, -1.0, -1.5),
        ("b", -1.5, 3, 5, -1.6, -0.1),
        ("c", -2.0, 2, 20, -2.1, -0.1),
        ("d", -2.4, 2, 8, -5.0, -0.1),
    ]
    return tuple(Candidate(t, s, n, c, c, eos, u, False) for t, s, n, c, u, eos in rows)


def a_record(**more):
    fields = {
        "example_id": "e",
        "prompt_id": "p",
        "cluster": "e",
        "references": ("b",),
        "prediction": "a",
        "score": 0.0,
        "candidates": candidates(),
        "correct": (1,),
    }
    return Record(**(fields | more))


@pytest.mark.parametrize(
    ("rule", "winner", "score"),
    [
        ("sum", "a", -1.2),
        ("mean", "b", -0.5),
        ("chars", "c", -0.1),
        ("bytes", "c", -0.1),
        ("unconditional", "d", 2.6),
        ("sum_eos", "b", -1.6),
    ],
)
def test_each_rule_picks_its_candidate_from_the_stored_components(rule, winner, score):
    four = candidates()
    best, tied = choose(four, rule)
    assert four[best].text == winner
    assert RULES[rule](four[best]) == pytest.approx(score)
    assert not tied


def test_equal_scores_go_to_the_first_candidate_and_count_as_a_tie():
    same = (candidates()[1], candidates()[1])
    assert choose(same, "sum") == (0, True)


def test_a_score_that_is_not_a_number_is_an_error():
    with pytest.raises(ValueError, match="not a number"):
        choose([Candidate("a", float("nan"), 1, 1, 1, 0.0, 0.0, False)], "sum")


def test_rescoring_changes_prediction_and_score():
    better = rescore(a_record(), "mean")
    assert (better.prediction, better.score) == ("b", 1.0)


def test_records_survive_the_file_also_with_unicode_line_separators(tmp_path):
    folder = RunFolder(tmp_path)
    records = [a_record(), a_record(prediction="x\u2028y\x85z\n", candidates=(), correct=())]
    folder.write(INFO.task, 2, records, SUMMARY)
    assert folder.read(INFO.task, 2) == (records, SUMMARY)
    assert folder.status(INFO, 2) == ("done", "")
    assert folder.status(INFO, 0)[0] == "missing"


def test_a_file_without_its_summary_line_is_named_and_not_trusted(tmp_path):
    folder = RunFolder(tmp_path)
    folder.write(INFO.task, 0, [a_record()], SUMMARY)
    (file,) = (tmp_path / "records").iterdir()
    text = file.read_text("utf-8")
    file.write_text(text[: len(text) // 2], "utf-8")
    with pytest.raises(UserError, match="damaged"):
        folder.read(INFO.task, 0)


def test_a_failure_makes_old_records_void_and_success_removes_the_failure(tmp_path):
    folder = RunFolder(tmp_path)
    folder.write(INFO.task, 0, [a_record()], SUMMARY)
    folder.fail(INFO.task, 0, "no such file")
    assert folder.status(INFO, 0) == ("failed", "no such file")
    assert not folder.recover(INFO, 0, lambda summary: "other examples")
    assert folder.status(INFO, 0) == ("failed", "no such file")
    assert folder.recover(INFO, 0, lambda summary: "")
    assert folder.status(INFO, 0) == ("done", "")
    folder.fail(INFO.task, 0, "no such file")
    folder.write(INFO.task, 0, [a_record()], SUMMARY)
    assert folder.status(INFO, 0) == ("done", "")


def test_a_folder_is_not_continued_with_other_settings(tmp_path):
    folder = RunFolder(tmp_path)
    folder.open({"delimiter": "A:"}, [INFO])
    folder.open({"delimiter": "A:"}, [INFO])
    assert folder.load() == ({"delimiter": "A:"}, [INFO])
    with pytest.raises(UserError, match=r"EvalConfig\.delimiter was 'A:' and is 'B:' now; restore"):
        folder.open({"delimiter": "B:"}, [INFO])


def test_every_setting_of_an_evaluation_has_the_name_that_gin_gives_it(tmp_path):
    """Those of a run of the evaluator; a name of its own would be no help to the user."""
    assert not toy.run([toy.eval_task("b/t", "em")], tmp_path)
    stored = RunFolder(tmp_path).load()[0]
    assert set(stored) <= set(GIN_NAMES)
    classes = {"EvalConfig": EvalConfig, "PromptConfig": PromptConfig, "Evaluate": Evaluate}
    for name in GIN_NAMES.values():
        settings, _, field = name.split(" ")[0].partition(".")
        if settings in classes:
            assert field in {f.name for f in dataclasses.fields(classes[settings])}, name


def test_records_made_with_another_metric_do_not_count_as_done(tmp_path):
    folder = RunFolder(tmp_path)
    folder.write(INFO.task, 0, [a_record()], SUMMARY | {"metric": "rougeL"})
    assert folder.status(INFO, 0)[0] == "missing"


def test_another_protocol_asks_for_another_run_and_another_rule_does_not(tmp_path):
    folder = RunFolder(tmp_path)
    folder.write(INFO.task, 0, [a_record()], SUMMARY)
    info = dataclasses.replace(INFO, protocol=Protocol(rule="mean"))
    assert folder.status(info, 0) == ("done", "")
    info = dataclasses.replace(INFO, protocol=Protocol(stop=("\n",)))
    assert folder.status(info, 0) == ("missing", "evaluated with another stop")


def test_every_rule_has_its_arithmetic():
    assert set(RULES) == set(RULE_NAMES)


@pytest.mark.parametrize(
    "fields",
    [{"rule": "best"}, {"max_new_tokens": 0}, {"samples": 3, "temperature": 0}, {"stop": [""]}],
)
def test_a_protocol_that_makes_no_sense_is_refused(fields):
    with pytest.raises(UserError):
        Protocol(**fields)


def test_suites_evaluated_one_after_the_other_stay_together(tmp_path):
    folder = RunFolder(tmp_path)
    other = dataclasses.replace(INFO, task="b/u", shots=(0, 5))
    folder.open({}, [dataclasses.replace(INFO, shots=(0, 2))])
    folder.open({}, [other])
    folder.open({}, [dataclasses.replace(INFO, shots=(5,), category="D")])
    _, infos = folder.load()
    assert {i.task: (i.category, i.shots) for i in infos} == {
        INFO.task: ("D", (0, 2, 5)),
        "b/u": ("C", (0, 5)),
    }


@pytest.mark.parametrize("damage", ["line doubled", "line removed", "digit", "summary", "swapped"])
def test_records_that_are_not_as_they_were_written_are_evaluated_again(tmp_path, damage):
    folder = RunFolder(tmp_path)
    records = [dataclasses.replace(a_record(), example_id=f"e{i}") for i in range(3)]
    folder.write(INFO.task, 0, records, SUMMARY)
    (file,) = (tmp_path / "records").glob("*.jsonl")
    first, second, *others, last = file.read_text("utf-8").splitlines()
    lines = {
        "line doubled": [first, first, second, *others, last],
        "line removed": [first, *others, last],
        "digit": [first.replace('"e0"', '"e7"'), second, *others, last],
        "summary": [first, second, *others, last.replace(INFO.metric, "acc_ranx")],
        "swapped": [second, first, *others, last],
    }
    file.write_text("\n".join(lines[damage]) + "\n", "utf-8")
    with pytest.raises(UserError, match=r"not as it was written.*run `optiml evaluate` again"):
        folder.read(INFO.task, 0)
    assert folder.status(INFO, 0)[0] == "missing"
    assert str(file) in folder.status(INFO, 0)[1]


def test_settings_of_an_evaluation_that_were_changed_are_refused(tmp_path):
    folder = RunFolder(tmp_path)
    folder.open({"checkpoint": 1}, [INFO])
    file = tmp_path / "tasks.json"
    file.write_text(file.read_text("utf-8").replace('"checkpoint": 1', '"checkpoint": 2'), "utf-8")
    with pytest.raises(UserError, match=r"tasks\.json is not as it was written; remove"):
        folder.load()


def test_prompts_are_stored_once_and_equal_prompts_are_equal_bytes(tmp_path):
    texts = ["One\u2028line\nAnswer:", "Two"]
    prompts = {prompt_key(text): text for text in texts}
    files = []
    for name in ("a", "b"):
        folder = RunFolder(tmp_path / name)
        folder.open({}, [INFO])
        records = [a_record(prompt=prompt_key(texts[i % 2]), raw="x\n\n") for i in range(4)]
        folder.write("b/t 1", 0, records, SUMMARY, prompts)
        assert folder.prompts("b/t 1", 0) == prompts
        assert folder.read("b/t 1", 0)[0][1].raw == "x\n\n"
        files.append((tmp_path / name / "records" / "b.t_1.0shot.prompts.jsonl.gz").read_bytes())
    assert files[0] == files[1]
    assert folder.prompts("b/t 1", 5) == {}


def test_records_of_earlier_evaluations_are_read(tmp_path):
    """Without the fields for single answers."""
    value = json.loads(a_record().to_json())
    for name in ("group", "prompt", "options", "raw"):
        del value[name]
    assert Record.from_json(value) == a_record()
