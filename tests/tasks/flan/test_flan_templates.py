import json
import os

import pytest

from optiml_jax.data.training_prompts import fill
from optiml_jax.errors import UserError
from tasks.flan.facts import read_facts
from tasks.flan.reader import chosen_templates
from tasks.flan.templates import Template, find_templates, read_templates, repair, select

KEPT = {  # counts per pattern as reviewed by hand for the project's reference
    10: "wsc wsc273 wic record natural_questions trivia_qa math_dataset squad_v2 fix_punct bool_q "
    "definite_pronoun_resolution glue_mrpc glue_qqp paws_wiki winogrande e2e_nlg mnli wnli "
    "hellaswag",
    9: "rte anli cb true_case coqa qnli snli trec",
    8: "aeslc gigaword multi_news xsum squad_v1 quac word_segment cosmos_qa ag_news_subset "
    "story_cloze copa dart web_nlg_en wiki_lingua_english_en multirc cola sst2 stsb piqa "
    "para_crawl wmt16_translate wmt14_enfr",
    7: "cnn_dailymail newsroom samsum drop imdb_reviews yelp_polarity_reviews arc "
    "opinion_abstracts_rotten_tomatoes openbookqa",
    6: "sentiment140 opinion_abstracts_idebate common_gen",
}


@pytest.fixture(scope="module")
def upstream(real_data):
    """Task -> its templates after the filter, on upstream's file."""
    patterns = read_templates(find_templates(real_data / "flan"))
    facts, _ = read_facts(real_data / "flan")
    return {
        name: (task, patterns[task.pattern], chosen_templates(task, patterns[task.pattern], []))
        for name, task in facts.items()
        if task.pattern in patterns  # two tasks are FLAN v2's alone
    }


def test_594_prompts_of_70_tasks_are_kept_which_is_table_1_s_mean(upstream):
    kept = {name: len(chosen) for name, (_, _, chosen) in upstream.items()}
    print(kept)
    assert len(kept) == 70
    assert sum(kept.values()) == 594
    assert round(594 / 70, 1) == 8.5
    counts = {name: count for count, names in KEPT.items() for name in names.split()}
    assert {task.pattern: len(chosen) for task, _, chosen in upstream.values()} == counts


def test_inverted_templates_are_the_last_ones(upstream):
    for _, _, chosen in upstream.values():
        assert [t.index for t in chosen] == list(range(len(chosen)))


def test_clusters_are_upstreams(upstream, real_data):
    clusters = json.loads((real_data / "flan" / "task_splits.json").read_text("utf-8"))
    theirs = {task: cluster for cluster, tasks in clusters.items() for task in tasks}
    ours = {name: task.cluster for name, (task, _, _) in upstream.items()}
    assert ours == theirs | {"wsc273": "coreference"}


def test_every_slot_of_a_kept_template_can_be_filled_from_tfds_rows(upstream):
    for task, templates, chosen in upstream.values():
        everything = {slot for t in templates for slot in _slots(t)} | task.slots
        assert select(templates, task.targets, task.constants, everything) == chosen


def _slots(template):
    import string

    texts = (template.source, template.target)
    return {name for text in texts for _, name, _, _ in string.Formatter().parse(text) if name}


def test_python_and_json_give_the_same_templates(real_data, tmp_path):
    source = real_data / "flan" / "templates.json"
    patterns = json.loads(source.read_text("utf-8"))
    lines = [f"    {name!r}: [\n{_pairs(pairs)}    ],\n" for name, pairs in patterns.items()]
    path = tmp_path / "flan" / "templates.py"
    path.parent.mkdir()
    path.write_text(f'"""Made."""\nimport os\nPATTERNS = {{\n{"".join(lines)}}}\n', "utf-8")
    assert find_templates(tmp_path) == path
    found = read_templates(path)
    assert found == read_templates(source)
    assert sum(map(len, found.values())) == 610


def _pairs(pairs):
    return "".join(f"        ({a!r},\n         {b!r}),\n" for a, b in pairs)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('PATTERNS = {"a": [("x", "{answer}")]', r"templates.py, line 1 is not Python"),
        ("PATTERNS = (" + "-" * 100_000 + "1)", r"templates.py.* is not Python"),
        ('\nPATTERNS = dict(a=[("x", "y")])', r"templates.py, line 2: PATTERNS must be a literal"),
        (
            'PATTERNS = {\n"a": [\n("x", open("OWNED", "w").write("!"))]}',
            r"line 3: a template must be a pair of literal texts; code .* never executed",
        ),
        ('PATTERNS = {"a": [("x" * 10**9, "y")]}', "line 1: a template must be a pair"),
        ('PATTERNS = {"a": [("x", "y", "z")]}', "line 1: a template must be a pair"),
        ('PATTERNS = {"a": [(b"x", "y")]}', "line 1: a template must be a pair"),
        ('PATTERNS = {"a": [f for f in ()]}', "line 1: a pattern must be a list"),
        ("PATTERNS = {**{}, 1: []}", "line 1: a pattern's name must be a literal text"),
        ("PATTERNS: dict", "line 1: PATTERNS must be a literal dictionary"),
        ('open("OWNED", "w")\n', "assigns no PATTERNS"),
    ],
)
def test_code_in_the_file_of_templates_is_an_error_and_never_runs(
    content, message, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "templates.py").write_text(content)
    with pytest.raises(UserError, match=message) as e:
        read_templates(tmp_path / "templates.py")
    assert "\n" not in str(e.value)
    assert os.listdir(tmp_path) == ["templates.py"]


def test_code_beside_the_templates_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "templates.py").write_text(
        'open("OWNED", "w")\nPATTERNS = {"a": [("x " "{x}", "{answer}")]}\nopen("OWNED", "w")\n'
    )
    assert read_templates(tmp_path / "templates.py") == {
        "a": [Template("a", 0, "x {x}", "{answer}")]
    }
    assert os.listdir(tmp_path) == ["templates.py"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "must be a JSON object"),
        ('{"a": [["x"]]}', "'a' must be a list of pairs"),
        ('{"a": ["xy"]}', "'a' must be a list of pairs"),
        ('{"a"', "is damaged"),
    ],
)
def test_damaged_json_is_named(content, message, tmp_path):
    (tmp_path / "templates.json").write_text(content)
    with pytest.raises(UserError, match=message):
        read_templates(tmp_path / "templates.json")


def test_a_huge_file_is_not_parsed(tmp_path):
    with open(tmp_path / "templates.py", "wb") as f:
        f.truncate(1 << 30)
    with pytest.raises(UserError, match="more than 32 MB"):
        read_templates(tmp_path / "templates.py")


def test_what_the_filter_drops():
    pairs = [
        ("{context}\n{options_}", "{answer}"),
        ("Write a story that ends so: {answer}", "{context} {answer}"),
        ("Write an article: {answer}", "{context}"),
        ("Say anything in {lang1}.", "{answer}"),
        ("{answer}", "{answer}"),
        ("{title}\n{context}", "{answer}"),
    ]
    templates = [Template("p", i, *pair) for i, pair in enumerate(pairs)]
    kept = select(templates, ["answer"], ["lang1"], ["context", "lang1", "answer", "options_"])
    assert [t.id for t in kept] == ["p#0"]
    assert select(templates[:1], ["answer"], [], ["context", "answer"]) == []


def test_values_with_braces_are_not_templates():
    assert fill("{a} {b} { x", {"a": "{b}", "b": "2"}) == "{b} 2 { x"


def test_typos_are_kept_or_repaired(upstream, real_data):
    _, typos = read_facts(real_data / "flan")
    changed = {}
    for name, (task, _, kept) in upstream.items():
        fixed = chosen_templates(task, upstream[name][1], typos)
        now = {t.id: t.source for t in fixed}
        before = {t.id: t.source for t in kept}
        changed |= {i: now.get(i) for i in before if now.get(i) != before[i]}
    literal_n = [f"{p}#{i}" for p in ("anli", "cb", "rte") for i in (5, 6, 7)]
    doubled = [f"natural_questions#{i}" for i in (0, 1, 3, 5, 7)]
    assert sorted(changed) == sorted([*literal_n, *doubled, "cola#3"])
    assert changed["cola#3"] is None
    assert changed["rte#6"].endswith("Sentence: {hypothesis}\n\n{options_}")
    assert changed["natural_questions#0"] == "Question: {question}\nAnswer:"
    assert repair([], typos) == []
