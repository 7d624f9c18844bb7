"""Flan-PaLM's mixture: published rates and caps, on the counts and lists of real releases.

SeqIO's own `mixing_rate_num_examples` is what FLAN v2 mixes with.
"""

import csv
import fnmatch
import json
import os
import pathlib

import gin
import pytest
import seqio

from optiml_jax.cli.gin_files import read_settings
from optiml_jax.cli.settings import configured
from optiml_jax.data.mixture import Mixture, matching_tasks, mixing_rates

REAL_DATA = pathlib.Path(os.environ.get("OPTIML_REAL_DATA", "../shared/data"))
# google-research/FLAN, flan/v2/run_example.py; the 3 % of dialogues are not Flan-PaLM's.
PUBLISHED = {"flan": 40, "promptsource": 32, "superni": 20, "reasoning": 5}
# flan/v2/mixtures.py, DEFAULT_MIXTURE_MAX_EXAMPLES.
CAPS = {"flan": 30_000, "promptsource": 20_000, "superni": 5_000, "reasoning": 100_000}

pytestmark = pytest.mark.skipif(not REAL_DATA.exists(), reason=f"{REAL_DATA} is not there")


@pytest.fixture
def mixture():
    gin.clear_config()
    read_settings(["gin/mixtures/flan_palm.gin"], [])
    yield configured(Mixture)
    gin.clear_config()


def collection() -> list[dict[str, str]]:
    with open(REAL_DATA / "flan" / "flan_collection_info.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def counts() -> dict[str, int]:
    """Tasks with their real numbers of examples where the shared data says them."""
    found = {}
    for line in (REAL_DATA / "super_natural_instructions" / "metadata.jsonl").open(
        encoding="utf-8"
    ):
        row = json.loads(line)
        found[f"superni/{row['task']}"] = row["number_examples"]
    for path in (REAL_DATA / "reasoning").glob("*_train.tsv"):
        found[f"reasoning/{path.stem}"] = sum(1 for _ in path.open(encoding="utf-8"))
    for dataset in sorted((REAL_DATA / "datasets").rglob("train.jsonl")):
        name = dataset.parent.relative_to(REAL_DATA / "datasets").as_posix()
        found[f"promptsource/{name}"] = sum(1 for _ in dataset.open(encoding="utf-8"))
    splits = json.loads((REAL_DATA / "flan" / "task_splits.json").read_text("utf-8"))
    names = {name for names in splits.values() for name in names}
    # FLAN's numbers are not in the data; 4,000 to 70,000 lie on both sides of its cap.
    found |= {f"flan/{name}": 4000 + 1000 * i for i, name in enumerate(sorted(names))}
    return found


def test_the_shares_are_the_published_rates(mixture):
    own = counts()
    kept = {name: own[name] for name in matching_tasks(mixture, own)}
    rates = mixing_rates(kept, mixture)
    whole = sum(PUBLISHED.values())
    for benchmark, published in PUBLISHED.items():
        share = 100 * sum(r for task, r in rates.items() if task.startswith(f"{benchmark}/"))
        assert share == pytest.approx(100 * published / whole, abs=0.5)


def test_within_a_collection_the_rates_are_seqios_at_the_published_caps(mixture):
    own = counts()
    kept = {name: own[name] for name in matching_tasks(mixture, own)}
    rates = mixing_rates(kept, mixture)

    class Counted:
        """A cached SeqIO task, as far as the function looks at it."""

        cache_dir = "cache"

        def __init__(self, count):
            self.count = count

        def get_cached_stats(self, split):
            return {"examples": self.count}

    for benchmark, cap in CAPS.items():
        tasks = {t: n for t, n in kept.items() if t.startswith(f"{benchmark}/")}
        wanted = {
            t: seqio.mixing_rate_num_examples(Counted(n), maximum=cap) for t, n in tasks.items()
        }
        total, share = sum(wanted.values()), sum(rates[t] for t in tasks)
        for task, rate in wanted.items():
            assert rates[task] == pytest.approx(share * rate / total)
    assert max(own[t] for t in kept if t.startswith("superni/")) > CAPS["superni"]  # the cap bites


def test_p3_is_taken_without_the_sets_that_flan_has(mixture):
    """By FLAN's own table: "FLAN/T0" are in both, "T0" in P3 alone."""
    renamed = {
        "ag_news_subset": "ag_news",
        "anli_r1": "anli/r1",
        "arc_easy": "ai2_arc/ARC-Easy",
        "bool_q": "super_glue/boolq",
        "cb": "super_glue/cb",
        "cola": "glue/cola",
        "cnn_dailymail": "cnn_dailymail/3.0.0",
        "glue_qqp": "glue/qqp",
        "paws_wiki": "paws/x",
        "squad_v2": "squad_v2",
        "trivia_qa": "trivia_qa/unfiltered",
        "imdb_reviews": "imdb",
        "yelp_polarity_reviews": "yelp_polarity",
        "winogrande": "winogrande/winogrande_xl",
    }
    both = {row["Dataset"] for row in collection() if row["Source"] == "FLAN/T0"}
    assert renamed.keys() <= both
    without = [g.removeprefix("promptsource/") for g in mixture.without]
    plain = both - {
        "arc_challenge",
        "anli_r2",
        "anli_r3",
        "copa",
        "multirc",
        "qnli",
        "record",
        "rte",
    }
    plain -= {"glue_mrpc", "sst2", "stsb", "squad_v1", "trivia_qa_wiki_missing", "wic", "wsc"}
    for name in plain:
        set_ = renamed.get(name, name)
        assert any(fnmatch.fnmatchcase(set_, glob) for glob in without), name
    for row in collection():
        if row["Source"] == "T0":
            assert not any(fnmatch.fnmatchcase(row["Dataset"], glob) for glob in without), row
