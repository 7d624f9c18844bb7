"""What the audit finds in real data sets, where it is known that they share examples.

Beside the audit stands a second count: sets of 13-grams of words by a regular expression.
"""

import dataclasses
import functools
import re

import pytest
from audit_bench import evaluation

from optiml_jax.audit import pairs
from optiml_jax.audit.pipeline import audit
from optiml_jax.audit.words import AuditWords
from optiml_jax.data.example import Drops, TaskSource
from tasks.audit import judge
from tasks.registry import find_sources
from tasks.splits import Manifest

MANIFEST = Manifest.load()
TRAINING = (
    *("reasoning/gsm8k", "copies/gsm8k_test", "dialogue/personachat"),
    *(f"promptsource/super_glue/{name}" for name in ("rte", "cb", "copa", "boolq")),
    *(f"crossfit/superglue-{name}" for name in ("rte", "cb", "copa")),
    "superni/task1393_superglue_copa_text_completion",
)
EVALUATION = (
    *("word_problems/gsm8k", "mgsm/en", "mgsm/es", "copies/gsm8k_train"),
    *("superni/task1729_personachat_generate_next", "superni/task1388_cb_entailment"),
    *("superni/task1344_glue_entailment_classification", "opt14/boolq"),
    *(
        "superni/task1393_superglue_copa_text_completion",
        "superni/task827_copa_commonsense_reasoning",
    ),
)


def read_other(source: TaskSource, split: str, _: str, drops: Drops):
    return source.read(split, drops)


@pytest.fixture(scope="module")
def sources(real_data, tmp_path_factory) -> dict[str, TaskSource]:
    """The real tasks; `copies/*` are GSM8K's test and train files under another name."""
    release = tmp_path_factory.mktemp("release")
    (release / "gsm8k").symlink_to(real_data / "gsm8k")
    folders = {"superni": "super_natural_instructions", "opt14": "datasets"}
    folders |= dict.fromkeys(("mgsm", "word_problems"), ".")
    names = ("reasoning", "dialogue", "promptsource", "crossfit", *folders)
    data = {n: str(real_data / folders.get(n, n)) for n in names}
    found = {s.name: s for s in find_sources(data, MANIFEST)}
    (train,) = find_sources({"reasoning": str(release)}, MANIFEST)
    for name, source, split in (
        ("copies/gsm8k_test", found["word_problems/gsm8k"], "test"),
        ("copies/gsm8k_train", train, "train"),
    ):
        read = functools.partial(read_other, source, split)
        found[name] = dataclasses.replace(source, name=name, splits=("train", "test"), read=read)
    return found


@pytest.fixture(scope="module")
def audited(sources, tmp_path_factory):
    """(training task, evaluation task) -> the pair."""
    folder = tmp_path_factory.mktemp("audit")
    training = [sources[name] for name in TRAINING]
    evaluated = [
        dataclasses.replace(evaluation(sources[n]), limit=MANIFEST.row(sources[n]).instances)
        if n.startswith("superni")
        else evaluation(sources[n])
        for n in EVALUATION
    ]
    audit(training, evaluated, folder, AuditWords(), num_workers=1)
    return {(p.train_task, p.eval_task): p for p in pairs.read_pairs(folder)}


@functools.cache
def grams(text: str) -> frozenset[str]:
    text = re.sub(r"\((?:[A-Za-z]|\d{1,2})\)", " ", text.lower())
    words = re.findall(r"[^\W_]+", re.sub("['`\u2018\u2019]", "", text))
    if len(words) < 13:
        return frozenset([" ".join(words)])
    return frozenset(" ".join(words[i : i + 13]) for i in range(len(words) - 12))


def counted(sources, train: str, evaluated: str) -> int:
    """Evaluation examples that share a 13-gram of input and target, or are there as a whole."""
    known: set[str] = set()
    for example in sources[train].read("train", Drops()):
        known |= grams(f"{example.input}\n{example.target}")
    examples = sources[evaluated].read("test", Drops())
    return sum(not known.isdisjoint(grams(f"{e.input}\n{e.target}")) for e in examples)


def test_gsm8k_and_its_copies_are_found_whole(audited):
    assert audited["copies/gsm8k_test", "word_problems/gsm8k"].overlap == 1319
    assert audited["copies/gsm8k_test", "mgsm/en"].overlap == 250
    assert audited["reasoning/gsm8k", "copies/gsm8k_train"].share > 0.8
    spanish = audited.get(("copies/gsm8k_test", "mgsm/es"))
    assert spanish is None or spanish.share < 0.01


@pytest.mark.parametrize(
    ("train", "evaluated"),
    [
        ("reasoning/gsm8k", "copies/gsm8k_train"),
        ("dialogue/personachat", "superni/task1729_personachat_generate_next"),
        ("promptsource/super_glue/rte", "superni/task1344_glue_entailment_classification"),
        ("crossfit/superglue-rte", "superni/task1344_glue_entailment_classification"),
        ("promptsource/super_glue/cb", "superni/task1388_cb_entailment"),
        ("crossfit/superglue-cb", "superni/task1388_cb_entailment"),
        ("promptsource/super_glue/copa", "superni/task1393_superglue_copa_text_completion"),
        ("crossfit/superglue-copa", "superni/task1393_superglue_copa_text_completion"),
        (
            "superni/task1393_superglue_copa_text_completion",
            "superni/task827_copa_commonsense_reasoning",
        ),
        ("promptsource/super_glue/boolq", "opt14/boolq"),
    ],
)
def test_real_overlaps_are_found_and_counted(audited, sources, train, evaluated):
    pair = audited[train, evaluated]
    expected = counted(sources, train, evaluated)
    assert pair.overlap == expected
    assert pair.share >= 0.01


def test_the_table_knows_each_pair_and_nothing_is_undecided(audited, sources):
    known = {s: sources[s] for pair in audited for s in pair if not s.startswith("copies/")}
    overlaps = [p for key, p in audited.items() if {*key} <= known.keys()]
    judged = judge(overlaps, known, MANIFEST, 0.01)
    assert len(judged) >= 10
    assert {j.state for j in judged} == {"not trained on", "seen in training"}
    assert all(j.relation.startswith("both of ") for j in judged)
