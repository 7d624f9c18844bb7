"""The demo bench: its answers worked out again from the text of every row, and its statistics."""

import collections
import hashlib
import json
import math
import pathlib
import random
import re

import pytest

from optiml_jax.errors import UserError
from tasks.demo import build as demo
from tasks.demo import superni

WORDS = demo.load_words()
KIND = {word: kind for kind, members in WORDS["kinds"].items() for word in members}
TASKS = {f"{c}/{task['name']}": task for c, tasks in demo.load_tasks().items() for task in tasks}
QUESTIONS = [name for name, task in TASKS.items() if task["family"] not in ("story", "chat")]
SUBJECTS = {noun: i for pair in WORDS["grammar"]["nouns"] for i, noun in enumerate(pair)}
VERBS = {verb: i for pair in WORDS["grammar"]["verbs"] for i, verb in enumerate(pair)}
STATEMENT = re.compile(r"(\w+) (is in the|works in the|has the|likes) (\w+)\.")
RELATIONS = {"place": "is in the", "workplace": "works in the", "object": "has the"}
RELATIONS["pastime"] = "likes"


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
    return [(name, value) for name, _, value in STATEMENT.findall(text)]


def table(struct):
    """The rows of two cells of a linearised table."""
    return re.findall(r"row \d : (\w+) \| (\w+)", struct)


def asked_value(question, pairs):
    name = re.search(r"(?:Where is|Where does|What does) (\w+)", question).group(1)
    return dict(pairs)[name]


def asked_name(question, pairs):
    value = re.search(r"Who (?:(?:is|works) in the|has the|likes) (\w+)\?", question).group(1)
    return {v: n for n, v in pairs}[value]


def value_in(text):
    return asked_value(text, facts(text))


def name_in(text):
    return asked_name(text, facts(text))


def paired(pairs):
    return lambda row: dict(map(tuple, WORDS[pairs]))[row["input"].split(", ")[1].split(" : ")[0]]


def only_word_of(kind, words):
    [word] = [word for word in words if KIND[word] == kind]
    return word


def opposite(row):
    pairs = dict(map(tuple, WORDS["opposites"]))
    assert pairs[row["a"]] == row["b"]
    return pairs[row["c"]]


def described(row):
    """DART: the annotations say the triples, one sentence for each."""
    [annotation] = row["annotations"]
    triples = [[n, RELATIONS[relation], value] for n, relation, value in row["tripleset"]]
    assert [list(found) for found in STATEMENT.findall(annotation["text"])] == triples
    return row["annotations"]


def owner_step_by_step(row):
    assert row["rationale"] in row["question"]
    names = [name for name, _ in facts(row["question"])]
    assert row["question"].endswith(r"\nOptions:\n- " + r"\n- ".join(names))
    answer = name_in(row["question"])
    assert answer in row["rationale"]
    return answer


def larger_step_by_step(row):
    first, second = sorted(row["question"].split(", "), reverse=True)
    assert row["rationale"] == f"{first[0]} is more than {second[0]}."
    return first


def kind_step_by_step(kind):
    def solve(row):
        words = row["question"].split(", ")
        assert row["rationale"] == ", ".join(f"{word}: {KIND[word]}" for word in words) + "."
        return only_word_of(kind, words)

    return solve


def fits(sentence):
    """Whether verb or first word of a sentence fit its subject."""
    first, subject, verb = tokens(sentence)[:3]
    if verb in ("is", "are"):
        return SUBJECTS[subject] == ("is", "are").index(verb)
    if first in ("This", "These"):
        return SUBJECTS[subject] == ("This", "These").index(first)
    return SUBJECTS[subject] == VERBS[verb]


def words_of(row):
    return tokens(row["input"])


SOLVERS = {
    "superni/first_word": lambda row: row["input"].split(" ")[0],
    "superni/second_word": lambda row: row["input"].split(" ")[1],
    "superni/last_word": lambda row: row["input"].split(" ")[-1],
    "superni/last_of_dash_list": lambda row: row["input"].split(" - ")[-1],
    "superni/first_of_dash_list": lambda row: row["input"].split(" - ")[0],
    "superni/reverse_words": lambda row: " ".join(reversed(row["input"].split(" "))),
    "superni/count_words": lambda row: str(row["input"].count(" ") + 1),
    "superni/digits_to_words": lambda row: " ".join(WORDS["digits"][int(d)] for d in words_of(row)),
    "superni/even_or_odd": lambda row: "odd" if row["input"][-1] in "13579" else "even",
    "superni/plurals": paired("plurals"),
    "superni/past_tenses": paired("past_tenses"),
    "superni/word_of_kind": lambda row: only_word_of(words_of(row)[-1], words_of(row)[:3]),
    "superni/find_animal": lambda row: only_word_of("animal", words_of(row)),
    "promptsource/reviews/film": lambda row: int(praise(row["text"])),
    "promptsource/reviews/phone": lambda row: int(praise(row["text"])),
    "promptsource/people/place": lambda row: asked_value(row["question"], facts(row["context"])),
    "promptsource/words/opposite": opposite,
    "promptsource/lists/topic": lambda row: list(WORDS["kinds"]).index(KIND[row["words"][0]]),
    "promptsource/lists/tool": lambda row: only_word_of("tool", row["words"]),
    "flan/hotel_reviews": lambda row: int(praise(row["text"])),
    "flan/plan_stance": lambda row: int(praise(row["text"])),
    "flan/verb_agreement": lambda row: int(fits(row["text"])),
    "flan/where_works": lambda row: asked_value(row["question"], facts(row["context"])),
    "flan/who_works": lambda row: asked_name(row["question"], facts(row["context"])),
    "flan/larger_number": lambda row: str(max(map(int, row["numbers"].split(", ")))),
    "crossfit/novel_reviews": lambda row: yes(praise(row["input"])),
    "crossfit/first_of_comma_list": lambda row: row["input"].split(", ")[0],
    "crossfit/second_of_comma_list": lambda row: row["input"].split(", ")[1],
    "crossfit/last_of_comma_list": lambda row: row["input"].split(", ")[-1],
    "crossfit/who_has": lambda row: name_in(row["input"]),
    "crossfit/who_is_there": lambda row: name_in(row["input"]),
    "exmix/even_number": lambda row: next(n for n in row["text"].split(", ") if int(n) % 2 == 0),
    "exmix/at_least_500": lambda row: yes(row["text"][0] in "56789"),
    "exmix/words_to_digits": lambda row: " ".join(
        str(WORDS["digits"].index(word)) for word in row["text"].split()
    ),
    "exmix/this_or_these": lambda row: "right" if fits(row["text"]) else "wrong",
    "t5/glue/sst2": lambda row: int(praise(row["sentence"])),
    "t5/glue/cola": lambda row: int(fits(row["sentence"])),
    "t5/super_glue/boolq": lambda row: int("animal" in map(KIND.get, tokens(row["passage"]))),
    "unifiedskg/dart": described,
    "unifiedskg/who_likes": lambda row: asked_name(row["text_in"], table(row["struct_in"])),
    "unifiedskg/what_has": lambda row: asked_value(row["text_in"], table(row["struct_in"])),
    "reasoning/owner_step_by_step": owner_step_by_step,
    "reasoning/larger_step_by_step": larger_step_by_step,
    "reasoning/food_step_by_step": kind_step_by_step("food"),
    "reasoning/vehicle_step_by_step": kind_step_by_step("vehicle"),
    "reasoning/garment_step_by_step": kind_step_by_step("garment"),
}
ANSWERS = ("label", "answer", "output", "seq_out", "annotations")


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    demo.build(out)
    return out


def superni_file(bench, name):
    path = bench / "superni" / "tasks" / f"{superni.stem(TASKS[name])}.json"
    return json.loads(path.read_text("utf-8"))


def splits(bench, name):
    """Split -> rows of a task, as they stand in its files."""
    task = TASKS[name]
    if name.startswith("superni/"):
        instances = superni_file(bench, name)["Instances"]
        rows = [{"input": i["input"], "output": i["output"][0]} for i in instances]
        # The reader takes the first tenth, the second tenth and (held-out tasks) the first hundred.
        return {"all": rows, "first": rows[:40], "second": rows[40:80], "held_out": rows[:100]}
    parts = {}
    for split in task["held_out_splits" if task.get("held_out") else "splits"]:
        path = bench / task["collection"] / task["file"].format(name=task["name"], split=split)
        lines = path.read_text("utf-8").splitlines()
        if path.suffix == ".json":
            parts[split] = json.loads(path.read_text("utf-8"))
        elif path.suffix == ".jsonl":
            parts[split] = [json.loads(line) for line in lines]
        else:
            cells = [line.split("\t") for line in lines]
            parts[split] = [dict(zip(task["columns"], row, strict=True)) for row in cells]
    return parts


def answer(row):
    return next(row[column] for column in ANSWERS if column in row)


def question(row):
    return json.dumps({k: v for k, v in row.items() if k not in (*ANSWERS, "idx", "rationale")})


@pytest.mark.parametrize("name", QUESTIONS)
def test_every_answer_follows_from_its_row(bench, name):
    for rows in splits(bench, name).values():
        for row in rows:
            assert answer(row) == SOLVERS[name](row), row


@pytest.mark.parametrize("name", [name for name in TASKS if name.startswith("superni/")])
def test_examples_of_definitions_are_right_or_wrong_as_they_should_be(bench, name):
    data, solve = superni_file(bench, name), SOLVERS[name]
    assert all(example["output"] == solve(example) for example in data["Positive Examples"])
    assert all(example["output"] != solve(example) for example in data["Negative Examples"])
    for example in data["Positive Examples"] + data["Negative Examples"]:
        assert example["explanation"]
        assert not re.search(r"[{}]", example["explanation"])
    parts = ("Instances", "Positive Examples", "Negative Examples")
    inputs = [record["input"] for part in parts for record in data[part]]
    assert len(set(inputs)) == len(inputs) == superni.NUM_CANDIDATES


@pytest.mark.parametrize("name", TASKS)
def test_no_row_comes_twice_in_a_task(bench, name):
    parts = splits(bench, name)
    rows = parts["all"] if "all" in parts else [row for rows in parts.values() for row in rows]
    questions = [question(row) for row in rows]
    if not name.startswith("unifiedskg/"):  # the order of a table's rows may differ
        assert len(set(questions)) == len(questions)


@pytest.mark.parametrize("name", QUESTIONS)
def test_answers_are_balanced_in_every_part(bench, name):
    labels = {repr(answer(row)) for rows in splits(bench, name).values() for row in rows}
    for rows in splits(bench, name).values():
        [(_, most)] = collections.Counter(repr(answer(row)) for row in rows).most_common(1)
        if len(labels) <= 5:
            assert most <= math.ceil(len(rows) / len(labels)) + 1  # the last round may be cut
        else:
            assert most <= 0.3 * len(rows)


def test_a_sorted_pair_of_numbers_or_words_is_asked_once(bench):
    names = ["flan/larger_number", "exmix/even_number", "promptsource/lists/topic"]
    for name in [*names, "t5/super_glue/boolq", "promptsource/lists/tool"]:
        rows = [row for rows in splits(bench, name).values() for row in rows]
        asked = [tuple(sorted(tokens(question(row)))) for row in rows]
        assert len(set(asked)) == len(asked), name


def test_split_lists_name_every_task_of_superni_once(bench):
    def stems(split):
        path = bench / "superni" / "splits" / "default" / f"{split}_tasks.txt"
        return path.read_text("utf-8").split()

    train, test = stems("train"), stems("test")
    files = sorted(path.stem for path in (bench / "superni" / "tasks").glob("*.json"))
    assert sorted(train + test) == files
    assert [stem.split("_")[-2:] for stem in test] == [["dash", "list"], ["find", "animal"]]


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


def test_same_seed_gives_same_bytes_and_another_seed_other_rows(bench, tmp_path):
    demo.build(tmp_path / "same")
    demo.build(tmp_path / "other", seed=7)
    assert digest(tmp_path / "same") == digest(bench)
    changed = digest(tmp_path / "other")
    assert changed.keys() == digest(bench).keys()
    static = {str(path.relative_to(demo.HERE / "files")) for path in demo.HERE.rglob("files/**/*")}
    static |= {f"superni/splits/default/{split}_tasks.txt" for split in ("train", "test")}
    assert all((changed[f] == digest(bench)[f]) == (f in static) for f in changed)


def test_a_task_with_too_few_words_is_named():
    words = {"plurals": [["man", "men"], ["foot", "feet"]]}
    task = {"name": "few", "family": "analogy", "parameters": {"pairs": "plurals"}}
    with pytest.raises(UserError, match=r"demo task few: only [23] of 5 balanced .* add words to"):
        demo.draw(task, words, random.Random(0), 5)
