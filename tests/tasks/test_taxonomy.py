"""The taxonomy: every name that an upstream collection uses has one category."""

import collections
import json

from tasks import taxonomy
from tasks.taxonomy import MISC, category

SUPERNI = [row["name"] for row in taxonomy.rows() if row["collection"] == "superni"]


def test_the_76_names_come_first_and_there_are_over_100_in_all():
    assert len(SUPERNI) == 76  # doc/task-hierarchy.md and README.md of natural-instructions
    assert [row["category"] for row in taxonomy.rows()[:76]] == SUPERNI
    assert len({row["category"] for row in taxonomy.rows()}) > 100  # paper, section 2.2


def test_every_row_names_its_source_and_no_name_has_two_rows():
    keys = collections.Counter((r["collection"], r["kind"], r["name"]) for r in taxonomy.rows())
    assert {key for key, n in keys.items() if n > 1} == set()
    assert all(all(row.values()) for row in taxonomy.rows())
    assert {row["kind"] for row in taxonomy.rows()} == {"task", "group"}


def test_a_task_wins_over_its_group_and_an_exact_name_over_a_glob():
    assert category("flan", "copa", "common_sense") == "Cause Effect Classification"
    assert category("flan", "my_own_task", "sentiment") == "Sentiment Analysis"
    assert category("promptsource", "tweet_eval/stance_climate") == "Stance Detection"
    assert category("promptsource", "cbt/raw") == category("flan", "unknown") == MISC
    assert category("no_such_collection", "copa") == MISC


def test_every_category_of_the_real_superni_tasks_is_one_of_the_76(real_data):
    lines = (real_data / "super_natural_instructions" / "categories.tsv").read_text().splitlines()
    names = collections.Counter(line.split("\t")[1] for line in lines[1:])
    assert sum(names.values()) == 1613
    assert all(category("superni", "", name) == name for name in names)
    # the counts of flan/v2/flan_collection_info.csv, which leaves out the 57 tasks of MMLU
    assert names["Translation"] == 394
    assert names["Question Answering"] == 150 + 57
    assert names["Textual Entailment"] == 27
    assert names["Coreference Resolution"] == 14


def test_all_names_of_crossfit_flan_and_t5_are_there(real_data):
    splits = real_data / "crossfit" / "dataloader" / "custom_tasks_splits"
    crossfit = json.loads((splits / "random.json").read_text())["all"]
    clusters = json.loads((real_data / "flan" / "task_splits.json").read_text())
    flan = ["wsc273", *(task for tasks in clusters.values() for task in tasks)]
    assert (len(crossfit), len(flan), len(clusters)) == (160, 70, 17)
    assert MISC not in {category("crossfit", name) for name in crossfit}
    assert MISC not in {category("flan", name) for name in flan}
    assert {c for c in clusters if category("flan", "", c) == MISC} == {"text_formatting"}
    assert sum(row["collection"] == "t5" for row in taxonomy.rows()) == 36


def test_one_data_set_is_in_one_category_whatever_the_collection():
    pairs = {
        ("crossfit", "glue-cola"): ("t5", "glue_cola_v002"),
        ("crossfit", "superglue-wic"): ("promptsource", "super_glue/wic"),
        ("flan", "story_cloze"): ("promptsource", "story_cloze/2016"),
        ("flan", "glue_mrpc"): ("promptsource", "glue/mrpc"),
        ("flan", "bool_q"): ("t5", "super_glue_boolq_v102"),
        ("unifiedskg", "tabfact"): ("crossfit", "tab_fact"),
    }
    assert all(category(*a) == category(*b) != MISC for a, b in pairs.items())
