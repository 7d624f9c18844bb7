import json

import pytest
import seqio
import tensorflow as tf
from seqio import test_utils

from optiml_jax.data.mixture import Mixture
from optiml_jax.data.prompts import PromptConfig
from optiml_jax.data.vocabulary import load_vocabulary, train_sentencepiece
from optiml_jax.errors import UserError
from tasks.mixtures import register_mixture, select
from tasks.registry import BENCHMARKS, find_sources, register, registered_name
from tasks.splits import Manifest

MANIFEST = Manifest.load()
CONFIG = PromptConfig(delimiter="\nOutput:")


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary") / "small.model"
    train_sentencepiece(["Instructions: Say yes or no.\nInput: 14\nOutput: yes"] * 9, path, 300)
    return load_vocabulary(f"sentencepiece:{path}")


@pytest.fixture
def bench(write_bench):
    """Two training tasks, a held-out test task and an excluded one."""
    contents = {stem: write_bench.content(30) for stem in ("task1_a", "task2_b", "task642_test")}
    contents["task642_test"]["Categories"] = ["Translation"]
    contents["task4_out"] = write_bench.content(30)
    return write_bench(contents, test=["task642_test"], excluded=["task4_out"])


def test_sources_of_all_benchmarks_are_found_under_their_names(bench):
    sources = find_sources({"superni": str(bench), "demo_superni": str(bench)}, MANIFEST)
    assert len(sources) == 8
    assert {s.name for s in sources if s.benchmark == "demo_superni"} == {
        f"demo_superni/{stem}" for stem in ("task1_a", "task2_b", "task4_out", "task642_test")
    }


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, f"no data given; name a folder for one of: {', '.join(BENCHMARKS)}"),
        ({"superNI": "/"}, f"unknown benchmark 'superNI'; known: {', '.join(BENCHMARKS)}"),
        ({"superni": ""}, "no folder given for the data of benchmark 'superni'"),
        ({"superni": "/nowhere"}, "folder not found: /nowhere/tasks"),
    ],
)
def test_wrong_data_settings_are_one_line(data, message):
    with pytest.raises(UserError) as e:
        find_sources(data, MANIFEST)
    assert message in str(e.value)


def test_a_registered_task_yields_tokens_and_passthrough_fields(bench, vocabulary):
    source = find_sources({"superni": str(bench)}, MANIFEST)[0]
    task = register(source, vocabulary, CONFIG)
    assert seqio.TaskRegistry.get("superni.task1_a") is task
    assert tuple(task.splits) == ("train", "validation", "test")
    dataset = task.get_dataset(sequence_length=None, split="test", shuffle=False).take(1)
    prompt = "Instructions: Say whether the number is even.\nInput: 0\nOutput:"
    test_utils.assert_dataset(
        dataset,
        {
            "inputs": vocabulary.encode(prompt),
            "targets": [*vocabulary.encode(" yes"), 2],
            "task": "superni/task1_a",
            "example_id": "id-0",
            "prompt_id": "definition",
            "references": '["yes"]',
            "options": "null",
        },
        expected_dtypes={"inputs": tf.int32, "targets": tf.int32, "references": tf.string},
    )


def test_every_pass_reads_the_whole_split(bench, vocabulary):
    task = register(find_sources({"superni": str(bench)}, MANIFEST)[0], vocabulary, CONFIG)
    dataset = task.get_dataset(sequence_length=None, split="train", shuffle=True, seed=0)
    for _ in range(2):
        ids = sorted(r["example_id"].decode() for r in dataset.as_numpy_iterator())
        assert ids == sorted(f"id-{i}" for i in range(6, 30))


def test_a_k_shot_variant_shows_demonstrations_and_leaves_the_training_task_alone(
    bench, vocabulary
):
    source = find_sources({"superni": str(bench)}, MANIFEST)[3]
    register(source, vocabulary, CONFIG)
    register(source, vocabulary, CONFIG, shots=2)
    assert registered_name(source.name, 2) == "superni.task642_test.2shot"
    few, none = (
        next(
            seqio.get_mixture_or_task(name)
            .get_dataset(sequence_length=None, split="test", shuffle=False)
            .as_numpy_iterator()
        )["inputs"].tolist()
        for name in ("superni.task642_test.2shot", "superni.task642_test")
    )
    assert vocabulary.decode(few) == (
        "Instructions: Say whether the number is even.\n\n\n"
        "Input: 1002\nOutput: yes\n\n\nInput: 1003\nOutput: no\n\n\nInput: 0\nOutput:"
    )
    assert "1002" not in vocabulary.decode(none)


def test_metric_functions_see_predictions_of_the_registered_task(bench, vocabulary):
    def accuracy(targets, predictions):
        pairs = zip(targets, predictions, strict=True)
        return {"accuracy": sum(p.strip() in references for references, p in pairs) / len(targets)}

    source = find_sources({"superni": str(bench)}, MANIFEST)[0]
    task = register(source, vocabulary, CONFIG, metric_fns=[accuracy])
    evaluator = seqio.Evaluator(
        task.name,
        feature_converter=seqio.PrefixLMFeatureConverter(pack=False, bos_id=2),
        eval_split="test",
    )
    answer = vocabulary.encode("yes")

    def predict(dataset, *unused, **unused_too):
        return [(i, answer) for i, _ in dataset]

    metrics, _ = evaluator.evaluate(compute_metrics=True, step=0, predict_fn=predict, score_fn=None)
    assert metrics.result()[task.name]["accuracy"] == pytest.approx(2 / 3)


def test_selection_takes_the_role_and_the_globs(bench):
    sources = find_sources({"superni": str(bench)}, MANIFEST)

    def names(**settings) -> list[str]:
        return [s.name for s in select(sources, Mixture(name="m", **settings), MANIFEST)]

    assert names() == ["superni/task1_a", "superni/task2_b"]
    assert names(roles="test") == ["superni/task642_test"]
    assert names(roles=("train", "test")) == [*names(), *names(roles="test")]
    assert names(tasks=("superni/*_b",)) == ["superni/task2_b"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tasks": ("superni/task642_test",)}, "no task matches 'superni/task642_test'"),
        ({"proportions": {"flan": 1.0}}, "benchmark 'flan' a weight, but there are only"),
        ({"roles": "dev"}, "no task has the role 'dev'"),
    ],
)
def test_a_mixture_that_selects_nothing_is_an_error(bench, settings, message):
    sources = find_sources({"superni": str(bench)}, MANIFEST)
    with pytest.raises(UserError, match=message):
        select(sources, Mixture(name="m", **settings), MANIFEST)


def test_a_training_mixture_may_not_hold_a_held_out_category(bench):
    path = bench / "tasks" / "task2_b.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"Categories": ["Textual Entailment"]}))
    sources = find_sources({"superni": str(bench)}, MANIFEST)
    with pytest.raises(UserError, match=r"'superni/task2_b' has category 'Textual Ent.*task642"):
        select(sources, Mixture(name="m"), MANIFEST)
    select(sources, Mixture(name="m", tasks=("superni/task1_*",)), MANIFEST)
    select(sources, Mixture(name="m", roles="test"), MANIFEST)


def test_the_seqio_mixture_has_the_rates_of_the_plan(bench, vocabulary):
    sources = find_sources({"superni": str(bench)}, MANIFEST)[:2]
    for source in sources:
        register(source, vocabulary, CONFIG)
    counts = {sources[0].name: 24, sources[1].name: 100}
    mixture = register_mixture(Mixture(name="small", eps=72), counts)
    rates = {task.name: mixture.get_rate(task) for task in mixture.tasks}
    assert rates == {"superni.task1_a": 0.25, "superni.task2_b": 0.75}
    rows = mixture.get_dataset(
        sequence_length=None, split="train", seed=0, passthrough_features=["task"]
    ).take(20)
    assert {r["task"].decode() for r in rows.as_numpy_iterator()} == set(counts)
