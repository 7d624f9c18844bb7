import json

import pytest

from optiml_jax.data.example import Drops, TaskSource
from optiml_jax.errors import UserError
from tasks.reasoning.reader import find_tasks
from tasks.reasoning.releases import RELEASES, boxed
from tasks.splits import Row
from tasks.templates.instructions import instructions


class TrainOnly:
    """A manifest that has every task trained on."""

    def lookup(self, task, upstream_split):
        return Row("train_only", ("train",))


class HeldOut:
    """A manifest in which every task is a validation task."""

    def lookup(self, task, upstream_split):
        return Row("partially_held_out", ("dev",))


def write(root, name, content, lines=False) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(x) + "\n" for x in content) if lines else json.dumps(content)
    path.write_text(text, "utf-8")


def only(root, manifest=None) -> TaskSource:
    (source,) = find_tasks(root, manifest or TrainOnly())
    return source


def texts(source, split="train", drops=None) -> list[tuple[str, str]]:
    examples = source.read(split, Drops() if drops is None else drops)
    return [(e.input, e.target) for e in examples]


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        (r"So $x = \boxed{\frac{1}{2}}$.", r"\frac{1}{2}"),
        (r"First \boxed{3}, then \boxed{\text{(A) } \{1, 2\}}", r"\text{(A) } \{1, 2\}"),
        (r"It is \fbox{7}.", "7"),
        (r"It is $\boxed 5$ or so.", "5"),
        (r"Never closed \boxed{\frac{1}{2}", ""),
        ("No box", ""),
    ],
)
def test_the_answer_is_in_the_last_box(solution, answer):
    assert boxed(solution) == answer


def test_latex_survives_in_math(tmp_path):
    solution = "We have $\\nu \\neq 0$.\nSo $\\nu = \\boxed{\\frac{\\nu}{2}}$."
    item = {"problem": r"Find $\nu$.", "level": "Level 2", "type": "Algebra", "solution": solution}
    write(tmp_path, "MATH/train/algebra/1.json", item)
    write(tmp_path, "MATH/train/algebra/2.json", {**item, "solution": "no box"})
    write(tmp_path, "MATH/train/algebra/3.json", {**item, "problem": None})
    write(tmp_path, "MATH/test/geometry/1.json", item)
    source = only(tmp_path)
    drops = Drops()
    expected = (r"Find $\nu$.", f"{solution} The answer is \\frac{{\\nu}}{{2}}")
    assert texts(source, drops=drops) == texts(source, "test") == [expected]
    assert drops == {"no boxed answer": 1, "malformed record": 1}
    assert (source.name, source.splits) == ("reasoning/math", ("train", "test"))
    (tmp_path / "MATH/train/algebra/2.json").write_text("{cut")
    with pytest.raises(UserError, match=r"algebra/2\.json"):
        texts(source)


def test_cos_e_joins_explanations_with_the_questions_of_commonsenseqa(tmp_path):
    choices = [{"label": k, "text": t} for k, t in zip("ABCDE", "uvwxy", strict=True)]
    question = {"question_concept": "c", "choices": choices, "stem": "Which?"}
    rows = [{"answerKey": "B", "id": i, "question": question} for i in ("q1", "q2")]
    write(tmp_path, "cos-e/commonsenseqa/train_rand_split.jsonl", rows, lines=True)
    explanation = {"id": "q1", "explanation": {"open-ended": "v it is", "selected": "Which"}}
    write(tmp_path, "cos-e/data/v1.11/train/cose_train_v1.11.jsonl", [explanation], lines=True)
    source, drops = only(tmp_path), Drops()
    assert source.splits == ("train",)
    assert texts(source, drops=drops) == [("Which?\nu, v, w, x, y", "v it is. The answer is v")]
    assert drops == {"no explanation": 1}
    assert len(source.files) == 2


def test_coqa_shows_the_turns_before(tmp_path):
    questions = [{"input_text": q, "turn_id": i} for i, q in enumerate(["Who?", "When?", "Why?"])]
    spans = [("Ann", "Ann came"), ("unknown", "unknown"), ("to sing", "She came to sing.")]
    answers = [{"input_text": a, "span_text": s, "turn_id": i} for i, (a, s) in enumerate(spans)]
    story = {"id": "1", "story": "Ann came.", "questions": questions, "answers": answers}
    data = [story, {**story, "answers": answers[:2]}, {"id": "2"}]
    write(tmp_path, "coqa/coqa-dev-v1.0.json", {"version": "1.0", "data": data})
    source, drops = only(tmp_path, HeldOut()), Drops()
    assert source.splits == ("test",)
    assert texts(source, "test", drops) == [
        ("Ann came.\n\nQ: Who?", "Ann came. The answer is Ann"),
        (
            "Ann came.\n\nQ: Who?\nA: Ann\nQ: When?\nA: unknown\nQ: Why?",
            "She came to sing. The answer is to sing",
        ),
    ]
    assert drops == {"no rationale": 1, "malformed record": 2}
    assert source.demonstrations() == []


def test_proofwriter_proofs_are_told_step_by_step(tmp_path):
    theory = {
        "theory": "Bob is big. Bob is kind. If someone is big then they are red. "
        "If someone is red and kind then they are nice.",
        "triples": {"triple1": {"text": "Bob is big."}, "triple2": {"text": "Bob is kind."}},
        "rules": {
            "rule1": {"text": "If someone is big then they are red."},
            "rule2": {"text": "If someone is red and kind then they are nice."},
        },
    }
    deep = {
        "representation": "((((triple1) -> (rule1 % int2)) triple2) -> (rule2 % int1))",
        "intermediates": {"int1": {"text": "Bob is nice."}, "int2": {"text": "Bob is red."}},
    }
    flat = {"representation": "(triple2)", "intermediates": []}
    questions = {
        "Q1": {"question": "Bob is not nice.", "answer": False, "proofsWithIntermediates": [deep]},
        "Q2": {"question": "Bob is kind.", "answer": True, "proofsWithIntermediates": [flat, deep]},
        "Q3": {"question": "Bob is old.", "answer": "Unknown", "proofsWithIntermediates": []},
        "Q4": {"question": "Bob is old.", "answer": "Unknown"},
        "Q5": {"answer": True, "proofsWithIntermediates": [flat]},
    }
    rows = [{"id": "1", **theory, "questions": questions}, {"id": "2"}]
    write(tmp_path, "proofwriter/v/OWA/depth-5/meta-train.jsonl", rows, lines=True)
    drops = Drops()
    assert texts(only(tmp_path), drops=drops) == [
        (
            f"{theory['theory']}\nBob is not nice.",
            "Bob is big. If someone is big then they are red. So Bob is red. Bob is kind. "
            "If someone is red and kind then they are nice. So Bob is nice. The answer is false",
        ),
        (f"{theory['theory']}\nBob is kind.", "Bob is kind. The answer is true"),
    ]
    assert drops == {"no proof": 2, "malformed record": 2}


def test_winowhy_keeps_valid_reasons_of_people(tmp_path):
    item = {
        "text": {"txt1": "The trophy doesn't fit because", "pron": "it", "txt2": "is too large."},
        "answers": ["the trophy", "the case"],
        "correctAnswer": "A.",
        "reasons": [
            ["it was to be put inside", "human", 1.0, "Valid"],
            ["of the size", "human", 0.6, "Undecided"],
            ["it is a game.", "gpt", 1.0, "Valid"],
            ["the case was small", "reverse", 0.8, "Valid"],
        ],
    }
    write(tmp_path, "WinoWhy/winowhy.json", [item, {**item, "correctAnswer": "C"}])
    drops = Drops()
    assert texts(only(tmp_path), drops=drops) == [
        (
            "The trophy doesn't fit because it is too large.\n"
            'What does "it" refer to?\nthe trophy, the case',
            "it was to be put inside. The answer is the trophy",
        )
    ]
    assert drops == {"malformed record": 1}


def test_strategyqa_is_tested_on_the_rows_of_its_release(tmp_path):
    (tmp_path / "strategyqa_train.tsv").write_text("Is it?\tno\tIt is not.\n")
    rows = [{"question": "Is A a B?", "answer": True, "facts": ["A is C.", "C is B."]}, {}]
    write(tmp_path, "strategyqa/data/strategyqa/dev.json", rows)
    source, drops = only(tmp_path, HeldOut()), Drops()
    assert texts(source, "test", drops) == [("Is A a B?", "A is C. C is B. The answer is yes")]
    assert drops == {"malformed record": 1}
    assert [e.input for e in source.demonstrations()] == ["Is it?"]


def test_gsm8k_reads_as_flans_file_does(real_data, tmp_path):
    """Checked against FLAN's independent cleaning of the same problems (gsm8k_train.tsv)."""
    (tmp_path / "gsm8k").symlink_to(real_data / "gsm8k")
    source = only(tmp_path, HeldOut())
    assert source.splits == ("train", "test")
    assert len(texts(source, "test")) == 250
    ours = {q.replace(" ", ""): target.replace(" ", "") for q, target in texts(source)}
    (tmp_path / "gsm8k_train.tsv").symlink_to(real_data / "reasoning" / "gsm8k_train.tsv")
    both = only(tmp_path, HeldOut())
    assert both.settings["forms"] == {"train": "tsv", "test": "gsm8k"}
    rows = [(q.replace(" ", ""), target) for q, target in texts(both)]
    theirs = {q: target.replace(" ", "") for q, target in rows if q in ours}
    assert len(texts(only(tmp_path), "test")) == 1319
    assert len(ours) == len(theirs) == 1500
    assert sum(theirs[q] == ours[q] for q in theirs) >= 1498
    janet = next(iter(both.read("test", Drops())))
    assert janet.target == (
        "Janet sells 16 - 3 - 4 = 9 duck eggs a day. "
        "She makes 9 * 2 = $18 every day at the farmer’s market. The answer is 18"
    )


def test_gsm8k_rows_without_an_answer_are_counted(tmp_path):
    rows = [{"question": "q", "answer": "no mark"}, {"question": "q"}]
    rows += [{"question": "q", "answer": "Half of 2,000 is <<2000/2=1000>>1,000\n#### 1,000"}]
    write(tmp_path, "gsm8k/train.jsonl", rows, lines=True)
    drops = Drops()
    assert texts(only(tmp_path), drops=drops) == [
        ("q", "Half of 2,000 is 1,000. The answer is 1000")
    ]
    assert drops == {"malformed record": 2}


def test_there_are_fourteen_sets_with_a_sentence_each():
    flan = {"aqua", "creak", "ecqa", "esnli", "gsm8k", "qasc", "qed", "sensemaking", "strategyqa"}
    assert set(instructions("reasoning")) == flan | set(RELEASES)
    assert len(flan | set(RELEASES)) == 14


def test_folders_of_other_things_and_incomplete_releases_are_no_sets(tmp_path):
    write(tmp_path, "cos_e/cose_train_v1.11.jsonl", [{"id": "1"}], lines=True)
    write(tmp_path, "notes/train.jsonl", [{}], lines=True)
    with pytest.raises(UserError, match=r"no <name>_train\.tsv of benchmark 'reasoning' in .*coqa"):
        find_tasks(tmp_path, TrainOnly())


def test_aqua_creak_and_qed_as_they_are_released(tmp_path):
    write(
        tmp_path,
        "aqua/train.json",
        [
            {
                "question": "What is 1 + 1?",
                "options": ["A)1", "B) 2", "C)3", "D)4", "E)5"],
                "rationale": "It is 2.",
                "correct": "B",
            },
            {"question": "?", "options": ["1"], "rationale": "x", "correct": "A"},
        ],
        lines=True,
    )
    write(
        tmp_path,
        "creak/train.json",
        [{"ex_id": "1", "sentence": "Snow is hot.", "explanation": "It is ice.", "label": "false"}],
        lines=True,
    )
    reference = {"start": 0, "end": 1, "bridge": False}
    write(
        tmp_path,
        "qed/qed-train.jsonlines",
        [
            {
                "title_text": "Rome",
                "paragraph_text": "Rome is old. It lies on the Tiber.",
                "question_text": "where does rome lie",
                "annotation": {
                    "explanation_type": "single_sentence",
                    "selected_sentence": {
                        "start": 13,
                        "end": 34,
                        "string": "It lies on the Tiber.",
                    },
                    "referential_equalities": [
                        {
                            "question_reference": {**reference, "string": "rome"},
                            "sentence_reference": {**reference, "string": "It"},
                        }
                    ],
                    "answer": [{"paragraph_reference": {**reference, "string": "the Tiber"}}],
                },
            },
            {"annotation": {"explanation_type": "none"}},
        ],
        lines=True,
    )
    found = {s.name: s for s in find_tasks(tmp_path, TrainOnly())}
    drops = Drops()
    read = {name: texts(source, drops=drops)[0] for name, source in found.items()}
    assert "(A) 1\n(B) 2\n(C) 3" in read["reasoning/aqua"][0]
    assert "It is 2." in read["reasoning/aqua"][1]
    assert "(B)" in read["reasoning/aqua"][1]
    assert "Snow is hot." in read["reasoning/creak"][0]
    assert "no" in read["reasoning/creak"][1]
    assert "where does rome lie" in read["reasoning/qed"][0]
    assert '"It" in it is "rome" of the question.' in read["reasoning/qed"][1]
    assert drops == {"malformed record": 1, "no explanation by one sentence": 1}
