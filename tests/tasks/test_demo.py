"""The demo bench: its answers worked out again from the text of every input, and its statistics."""

import collections
import hashlib
import json
import pathlib
import re

import pytest

from tasks.demo import build as demo

WORDS = demo.load_words()
KIND = {word: kind for kind, members in WORDS["kinds"].items() for word in members}
TASKS = {task["name"]: task for task in demo.load_tasks()}
SUBJECTS = {noun: i for pair in WORDS["grammar"]["nouns"] for i, noun in enumerate(pair)}
VERBS = {verb: i for pair in WORDS["grammar"]["verbs"] for i, verb in enumerate(pair)}


def tokens(text):
    return re.findall(r"\w+", text)


def yes(condition):
    return "yes" if condition else "no"


def praise(text):
    """True for praise, False for complaint: every judging word of the text must agree."""
    judged = re.findall(r"(not )?\b(\w+)\b", text)
    good, bad = (WORDS["sentiment"][label] for label in ("positive", "negative"))
    views = {(word in good) != bool(no) for no, word in judged if word in good or word in bad}
    assert len(views) == 1, text
    return views.pop()


def facts(text):
    """The sentences "{name} ... {value}." of a text as a list of pairs."""
    return re.findall(r"(\w+) (?:(?:is|works) in the|has the|likes) (\w+)\.", text)


def answer_value(text):
    name = re.search(r"(?:Where is|Where does|What does) (\w+)", text).group(1)
    return dict(facts(text))[name]


def answer_name(text):
    value = re.search(r"Who (?:(?:is|works) in the|has the|likes) (\w+)\?", text).group(1)
    return {v: n for n, v in facts(text)}[value]


def paired(pairs):
    return lambda text: dict(map(tuple, WORDS[pairs]))[text.split(", ")[1].split(" : ")[0]]


def word_of_named_kind(text):
    listed, kind = text.split(". Kind: ")
    return only_word_of(kind)(listed)


def only_word_of(kind):
    def solve(text):
        [word] = [word for word in tokens(text) if KIND[word] == kind]
        return word

    return solve


def has_word_of(kind):
    return lambda text: yes(kind in {KIND[word] for word in tokens(text)})


def right_or_wrong(condition):
    return "right" if condition else "wrong"


SOLVERS = {
    "first_word": lambda text: text.split(" ")[0],
    "second_word": lambda text: text.split(" ")[1],
    "last_word": lambda text: text.split(" ")[-1],
    "first_of_comma_list": lambda text: text.split(", ")[0],
    "second_of_comma_list": lambda text: text.split(", ")[1],
    "last_of_comma_list": lambda text: text.split(", ")[-1],
    "first_of_dash_list": lambda text: text.split(" - ")[0],
    "last_of_dash_list": lambda text: text.split(" - ")[-1],
    "reverse_words": lambda text: " ".join(reversed(text.split(" "))),
    "count_words": lambda text: str(text.count(" ") + 1),
    "larger_number": lambda text: str(max(map(int, text.split(", ")))),
    "even_number": lambda text: next(n for n in text.split(", ") if int(n) % 2 == 0),
    "even_or_odd": lambda text: "odd" if text[-1] in "13579" else "even",
    "at_least_500": lambda text: yes(text[0] in "56789"),
    "digits_to_words": lambda text: " ".join(WORDS["digits"][int(d)] for d in text.split()),
    "words_to_digits": lambda text: " ".join(str(WORDS["digits"].index(w)) for w in text.split()),
    "restaurant_reviews": lambda text: "positive" if praise(text) else "negative",
    "film_reviews": lambda text: "positive" if praise(text) else "negative",
    "hotel_reviews": lambda text: "good" if praise(text) else "bad",
    "novel_reviews": lambda text: yes(praise(text)),
    "phone_reviews": lambda text: "positive" if praise(text) else "negative",
    "plan_stance": lambda text: "positive" if praise(text) else "negative",
    "where_is": answer_value,
    "where_works": answer_value,
    "who_works": answer_name,
    "what_has": answer_value,
    "who_has": answer_name,
    "who_likes": answer_name,
    "who_is_there": answer_name,
    "opposites": paired("opposites"),
    "plurals": paired("plurals"),
    "past_tenses": paired("past_tenses"),
    "topic": lambda text: WORDS["kind_plurals"][KIND[tokens(text)[0]]],
    "word_of_kind": word_of_named_kind,
    "list_has_animal": has_word_of("animal"),
    "find_animal": only_word_of("animal"),
    "find_tool": only_word_of("tool"),
    "verb_agreement": lambda text: yes(SUBJECTS[tokens(text)[1]] == VERBS[tokens(text)[2]]),
    "is_or_are": lambda text: right_or_wrong(
        SUBJECTS[tokens(text)[1]] == ("is", "are").index(tokens(text)[2])
    ),
    "this_or_these": lambda text: right_or_wrong(
        SUBJECTS[tokens(text)[1]] == (tokens(text)[0] in ("These", "Those"))
    ),
}


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    demo.build(out)
    return out


def load(bench, name):
    return json.loads((bench / "tasks" / f"{TASKS[name]['id']}.json").read_text("utf-8"))


@pytest.mark.parametrize("name", TASKS)
def test_every_answer_follows_from_its_input(bench, name):
    data, solve = load(bench, name), SOLVERS[name]
    for instance in data["Instances"]:
        assert instance["output"] == [solve(instance["input"])], instance["input"]
    for example in data["Positive Examples"]:
        assert example["output"] == solve(example["input"])
    for example in data["Negative Examples"]:
        assert example["output"] != solve(example["input"])


@pytest.mark.parametrize("name", TASKS)
def test_no_input_comes_twice_in_a_task(bench, name):
    data = load(bench, name)
    inputs = [
        record["input"]
        for part in ("Instances", "Positive Examples", "Negative Examples")
        for record in data[part]
    ]
    assert len(set(inputs)) == len(inputs) == demo.NUM_INSTANCES + 6
    ids = [instance["id"] for instance in data["Instances"]]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("name", TASKS)
def test_answers_are_balanced_in_every_part_that_a_reader_cuts_off(bench, name):
    data = load(bench, name)
    answers = [instance["output"][0] for instance in data["Instances"]]
    # Readers take the first tenth, the second tenth and (held-out tasks) the first hundred.
    for part in (answers, answers[:40], answers[40:80], answers[:100]):
        counts = collections.Counter(part)
        best_constant = max(counts.values()) / len(part)
        if TASKS[name].get("metric") == "labels":
            labels = len(set(answers))
            assert len(counts) == labels
            assert best_constant <= 1 / labels + 0.02
        else:
            assert best_constant <= 0.25


def test_a_sorted_pair_of_numbers_or_words_is_asked_once(bench):
    for name in ("larger_number", "even_number", "topic", "list_has_animal", "find_tool"):
        inputs = [tuple(sorted(tokens(i["input"]))) for i in load(bench, name)["Instances"]]
        assert len(set(inputs)) == len(inputs), name


def test_explanations_and_definitions_are_filled_in(bench):
    definitions = set()
    for name in TASKS:
        data = load(bench, name)
        definitions.update(data["Definition"])
        for record in data["Positive Examples"] + data["Negative Examples"]:
            assert record["explanation"]
            assert not re.search(r"[{}]", record["explanation"])
    assert len(definitions) == len(TASKS)


def test_split_lists_name_every_task_once_and_hold_out_whole_categories(bench):
    def stems(split):
        return (bench / "splits" / "default" / f"{split}_tasks.txt").read_text("utf-8").split()

    train, test = stems("train"), stems("test")
    files = sorted(path.stem for path in (bench / "tasks").glob("*.json"))
    assert sorted(train + test) == files == sorted(task["id"] for task in TASKS.values())
    category = {task["id"]: task["category"] for task in TASKS.values()}
    trained = {category[stem] for stem in train}
    assert {category[stem] for stem in test} - trained == {"Keyword Tagging", "Stance Detection"}
    assert {category[stem] for stem in test} & trained  # partially held-out tasks exist too


def test_no_word_is_of_two_kinds():
    members = [word for words in WORDS["kinds"].values() for word in words]
    assert len(set(members)) == len(members)
    assert not set(WORDS["sentiment"]["positive"]) & set(WORDS["sentiment"]["negative"])
    for pairs in ("opposites", "plurals", "past_tenses"):
        words = [word for pair in WORDS[pairs] for word in pair]
        assert len(set(words)) == len(words), pairs


def digest(folder: pathlib.Path):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def test_same_seed_gives_same_bytes_and_another_seed_other_instances(bench, tmp_path):
    demo.build(tmp_path / "same")
    demo.build(tmp_path / "other", seed=7)
    assert digest(tmp_path / "same") == digest(bench)
    changed = digest(tmp_path / "other")
    assert changed.keys() == digest(bench).keys()
    assert all(changed[f] != digest(bench)[f] for f in changed if f.startswith("tasks/"))
