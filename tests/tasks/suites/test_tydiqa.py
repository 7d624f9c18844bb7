"""TyDiQA-GoldP: a task per language, prompts, several answers, and the mean without English."""

import json

import pytest

from optiml_jax.data.example import Drops
from optiml_jax.data.prompts import PromptConfig, render
from optiml_jax.errors import UserError
from optiml_jax.evaluate.metrics import METRICS
from tasks.splits import Manifest, category
from tasks.suites.tydiqa import find_tasks

MANIFEST = Manifest.load()


def article(language, number, question, *answers):
    context = f"Passage {number}। "
    qa = {"id": f"{language}-{number}-0", "question": question}
    qa["answers"] = [{"text": answer, "answer_start": 0} for answer in answers]
    return {"paragraphs": [{"context": context, "qas": [qa]}]}


@pytest.fixture
def folder(tmp_path):
    languages = ("bengali", "english", "telugu")
    for name, count in (("train", 3), ("dev", 2)):
        data = [
            article(language, f"{name}{i}", f" q{i} {language}? ", "ঢাকা।", "ঢাকা", "ঢাকা")
            for i in range(count)
            for language in languages
        ]
        content = {"version": "TyDiQA-GoldP-1.1-for-SQuAD-1.1", "data": data}
        text = json.dumps(content, ensure_ascii=False)
        (tmp_path / f"tydiqa-goldp-v1.1-{name}.json").write_text(text, "utf-8")
    return tmp_path


def test_prompt_and_demonstration(folder):
    sources = {s.name: s for s in find_tasks(folder, MANIFEST)}
    assert len(sources) == 9
    source = sources["tydiqa_goldp/bengali"]
    first, second = source.read("test", Drops())
    row = MANIFEST.row(source)
    config = PromptConfig(separator=row.protocol.separator)
    text = render(first, source.demonstrations()[:1], source.instruction_level, config).source()
    assert text == (
        "Passage train0।\nQuestion: q0 bengali?\nAnswer: ঢাকা।\n\n"
        "Passage dev0।\nQuestion: q0 bengali?\nAnswer:"
    )
    assert (first.references, first.options) == (("ঢাকা।", "ঢাকা"), None)
    assert (first.example_id, second.example_id) == ("bengali-dev0-0", "bengali-dev1-0")
    assert (row.metric, row.shots) == ("tydiqa", (1,))
    # The official script takes ASCII punctuation away alone; the column beside it takes all.
    scores = {}
    for fn in [METRICS[row.metric].fn]:
        scores |= fn([["ঢাকা।"]], ["ঢাকা"])
    assert scores["exact_match_squad"] == 0
    assert scores["exact_match_unicode"] == 100


def test_english_is_not_in_the_mean(folder):
    sources = find_tasks(folder, MANIFEST)
    columns = {category(s) for s in sources if s.name.endswith("/english")}
    others = {category(s) for s in sources if not s.name.endswith("/english")}
    assert (columns, others) == ({"TyDiQA-GoldP (English)"}, {"TyDiQA-GoldP"})
    groups = [MANIFEST.row(s).aggregate_as for s in sources]
    assert sorted(map(str, groups)) == ["None"] + ["tydiqa_goldp"] * 8


def test_a_language_without_training_questions_is_still_asked(folder):
    """It has no demonstrations, and no other language lends it any; so it is without the file."""
    path = folder / "tydiqa-goldp-v1.1-train.json"
    content = json.loads(path.read_text("utf-8"))
    kept = [a for a in content["data"] if "telugu" not in a["paragraphs"][0]["qas"][0]["id"]]
    assert len(kept) == 6
    path.write_text(json.dumps({**content, "data": kept}, ensure_ascii=False), "utf-8")
    for there in (True, False):
        if not there:
            path.unlink()
        sources = {s.name: s for s in find_tasks(folder, MANIFEST)}
        telugu, bengali = (sources[f"tydiqa_goldp/{name}"] for name in ("telugu", "bengali"))
        assert len(list(telugu.read("test", Drops()))) == 2
        assert telugu.demonstrations() == []
        assert len(bengali.demonstrations()) == (3 if there else 0)
        if there:
            assert list(telugu.read("train", Drops())) == []
        assert ("train" in telugu.splits) == there


def test_bad_data(folder):
    sources = {s.name: s for s in find_tasks(folder, MANIFEST)}
    with pytest.raises(UserError, match=r"no usable question of arabic in .*dev.json"):
        list(sources["tydiqa_goldp/arabic"].read("test", Drops()))
    path = folder / "tydiqa-goldp-v1.1-dev.json"
    good = path.read_text("utf-8")
    path.write_text(good[: len(good) // 2], "utf-8")
    with pytest.raises(UserError, match="is cut off"):
        list(sources["tydiqa_goldp/telugu"].read("test", Drops()))
    path.write_text(json.dumps({"data": [{"paragraphs": [{"context": "x"}]}]}), "utf-8")
    with pytest.raises(UserError, match=r"dev.json, article 1 has not the form of SQuAD 1.1"):
        list(sources["tydiqa_goldp/telugu"].read("test", Drops()))
    path.unlink()
    with pytest.raises(UserError, match=r"give the folder of tydiqa-goldp-v1.1-dev.json"):
        find_tasks(folder, MANIFEST)
