import json
import pickle

import pytest
import seqio
import tensorflow as tf
from tokenizers.pre_tokenizers import ByteLevel

from optiml_jax.data import vocabulary as vocabulary_lib
from optiml_jax.data.prompts import target_text
from optiml_jax.data.text_vocabulary import TextVocabulary
from optiml_jax.data.vocabulary import (
    OPTVocabulary,
    decode,
    encode_batch,
    load_vocabulary,
    padded_size,
    train_sentencepiece,
    vocabulary_fingerprint,
)
from optiml_jax.data.vocabulary_tf import as_seqio
from optiml_jax.errors import UserError

MERGES = [("y", "e"), ("ye", "s"), ("Ġ", "yes"), ("A", ":"), ("n", "o"), ("Ġ", "no")]
TEXT = "Instructions: Say yes.\nInput: 14  é \n\n\nInput: <pad> A: no </s> ドラ"


def opt_entries() -> dict[str, int]:
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *sorted(ByteLevel.alphabet())]
    tokens += ["".join(pair) for pair in MERGES]
    return {token: i for i, token in enumerate(tokens)}


def write_opt(folder, entries=None, merges=None, names=("gpt2-vocab.json", "gpt2-merges.txt")):
    folder.mkdir(exist_ok=True)
    (folder / names[0]).write_text(json.dumps(opt_entries() if entries is None else entries))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in MERGES)] if merges is None else merges
    (folder / names[1]).write_text("\n".join(lines) + "\n", "utf-8")
    return folder


@pytest.fixture(scope="module")
def small_opt(tmp_path_factory) -> OPTVocabulary:
    return load_vocabulary(f"opt:{write_opt(tmp_path_factory.mktemp('bpe'))}")


@pytest.fixture(scope="module")
def small_sentencepiece(tmp_path_factory):
    path = tmp_path_factory.mktemp("sp") / "small.model"
    train_sentencepiece([TEXT, "yes no yes no"] * 5, path, 310)
    return load_vocabulary(f"sentencepiece:{path}")


@pytest.fixture(params=["opt", "sentencepiece"])
def small(request, small_opt, small_sentencepiece) -> TextVocabulary:
    return {"opt": small_opt, "sentencepiece": small_sentencepiece}[request.param]


@pytest.fixture(scope="module")
def real_opt(real_data) -> OPTVocabulary:
    return load_vocabulary(f"opt:{real_data / 'gpt2_bpe'}")


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("Answer: yes", [33683, 35, 4420]),
        ("Answer: ", [33683, 35, 1437]),
        ("yes", [10932]),
        ("</s>", [49138, 29, 15698]),
        (" 10", [158]),
        (":-", [36185]),
        ("", []),
    ],
)
def test_ids_are_those_of_opt(real_opt, text, ids):
    assert real_opt.encode(text) == ids


def test_the_real_vocabulary_has_opts_sizes_and_decodes_everything(real_opt):
    assert (real_opt.vocab_size, padded_size(real_opt)) == (50265, 50272)
    assert decode(real_opt, real_opt.encode(TEXT)) == TEXT


def test_special_ids_mean_the_same_in_both_kinds(small):
    assert (small.bos_id, small.pad_id, small.eos_id, small.unk_id) == (0, 1, 2, 3)
    assert padded_size(small) % 8 == 0
    assert 0 <= padded_size(small) - small.vocab_size < 8


def test_literal_special_tokens_are_spelled_out_and_text_survives(small):
    ids = small.encode(TEXT)
    assert not {0, 1, 2, 3} & set(ids)
    assert decode(small, ids) == TEXT


def test_a_batch_gives_the_ids_of_single_texts(small):
    texts = [TEXT, "yes", "", " no"]
    assert encode_batch(small, texts) == [list(small.encode(t)) for t in texts]


@pytest.mark.parametrize("source", ["Input: 14 A:", "Input: 14\n", "yes", "é", "(1", "14"])
@pytest.mark.parametrize("target", ["yes", "14", "(no", "é", "'s"])
def test_source_and_target_encoded_apart_are_the_joint_encoding(small, source, target):
    text = target_text(source, target)
    assert small.encode(source) + small.encode(text) == small.encode(source + text)


def test_decode_drops_the_leading_token_and_stops_at_the_first_end(small):
    ids = small.encode("yes no")
    assert decode(small, [2, *ids, 2, *ids, 1, 1]) == "yes no"
    assert decode(small, [0, *ids]) == "yes no"
    assert decode(small, [*ids, 1, 1]) == "yes no"
    assert decode(small, [2, 2]) == decode(small, []) == ""


def test_an_id_of_the_padded_rows_decodes_to_nothing(small):
    assert decode(small, [*small.encode("yes"), small.vocab_size]) == "yes"


def test_tensorflow_encodes_and_decodes_like_python(small):
    ids = small.encode(TEXT)
    in_seqio = as_seqio(small)
    assert in_seqio.encode_tf(tf.constant(TEXT)).numpy().tolist() == ids
    ragged = in_seqio.encode_tf(tf.constant(["yes", "no no"]))
    assert ragged.to_list() == [small.encode("yes"), small.encode("no no")]
    assert in_seqio.decode_tf(tf.constant([*ids, 2, 5, 6])).numpy().decode() == TEXT


def test_seqio_tokenises_a_dataset_with_it(small):
    feature = seqio.Feature(as_seqio(small), add_eos=True)
    data = tf.data.Dataset.from_tensor_slices({"targets": ["yes", " no no"]})
    data = seqio.preprocessors.tokenize_and_append_eos(data, {"targets": feature})
    rows = [row["targets"].tolist() for row in data.as_numpy_iterator()]
    assert rows == [[*small.encode("yes"), 2], [*small.encode(" no no"), 2]]


def test_vocabularies_are_equal_by_content_and_survive_pickling(small, small_opt, tmp_path):
    again = pickle.loads(pickle.dumps(small))
    assert again == small
    assert hash(again) == hash(small)
    assert vocabulary_fingerprint(again) == vocabulary_fingerprint(small)
    renamed = write_opt(tmp_path / "hf", names=("vocab.json", "merges.txt"))
    assert load_vocabulary(f"opt:{renamed}") == small_opt
    other = write_opt(tmp_path / "other", merges=[" ".join(pair) for pair in MERGES[::-1]])
    assert load_vocabulary(f"opt:{other}") != small_opt


def test_training_sentencepiece_twice_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        train_sentencepiece([TEXT, "yes no"] * 5, tmp_path / name, 300)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def without(token: str) -> dict[str, int]:
    tokens = [t for t in opt_entries() if t != token]
    return {t: i for i, t in enumerate(tokens)}


@pytest.mark.parametrize(
    ("entries", "merges", "message"),
    [
        ({"!": 0, '"': 1}, None, "not OPT's vocabulary: <s> has id None, not 0"),
        ({**opt_entries(), "</s>": 50000}, None, "</s> has id 50000, not 2"),
        ({**opt_entries(), "far": 9999}, None, "its ids are not 0 ..."),
        (without("ĩ"), None, "no entry for 'ĩ'"),
        (["a", "b"], None, "must map tokens to integer ids"),
        (None, ["a b"], "does not belong to"),
        (None, ["y e", "yes"], "line 2: not a merge of two symbols"),
    ],
)
def test_a_foreign_vocabulary_is_refused(tmp_path, entries, merges, message):
    with pytest.raises(UserError) as e:
        load_vocabulary(f"opt:{write_opt(tmp_path, entries, merges)}")
    assert message in str(e.value)
    assert "\n" not in str(e.value)


def test_missing_or_damaged_files_are_named(tmp_path):
    def message(spec: str) -> str:
        with pytest.raises(UserError) as e:
            load_vocabulary(spec)
        assert "\n" not in str(e.value)
        return str(e.value)

    assert "vocabulary folder not found" in message(f"opt:{tmp_path}/nowhere")
    assert "must hold tokenizer.json, or gpt2-vocab.json" in message(f"opt:{tmp_path}")
    folder = write_opt(tmp_path / "half")
    whole = (folder / "gpt2-vocab.json").read_text()
    (folder / "gpt2-vocab.json").write_text(whole[: len(whole) // 2])
    assert f"is damaged: {folder}/gpt2-vocab.json" in message(f"opt:{folder}")
    (folder / "gpt2-vocab.json").write_text(whole)
    (folder / "gpt2-merges.txt").unlink()
    assert "merges file not found" in message(f"opt:{folder}")
    assert "SentencePiece model not found" in message(f"sentencepiece:{tmp_path}/none.model")
    (tmp_path / "bad.model").write_bytes(b"not a model")
    assert "is not a SentencePiece model" in message(f"sentencepiece:{tmp_path}/bad.model")
    assert "unknown vocabulary 'bpe'" in message("bpe")


def test_a_sentencepiece_model_with_other_special_ids_is_refused(tmp_path):
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["yes no"] * 10),
        model_prefix=str(tmp_path / "t5"),
        vocab_size=9,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    with pytest.raises(UserError, match=r"unk ids \(-1, 0, 1, 2\)"):
        load_vocabulary(f"sentencepiece:{tmp_path}/t5.model")


def test_an_impossible_vocabulary_size_is_one_line(tmp_path):
    with pytest.raises(UserError, match="cannot train a SentencePiece model of 50 pieces") as e:
        train_sentencepiece([TEXT], tmp_path / "small.model", 50)
    assert "\n" not in str(e.value)
    assert not list(tmp_path.iterdir())


def test_a_hub_name_is_downloaded_and_a_dead_network_is_one_line(tmp_path, monkeypatch, small_opt):
    import huggingface_hub

    folder = write_opt(tmp_path / "hub", names=("vocab.json", "merges.txt"))
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda repository, allow_patterns: str(folder)
    )
    assert load_vocabulary("opt:facebook/opt-125m") == small_opt

    def fail(repository, allow_patterns):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(UserError, match=r"facebook/opt-125m .*\(no route\); give a local folder"):
        load_vocabulary("opt:facebook/opt-125m")


def test_a_vocabulary_is_loaded_once_per_process_for_sentencepiece(small_sentencepiece):
    path = small_sentencepiece.model_file
    assert vocabulary_lib.load_vocabulary(f"sentencepiece:{path}") is small_sentencepiece


# --- completeness


@pytest.mark.parametrize("kept", [0, 3, len(MERGES) - 1])
def test_merges_that_were_cut_are_refused(tmp_path, kept):
    lines = ["#version: 0.2", *(" ".join(pair) for pair in MERGES[:kept])]
    folder = write_opt(tmp_path / "cut", merges=lines)
    with pytest.raises(UserError, match=rf"gpt2-merges.txt is incomplete: none of its {kept} mer"):
        load_vocabulary(f"opt:{folder}")


def test_the_published_vocabulary_is_known_and_another_of_its_size_named(
    real_data, tmp_path, caplog
):
    folder = real_data / "gpt2_bpe"
    load_vocabulary(f"opt:{folder}")
    assert "published" not in caplog.text
    vocab = json.loads((folder / "gpt2-vocab.json").read_text())
    first, second = (t for t, i in vocab.items() if i in (40_000, 40_001))
    swapped = vocab | {first: vocab[second], second: vocab[first]}
    merges = (folder / "gpt2-merges.txt").read_text("utf-8").rstrip("\n").split("\n")
    other = write_opt(tmp_path / "other", entries=swapped, merges=merges)
    load_vocabulary(f"opt:{other}")
    assert "are not the vocabulary that OPT was published with" in caplog.text
    cut = write_opt(tmp_path / "cut", entries=vocab, merges=merges[:40_000])
    with pytest.raises(UserError, match=r"is incomplete: none of its 39,999 merges makes"):
        load_vocabulary(f"opt:{cut}")


def test_a_sentencepiece_model_that_was_cut_is_refused(small_sentencepiece, tmp_path):
    from sentencepiece import sentencepiece_model_pb2

    content = sentencepiece_model_pb2.ModelProto.FromString(small_sentencepiece.sp_model)
    content.ClearField("normalizer_spec")
    content.ClearField("denormalizer_spec")
    del content.pieces[300:]
    (tmp_path / "cut.model").write_bytes(content.SerializeToString())
    with pytest.raises(UserError, match="is cut off"):
        load_vocabulary(f"sentencepiece:{tmp_path}/cut.model")
