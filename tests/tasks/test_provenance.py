"""The provenance table, against upstream's own lists of tasks and texts of the data sets."""

import collections
import csv
import json
import re

import pytest

from optiml_jax.errors import UserError
from tasks.provenance import DEFAULT_PROVENANCE, Provenance

PROVENANCE = Provenance.load()


@pytest.fixture
def provenance_of(tmp_path):
    def load(text: str) -> Provenance:
        path = tmp_path / f"p{len(list(tmp_path.iterdir()))}.yaml"
        path.write_text(text, "utf-8")
        return Provenance.load(path)

    return load


def test_every_supernatural_task_has_a_source_or_a_reason_why_not(real_data):
    lines = (real_data / "super_natural_instructions" / "metadata.jsonl").read_text().splitlines()
    names = [f"superni/{json.loads(line)['task']}" for line in lines]
    assert len(names) == 1613
    origins = {name: PROVENANCE.origin(name) for name in names}
    assert {n for n, o in origins.items() if not o.data and not o.unknown} == set()
    assert {n for n, o in origins.items() if not o.evidence} == set()
    assert max(len(o.data) for o in origins.values()) == 1


def test_each_supernatural_source_of_flans_table_is_one_data_set_here(real_data):
    """The table repeats the field `Source`; the exceptions are its errors and splits of ours."""
    lines = (real_data / "super_natural_instructions" / "metadata.jsonl").read_text().splitlines()
    stems = {json.loads(line)["task"] for line in lines}
    found = collections.defaultdict(set)
    with open(real_data / "flan" / "flan_collection_info.csv", encoding="utf-8") as file:
        for source, dataset, task, *_ in csv.reader(file):
            if source == "NIv2" and task in stems:
                origin = PROVENANCE.origin(f"superni/{task}")
                found[dataset].add(origin.data or origin.unknown)
    several = {d for d, origins in found.items() if len(origins) > 1}
    assert several == {
        *("multilingual_ted", "x_csr", "sherliic"),  # prefixes of names taken for the names
        *("nlu_asdiv_dataset", "indicnlp", "pasinlu", "defeasible_nli_atomic", "miscellaneous"),
    }


def test_the_source_field_of_the_official_files_is_the_tables(real_data):
    renamed = {
        *("multinli", "e_snli", "wsc_fiexed", "winograd_wsc", "scitailv1.1", "squad2.0", "e2e"),
        *("commongen", "adverserial_qa", "multi_woz_v22", "wiki_auto_all_data", "gwsd", "qqp"),
        *("curated_from_stack_overflow___english.", "open_pi", "mctaco", "msr_sqa", "lj_speec"),
        *("coda_19", "multilingual_ted", "disfl_qa", "defeasible_nli_atomic", "stack_exchange"),
    }
    checked = 0
    for path in sorted((real_data / "super_natural_instructions" / "tasks").glob("*.json")):
        source = json.loads(path.read_text("utf-8")).get("Source")
        source = source[0] if isinstance(source, list) and source else ""
        if "mmmlu" in path.stem or not re.fullmatch(r"[\w.]+", source) or source in renamed:
            continue
        assert PROVENANCE.origin(f"superni/{path.stem}").data == (source,), path.stem
        checked += 1
    assert checked > 60


@pytest.mark.parametrize(
    ("task", "dataset"),
    [
        ("superni/task1660_super_glue_question_generation", "boolq"),
        ("superni/task627_xlwic_word_with_same_meaning_sentence_generation", "wic"),
        ("superni/task340_winomt_classification_gender_pro", "wino_bias"),
        ("superni/task340_winomt_classification_gender_pro", "winogender"),
        ("superni/task968_xcopa_commonsense_reasoning_et", "copa"),
        ("promptsource/glue/wnli", "wsc"),
        ("unifiedskg/dart", "e2e_nlg"),
        ("mgsm/de", "gsm8k"),
        ("flan/wiki_lingua_english_en", "wikihow"),
        ("superni/task614_glucose_cause_event_detection", "rocstories"),
    ],
)
def test_translations_variants_and_derived_sets_lead_to_their_origin(task, dataset):
    assert PROVENANCE.items_of(task)[dataset][-1] == dataset


def test_shared_context_is_told_from_shared_items():
    event, update = "superni/task1196_atomic_x", "superni/task935_defeasible_nli_atomic_x"
    assert PROVENANCE.shared_context(event, update) == ("atomic",)
    assert "atomic" not in PROVENANCE.items_of(update)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rows:\n- {tasks: a/b, data: [x]}", "row 1: evidence is missing"),
        ("rows:\n- {tasks: a/b, evidence: name}", "row 1: give either `data`"),
        ("rows:\n- {tasks: a/b, data: [x], unknown: y, evidence: name}", "row 1: give either"),
        ("rows:\n- {tasks: a/b, date: [x], evidence: name}", "row 1: unknown key 'date'"),
        ("rows:\n- {tasks: ab, data: [x], evidence: name}", "'ab' is not a pattern of the form"),
        ("rows:\n- a/b", "row 1: a row must be a mapping"),
        ("row: []", "has no list of rows"),
        ("rows: [", "is not YAML: "),
        (
            "datasets: {x: {of: [y], why: z}}\nrows:\n- {tasks: a/b, data: [x], evidence: n}",
            "data set 'x' is made of 'y', which no row names",
        ),
        (
            "datasets: {x: {of: [x]}}\nrows:\n- {tasks: a/b, data: [x], evidence: n}",
            "data set 'x' does not say why",
        ),
    ],
)
def test_a_bad_table_is_an_error_that_names_the_place(provenance_of, text, message):
    with pytest.raises(UserError) as e:
        provenance_of(text)
    assert message in str(e.value)
    assert ".yaml" in str(e.value)


def test_lines_of_the_table_fit_a_screen():
    assert max(map(len, DEFAULT_PROVENANCE.read_text("utf-8").splitlines())) <= 100
