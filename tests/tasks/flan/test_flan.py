import dataclasses
import json
import logging
import pickle

import gin
import pytest
import yaml

from optiml_jax.data.example import Drops
from optiml_jax.errors import UserError
from tasks.flan import reader as flan
from tasks.splits import Manifest

PARITY = """
tasks:
  parity:
    cluster: math
    fields: {number: number}
    options: [odd, even]
"""
TEMPLATES = """
PATTERNS = {
    "parity": [
        ("Is {number} odd or even?\\n{options_}", "{answer}"),
        ("{number} is", "{answer}"),
        ("Give an {answer} number.", "{number}"),
    ],
    "rte": [
        ("{premise}\\nHypothesis: {hypothesis}n\\n{options_}", "{answer}"),
    ],
}
"""


def parity_rows(n, start=0):
    return [{"number": i, "label": 1 - i % 2} for i in range(start, start + n)]


@pytest.fixture
def bench(tmp_path):
    """`bench(task={split: rows})`: a folder with templates, rows and a configuration."""

    def write(config=PARITY, templates=TEMPLATES, **rows):
        root = tmp_path / "bench"
        root.mkdir(exist_ok=True)
        (root / "templates.py").write_text(templates)
        (root / "task_config.yaml").write_text(config)
        for task, splits in rows.items():
            folder = root / "datasets" / task.replace("__", "/")
            folder.mkdir(parents=True, exist_ok=True)
            for split, content in splits.items():
                text = "".join(json.dumps(row) + "\n" for row in content)
                (folder / f"{split}.jsonl").write_text(text)
        return root

    return write


@pytest.fixture
def manifest_of(tmp_path):
    def load(**fields) -> Manifest:
        row = {"tasks": "*/*", "level": "train_only", "role": ["train"], "src": "inferred"}
        path = tmp_path / "manifest.yaml"
        path.write_text(yaml.safe_dump({"rows": [{**row, **fields}]}))
        return Manifest.load(path)

    return load


@pytest.fixture
def trained(manifest_of):
    return manifest_of()


@pytest.fixture
def tested(manifest_of):
    return manifest_of(level="fully_held_out", role=["test"], metric="acc_rank")


def read(source, part="train"):
    drops = Drops()
    return list(source.read(part, drops)), dict(drops)


def test_a_task_of_ones_own_is_a_few_lines(bench, tested):
    root = bench(parity={"train": parity_rows(5), "test": parity_rows(3, 100)})
    (source,) = flan.find_tasks(root, tested, "my_flan")
    assert (source.name, source.splits) == ("my_flan/parity", ("train", "test"))
    assert (source.instruction_level, source.settings["category"]) == ("instance", "Mathematics")
    assert len(json.dumps(source.settings)) > 100
    examples, drops = read(pickle.loads(pickle.dumps(source)), "test")
    assert [(e.input, e.target, e.prompt_id, e.options_text) for e in examples[:2]] == [
        (
            "Is 100 odd or even?\nOPTIONS:\n- odd\n- even",
            "even",
            "parity#0",
            "OPTIONS:\n- odd\n- even",
        ),
        ("100 is", "even", "parity#1", ""),
    ]
    assert len(examples) == 6
    assert {e.options for e in examples} == {("odd", "even")}
    assert {e.references for e in examples} == {("odd",), ("even",)}
    assert {(e.benchmark, e.instruction, e.split) for e in examples} == {("my_flan", "", "test")}
    assert not drops


def test_own_facts_replace_ours(bench, trained):
    row = {"premise": "P", "hypothesis": "H", "label": 0}
    rows = {"super_glue__rte": {"train": [row]}, "rte": {"train": [row]}}
    config = "tasks: {rte: {cluster: c, fields: {premise: premise, hypothesis: hypothesis}, "
    (source,) = flan.find_tasks(bench(config + "options: [ja, nein]}}", **rows), trained)
    assert [e.target for e in read(source)[0]] == ["ja"]
    assert source.splits == ("train",)
    assert source.settings["category"] == "Textual Entailment"


def test_training_draws_n_pairs_and_no_row_is_in_two_parts(bench, trained):
    config = PARITY + '    splits: {train: train, validation: "train[-20:]", test: "train[:10]"}\n'
    root = bench(config, parity={"train": parity_rows(100)})
    (root / "datasets" / "parity" / "other.jsonl").touch()
    (source,) = flan.find_tasks(root, trained)
    assert source.splits == ("train", "validation")
    assert [file.rpartition("/")[2] for file in source.files] == ["train.jsonl"]
    examples, _ = read(source)
    assert len(examples) == 70
    numbers = [int(e.input.removeprefix("Is ").split()[0]) for e in examples]
    assert set(numbers) <= set(range(10, 80))
    assert numbers == sorted(numbers)
    assert {e.prompt_id for e in examples} == {"parity#0", "parity#1"}
    assert len({(e.prompt_id, e.example_id) for e in examples}) == 70
    held_out, _ = read(source, "validation")
    assert len(held_out) == 40
    assert {int(e.input.removeprefix("Is ").split()[0]) for e in held_out} == set(range(80, 100))
    assert examples == read(flan.find_tasks(root, trained)[0])[0]
    gin.bind_parameter("FlanConfig.seed", 5)
    assert examples != read(flan.find_tasks(root, trained)[0])[0]


def test_parts_for_validation_are_at_most_250_pairs(bench, manifest_of):
    rows = {"train": parity_rows(9), "validation": parity_rows(200), "test": parity_rows(300)}
    root = bench(parity=rows)
    (source,) = flan.find_tasks(root, manifest_of())
    assert len(read(source, "validation")[0]) == 250
    (source,) = flan.find_tasks(root, manifest_of(role=["dev"]))
    assert len(read(source, "test")[0]) == 250
    (source,) = flan.find_tasks(root, manifest_of(role=["test"], instances="first7"))
    assert len(read(source, "test")[0]) == 14
    demonstrations = source.demonstrations()
    assert demonstrations == read(source, "train")[0]


def test_rows_that_cannot_be_used_are_counted(bench, tested):
    rows = [
        *({"number": n, "label": label} for n, label in (("7", 0), ("", 1), ("8", 2), ("9", -1))),
        {"number": None, "label": 0},
        {"label": 0},
        {"number": "5\0", "label": 0},
        {"number": ["5"], "label": 0},
        {"number": "7", "label": 0},
    ]
    (source,) = flan.find_tasks(bench(parity={"test": rows}), tested)
    examples, drops = read(source, "test")
    assert [e.input for e in examples if e.prompt_id == "parity#1"] == ["7 is", "is", "7 is"]
    assert drops == {
        "label names no option": 2,
        "no value of number": 1,
        "no field 'number'": 1,
        "NUL or U+FFFD": 2,
        "a slot's value is not a text": 1,
        "warning: repeated record": 2,
    }


def test_answers_that_are_no_option_are_generated_or_dropped_where_options_are_ranked(
    bench, trained, tested
):
    config = """
tasks:
  pick: {cluster: math, fields: {answer: right, answers: all}, choices: listed}
"""
    templates = 'PATTERNS = {"pick": [("Pick {kind}\\n{options_}", "{answer}")]}'
    config = config.replace("answer: right", "kind: kind, answer: right")
    rows = [
        {"kind": "x", "right": "b", "all": ["b ", "c"], "listed": ["a", "b ", "b", " c"]},
        {"kind": "x", "right": "d", "all": [], "listed": ["a", "b"]},
        {"kind": "x", "right": "d", "all": [], "listed": []},
    ]
    root = bench(config, templates, pick={"train": rows, "test": rows})
    examples, drops = read(flan.find_tasks(root, trained)[0])
    assert [(e.target, e.references, e.options) for e in examples] == [
        ("b", ("b", "c"), ("a", "b", "c")),
        ("d", ("d",), None),
    ]
    assert examples[0].options_text == "OPTIONS:\n- a\n- b \n- b\n-  c"
    assert examples[0].input.endswith(examples[0].options_text)
    assert drops == {"no list of options": 1, "warning: target not among options": 1}
    examples, drops = read(flan.find_tasks(root, tested)[0], "test")
    assert [e.target for e in examples] == ["b"]
    assert drops["no options"] == 1


def test_typos_are_repaired_where_gin_says_so(bench, trained):
    row = {"premise": "P", "hypothesis": "H", "label": 1, "idx": 4}
    root = bench("tasks: {}", super_glue__rte={"train": [row] * 201})
    (source,) = flan.find_tasks(root, trained)
    examples, drops = read(source)
    assert [e.input for e in examples] == ["P\nHypothesis: Hn\nOPTIONS:\n- yes\n- no"]
    assert examples[0].example_id == "train-4"
    assert not drops
    gin.bind_parameter("FlanConfig.fix_typos", True)
    (fixed,) = flan.find_tasks(root, trained)
    assert read(fixed)[0][0].input == "P\nHypothesis: H\n\nOPTIONS:\n- yes\n- no"
    assert fixed.settings != source.settings


def test_templates_that_the_rows_cannot_fill_are_left_out(bench, trained):
    templates = """PATTERNS = {"ag_news_subset": [
        ("{title}\\n{text}\\n{options_}", "{answer}"), ("{text}\\n{options_}", "{answer}")]}"""
    rows = [{"text": f"Title {i} text", "label": 3} for i in range(300)]
    root = bench("tasks: {}", templates, ag_news={"train": rows})
    (source,) = flan.find_tasks(root, trained)
    examples, _ = read(source)
    assert {e.prompt_id for e in examples} == {"ag_news_subset#1"}
    assert examples[0].target == "Science/Tech"


def test_rows_of_tfds_are_found_where_it_prepared_them(bench, trained, tmp_path):
    import tensorflow_datasets as tfds

    # TFDS may know the data set of this name already.
    class AgNewsSubset(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """Its schema, with three hundred rows."""

        VERSION = tfds.core.Version("1.0.1")

        def _info(self):
            names = ["World", "Sports", "Business", "Sci/Tech"]
            features = {
                "title": tfds.features.Text(),
                "description": tfds.features.Text(),
                "label": tfds.features.ClassLabel(names=names),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(300), "test": self._generate_examples(4)}

        def _generate_examples(self, n):
            for i in range(n):
                yield i, {"title": f"Ulm {i}", "description": "Regen fällt.", "label": i % 4}

    AgNewsSubset(data_dir=str(tmp_path / "tfds")).download_and_prepare()
    templates = """PATTERNS = {"ag_news_subset": [
        ("{title}\\n{text}\\n{options_}", "{answer}"), ("{text}", "{title}")]}"""
    root = bench("tasks: {}", templates)
    gin.bind_parameter("FlanConfig.tfds_dir", str(tmp_path / "tfds"))
    (source,) = flan.find_tasks(root, trained)
    assert (source.name, source.splits) == ("flan/ag_news_subset", ("train", "validation"))
    examples, drops = read(source)
    assert len(examples) == 100
    assert len(read(source, "validation")[0]) == 200
    assert examples[0].input.endswith(
        "\nRegen fällt.\nOPTIONS:\n- World\n- Sports\n- Business\n- Science/Tech"
    )
    assert all(e.target in e.options for e in examples)
    assert not drops
    assert any(file.startswith(str(tmp_path / "tfds")) for file in source.files)


def test_what_is_missing_is_said(bench, trained, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    with pytest.raises(UserError, match=r"folder not found: .*nowhere; give a clone of https"):
        flan.find_tasks(tmp_path / "nowhere", trained)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty holds no flan/templates.py, templates.py or"):
        flan.find_tasks(tmp_path / "empty", trained)
    root = bench()
    with pytest.raises(UserError, match=r"has templates and rows; put rows into .*/datasets as"):
        flan.find_tasks(root, trained)
    root = bench(parity={"test": parity_rows(3)})
    with pytest.raises(UserError, match="no task of benchmark 'flan'"):
        flan.find_tasks(root, trained)
    messages = [r.getMessage() for r in caplog.records]
    assert any(m.startswith("2 of 73 tasks of FLAN have templates in") for m in messages)
    assert "1 of 73 flan tasks have no rows: rte" in messages
    assert "1 of 73 flan tasks have no rows for their part: parity" in messages


# --- real data


@pytest.fixture(scope="module")
def real_sources(real_data, tmp_path_factory):
    row = {"tasks": "flan/*", "level": "fully_held_out", "role": ["test"], "metric": "acc_rank"}
    path = tmp_path_factory.mktemp("manifest") / "manifest.yaml"
    path.write_text(yaml.safe_dump({"rows": [{**row, "src": "inferred"}]}))
    return flan.find_tasks(real_data / "flan", Manifest.load(path))


COUNTS = {  # task -> rows of train and test as the data set's dataset_info.json has them, templates
    "ag_news_subset": (3000, 1500, 6),  # of 8: two need a title
    "bool_q": (1000, 800, 10),
    "cb": (250, 56, 9),
    "copa": (400, 100, 8),
    "glue_qqp": (2000, 1500, 10),
    "imdb_reviews": (500, 200, 7),
    "mnli_matched": (3000, 1500, 10),
    "multirc": (400, 100, 8),
    "rte": (2000, 277, 9),
}


def test_every_kept_template_renders_on_every_real_row(real_sources):
    found = {}
    for source in real_sources:
        task = source.read.__self__
        counts = []
        for rows in ("train", task.facts.splits["test"]):
            facts = dataclasses.replace(task.facts, splits={"test": rows})
            whole = dataclasses.replace(task, facts=facts)
            drops, number = Drops(), 0
            for example in whole.read("test", drops):
                number += 1
                assert example.target in example.options
                assert example.input.count(example.options_text) == 1
                heading, *listed = example.options_text.split("\n- ")
                assert (heading, tuple(map(str.strip, listed))) == ("OPTIONS:", example.options)
                assert not example.input.endswith(" X 1 FLAN")
            assert {k for k in drops if not k.startswith("warning: repeated")} == set()
            counts.append(number)
        found[source.name] = (*counts, len(task.templates))
    print(found)
    assert found == {
        f"flan/{task}": (train * prompts, test * prompts, prompts)
        for task, (train, test, prompts) in COUNTS.items()
    }


def test_the_real_tasks_train_on_what_upstream_trains_on(real_sources):
    sources = {s.name: s for s in real_sources}
    for name, held_out in (("flan/bool_q", 200), ("flan/cb", 50), ("flan/copa", 50)):
        rows = COUNTS[name.removeprefix("flan/")][0]
        examples, drops = read(sources[name])
        assert len(examples) + drops.get("duplicate", 0) == rows - held_out
        assert len(read(sources[name], "validation")[0]) == 250


def test_finding_the_real_tasks_opens_no_file_of_rows(real_data, tested, monkeypatch):
    from tasks.files import rows

    def refuse(*_):
        raise AssertionError("a file of rows was opened")

    monkeypatch.setattr(rows.SplitFiles, "read", refuse)
    monkeypatch.setattr(rows.SplitFiles, "count", refuse)
    assert len(flan.find_tasks(real_data / "flan", tested)) == len(COUNTS)
