import json
import tracemalloc

import pytest

from optiml_jax.data.example import Drops
from optiml_jax.data.prompts import PromptConfig, render
from optiml_jax.data.vocabulary import encode_batch, load_vocabulary
from optiml_jax.errors import UserError
from tasks.splits import Manifest
from tasks.text.pretraining import MAX_PIECE_TOKENS, estimated_tokens, find_tasks, split_document

MANIFEST = Manifest.load()
SENTENCE = "The quick brown fox jumps over the lazy dog."


def write(path, *texts) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts), "utf-8")


def squeezed(text: str) -> str:
    return " ".join(text.split())


def test_a_document_is_a_target_without_source(tmp_path):
    record = {"text": " First.\r\n\r\nSecond. ", "meta": {"pile_set_name": "PG-19"}}
    (tmp_path / "books.jsonl").write_text(json.dumps(record) + "\n")
    (source,) = find_tasks(tmp_path, MANIFEST)
    (example,) = source.read("train", Drops())
    assert (source.name, source.splits) == ("pretrain/books", ("train",))
    assert (example.input, example.instruction) == ("", "")
    assert example.target == "First.\n\nSecond."
    assert (example.source_dataset, example.category) == ("PG-19", "Language Modeling")
    prompt = render(example, [], source.instruction_level, PromptConfig())
    assert (prompt.source(), prompt.target) == ("", example.target)


def test_shards_of_one_corpus_are_one_task_and_valid_is_a_split_of_its_own(tmp_path):
    write(tmp_path / "train" / "00" / "books.jsonl", "a")
    write(tmp_path / "train" / "01" / "books.jsonl", "b")
    write(tmp_path / "train" / "00" / "news.jsonl", "c")
    write(tmp_path / "valid" / "00" / "books.jsonl", "d")
    books, news = find_tasks(tmp_path, MANIFEST)
    assert books.splits == ("train", "validation")
    assert [e.target for e in books.read("train", Drops())] == ["a", "b"]
    assert [e.target for e in books.read("validation", Drops())] == ["d"]
    assert (news.name, news.splits) == ("pretrain/news", ("train",))


def test_a_long_document_is_cut_at_paragraph_ends_and_loses_nothing(tmp_path):
    paragraphs = [" ".join([f"{i}."] + [SENTENCE] * 12) for i in range(40)]
    text = "\n\n".join(paragraphs)
    write(tmp_path / "books.jsonl", text)
    (source,) = find_tasks(tmp_path, MANIFEST)
    drops = Drops()
    examples = list(source.read("train", drops))
    assert "\n\n".join(e.target for e in examples) == text
    assert len(examples) > 3
    assert drops == {"warning: further piece of a long document": len(examples) - 1}
    assert len({e.example_id for e in examples}) == len(examples)


@pytest.mark.parametrize(
    "text",
    [
        "\n".join([SENTENCE] * 400),
        " ".join([SENTENCE] * 400),
        "word " * 9000,
        "x" * 30_000,
        "Ж" * 9000,
        "\n" * 9000 + "end",
    ],
    ids=["lines", "sentences", "words", "one word", "outside of ASCII", "newlines"],
)
def test_no_piece_is_estimated_longer_than_the_bound(text):
    pieces = list(split_document(text))
    assert max(map(estimated_tokens, pieces)) <= MAX_PIECE_TOKENS
    assert all(pieces)
    assert "".join("".join(p.split()) for p in pieces) == "".join(text.split())
    if SENTENCE in text:
        assert all(piece.endswith(".") for piece in pieces)


def test_pieces_of_real_text_fit_into_a_row_of_real_tokens(real_data):
    vocabulary = load_vocabulary(f"opt:{real_data / 'gpt2_bpe'}")
    texts = []
    for path in sorted((real_data / "pretrain").glob("*.jsonl")):
        lines = path.read_text("utf-8").splitlines()[:300]
        texts.append("\n\n".join(json.loads(line)["text"] for line in lines))
    texts += [p.read_text("utf-8") for p in sorted((real_data / "mgsm").glob("*.tsv"))]
    assert len(texts) == 8  # among them Spanish, German, Chinese and Thai
    for text in texts:
        pieces = list(split_document(text))
        assert squeezed(" ".join(pieces)) == squeezed(text)
        lengths = [len(ids) for ids in encode_batch(vocabulary, pieces)]
        assert max(lengths) <= 2047
        assert sum(lengths[:-1]) / max(1, len(lengths) - 1) > 700  # and not needlessly short


def test_bad_records_are_counted(tmp_path):
    path = tmp_path / "books.jsonl"
    path.write_text('{"text": "a"}\n{"txt": "b"}\n{"text": [5]}\n{"text": " "}\n{"te\n')
    (source,) = find_tasks(tmp_path, MANIFEST)
    drops = Drops()
    assert len(list(source.read("train", drops))) == 1
    assert drops == {"no text": 2, "empty target": 1, "not JSON": 1}


def test_bad_folders_are_one_line(tmp_path):
    with pytest.raises(UserError, match=r"folder not found: .*nowhere"):
        find_tasks(tmp_path / "nowhere", MANIFEST)
    with pytest.raises(UserError, match=r"no JSONL file \(\*\.jsonl\) of benchmark 'pretrain'"):
        find_tasks(tmp_path, MANIFEST)
    write(tmp_path / "books.jsonl", "")
    (source,) = find_tasks(tmp_path, MANIFEST)
    with pytest.raises(UserError, match=r"no usable document in .*books.jsonl \(1 empty target\)"):
        list(source.read("train", Drops()))


def test_memory_does_not_grow_with_the_corpus(tmp_path):
    with open(tmp_path / "books.jsonl", "w") as f:
        for i in range(4_000):
            f.write(json.dumps({"text": f"{i} {SENTENCE * 10}"}) + "\n")
    (source,) = find_tasks(tmp_path, MANIFEST)
    tracemalloc.start()
    count = sum(1 for _ in source.read("train", Drops()))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 4_000
    assert peak < 500_000  # the file has 2 MB


def test_the_real_corpora_are_read_whole(real_data):
    counts = {}
    for source in find_tasks(real_data / "pretrain", MANIFEST):
        drops = Drops()
        counts[source.name] = sum(1 for _ in source.read("train", drops))
        assert not drops
    assert counts == {
        "pretrain/dbpedia_abstracts": 1500,
        "pretrain/shakespeare": 498,
        "pretrain/wikipedia_passages": 2904,
    }
