"""Tokenizers in every form that Hugging Face's library writes: ids equal to its own."""

import json
import pickle
import random
import shutil

import jax.numpy as jnp
import pytest
import tensorflow as tf
import tokenizers
import transformers
from toy_tasks import toy_source, write_task_file

from optiml_jax.checkpoint.manager import CheckpointManager
from optiml_jax.data.example import Drops
from optiml_jax.data.loader import read_rows
from optiml_jax.data.plan import Plan, PlanConfig, build_plan
from optiml_jax.data.prepare import prepare
from optiml_jax.data.prompts import PromptConfig
from optiml_jax.data.sentencepiece_export import export_sentencepiece
from optiml_jax.data.tokenizer_vocabulary import TokenizerVocabulary
from optiml_jax.data.vocabulary import (
    OPTVocabulary,
    decode,
    encode_batch,
    load_vocabulary,
    train_sentencepiece,
    vocabulary_fingerprint,
)
from optiml_jax.data.vocabulary_files import (
    content_for_checkpoint,
    spec_in_checkpoint,
    vocabulary_files,
)
from optiml_jax.data.vocabulary_tf import as_seqio
from optiml_jax.errors import UserError

AWKWARD = [
    "",
    "  two  spaces ",
    "tab\there\r\n\n\nx",
    "naïve 北京 🙂 \u2581 x",
    "yes no yesno 12345 3.14",
    "aaaaaaa abababa",
    "\x00\x01\x7f",
    "a<|user|>b <|user|> yes foo bar.",
]


def opt_folder(folder, added=(), special=()):
    """A small OPT tokenizer as transformers 5 saves it: tokenizer.json and its configuration."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    merges = [("y", "e"), ("ye", "s"), ("Ġ", "yes"), ("n", "o"), ("Ġ", "no"), ("a", "b")]
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *alphabet, *("".join(m) for m in merges)]
    tokenizer = transformers.GPT2Tokenizer(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=merges,
        bos_token="</s>",
        eos_token="</s>",
        unk_token="</s>",
        pad_token="<pad>",
        add_bos_token=True,
    )
    tokenizer.add_tokens(list(added))
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    tokenizer.save_pretrained(folder)
    assert not (folder / "vocab.json").exists()
    return tokenizer


def _assert_same_ids(vocabulary, theirs, texts=AWKWARD):
    rows = encode_batch(vocabulary, texts)
    for text, ids in zip(texts, rows, strict=True):
        assert ids == theirs(text, add_special_tokens=False)["input_ids"], repr(text)
        assert vocabulary.encode(text) == ids
        assert vocabulary.decode(ids) == theirs.decode(ids), repr(text)


def test_a_folder_with_tokenizer_json_only_is_opts_vocabulary(tmp_path):
    theirs = opt_folder(tmp_path / "new")
    vocabulary = load_vocabulary(f"opt:{tmp_path / 'new'}")
    assert isinstance(vocabulary, OPTVocabulary)
    _assert_same_ids(vocabulary, theirs)
    model = json.loads((tmp_path / "new" / "tokenizer.json").read_text())["model"]
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "vocab.json").write_text(json.dumps(model["vocab"]))
    lines = ["#version: 0.2", *(" ".join(merge) for merge in model["merges"])]
    (tmp_path / "old" / "merges.txt").write_text("\n".join(lines))
    old = load_vocabulary(f"opt:{tmp_path / 'old'}")
    assert vocabulary_fingerprint(vocabulary) == vocabulary_fingerprint(old)
    added = {"<|user|>": old.vocab_size}  # as transformers 4 wrote it
    (tmp_path / "old" / "added_tokens.json").write_text(json.dumps(added))
    shutil.copy(tmp_path / "new" / "tokenizer_config.json", tmp_path / "old")
    old = load_vocabulary(f"opt:{tmp_path / 'old'}")
    assert old.encode("yes<|user|>") == [*vocabulary.encode("yes"), vocabulary.vocab_size]


def test_added_words_are_kept_and_special_tokens_in_texts_are_spelled_out(tmp_path):
    theirs = opt_folder(tmp_path, added=["<|user|>", "foo bar"], special=["<|end|>"])
    vocabulary = load_vocabulary(f"opt:{tmp_path}")
    assert isinstance(vocabulary, TokenizerVocabulary)
    _assert_same_ids(vocabulary, theirs)
    assert vocabulary.vocab_size == len(theirs)
    assert vocabulary.special_tokens["<|end|>"] == len(theirs) - 1
    assert (vocabulary.bos_id, vocabulary.eos_id, vocabulary.pad_id) == (2, 2, 1)
    for text in ("a </s> b", "x<|end|>"):
        ids = vocabulary.encode(text)
        assert not set(ids) & vocabulary.special_ids
        assert decode(vocabulary, [2, *ids, 2, *ids]) == text
    again = pickle.loads(pickle.dumps(vocabulary))
    assert again == vocabulary
    assert again.encode("foo bar") == [theirs.convert_tokens_to_ids("foo bar")]
    ids = as_seqio(vocabulary).encode_tf(tf.constant(["yes", "no no"])).to_list()
    assert ids == encode_batch(vocabulary, ["yes", "no no"])


def test_a_sentencepiece_style_tokenizer_with_other_special_ids(tmp_path):
    """As Llama 2 and Gemma have it: metaspaces, byte fallback, <s> in front."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = tokenizers.decoders.Sequence(
        [
            tokenizers.decoders.Replace("▁", " "),
            tokenizers.decoders.ByteFallback(),
            tokenizers.decoders.Fuse(),
            tokenizers.decoders.Strip(" ", 1, 0),
        ]
    )
    special = ["<unk>", "<s>", "</s>"]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, special_tokens=[*special, *(f"<0x{i:02X}>" for i in range(256))]
    )
    tokenizer.train_from_iterator([*AWKWARD, "yes no"] * 3, trainer)
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    theirs.save_pretrained(tmp_path)
    vocabulary = load_vocabulary(f"huggingface:{tmp_path}")
    assert (vocabulary.bos_id, vocabulary.eos_id, vocabulary.pad_id) == (1, 2, 2)
    for text in AWKWARD:
        if "\x00" not in text:  # their trainer's byte tokens are special, which texts do not have
            assert vocabulary.encode(text) == theirs(text, add_special_tokens=False)["input_ids"]


def test_sentencepiece_models_are_exported_with_equal_ids(tmp_path):
    texts = [*AWKWARD, "yes no yes no", "12 345"] * 5
    train_sentencepiece(texts, tmp_path / "small.model", 330)
    ours = load_vocabulary(f"sentencepiece:{tmp_path / 'small.model'}")
    export_sentencepiece(str(tmp_path / "small.model"), tmp_path, 2)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    generator = random.Random(0)
    drawn = ["".join(generator.choices("aab  \n\t1,.é北🙂<|", k=30)) for _ in range(300)]
    _assert_same_ids(ours, theirs, [*AWKWARD, *drawn])
    assert theirs("yes")["input_ids"] == [2, *ours.encode("yes")]
    assert (theirs.eos_token_id, theirs.pad_token_id, theirs.bos_token_id) == (2, 1, 2)


def save_checkpoint(folder, step, spec, **metadata):
    manager = CheckpointManager(folder, async_save=False, files=content_for_checkpoint(spec))
    manager.save(step, {"params": {"w": jnp.ones(1)}}, {"vocabulary": {"spec": spec}, **metadata})
    manager.close()


def test_a_damaged_vocabulary_in_a_checkpoint_is_named_and_an_older_one_taken(tmp_path, caplog):
    opt_folder(tmp_path / "source")
    spec = f"opt:{tmp_path / 'source'}"
    for step in (1, 2):
        save_checkpoint(tmp_path / "run", step, spec)
    tokenizer = tmp_path / "run" / "2" / "tokenizer" / "tokenizer.json"
    text = tokenizer.read_text()
    values = json.loads(text)
    values["model"]["merges"].pop()  # it loads
    tokenizer.write_text(json.dumps(values))
    assert spec_in_checkpoint(str(tmp_path / "run")) == f"opt:{tmp_path}/run/1/tokenizer"
    assert "tokenizer.json is not as it was written" in caplog.text
    with pytest.raises(UserError, match=rf"set Run.vocabulary to .*it was {spec}.*optiml train"):
        load_vocabulary(f"checkpoint:{tmp_path / 'run' / '2'}")
    tokenizer.write_text(text)
    load_vocabulary(f"checkpoint:{tmp_path / 'run' / '2'}")

    save_checkpoint(tmp_path / "converted", 0, spec, source="facebook/opt-125m")
    foreign = tmp_path / "converted" / "0" / "tokenizer" / "added_tokens.json"
    foreign.write_text('{"foo": 7}')
    message = (
        r"added_tokens.json does not belong to it.*optiml convert --gin.Convert.source=facebook"
    )
    with pytest.raises(UserError, match=message):
        load_vocabulary(f"checkpoint:{tmp_path / 'converted'}")


def test_what_a_checkpoint_keeps_is_the_same_vocabulary(tmp_path):
    opt_folder(tmp_path / "source", added=["foo bar"])
    train_sentencepiece([*AWKWARD, "yes no"] * 5, tmp_path / "small.model", 330)
    for step, spec in enumerate(
        (f"opt:{tmp_path / 'source'}", f"sentencepiece:{tmp_path / 'small.model'}")
    ):
        save_checkpoint(tmp_path / "run" / "checkpoints", step, spec)
        kept = load_vocabulary(f"checkpoint:{tmp_path / 'run'}")
        assert vocabulary_fingerprint(kept) == vocabulary_fingerprint(load_vocabulary(spec))
    assert spec_in_checkpoint(str(tmp_path / "run")).startswith("sentencepiece:")
    assert spec_in_checkpoint(str(tmp_path / "run/checkpoints/0")).startswith("opt:")
    with pytest.raises(UserError, match="no checkpoint with a vocabulary in"):
        load_vocabulary(f"checkpoint:{tmp_path / 'source'}")


def test_folders_without_a_tokenizer_or_an_end_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"no vocabulary in .* it must hold tokenizer\.json"):
        vocabulary_files(f"huggingface:{tmp_path}")
    opt_folder(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(UserError, match="names no end-of-text token"):
        load_vocabulary(f"huggingface:{tmp_path}")
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="the tokenizer is damaged"):
        load_vocabulary(f"huggingface:{tmp_path}")


def test_ids_above_sixteen_bits_reach_the_rows_of_training(tmp_path):
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    words = ["<|end|>", *(f"unused{i}" for i in range(70_000)), *letters]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[])
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")
    theirs.save_pretrained(tmp_path / "model")
    source = toy_source(write_task_file(tmp_path, "large"))
    cache = tmp_path / "cache"
    config = PromptConfig(delimiter="")
    prepare([source], f"huggingface:{tmp_path / 'model'}", config, cache, num_workers=1)
    config = PlanConfig(num_rows=2, sequence_length=2048, bos_id=70_000, pad_id=0)
    build_plan(cache, [source.name], {source.name: 1}, "train", config, tmp_path / "plan")
    plan = Plan.load(tmp_path / "plan")
    batch = read_rows(plan, [0])
    (_, index), *_ = plan.row(0)
    example = list(source.read("train", Drops()))[index]
    text = f"Instructions: {example.instruction}\nInput: {example.input} {example.target}"
    expected = [*theirs(text)["input_ids"], theirs.eos_token_id]
    assert min(expected[:-1]) > 2**16
    first = batch["segment_ids"][0] == 1
    assert batch["tokens"][0][first].tolist() == [70_000, *expected[:-1]]
    assert batch["targets"][0][first].tolist() == expected
