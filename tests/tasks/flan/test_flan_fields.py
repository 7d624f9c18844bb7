import json
import pathlib

import pytest

from optiml_jax.errors import UserError
from tasks.flan.facts import Extractor, read_facts, rows_range
from tasks.flan.fields import UnusableError, Value

# Rows that we made up, with what upstream's own preprocessors give for them (google-research/FLAN,
# flan/tasks.py, run by TensorFlow); null: the row is left out.
GOLDEN = pathlib.Path(__file__).parents[2] / "goldens" / "flan_fields.jsonl"
FACTS, _ = read_facts(pathlib.Path("nowhere"))
V2 = ("lambada", "unified_qa_science_inst")  # of FLAN v2 alone


def extract(task: str, facts=None, **row):
    """The slots of a row, with its options and answers, or the reason it is left out."""
    try:
        record = Extractor(facts or FACTS[task], task)(row)
    except UnusableError as e:
        return str(e)
    found = {k: v for k, v in record.slots.items() if k != "ending"}
    if record.options:
        found["options"] = list(record.options)
    if record.answers:
        found["answers"] = list(record.answers)
    return found


def test_fields_options_and_answers_of_all_70_tasks_are_upstreams():
    cases = [json.loads(line) for line in GOLDEN.read_text("utf-8").splitlines()]
    assert {case["task"] for case in cases} == set(FACTS) - {*V2}
    for case in cases:
        found, expected = extract(case["task"], **case["row"]), case["expected"]
        assert (found == expected) if expected else isinstance(found, str), case


# --- the cases that the reference names, written out


def test_lambadas_answer_is_its_last_word():
    row = {"passage": " He put  on\nhis warm hat "}
    assert extract("lambada", **row) == {"sentence": "He put  on\nhis warm", "answer": "hat"}
    assert extract("lambada", FACTS["lambada"].for_files(), text="a b")["answer"] == "b"


def test_science_questions_have_four_options_in_their_text():
    # The case that flan/v2/preprocessors.py, unified_qa_science_inst, is documented by.
    asked = (
        "What is the largest insect in the world? \\n (A) Giant wētā. (B) Ant. (C) Lion. (D) Flea."
    )
    found = extract("unified_qa_science_inst", input=asked, output="Giant wētā.")
    assert found == {
        "question": "What is the largest insect in the world?",
        "answer": "Giant wētā.",
        "options": ["Giant wētā.", "Ant.", "Lion.", "Flea."],
    }
    five = extract("unified_qa_science_inst", input=f"{asked} (E) Bee.", output="Ant.")
    assert five == "input holds (E)"
    three = extract("unified_qa_science_inst", input="Q (A) a (B) b (C) c", output="a")
    assert three == "not 4 options"


def test_arc_has_four_options():
    row = {"question": "Q", "choices": {"text": ["a", "b", "c"], "label": [0, 1, 2]}}
    assert extract("arc_easy", **row, answerKey=0) == "not 4 options"
    row["choices"]["text"].append("d")
    assert extract("arc_easy", **row, answerKey=3)["answer"] == "d"


@pytest.mark.parametrize("text", ["UNK won", "won # cups"])
def test_gigaword_rows_with_unknown_words_or_digits_are_left_out(text):
    assert extract("gigaword", document=text, summary="s") == "document holds UNK or #"
    assert extract("gigaword", document="d", summary=text) == "summary holds UNK or #"


def test_hellaswag_loses_its_tags_and_rows_without_label():
    row = {"context": "[header] How to [title] A [step] B", "endings": ["[step] x", "y", "z", "w"]}
    found = extract("hellaswag", **row, label=0)
    assert (found["context"], found["answer"]) == ("How to \nA \nB", "x")
    assert extract("hellaswag", **row, label=-1) == "label names no option"


def test_samsum_tags_go_greedily_within_a_line():
    row = {"dialogue": "A: <b>x</b> y\r\nB: 1 < 2\r\nC: 3 > 2", "summary": "s"}
    assert extract("samsum", **row)["dialogue"] == "A:   y\nB: 1 < 2\nC: 3 > 2"


def test_cnn_dailymail_keeps_upstreams_slip_unless_it_shall_be_fixed():
    row = {"article": "LONDON (CNN) -- Rain fell.", "highlights": "Rain"}
    assert extract("cnn_dailymail", **row)["text"] == "LONDON (CNN"
    fixed = FACTS["cnn_dailymail"].fixed()
    assert extract("cnn_dailymail", fixed, **row)["text"] == "Rain fell."


def test_aeslc_lines_are_joined():
    found = extract("aeslc", email_body="a\nb\n", subject_line="c\nd")
    assert found == {"body": "a b ", "subject": "cd"}


def test_squad_v2_questions_without_answer():
    row = {"title": "A_B", "context": "c", "question": "q"}
    found = extract("squad_v2", **row, answers={"text": []}, is_impossible=True)
    assert (found["title"], found["answer"], found["answers"]) == (
        "A B",
        "unanswerable",
        ["unanswerable"],
    )
    assert extract("squad_v1", **row, answers={"text": []}) == "no value of answers.text"


def test_record_options_carry_the_text_behind_the_placeholder():
    found = extract(
        "record",
        passage="Oslo won.\n@highlight\nCup",
        query="It went to @placeholder in May.",
        entities=["Oslo", "Rome"],
        answers=["Oslo"],
    )
    assert found["passage"] == "Oslo won."
    assert found["query"] == "It went to"
    assert found["options"] == ["Oslo in May.", "Rome in May."]
    assert (found["answer"], found["answers"]) == ("Oslo in May.", ["Oslo in May."])


def test_winogrande_options_carry_the_ending():
    found = extract(
        "winogrande", sentence="Ann beat Eva as _ ran.", option1="Ann", option2="Eva", label=1
    )
    assert (found["context"], found["answer"]) == ("Ann beat Eva as ", "Eva ran.")


def test_sentiment140_neutral_tweets_are_left_out():
    assert extract("sentiment140", text="t", polarity=2) == "no value of polarity"
    assert extract("sentiment140", text="t", polarity=3)["answer"] == "positive"


def test_true_case_lowers_ascii_and_drops_what_does_not_change():
    assert extract("true_case", en="Åse Lie")["lower"] == "Åse lie"
    assert extract("true_case", en="all lower") == "source and target are the same"


# --- rows as Hugging Face has them


@pytest.mark.parametrize(
    ("task", "row", "expected"),
    [
        (
            "arc_challenge",
            {
                "question": "Q",
                "choices": {"text": ["a", "b", "c", "d"], "label": ["1", "2", "3", "4"]},
                "answerKey": "3",
            },
            {"answer": "c"},
        ),
        (
            "openbookqa",
            {
                "question_stem": "Q",
                "fact1": "F",
                "choices": {"text": ["a", "b", "c", "d"], "label": ["A", "B", "C", "D"]},
                "answerKey": "B",
            },
            {"question": "Q", "fact": "F", "answer": "b"},
        ),
        ("anli_r2", {"premise": "P", "hypothesis": "H", "label": 2}, {"context": "P"}),
        ("trec", {"text": "T", "coarse_label": 5, "fine_label": 1}, {"answer": "numeric"}),
        (
            "winogrande",
            {"sentence": "x _ y", "option1": "a", "option2": "b", "answer": "2"},
            {"answer": "b y"},
        ),
        (
            "bool_q",
            {"question": "q", "passage": "Ulm -- A -- b", "label": 1},
            {"title": "Ulm", "text": "A -- b", "answer": "yes"},
        ),
        (
            "wmt16_translate_roen",
            {"translation": {"en": "Hi", "ro": "Bună"}},
            {"sent1": "Hi", "sent2": "Bună", "lang2": "Romanian"},
        ),
        ("hellaswag", {"ctx": "c", "endings": list("abcd"), "label": "3"}, {"answer": "d"}),
        ("hellaswag", {"ctx": "c", "endings": list("abcd"), "label": ""}, "no value of label"),
    ],
)
def test_columns_of_hugging_face_give_the_same_fields(task, row, expected):
    found = extract(task, FACTS[task].for_files(), **row)
    if isinstance(expected, dict):
        found = {slot: found[slot] for slot in expected}
    assert found == expected


def test_splits_are_renamed_for_files():
    facts = FACTS["winogrande"].for_files()
    assert facts.splits["train"] == "train[:30000]"
    assert FACTS["anli_r3"].for_files().splits == {
        "train": "train_r3[:30000]",
        "validation": "dev_r3[:200]",
        "test": "test_r3",
    }
    assert "title" not in FACTS["ag_news_subset"].for_files().slots


def test_every_column_is_one_of_tfds_and_every_class_has_its_option(tmp_path):
    """Against the schemas that TFDS itself ships."""
    import tensorflow_datasets as tfds

    for name, task in FACTS.items():
        features = tfds.builder(task.tfds.partition(":")[0], data_dir=tmp_path).info.features
        extractor = Extractor(task, name)
        values = [*extractor._fields.values()]
        values += [extractor._choices] if extractor._choices else []
        values += [extractor._label] if task.answer_is_option else []
        for path in [path for value in values for path in value.paths if not value.constant]:
            feature = _feature(features, path)
            if isinstance(feature, tfds.features.ClassLabel) and task.options:
                assert feature.num_classes == len(task.options), (name, path)


def _feature(features, path):
    for key in path.split("."):
        features = getattr(features, "feature", features)[key]
    return features


# --- the language of values


@pytest.mark.parametrize(
    ("spec", "row", "expected"),
    [
        ("a.b", {"a": {"b": 3}}, 3),
        ("a.b", {"a": [{"b": 1}, {"b": 2}]}, [1, 2]),
        ({"text": "{x}"}, {}, "{x}"),
        ([["a", "b"], "strip"], {"a": " x", "b": "y "}, ["x", "y"]),
        (["a", {"replace": [r"(x)\1", r"\1"]}], {"a": "xxy"}, r"\1y"),
        (["a", {"take": 2}, "numbered"], {"a": ["x", "y", "z"]}, "1. x\n2. y"),
        (["a", {"append": " {s}"}], {"a": "x"}, "x slot"),
        (["a", {"also": "b"}], {"a": ["x"], "b": "y"}, ["x", "y"]),
    ],
)
def test_values(spec, row, expected):
    assert Value(spec, "here")(row, {"s": "slot"}) == expected


@pytest.mark.parametrize(
    ("spec", "row", "reason"),
    [
        ("a.b", {"a": {}}, "no field 'a.b'"),
        ("a", {"a": None}, "no value of a"),
        (["a", "first"], {"a": "a text is no list"}, "no value of a"),
        (["a", {"join": " "}], {"a": "a text is no list"}, "no value of a"),
        (["a", "first"], {"a": []}, "no value of a"),
        (["a", {"piece": ["_", 1]}], {"a": "x"}, "no value of a"),
        (["a", "strip"], {"a": 3}, "no value of a"),
    ],
)
def test_rows_without_the_value_are_left_out(spec, row, reason):
    with pytest.raises(UnusableError, match=reason):
        Value(spec, "here")(row, {})


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (["a", "shout"], "here: unknown operation 'shout'; known: strip, "),
        (["a", {"replace": ["(", ""]}], "here: replace needs"),
        (["a", {"divide": "("}], "here: divide needs"),
        ([1], "here: .* is not a path"),
        ({"txt": "x"}, "here: .* is not a path"),
        ([], "here: .* is not a path"),
    ],
)
def test_values_that_are_not_well_formed(spec, message):
    with pytest.raises(UserError, match=message):
        Value(spec, "here")


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ("train", range(10)),
        ("train[:4]", range(4)),
        ("train[-3:]", range(7, 10)),
        ("train[-6:-5]", range(4, 5)),
        ("train[:30000]", range(10)),
        ("train[:-200]", range(0)),
    ],
)
def test_rows_are_written_as_tfds_does(rows, expected):
    assert rows_range(rows, 10) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tasks: [", "is not YAML: .*, line [12]: "),
        ("tasks: !!python/object/apply:os.system [ls]", "is not YAML: .*, line [12]: "),
        ("version: 1", "has no mapping `tasks`"),
        ("tasks: {t: {}}", "task_config.yaml, task 't': needs a cluster"),
        ("tasks: {t: {cluster: c, colour: red}}", "task 't': unknown key .'colour'."),
        ("tasks: {t: {cluster: c, splits: tiny}}", "task 't': splits must be a mapping or a known"),
        ("tasks: {t: {cluster: c, splits: {train: 'a[1]'}}}", "'a.1.' is no part with rows"),
        ("tasks: {t: {cluster: c, splits: {dev: dev}}}", "dev: 'dev' is no part"),
        ("tasks: {t: {cluster: c, options: [yes, no]}}", 'list of texts .quote "yes"'),
        ("tasks: {t: {cluster: c, fields: {x: [x, louder]}}}", "'t', field 'x': unknown operation"),
        ("tasks: {t: {cluster: c, fields: {x: x}}}", "task 't': there is no field answer"),
        ("tasks: {t: {cluster: c, filters: {long: 3}}}", "'t', filters: unknown key"),
        ("tasks: {t: {cluster: c, files: true}}", "files must be a mapping or false"),
    ],
)
def test_own_configurations_that_are_not_well_formed(text, message, tmp_path):
    (tmp_path / "task_config.yaml").write_text(text)
    with pytest.raises(UserError, match=message) as e:
        read_facts(tmp_path)
    assert "task_config.yaml" in str(e.value)
    assert "\n" not in str(e.value)
