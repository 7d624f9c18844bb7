"""One task of each reader goes through the cache, those without a source too."""

import json

import pytest

from optiml_jax.data.prepare import prepare
from optiml_jax.data.prompts import PromptConfig
from optiml_jax.data.store import Store
from optiml_jax.data.vocabulary import decode, load_vocabulary, train_sentencepiece
from tasks.registry import find_sources
from tasks.splits import Manifest

FILES = {
    "crossfit": ("data/ag_news/ag_news_16_100_train.tsv", "Rain all week.\tWorld\n"),
    "dialogue": ("chat.jsonl", json.dumps({"turns": ["first turn", "second turn"]}) + "\n"),
    "exmix": ("go_emotions/train.tsv", "Rain all week.\t27\tid\n"),
    "pretrain": ("books.jsonl", json.dumps({"text": "One upon a time.\n\nThe end."}) + "\n"),
    "reasoning": ("ecqa_train.tsv", "Which?\\nOptions:\\n- a\\n- b\ta\tBecause\n"),
    "t5": ("glue/sst2/train.jsonl", json.dumps({"sentence": "Rain", "label": 1, "idx": 0}) + "\n"),
    "unifiedskg": (
        "tabfact/train.json",
        json.dumps([{"text_in": "true?", "struct_in": "col : a", "seq_out": "entailed"}]),
    ),
}
EXPECTED = {  # benchmark -> end of the source, whole target
    "crossfit": ("Rain all week.\nOutput:", " World"),
    "dialogue": ("", "first turn\nsecond turn"),
    "exmix": ("Rain all week.\nOutput:", " neutral"),
    "pretrain": ("", "One upon a time.\n\nThe end."),
    "reasoning": ("\nWhich?\na, b\nOutput:", " Because. The answer is a"),
    "t5": ("\nsentence: Rain\nOutput:", " positive"),
    "unifiedskg": ("task: tabfact ; true? ; structured knowledge: col : a\nOutput:", " entailed"),
}


@pytest.fixture(scope="module")
def vocabulary_spec(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary") / "small.model"
    texts = [text for _, text in FILES.values()] + ["Instructions: Say yes.\nInput: a\nOutput: b"]
    train_sentencepiece(texts * 3, path, 320)
    return f"sentencepiece:{path}"


def test_every_reader_goes_through_the_cache(tmp_path, vocabulary_spec):
    for benchmark, (name, content) in FILES.items():
        path = tmp_path / benchmark / name
        path.parent.mkdir(parents=True)
        path.write_text(content, "utf-8")
    sources = find_sources({b: str(tmp_path / b) for b in FILES}, Manifest.load())
    prompts = PromptConfig(delimiter="\nOutput:")
    summary = prepare(sources, vocabulary_spec, prompts, tmp_path / "cache", num_workers=1)
    assert {o.status for o in summary.outcomes.values()} == {"cached"}
    store, vocabulary = Store(tmp_path / "cache"), load_vocabulary(vocabulary_spec)
    for source in sources:
        task = store.task(source.name)
        assert task.info["splits"]["train"]["examples"] == 1
        ((ids, target),) = task.read("train", [0])
        end, answer = EXPECTED[source.benchmark]
        assert decode(vocabulary, ids.tolist()).endswith(end)
        assert (len(ids) == 0) == (end == "")
        assert vocabulary.decode(target[:-1].tolist()) == answer
        assert target[-1] == vocabulary.eos_id
    again = prepare(sources, vocabulary_spec, prompts, tmp_path / "cache", num_workers=1)
    assert {o.status for o in again.outcomes.values()} == {"unchanged"}
