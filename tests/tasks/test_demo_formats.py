"""The demo bench as the readers of its collections see it: splits, labels, levels, categories."""

import collections
import json
import pathlib

import gin
import pytest

from optiml_jax.cli.settings import Run
from optiml_jax.data.example import Drops
from optiml_jax.data.mixture import Mixture, mixing_rates
from tasks import mixtures
from tasks.demo import build as demo
from tasks.registry import COLLECTIONS, find_sources
from tasks.splits import Manifest, category

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
MANIFEST = Manifest.load()
ENTRIES = demo.load_tasks()
LABELS = [  # tasks whose rows hold the number of a label: task, folder of the rows, column, labels
    ("promptsource/reviews/film", "datasets/reviews/film", "text", ("negative", "positive")),
    ("promptsource/reviews/phone", "datasets/reviews/phone", "text", ("negative", "positive")),
    ("flan/hotel_reviews", "datasets/hotel_reviews", "text", ("bad", "good")),
    ("flan/plan_stance", "datasets/plan_stance", "text", ("negative", "positive")),
    ("flan/verb_agreement", "datasets/verb_agreement", "text", ("no", "yes")),
    ("t5/glue_sst2_v002", "glue/sst2", "sentence", ("negative", "positive")),
    ("t5/glue_cola_v002", "glue/cola", "sentence", ("unacceptable", "acceptable")),
    ("t5/super_glue_boolq_v102", "super_glue/boolq", "passage", ("False", "True")),
]


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    demo.build(out)
    return out


@pytest.fixture(scope="module")
def sources(bench):
    return find_sources(demo.data_folders(bench), MANIFEST)


@pytest.fixture(scope="module")
def examples(sources):
    """Task -> split -> its Examples. Nothing may be dropped or mended."""
    read = {}
    for source in sources:
        drops = Drops()
        read[source.name] = {split: list(source.read(split, drops)) for split in source.splits}
        assert not drops, source.name
    return read


def test_every_collection_is_there_and_every_task_is_found(sources):
    assert set(ENTRIES) == set(COLLECTIONS)
    found = collections.Counter(s.benchmark.removeprefix("demo_") for s in sources)
    assert found == {collection: len(tasks) for collection, tasks in ENTRIES.items()}


def test_splits_are_as_large_as_they_were_written(sources, examples):
    for source in sources:
        row, parts = MANIFEST.row(source), examples[source.name]
        templates = 3 if source.benchmark in ("demo_promptsource", "demo_flan") else 1
        if row.level == "fully_supervised":
            assert len(parts["train"]) == 320
            assert len(parts["test"]) == (45 if templates == 3 else 40)
            assert len({e.prompt_id for e in parts["test"]}) == templates
        elif not row.trained:
            assert len(parts["test"]) == (99 if templates == 3 else 100)
            assert len(source.demonstrations()) >= 40


@pytest.mark.parametrize(("task", "folder", "column", "words"), LABELS)
def test_labels_are_read_as_the_words_they_stand_for(bench, examples, task, folder, column, words):
    files = (bench / task.split("/")[0] / folder).glob("*.jsonl")
    rows = [json.loads(line) for file in files for line in file.read_text("utf-8").splitlines()]
    expected = {row[column]: words[row["label"]] for row in rows}
    for example in (e for part in examples[f"demo_{task}"].values() for e in part):
        [text] = [text for text in expected if text in example.input]
        assert example.target == expected[text]
        assert example.options == words


def test_inverted_templates_are_left_out(examples):
    for task in ("demo_promptsource/reviews/film", "demo_flan/hotel_reviews"):
        assert {len(e.target.split()) for e in examples[task]["train"]} == {1}


def test_each_level_has_tasks_of_several_collections_and_categories_are_known(sources):
    levels, categories = collections.defaultdict(list), set()
    for source in sources:
        levels[MANIFEST.row(source).level].append(source.benchmark)
        categories.add(category(source))
    for level in ("fully_held_out", "partially_held_out", "fully_supervised"):
        assert len(levels[level]) >= 3
        assert len(set(levels[level])) >= 2
    assert "Misc." not in categories
    assert len(categories) >= 12


def test_the_quickstart_names_every_folder_and_mixes_by_its_shares(bench, sources):
    gin.parse_config_file(str(REPOSITORY / "gin" / "runs" / "quickstart.gin"))
    assert Run().data == demo.data_folders("build/demo")
    mixture = Mixture()
    trained = mixtures.select(sources, mixture, MANIFEST)  # refuses held-out categories
    assert {s.benchmark for s in trained} == set(demo.data_folders(bench))
    rates = mixing_rates(dict.fromkeys([s.name for s in trained], 320), mixture)
    shares = collections.Counter()
    for task, rate in rates.items():
        shares[task.split("/")[0]] += rate
    assert shares["demo_superni"] == pytest.approx(0.965 * 0.3)
    assert shares["demo_reasoning"] == pytest.approx(0.03)
