"""The paper's tables with an evaluation beside them: which tasks enter, and what is missing."""

import pathlib

import paper_run
import pytest
import yaml
from paper_run import score, write_run

from optiml_jax.evaluate.records import TaskInfo
from optiml_jax.report import paper_tables, published
from optiml_jax.report.published import Wanted
from optiml_jax.report.tables import MARK

FILE = pathlib.Path(__file__).parents[2] / "tasks" / "data" / "published_results.yaml"
HELD, TAUGHT = "fully_held_out", "fully_supervised"


@pytest.fixture(scope="module")
def published_tables():
    return published.load(FILE)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("whole"), paper_run.infos())


@pytest.fixture(scope="module")
def tables(published_tables, whole):
    made = made_of(published_tables, {"ours": whole}, paper_run.wanted())
    return {t.title.split(":")[0]: t for t in made}


def made_of(tables, runs, wanted):
    return paper_tables.paper_tables(tables, paper_tables.views_of(tables, runs, wanted))


def cells(table, column):
    """Row names -> what stands in a column."""
    i = table.columns.index(column)
    return {tuple(row[: table.text_columns]): row[i] for row in table.rows}


def test_every_table_is_covered_by_an_evaluation_of_the_manifest(tables):
    coverage = cells(tables["The paper's tables"], "ours")
    whole = {place[0]: text for place, text in coverage.items()}
    assert whole["table 4"] == whole["table 7"] == whole["table 8"] == "22 of 22, 22 whole"
    # No supervised validation task of PromptSource is left: what it had is made of test data.
    assert whole["table 5"] == "17 of 19, 17 whole"
    assert whole["table 9"] == "28 of 28, 28 whole"
    assert whole["table 10"] == "24 of 24, 24 whole"
    assert whole["table 11"] == "29 of 29, 29 whole"
    assert whole["table 12"] == "9 of 9, 9 whole"
    assert whole["table 13"] == "6 of 6, 6 whole"
    assert whole["table 14"] == "4 of 4, 4 whole"


def test_single_tasks_and_their_average(tables):
    ours = cells(tables["Table 11"], "ours")
    assert ours["CB",] == f"{100 * score('flan/cb', 0):.1f}/{100 * score('flan/cb', 5):.1f}"
    assert ours["WSC",] == f"{100 * score('flan/wsc', 0):.1f}"  # no few-shot setting
    values = [[float(x) for x in ours[row].split("/")] for row in ours if row != ("average",)]
    zero, five = [v[0] for v in values], [v[1] for v in values if len(v) == 2]
    assert (len(zero), len(five)) == (15, 14)
    expected = f"{sum(zero) / 15:.1f}/{sum(five) / 14:.1f}"
    assert ours["average",] == expected
    assert cells(tables["Table 11"], "OPT-IML 30B")["average",] == "60.9/58.3"


def test_categories_take_validation_tasks_only_and_average_benchmarks_first(tables):
    ours = cells(tables["Table 4"], "ours")
    sick = [score(f"superni/task{n}_x", 0) for n in (391, 392, 393, 614, 828)]
    copa = [score(t, 0) for t in ("flan/copa", "promptsource/super_glue/copa")]
    copa.append((score("superni/task827_x", 0) + score("superni/task1393_x", 0)) / 2)
    expected = (sum(sick) + sum(copa) / len(copa)) / (len(sick) + 1)
    assert ours["fully held-out", "Cause Effect"].split("/")[0] == f"{100 * expected:.1f}"
    # Test sets of the same category and level do not enter.
    openbookqa = score("promptsource/openbookqa/main", 0)
    assert ours["partially held-out", "QA"].split("/")[0] == f"{100 * openbookqa:.1f}"
    by_benchmark = cells(tables["Table 5"], "ours")
    assert by_benchmark["fully held-out", "FLAN"].split("/")[0] == f"{100 * copa[0]:.1f}"


def test_a_table_of_few_columns_has_the_models_in_its_rows(tables):
    table = tables["Table 14"]
    assert table.columns == ("model", "BBH (3-shot)", "MMLU (0/5-shot)", "RAFT (5-shot)")
    assert table.rows[3] == ("T5 11B", "29.5", "–/25.9", "–")
    assert table.rows[-2][0] == "ours"
    assert table.rows[-1] == ("best baseline", "30.0", "30.0/30.0", "30.0")


def test_selection_scores_stand_below_tables_4_and_5(tables):
    table = tables["Table 4"]
    assert table.columns[2:4] == ("EPS 128", "EPS 256")
    chosen = cells(table, "EPS 4096")
    assert chosen["", "A: mean of the averages"] == "51.8"
    assert chosen["", "B: mean of all cells"] == "51.3"
    assert chosen["", "mean of levels"] == "51.4"


def test_what_is_missing_failed_or_short_of_prompts_is_marked(tmp_path, published_tables):
    tree = write_run(
        tmp_path,
        paper_run.infos(
            lambda w: (
                (w.benchmark == "flan" or w.category == "Cause Effect Classification")
                and w.task not in ("flan/copa", "flan/anli_r1")
            )
        ),
        prompts=lambda task: 6 if task == "flan/cb" else 15,
        fail=[("flan/rte", 5)],
    )
    made = made_of(published_tables, {"ours": tree}, paper_run.wanted())
    by_title = {t.title.split(":")[0]: t for t in made}
    ours = cells(by_title["Table 11"], "ours")
    assert ours["ANLI R1",] == f"–{MARK}/–{MARK}"
    assert ours["CB",].count(MARK) == 2
    assert ours["RTE",] == f"{100 * score('flan/rte', 0):.1f}/–{MARK}"
    assert ours["SNLI",].count(MARK) == 0
    assert ours["average",].count(MARK) == 2
    notes = by_title["Table 11"].notes
    assert f"{MARK} ours: nothing of ANLI R1 at 0 and 5 shots: not in this evaluation" in notes
    assert f"{MARK} ours: CB without flan/cb at 0 and 5 shots: 6 of 9 prompts" in notes
    assert f"{MARK} ours: nothing of RTE at 5 shots: file cut in half" in notes
    cause = cells(by_title["Table 4"], "ours")["fully held-out", "Cause Effect"]
    assert cause.count(MARK) == 2
    assert cells(by_title["The paper's tables"], "ours")[
        "table 11", "FLAN, accuracy, mean over prompts"
    ].endswith("26 of 29, 24 whole")


def test_a_number_of_shots_that_was_not_run_is_said_once(tmp_path, published_tables):
    infos = paper_run.infos(lambda w: w.benchmark == "flan" and w.role == ("test",))
    zero = [TaskInfo(**(vars(i) | {"shots": (0,)})) for i in infos]
    made = made_of(published_tables, {"ours": write_run(tmp_path, zero)}, paper_run.wanted())
    table = next(t for t in made if t.title.startswith("Table 11"))
    assert [n for n in table.notes if "ours" in n] == [f"{MARK} ours: nothing at 5 shots"]


def small_table(tmp_path, **column):
    value = {
        "table": 99,
        "title": "T",
        "roles": ["test"],
        "shots": [0],
        "average": "columns",
        "columns": [{"name": "one"} | column],
        "rows": [{"model": "M", "cells": ["1.0"], "average": "1.0"}],
    }
    file = tmp_path / "results.yaml"
    file.write_text(yaml.safe_dump({"tables": [value]}), "utf-8")
    return published.load(file)


def test_a_table_without_any_task_is_only_named_in_the_coverage(tmp_path, whole):
    tables = small_table(tmp_path, benchmark="nowhere")
    (coverage,) = made_of(tables, {"ours": whole}, paper_run.wanted())
    assert coverage.rows == (("table 99", "T", "–"),)


def test_levels_of_a_column_come_from_the_manifest_not_from_other_tasks(tmp_path):
    infos = [
        TaskInfo("b/held", "b", "C", HELD, "rougeL"),
        TaskInfo("b/taught", "b", "C", TAUGHT, "rougeL"),
    ]
    tree = write_run(tmp_path / "run", infos)
    wanted = [Wanted(i.task, "C", i.level, ("test",), (0,)) for i in infos]
    tables = small_table(tmp_path, category="C", level=TAUGHT)
    _, table = made_of(tables, {"ours": tree}, wanted)
    assert cells(table, "one")["ours",] == f"{100 * score('b/taught', 0):.1f}"


def test_the_long_form_has_printed_and_evaluated_numbers(published_tables, whole):
    views = paper_tables.views_of(published_tables, {"ours": whole}, paper_run.wanted())
    table = paper_tables.numbers_table(published_tables, views)
    rows = {row[:6]: row[6] for row in table.rows}
    assert len(rows) == len(table.rows)
    assert rows["9", "printed", "OPT-IML 30B", "", "CB", "32"] == "78.6000"
    ours = rows["4", "evaluation", "ours", "partially_held_out", "Summ.", "0"]
    assert float(ours) == pytest.approx(100 * score("flan/wiki_lingua_english_en", 0))
    assert ("14", "printed", "T5 11B", "", "MMLU", "0") not in rows


def test_a_run_with_the_name_of_a_printed_row_hides_nothing(published_tables, whole):
    made = made_of(published_tables, {"OPT 30B": whole}, paper_run.wanted())
    table = next(t for t in made if t.title.startswith("Table 13"))
    names = [row[0] for row in table.rows]
    assert names.count("OPT 30B") == 1
    assert "OPT 30B (evaluated)" in names
    assert dict(zip(names, table.rows, strict=True))["OPT 30B"][1] == "14.4/40.6"
