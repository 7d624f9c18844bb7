import collections
import json
import pathlib

import pytest

from optiml_jax.data.example import Drops, TaskSource
from optiml_jax.data.prompts import PromptConfig, render
from optiml_jax.errors import UserError
from tasks.splits import Manifest, category
from tasks.unifiedskg.reader import find_tasks, prompt_text
from tasks.unifiedskg.releases import Record, linear_table, normalised_sql

MANIFEST = Manifest.load()


def write(path: pathlib.Path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")


def only(root) -> TaskSource:
    (source,) = find_tasks(root, MANIFEST)
    return source


def read(source: TaskSource, split: str, drops=None) -> list:
    return list(source.read(split, Drops() if drops is None else drops))


def triples(*texts) -> dict:
    return {
        "tripleset": [["Oslo", "COUNTRY", "Norway"]],
        "subtree_was_extended": False,
        "annotations": [{"source": "us", "text": text} for text in texts],
    }


def test_a_set_of_triples_becomes_the_worked_example(tmp_path):
    write(tmp_path / "dart/data/v1.1.1/dart-v1.1.1-full-dev.json", [triples("Oslo is in Norway.")])
    source = only(tmp_path)
    (example,) = read(source, "test")
    assert (source.name, category(source)) == ("unifiedskg/dart", "Data to Text")
    prompt = render(example, [], source.instruction_level, PromptConfig(delimiter="\nOutput:"))
    assert prompt.source() == (
        "task: dart ; structured knowledge: Oslo : country : Norway\nOutput:"
    )
    assert prompt.target == "Oslo is in Norway."


def test_dart_has_one_example_per_sentence_in_training_and_all_references_elsewhere(tmp_path):
    for split in ("train", "dev", "test"):
        content = [triples("Oslo is in Norway.", "Norway has Oslo.", None), {"tripleset": []}]
        write(tmp_path / f"dart/data/v1.1.1/dart-v1.1.1-full-{split}.json", content)
    source = only(tmp_path)
    assert source.splits == ("train", "validation", "test")
    drops = Drops()
    assert [e.references for e in read(source, "train", drops)] == [
        ("Oslo is in Norway.",),
        ("Norway has Oslo.",),
    ]
    assert drops == {"empty target": 1, "malformed record": 1}
    (example,) = read(source, "test")
    assert example.references == ("Oslo is in Norway.", "Norway has Oslo.")
    assert [e.split for e in source.demonstrations()] == ["train", "train"]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("SELECT Name ,  Age FROM T", "select name, age from t"),
        ("SELECT a FROM t WHERE b = 'New York'", "select a from t where b = 'New York'"),
        ('SELECT a FROM t WHERE b LIKE "%East%"', 'select a from t where b like "%east%"'),
    ],
)
def test_sql_is_lower_case_but_for_words_next_to_quotation_marks(query, expected):
    assert normalised_sql(query) == expected


def test_spider_reads_schema_and_query_without_a_database(tmp_path):
    schema = {
        "db_id": "Zoo",
        "table_names_original": ["Animal", "Keeper"],
        "column_names_original": [[-1, "*"], [0, "ID"], [0, "Name"], [1, "ID"]],
    }
    question = {"db_id": "Zoo", "question": "Which names?", "query": "SELECT Name FROM Animal"}
    missing = {**question, "db_id": "Farm"}
    write(tmp_path / "spider/tables.json", [schema])
    write(tmp_path / "spider/train_spider.json", [question])
    write(tmp_path / "spider/train_others.json", [{**question, "question": "Names?"}])
    write(tmp_path / "spider/dev.json", [question, missing, {"db_id": "Zoo"}])
    source = only(tmp_path)
    drops = Drops()
    (example,) = read(source, "test", drops)
    assert example.input == (
        "task: spider ; Which names? ; structured knowledge: "
        "| Zoo | animal : id , name | keeper : id"
    )
    assert example.target == "select name from animal"
    assert drops == {"database not in tables.json": 1, "malformed record": 1}
    assert len(read(source, "train")) == 2


def test_wikitq_joins_table_and_answers(tmp_path):
    root = tmp_path / "wikitq"
    write(root / "csv/200-csv/1.csv", '"Name","Note"\n"A \\"B\\"","x, y"\n"C",""\n')
    write(
        root / "data/pristine-unseen-tables.tsv",
        "id\tutterance\tcontext\ttargetValue\n"
        "nu-0\tWho?\tcsv/200-csv/1.csv\tA|C\\pD\n"
        "nu-1\tWho?\tcsv/200-csv/2.csv\tA\n"
        "nu-2\tcut\n",
    )
    source = only(tmp_path)
    drops = Drops()
    (example,) = read(source, "test", drops)
    assert example.example_id == "nu-0"
    assert example.input == (
        "task: wikitq ; who? ; structured knowledge: "
        'col : name | note row 1 : a "b" | x, y row 2 : c |'
    )
    assert example.target == "a, c|d"
    assert drops == {"table missing": 1, "wrong number of columns": 1}
    assert len(source.files) == 2  # the table is an input, too


def test_conversations_put_older_turns_behind_the_knowledge():
    record = Record("and Bob? || is Ann in? | hello", "rooms", ("no",))
    assert prompt_text("sparc", record) == (
        "task: sparc ; and Bob? ; structured knowledge: rooms ; context: is Ann in? | hello"
    )


def test_other_tasks_come_from_upstreams_records(tmp_path, caplog):
    records = [
        {"id": "t1", "text_in": "all true?", "struct_in": "col : a", "seq_out": "entailed"},
        {"text_in": "", "struct_in": "col : b", "seq_out": ["x", "y"]},
        {"text_in": "q", "struct_in": None, "seq_out": "x"},
        {"text_in": "q", "struct_in": "s", "seq_out": ""},
        {"text_in": "", "struct_in": " ", "seq_out": "x"},
    ]
    write(tmp_path / "tabfact/test.json", records)
    write(tmp_path / "sqa/dev.jsonl", "".join(json.dumps(r) + "\n" for r in records))
    write(tmp_path / "my_tables/train.json", records)
    write(tmp_path / "notes/readme.txt", "nothing")
    sources = {s.name.split("/")[1]: s for s in find_tasks(tmp_path, MANIFEST)}
    assert {n: (s.splits, category(s)) for n, s in sources.items()} == {
        "my_tables": (("train",), "Misc."),
        "sqa": (("test",), "Question Answering"),
        "tabfact": (("test",), "Fact Verification"),
    }
    drops = Drops()
    first, second = read(sources["tabfact"], "test", drops)
    assert (first.example_id, first.input) == (
        "t1",
        "task: tabfact ; all true? ; structured knowledge: col : a",
    )
    assert second.input == "task: tabfact ; structured knowledge: col : b"
    assert second.references == ("x", "y")
    assert drops == {"malformed record": 1, "empty target": 1, "empty input": 1}
    assert len(read(sources["sqa"], "test")) == 2
    assert "count as Misc.: ['my_tables']" in caplog.text
    assert "notes holds no file of a known form" in caplog.text


def test_bad_folders_and_files_are_one_line(tmp_path):
    with pytest.raises(UserError, match=r"folder not found: .*nowhere"):
        find_tasks(tmp_path / "nowhere", MANIFEST)
    with pytest.raises(UserError, match="no task of benchmark 'unifiedskg' in"):
        find_tasks(tmp_path, MANIFEST)
    write(tmp_path / "dart/data/v1/dart-v1-full-dev.json", '[{"tripleset": [["a", "b"')
    with pytest.raises(UserError, match=r"dart-v1-full-dev.json is cut off"):
        read(only(tmp_path), "test")
    write(tmp_path / "dart/data/v1/dart-v1-full-dev.json", [])
    with pytest.raises(UserError, match=r"no usable record in .*dev.json \(it is empty\)"):
        read(only(tmp_path), "test")
    write(tmp_path / "dart/data/v1/dart-v1-full-dev.json", [triples("a")])
    write(tmp_path / "spider/tables.json", [{"db_id": "a"}])
    write(tmp_path / "spider/dev.json", [{"db_id": "a", "question": "b", "query": "c"}])
    spider = next(s for s in find_tasks(tmp_path, MANIFEST) if "spider" in s.name)
    with pytest.raises(UserError, match=r"tables.json is no tables.json of Spider"):
        read(spider, "test")


def test_a_table_without_rows_has_its_header():
    assert linear_table([["a", "b"]]) == "col : a | b"


def oracle(real_data) -> dict[str, list[dict]]:
    records = collections.defaultdict(list)
    lines = (real_data / "oracles" / "unifiedskg_linearised.jsonl").read_text("utf-8").splitlines()
    for record in map(json.loads, lines):
        records[record["task"]].append(record)
    return records


def test_examples_equal_upstreams_on_every_record_of_the_oracle(real_data):
    sources = {s.name.split("/")[1]: s for s in find_tasks(real_data / "unifiedskg", MANIFEST)}
    wanted = oracle(real_data)
    assert {task: len(records) for task, records in wanted.items()} == {
        "dart": 150,
        "spider": 341,
        "wikitq": 120,
    }
    dart = [(e, r) for e in read(sources["dart"], "validation") for r in e.references]
    spider = [(e, e.target) for e in read(sources["spider"], "test")]
    wikitq = {e.example_id: (e, e.target) for e in read(sources["wikitq"], "validation")}
    for task, ours in (("dart", dart), ("spider", spider), ("wikitq", wikitq)):
        for record in wanted[task]:
            example, target = ours[record["row"] if task != "wikitq" else record["id"]]
            parts = [f"task: {task}", record["text_in"]] if record["text_in"] else [f"task: {task}"]
            parts.append(f"structured knowledge: {record['struct_in']}")
            assert example.input == " ; ".join(parts)
            assert target == record["seq_out"]


def test_the_real_releases_are_read_whole(real_data):
    counts, drops = {}, Drops()
    for source in find_tasks(real_data / "unifiedskg", MANIFEST):
        counts[source.name] = {s: len(read(source, s, drops)) for s in source.splits}
    assert counts == {
        "unifiedskg/dart": {"validation": 2768, "test": 900},
        "unifiedskg/spider": {"test": 341},
        "unifiedskg/wikitq": {"train": 532, "validation": 206, "test": 350},
    }
    assert drops == {"warning: empty reference left out": 1}
