"""Every gin file of the project parses, names settings that exist, and says what the paper says."""

import collections
import fnmatch
import pathlib

import gin
import pytest

from optiml_jax.cli.main import parse_gin
from optiml_jax.cli.settings import Evaluate, Run, configured
from optiml_jax.data.mixture import Mixture, mixing_rates
from optiml_jax.data.plan import PlanConfig
from optiml_jax.data.prompts import PromptConfig
from optiml_jax.evaluate.config import EvalConfig
from optiml_jax.model.architectures import model_config
from optiml_jax.sharding.mesh import MeshConfig
from optiml_jax.train.config import TrainConfig
from optiml_jax.train.optimizer import OptimizerConfig
from tasks.splits import Manifest

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
FILES = sorted(str(p.relative_to(REPOSITORY)) for p in (REPOSITORY / "gin").rglob("*.gin"))
EXPERIMENTS = [f for f in FILES if f.startswith("gin/experiments/")]
COLLECTIONS = ("crossfit", "exmix", "flan", "superni", "promptsource", "t5", "unifiedskg")
# Table 5 of the paper, typed from it: crossfit / exmix / flan / superni / promptsource / t5 /
# unifiedskg.
TABLE_5 = [
    (2, 1, 5, 71, 18, 1, 2),
    (2, 1, 35, 25, 34, 1, 2),
    (3, 3, 35, 25, 25, 7, 2),
    (2, 1, 27, 40, 27, 1, 2),
    (3, 3, 25, 25, 35, 7, 2),
    (4, 2, 35, 25, 30, 2, 2),
    (4, 2, 20, 25, 45, 2, 2),
    (2, 1, 35, 25, 30, 5, 2),
    (7, 1, 35, 25, 28, 2, 2),
    (0, 0, 35, 30, 35, 0, 0),
]


def parse(*paths, bindings=()):
    gin.clear_config()
    parse_gin(["plan"], [*(f"--gin_file={p}" for p in paths), *bindings])


def mixture(*paths) -> Mixture:
    parse(*paths)
    return configured(Mixture)


def benchmark_rates(mixture, benchmarks=(*COLLECTIONS, "reasoning", "pretrain", "dialogue")):
    """Rates per benchmark when each that a glob names has one task of 9,000 examples."""
    globs = {pattern.split("/")[0] for pattern in mixture.tasks}
    rates = mixing_rates({f"{b}/x": 9000 for b in benchmarks if b in globs}, mixture)
    return {b: rates.get(f"{b}/x", 0) for b in benchmarks}


@pytest.mark.parametrize("path", FILES)
def test_a_gin_file_parses_and_its_settings_can_be_made(path):
    parse(path)
    PromptConfig(), PlanConfig(num_rows=1), OptimizerConfig(), EvalConfig(), MeshConfig()
    model_config()
    if "Mixture.name" in gin.config_str():
        Mixture()
    if path.startswith("gin/runs/") and path not in ("gin/runs/optiml.gin", "gin/runs/bench.gin"):
        TrainConfig(plan_dir="", run_dir="")


def test_the_ten_rows_of_table_5():
    files = [f for f in EXPERIMENTS if f.startswith("gin/experiments/proportions/")]
    assert len(files) == len(TABLE_5)
    for row in TABLE_5:
        name = "_".join(map(str, row))
        rates = benchmark_rates(mixture(f"gin/experiments/proportions/{name}.gin"), COLLECTIONS)
        assert sum(row) == 100
        assert [rates[b] * 100 for b in COLLECTIONS] == pytest.approx(row), name


def test_the_nine_values_of_eps():
    files = [f for f in EXPERIMENTS if f.startswith("gin/experiments/eps/")]
    values = {mixture(f).eps for f in files}
    assert values == {128, 256, 512, 1024, 2048, 4096, 8192, 16384, 10**6}  # table 4
    assert all(mixture(f).name == f"eps_{pathlib.Path(f).stem}" for f in files)


def test_the_final_mixture():
    final = mixture("gin/mixtures/optiml.gin")
    rates = benchmark_rates(final)
    row = (4, 2, 20, 25, 45, 2, 2)  # section 4.3
    assert [rates[b] * 100 for b in COLLECTIONS] == pytest.approx([0.99 * n for n in row])
    assert (rates["reasoning"], rates["dialogue"]) == (pytest.approx(0.01), 0)  # 4.6, 4.7
    assert final.row_shares == {"pretrain": 0.05}  # 4.5
    assert (final.eps, final.roles, final.missing) == (4096, ("train",), "error")
    assert (final.max_examples_of("flan/a"), final.max_examples_of("t5/a")) == (30_000, 100_000)
    largest = mixture("gin/mixtures/optiml_max.gin")
    assert largest.roles == ("train", "dev", "test", "test_extra")
    assert benchmark_rates(largest) == rates


def test_the_other_ablations():
    for n in (1, 5, 10, 50):
        assert mixture(f"gin/experiments/pretrain_{n}.gin").row_shares == {"pretrain": n / 100}
    for n in (1, 2, 4):  # reasoning is taken from SuperNI
        rates = benchmark_rates(mixture(f"gin/experiments/reasoning_{n}.gin"))
        assert [rates[b] * 100 for b in (*COLLECTIONS, "reasoning")] == pytest.approx(
            [2, 1, 27, 40 - n, 27, 1, 2, n]
        )
    dialogue = benchmark_rates(mixture("gin/experiments/dialogue_0.5.gin"))
    assert dialogue["dialogue"] == pytest.approx(0.005)
    for n in (16, 64, 256, 1024):
        assert mixture(f"gin/experiments/tasks_{n}.gin").num_tasks == n
    for n in (4, 16, 64, 93):
        chosen = mixture(f"gin/experiments/categories_{n}.gin")
        assert (chosen.num_categories, len(chosen.always_categories)) == (n, 3)


@pytest.mark.parametrize(
    ("name", "zero_shot", "loss"),
    [
        ("a2", 0.671, "label"),
        ("a4", 0.925, "label"),
        ("a2_suffix", 0.671, "suffix"),
        ("a4_suffix", 0.925, "suffix"),
    ],
)
def test_metaicl(name, zero_shot, loss):
    parse(f"gin/experiments/metaicl_{name}.gin")
    prompts = PromptConfig()
    assert prompts.shots[0] == pytest.approx(zero_shot, abs=5e-4)  # section 4.8
    assert (len(prompts.shots), prompts.demonstrations, prompts.loss) == (6, "train", loss)
    assert gin.query_parameter("TrainConfig.num_steps") == 2000  # table 8


@pytest.mark.parametrize("path", EXPERIMENTS)
def test_an_experiment_leaves_nothing_of_the_mixture_of_the_run_before_it(path):
    alone = mixture(path)
    assert mixture("gin/runs/optiml_max_30b.gin", path) == alone


@pytest.mark.parametrize(
    ("name", "size", "steps", "batch"),
    [  # table 3; the steps of Max are those of the released checkpoints
        ("optiml_30b", "30b", 4000, 256),
        ("optiml_175b", "175b", 8000, 128),
        ("optiml_max_1_3b", "1.3b", 6000, 256),
        ("optiml_max_30b", "30b", 6000, 256),
        ("optiml_max_175b", "175b", 12_000, 128),
    ],
)
def test_the_published_hyper_parameters(name, size, steps, batch, monkeypatch):
    monkeypatch.setenv("OPTIML_DATA", "/data")
    parse(f"gin/runs/{name}.gin")
    train = TrainConfig(plan_dir="", run_dir="")
    assert (train.num_steps, train.global_batch_size) == (steps, batch)
    adam = OptimizerConfig()
    assert (adam.learning_rate, adam.warmup_steps, adam.clip_norm) == (5e-5, 60, 1.0)
    assert (adam.beta1, adam.beta2) == (0.9, 0.95)
    model = model_config()
    published = model_config.__wrapped__(size)
    assert (model.num_params, model.dropout) == (published.num_params, 0.1)
    assert PlanConfig(num_rows=1).sequence_length == 2048
    wanted = {b.split("/")[0] for b in Mixture().tasks}
    assert wanted == set(configured(Run).data)


@pytest.mark.parametrize(
    ("name", "tasks"),
    [  # numbers of (task, shots) of the tables; MMLU and RAFT by subject and subset
        ("opt14", {"opt14": 2 * 14}),
        (
            "bench_test",  # table 10; 11, where WSC has no 5 shots; 12; 13
            {"promptsource": 2 * 12, "flan": 2 * 15 - 1, "superni": 3 * 44, "unifiedskg": 2 * 3},
        ),
        ("mmlu", {"mmlu": 2 * 57}),
        ("table_14", {"bbh": 27, "mmlu": 2 * 57, "raft": 11}),
        ("tydiqa", {"tydiqa_goldp": 9}),
    ],
)
def test_an_evaluation_has_the_tasks_of_its_tables(name, tasks, monkeypatch):
    monkeypatch.setenv("OPTIML_DATA", "/data")
    parse("gin/runs/optiml_max_30b.gin", f"gin/eval/{name}.gin")
    run, settings = configured(Run), Evaluate()
    found = collections.Counter()
    for task, row in Manifest.load().evaluation_tasks().items():
        asked = any(fnmatch.fnmatchcase(task, glob) for glob in settings.tasks)
        if task.split("/")[0] in run.data and asked and {*settings.roles} & {*row.role}:
            found[task.split("/")[0]] += len({*settings.shots} & {*row.shots})
    assert found == tasks
    assert settings.name.startswith("{checkpoint}_")  # no other evaluation's folder
