"""Flan-PaLM's mixture: published rates and caps, on the counts and lists of real releases.

SeqIO's own `mixing_rate_num_examples` is what FLAN v2 mixes with.
"""

import collections
import csv
import dataclasses
import json
import os
import pathlib

import gin
import pytest
import seqio

from optiml_jax.cli.gin_files import read_settings
from optiml_jax.cli.settings import configured
from optiml_jax.data.mixture import Mixture, matching_tasks, mixing_rates
from tasks.flan.facts import read_dialog_facts, read_facts
from tasks.flan.wrapped import p3_name
from tasks.promptsource.templates import read_templates
from tasks.splits import Manifest

REAL_DATA = pathlib.Path(os.environ.get("OPTIML_REAL_DATA", "../shared/data"))
# google-research/FLAN, flan/v2/run_example.py.
PUBLISHED = {"flan": 40, "promptsource": 32, "superni": 20, "reasoning": 5, "flan_dialog": 3}
# flan/v2/mixtures.py, DEFAULT_MIXTURE_MAX_EXAMPLES.
CAPS = {"flan": 30_000, "promptsource": 20_000, "superni": 5_000, "reasoning": 100_000}
CAPS |= {"flan_dialog": 200_000}
# Dialogues by the releases' READMEs; of QReCC's 63,501 turns a fifth, say, comes after the sixth.
DIALOGUES = {"qrecc": 12_000, "wiki_dialog": 11_000_000, "task_master": 13_215 + 17_289 + 24_083}

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
    with open(REAL_DATA / "promptsource" / "t0_datasets.csv", encoding="utf-8") as file:
        sizes = {
            "/".join(filter(None, ("promptsource", row["HF_name"], row["subset"]))): row
            for row in csv.DictReader(file)
        }
    manifest = Manifest.load()
    for name, row in sizes.items():
        if manifest.lookup(name, None).prompts == "all":
            found[name] = int(row["train_size"])
    found |= {f"flan_dialog/{name}": number for name, number in DIALOGUES.items()}
    splits = json.loads((REAL_DATA / "flan" / "task_splits.json").read_text("utf-8"))
    names = {name for names in splits.values() for name in names}
    # FLAN's numbers are not in the data; 4,000 to 70,000 lie on both sides of its cap.
    found |= {f"flan/{name}": 4000 + 1000 * i for i, name in enumerate(sorted(names))}
    return found


def test_so_many_dialogues_are_prepared_that_no_rate_changes(mixture):
    own = {task: n for task, n in counts().items() if task.startswith("flan_dialog/")}
    caps = mixture.benchmark_max_examples
    assert caps["flan_dialog"] > CAPS["flan_dialog"]
    prepared = {task: min(n, caps["flan_dialog"]) for task, n in own.items()}
    assert prepared != own
    alone = dataclasses.replace(mixture, tasks=("flan_dialog/*",), proportions={"flan_dialog": 1})
    assert mixing_rates(prepared, alone) == mixing_rates(own, alone)


def test_optimls_own_mixtures_do_not_train_on_dialogues():
    manifest = Manifest.load()  # without flan_palm.yaml
    assert not any(manifest.lookup(f"flan_dialog/{name}", None).trained for name in DIALOGUES)


def prompts_of(task: str) -> list:
    folder = REAL_DATA / "promptsource" / "templates" / task.split("/", 1)[1]
    return read_templates(folder / "templates.yaml")


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
        if benchmark == "promptsource":  # upstream registers every prompt as a task of its own
            wanted = {t: n * len(prompts_of(t)) for t, n in wanted.items()}
        total, share = sum(wanted.values()), sum(rates[t] for t in tasks)
        for task, rate in wanted.items():
            assert rates[task] == pytest.approx(share * rate / total)
    assert max(own[t] for t in kept if t.startswith("superni/")) > CAPS["superni"]  # the cap bites


# Muffin's that have no reader: pairs of programs, which are not published (docs/mixtures.md).
WITHOUT_READER = {
    *("dmcc_python", "dr_repair_error_comments", "dr_repair_line_numbers"),
    *("dr_repair_no_errors", "dr_repair_plain_code"),
}
OTHER_NAMES = {"mnli": {"mnli_matched", "mnli_mismatched"}, "trivia_qa_wiki_missing": {"trivia_qa"}}


def test_the_training_tasks_are_those_of_the_published_list(mixture):
    """By FLAN's own table, over the whole lists of all collections."""
    listed = collections.defaultdict(list)
    t0_prompts = [r["Specific Task Category"] for r in collection() if r["Source"] == "T0"]
    for row in collection():
        listed[row["Source"]].append(row["Dataset"])
    manifest = Manifest.load()

    def trained(name: str, split: str | None = None) -> bool:
        return manifest.lookup(name, split).trained_by(mixture.roles)

    lines = (REAL_DATA / "super_natural_instructions" / "categories.tsv").read_text().splitlines()
    superni = [line.split("\t") for line in lines[1:]]
    kept = [task for task, _, split, _ in superni if trained(f"superni/{task}", split)]
    assert len(kept) == len(listed["NIv2"]) == 1556  # the paper says 1,554
    assert {t for t, *_ in superni} - {*kept} == {t for t, *_ in superni if "_mmmlu_" in t}

    splits = json.loads((REAL_DATA / "flan" / "task_splits.json").read_text("utf-8"))
    names = {name for names in splits.values() for name in names}
    names |= {"lambada", "unified_qa_science_inst"}
    facts, _ = read_facts(REAL_DATA / "flan")
    assert names == {*facts} - {"wsc273"}
    assert all(trained(f"flan/{name}") for name in names)
    dialogues = {*read_dialog_facts()}
    assert dialogues == {*listed["Dialog"]} == {*DIALOGUES}
    assert all(trained(f"flan_dialog/{name}") for name in dialogues)
    names |= dialogues
    assert len(names) == 74
    published = {*listed["FLAN"], *listed["FLAN/T0"], *listed["Program Synthesis"]}
    published |= {*listed["Dialog"]}
    missing = {n for n in published if not OTHER_NAMES.get(n, {n}) & names}
    assert missing == WITHOUT_READER

    root = REAL_DATA / "promptsource" / "templates"
    folders = {p.parent.relative_to(root).as_posix() for p in root.rglob("templates.yaml")}
    sets = {name for name in folders if trained(f"promptsource/{name}")}
    assert len(sets) == 26
    assert all(manifest.lookup(f"promptsource/{name}", None).prompts == "all" for name in sets)
    found = {name: prompts_of(f"promptsource/{name}") for name in sets}
    assert sum(map(len, found.values())) == len(listed["T0"]) == 193
    p3 = {p3_name(name, prompt.name) for name, prompts in found.items() for prompt in prompts}
    assert p3 == set(t0_prompts)
    for name, prompts in found.items():
        counted = mixture.capped_count(f"promptsource/{name}", 10**6)
        assert counted == CAPS["promptsource"] * len(prompts)

    cot = {name.split("_", 1)[1] for name in listed["CoT"]}
    ours = (*cot, "math", "cos_e", "coqa", "proofwriter", "winowhy")
    assert {name for name in ours if trained(f"reasoning/{name}")} == cot
    assert len(cot) == 9
