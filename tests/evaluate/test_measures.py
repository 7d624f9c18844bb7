"""Aggregates against scikit-learn, scipy and sacrebleu; in tables, intervals and SeqIO alike."""

import numpy as np
import pytest
import sacrebleu
import scipy.stats
import sklearn.metrics

from optiml_jax.evaluate.leaves import Key
from optiml_jax.evaluate.metrics import METRICS, CandidateRow
from optiml_jax.evaluate.records import Candidate, Record, RunFolder, TaskInfo
from optiml_jax.evaluate.resampling import Resampling
from optiml_jax.evaluate.rollup import difference, rollup

RNG = np.random.default_rng(7)


def candidate(text, logprob=-1.0):
    return Candidate(text, logprob, 1, 1, 1, 0.0, 0.0, False)


def labelled(gold, said, labels=("no", "yes")):
    return [
        Record(
            example_id=f"e{i}",
            prompt_id="p",
            cluster=f"t:{i}",
            references=(labels[g],),
            prediction=labels[s],
            score=float(g == s),
            candidates=tuple(candidate(label, -float(c != s)) for c, label in enumerate(labels)),
            correct=(int(g),),
        )
        for i, (g, s) in enumerate(zip(gold, said, strict=True))
    ]


def texts(pairs):
    return [
        Record(f"e{i}", "p", f"t:{i}", (reference,), prediction, 0.0)
        for i, (reference, prediction) in enumerate(pairs)
    ]


def tree_of(path, metric, records):
    scored = records if METRICS[metric].ranked else [METRICS[metric].rescored(r) for r in records]
    folder = RunFolder(path)
    folder.open({}, [TaskInfo("b/t", "b", "C", "fully_held_out", metric)])
    folder.write("b/t", 0, scored, {"metric": metric, "best_constant": {"score": 0.0}})
    return rollup(path)


GOLD, SAID = RNG.integers(0, 2, (2, 80))
NUMBERS = [(f"{x:.2f}", f"It is {x + e:.2f}") for x, e in RNG.normal(2, 1, (60, 2))]
WORDS = ["the", "cat", "dog", "sat", "on", "a", "mat", "and", "ran"]
SENTENCES = [
    (" ".join(words), " ".join(np.where(RNG.random(9) < 0.2, "cow", words)))
    for words in RNG.choice(WORDS, (40, 9))
]
X, Y = ([float(pair[i].split()[-1]) for pair in NUMBERS] for i in (0, 1))

CASES = {
    "matthews": (labelled(GOLD, SAID), 100 * sklearn.metrics.matthews_corrcoef(GOLD, SAID)),
    "f1_positive": (labelled(GOLD, SAID), 100 * sklearn.metrics.f1_score(GOLD, SAID)),
    "correlation": (texts(NUMBERS), 100 * scipy.stats.pearsonr(X, Y).statistic),
    "bleu": (
        texts(SENTENCES),
        sacrebleu.corpus_bleu(
            [p for _, p in SENTENCES], [[r for r, _ in SENTENCES]], tokenize="intl"
        ).score,
    ),
}


@pytest.mark.parametrize("metric", CASES)
def test_tables_show_the_aggregate_of_the_library(metric, tmp_path):
    records, expected = CASES[metric]
    assert METRICS[metric].of(records)[METRICS[metric].main.name] == pytest.approx(expected)
    assert tree_of(tmp_path, metric, records).cells[Key(0)].value == pytest.approx(expected)


def test_spearman_and_macro_f1_stand_beside_and_reach_tensorboard(tmp_path):
    expected = 100 * scipy.stats.spearmanr(X, Y).statistic
    tree = tree_of(tmp_path / "a", "correlation", texts(NUMBERS))
    assert tree.further_measures()["b/t", 0]["spearman"] == pytest.approx(expected)
    assert tree.scalars()["eval/measure/b/t/spearman/0shot"] == pytest.approx(expected)
    gold, said = RNG.integers(0, 3, (2, 50))
    expected = 100 * sklearn.metrics.f1_score(gold, said, average="macro")
    tree = tree_of(tmp_path / "b", "macro_f1", labelled(gold, said, ("a", "b", "c")))
    assert tree.further_measures()["b/t", 0]["macro_f1"] == pytest.approx(expected)


@pytest.mark.parametrize("metric", CASES)
def test_intervals_redraw_the_aggregate_and_not_the_mean_of_scores(metric, tmp_path):
    """The spread of replicates is that of the aggregate over redrawn records."""
    records, _ = CASES[metric]
    spread = np.std(Resampling(tree_of(tmp_path, metric, records), n=2000).values(Key(0)))
    main = METRICS[metric].main
    rng = np.random.default_rng(1)
    drawn = [
        [(records[i],) for i in rng.integers(len(records), size=len(records))] for _ in range(300)
    ]
    assert spread == pytest.approx(np.std([main.of(units) for units in drawn]), rel=0.15)


def test_the_difference_of_two_runs_is_that_of_their_aggregates(tmp_path):
    other = labelled(GOLD, np.where(RNG.random(80) < 0.7, GOLD, SAID))
    runs = [
        tree_of(tmp_path / name, "matthews", records)
        for name, records in (("a", other), ("b", labelled(GOLD, SAID)))
    ]
    values = [tree.cells[Key(0)].value for tree in runs]
    assert difference(*runs).cells[Key(0)].value == pytest.approx(values[0] - values[1])


def test_seqio_finds_what_the_records_give():
    rows = [
        CandidateRow(i, c, c == g, label)
        for i, g in enumerate(GOLD)
        for c, label in enumerate(("no", "yes"))
    ]
    scores = [float(c == s) for s in SAID for c in range(2)]
    for metric in ("acc_rank", "macro_f1", "matthews", "f1_positive"):
        assert METRICS[metric].fn(rows, scores) == METRICS[metric].of(labelled(GOLD, SAID))
    targets, outputs = zip(*SENTENCES, strict=True)
    for metric in ("bleu", "rougeL", "rougeL_scripts", "em", "f1_squad"):
        found = METRICS[metric].fn(targets, outputs)
        records = [METRICS[metric].rescored(r) for r in texts(SENTENCES)]
        assert found == METRICS[metric].of(records)


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("北京是中国的首都", "上海很大"),
        ("القاهرة عاصمة مصر", "بيروت"),
        ("Москва — столица России", "Киев"),
        ("กรุงเทพมหานคร", "เชียงใหม่"),
        ("दिल्ली भारत की राजधानी है", "मुंबई"),
    ],
)
def test_rouge_l_of_all_scripts(text, other):
    """Identical answers score 1, other words 0; rouge-score's own tokeniser gives 0 for both."""
    score = METRICS["rougeL_scripts"].score
    assert score([text], text) == 1
    assert score([text], other) < 0.3
    assert METRICS["rougeL"].score([text], text) == 0


def test_rouge_l_of_all_scripts_splits_words_as_their_script_does():
    score = METRICS["rougeL_scripts"].score
    # Four of the six characters, and both in order: 2 * 4 / (6 + 4).
    assert score(["我爱北京天安"], "我爱北京") == pytest.approx(0.8)
    assert score(["Москва столица России"], "москва, столица!") == pytest.approx(0.8)
    assert score(["The Cats sat"], "the cats sat") == 1
