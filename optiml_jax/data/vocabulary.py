"""Text to token ids and back: OPT's byte-level BPE, and SentencePiece for small models.

In both the special ids mean the same: `<s>` 0, `<pad>` 1, `</s>` 2, `<unk>` 3. Neither adds special
tokens nor reads them in data text. What a prompt looks like and where the leading and final `</s>`
go is decided elsewhere (`prompts.py`, `plan.py`); SeqIO's form of a vocabulary is made in
`vocabulary_tf.py`, so that TensorFlow is loaded only where SeqIO is used.
"""

import functools
import io
import logging
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence

import sentencepiece
import tokenizers
from sentencepiece import sentencepiece_model_pb2

from optiml_jax.data.text_vocabulary import TextVocabulary
from optiml_jax.data.tokenizer_vocabulary import TokenizerVocabulary, tokenizer_values
from optiml_jax.data.vocabulary_files import (
    BPE_FILES,
    TOKENIZER,
    spec_in_checkpoint,
    vocabulary_files,
    vocabulary_folder,
)
from optiml_jax.errors import UserError
from optiml_jax.files import atomic_path, disk_errors, fingerprint, read_json

logger = logging.getLogger(__name__)

BOS_ID, PAD_ID, EOS_ID, UNK_ID = 0, 1, 2, 3
_SPECIALS = {"<s>": BOS_ID, "<pad>": PAD_ID, "</s>": EOS_ID, "<unk>": UNK_ID}
_SPECIAL_IDS = frozenset(_SPECIALS.values())
_NUM_MERGES = 50_000  # of OPT (and GPT-2)
_KNOWN_FINGERPRINT = "8407632808a68650"  # of OPT's entries and merges
# Entries that no text is cut into: special tokens, and those that fairseq adds to round the size.
_NO_PIECE = re.compile(r"<[^<>]+>|madeupword\d+")


class OPTVocabulary(TextVocabulary):
    """OPT's byte-level BPE with exactly OPT's ids (facebookresearch/metaseq, projects/OPT/assets).

    Its tables lie in two files, a vocabulary and its merges, or both in one tokenizer.json.

    A literal `</s>` or `<pad>` in a text is spelled out, never read as the special token; decoding
    leaves special tokens out. Picklable; the tables are loaded at first use in each process.

    Raises:
      UserError: a file is missing or damaged, or is not a vocabulary of OPT's kind.
    """

    def __init__(self, vocab_file: str, merges_file: str | None = None):
        self._files = (str(vocab_file), None if merges_file is None else str(merges_file))
        self._load_tables()

    def _load_tables(self) -> None:
        vocab_file, merges_file = self._files
        vocab = read_json(vocab_file, "the vocabulary file")
        if merges_file is None:
            vocab, merges = _tables_of_tokenizer(vocab, vocab_file)
        else:
            merges = _read_merges(merges_file)
        _check_opt_vocab(vocab, vocab_file)
        try:
            model = tokenizers.models.BPE(vocab=vocab, merges=merges)
        except Exception as e:  # tokenizers raises bare Exceptions
            raise UserError(
                f"{merges_file or 'its merges'} does not belong to {vocab_file}: {e}"
            ) from e
        _check_reachable(vocab, merges, merges_file or vocab_file)
        self._tokenizer = tokenizers.Tokenizer(model)
        self._tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        self._tokenizer.decoder = tokenizers.decoders.ByteLevel()
        self._fingerprint = fingerprint({"vocab": vocab, "merges": merges})
        if len(merges) >= _NUM_MERGES and self._fingerprint != _KNOWN_FINGERPRINT:
            logger.warning(
                "%s and %s are not the vocabulary that OPT was published with (fingerprint %s, not "
                "%s): weights of OPT expect that one",
                *self._files,
                self._fingerprint,
                _KNOWN_FINGERPRINT,
            )

    def __getstate__(self) -> dict:
        return {"_files": self._files}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._load_tables()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OPTVocabulary) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        return f"OPTVocabulary({self._files[0]!r}, {self._files[1]!r})"

    @property
    def fingerprint(self) -> str:
        """Hash of the entries and merges, whatever the files are called."""
        return self._fingerprint

    @property
    def bos_id(self) -> int:
        return BOS_ID

    @property
    def pad_id(self) -> int:
        return PAD_ID

    @property
    def eos_id(self) -> int:
        return EOS_ID

    @property
    def unk_id(self) -> int:
        return UNK_ID

    @property
    def special_tokens(self) -> Mapping[str, int]:
        """Name -> id of the tokens that stand for no text."""
        return _SPECIALS

    @property
    def vocab_size(self) -> int:
        return self._tokenizer.get_vocab_size()

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def _encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [
            e.ids for e in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        ]

    def _decode(self, ids: Iterable[int]) -> str:
        kept = [int(i) for i in ids if int(i) not in _SPECIAL_IDS]
        return self._tokenizer.decode(kept, skip_special_tokens=False)


class SentencePieceVocabulary(TextVocabulary):
    """A SentencePiece model whose special ids are OPT's; see `train_sentencepiece`. Picklable.

    Attributes:
      model_file: its path.
      sp_model: the bytes of the model.
    """

    def __init__(self, model_file: str):
        self.model_file = str(model_file)
        self._load()

    def _load(self) -> None:
        self.sp_model = pathlib.Path(self.model_file).read_bytes()
        self._processor = sentencepiece.SentencePieceProcessor()
        self._processor.LoadFromSerializedProto(self.sp_model)

    def __getstate__(self) -> dict:
        return {"model_file": self.model_file}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._load()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SentencePieceVocabulary) and self.sp_model == other.sp_model

    def __hash__(self) -> int:
        return hash(self.sp_model)

    def __repr__(self) -> str:
        return f"SentencePieceVocabulary({self.model_file!r})"

    @property
    def fingerprint(self) -> str:
        """Hash of the model, wherever it lies."""
        return fingerprint({"sentencepiece": self.sp_model.hex()})

    @property
    def special_tokens(self) -> Mapping[str, int]:
        """Name -> id of the tokens that stand for no text."""
        return {self._processor.IdToPiece(i): i for i in _SPECIAL_IDS}

    @property
    def bos_id(self) -> int:
        return self._processor.bos_id()

    @property
    def pad_id(self) -> int:
        return self._processor.pad_id()

    @property
    def eos_id(self) -> int:
        return self._processor.eos_id()

    @property
    def unk_id(self) -> int:
        return self._processor.unk_id()

    @property
    def vocab_size(self) -> int:
        return self._processor.GetPieceSize()

    def _encode(self, text: str) -> list[int]:
        return self._processor.EncodeAsIds(text)

    def _encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return self._processor.Encode(list(texts), out_type=int, num_threads=-1)

    def _decode(self, ids: Iterable[int]) -> str:
        return self._processor.DecodeIds([int(i) for i in ids])


def load_vocabulary(spec: str) -> TextVocabulary:
    """The vocabulary of a specification.

    Args:
      spec: `opt:<folder>` (gpt2-vocab.json and gpt2-merges.txt, vocab.json and merges.txt, or
        tokenizer.json), `opt:facebook/opt-125m` (any OPT on the Hub, with a network),
        `huggingface:<folder or Hub name>` (any tokenizer.json), `sentencepiece:<model file>`, or
        `checkpoint:<run or step folder>`, the one that lies in a checkpoint.

    Raises:
      UserError: unknown kind, missing or damaged file, or special ids that are not OPT's.
    """
    kind, _, place = spec.partition(":")
    if kind == "checkpoint" and place:
        return load_vocabulary(spec_in_checkpoint(place))
    if kind == "opt" and place:
        return _load_opt(vocabulary_folder(place), place)
    if kind == "huggingface" and place:
        vocabulary_files(spec)  # complains of a folder without a tokenizer
        return TokenizerVocabulary(str(vocabulary_folder(place)))
    if kind == "sentencepiece" and place:
        return _load_sentencepiece(place)
    raise UserError(
        f"unknown vocabulary {spec!r}; give opt:<folder with vocabulary and merges>, "
        "opt:facebook/opt-<size>, huggingface:<folder with tokenizer.json>, "
        "sentencepiece:<model file> or checkpoint:<folder>"
    )


def vocabulary_fingerprint(vocabulary: TextVocabulary) -> str:
    """A hash of what the vocabulary does; equal for copies under other names."""
    return vocabulary.fingerprint


def padded_size(vocabulary: TextVocabulary) -> int:
    """Rows of the embedding: the vocabulary size rounded up to a multiple of 8 (OPT: 50,272)."""
    return -(-vocabulary.vocab_size // 8) * 8


def encode_batch(vocabulary: TextVocabulary, texts: Sequence[str]) -> list[list[int]]:
    """Ids of every text on all cores; special tokens are read in the frame of a chat alone."""
    return vocabulary.encode_batch(texts)


def decode(vocabulary: TextVocabulary, ids: Iterable[int]) -> str:
    """Text of ids up to the end-of-text token.

    A leading beginning- or end-of-text token, padding and ids of the embedding's padded rows are
    left out.
    """
    ids = [int(i) for i in ids]
    end_id, special = vocabulary.eos_id, special_ids(vocabulary)
    start = 1 if ids and ids[0] in (vocabulary.bos_id, end_id) else 0
    end = ids.index(end_id, start) if end_id in ids[start:] else len(ids)
    size = vocabulary.vocab_size
    return vocabulary.decode([i for i in ids[start:end] if i not in special and i < size])


def special_ids(vocabulary: TextVocabulary) -> frozenset[int]:
    """Ids that stand for no text."""
    return vocabulary.special_ids


def train_sentencepiece(
    texts: Iterable[str], model_path: str | pathlib.Path, vocab_size: int
) -> None:
    """Trains a SentencePiece BPE and writes it to `model_path`; the same texts, the same bytes.

    Text is kept as it is: no normalisation, no dummy prefix, runs of spaces and newlines survive,
    digits stand alone, and characters never seen fall back to bytes. Special ids are OPT's.

    Raises:
      UserError: `vocab_size` does not suit the texts, or the disk is full.
    """
    # SentencePiece takes a newline for the end of a sentence, so it is a symbol of its own.
    lines = (line for text in texts for line in text.split("\n") if line)
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines,
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            character_coverage=1.0,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            byte_fallback=True,
            split_digits=True,
            max_sentence_length=1 << 20,
            user_defined_symbols=["\n"],
            num_threads=1,
            minloglevel=2,
            bos_id=BOS_ID,
            pad_id=PAD_ID,
            eos_id=EOS_ID,
            unk_id=UNK_ID,
        )
    except (RuntimeError, OSError) as e:
        reason = str(e).strip().splitlines()[-1] if str(e).strip() else "training failed"
        raise UserError(
            f"cannot train a SentencePiece model of {vocab_size} pieces: {reason}"
        ) from e
    with disk_errors(model_path, "a SentencePiece model"), atomic_path(model_path) as temporary:
        temporary.write_bytes(model.getvalue())


def _read_merges(path: str) -> list[tuple[str, str]]:
    try:
        lines = pathlib.Path(path).read_text("utf-8").split("\n")
    except FileNotFoundError as e:
        raise UserError(f"the merges file not found: {path}") from e
    except UnicodeDecodeError as e:
        raise UserError(f"the merges file is damaged: {path}: {e}") from e
    merges = []
    for number, line in enumerate(lines, 1):
        if not line or (number == 1 and line.startswith("#version")):
            continue
        pair = line.split(" ")
        if len(pair) != 2:
            raise UserError(f"{path}, line {number}: not a merge of two symbols: {line!r}")
        merges.append((pair[0], pair[1]))
    return merges


def _check_opt_vocab(vocab: object, path: str) -> None:
    """Refuses a vocabulary that would give other ids than OPT's, or drop bytes silently."""
    if not isinstance(vocab, dict) or not all(isinstance(i, int) for i in vocab.values()):
        raise UserError(f"{path} is not a vocabulary: it must map tokens to integer ids")
    for token, i in _SPECIALS.items():
        if vocab.get(token) != i:
            raise UserError(
                f"{path} is not OPT's vocabulary: {token} has id {vocab.get(token)}, not {i}; "
                "take gpt2-vocab.json of metaseq's projects/OPT/assets or of facebook/opt-125m"
            )
    if sorted(vocab.values()) != list(range(len(vocab))):
        raise UserError(f"{path} is not OPT's vocabulary: its ids are not 0 ... {len(vocab) - 1}")
    missing = sorted(set(tokenizers.pre_tokenizers.ByteLevel.alphabet()) - vocab.keys())
    if missing:
        raise UserError(f"{path} is not a byte-level vocabulary: no entry for {missing[0]!r}")


def _check_reachable(
    vocab: Mapping[str, int], merges: Sequence[tuple[str, str]], merges_file: str
) -> None:
    """Refuses merges that lack some: the tokenizer would cut texts into other, shorter pieces."""
    made = {left + right for left, right in merges}
    made.update(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    unreachable = [t for t in vocab if t not in made and not _NO_PIECE.fullmatch(t)]
    if unreachable:
        raise UserError(
            f"{merges_file} is incomplete: none of its {len(merges):,} merges makes "
            f"{unreachable[0]!r} and {len(unreachable) - 1:,} more entries of the vocabulary; "
            f"download it again (OPT's has {_NUM_MERGES:,} merges)"
        )


def _tables_of_tokenizer(values: object, path: str) -> tuple[dict, list[tuple[str, str]]]:
    """Vocabulary and merges out of a tokenizer.json."""
    model = values.get("model", {}) if isinstance(values, dict) else {}
    if model.get("type", "BPE") != "BPE" or "merges" not in model:
        raise UserError(f"{path} is not OPT's tokenizer: it is not a byte-level BPE")
    merges = [m.split(" ") if isinstance(m, str) else m for m in model["merges"]]
    return model["vocab"], [(left, right) for left, right in merges]


def _load_opt(folder: pathlib.Path, place: str) -> TextVocabulary:
    """OPT's own vocabulary, or OPT's with words added to it."""
    whole = (folder / TOKENIZER).is_file()
    pairs = [names for names in BPE_FILES if (folder / names[0]).is_file()]
    vocabulary_files(f"opt:{place}")
    if (whole or (folder / "added_tokens.json").is_file()) and _adds_tokens(folder):
        return TokenizerVocabulary(str(folder))
    if pairs:
        return OPTVocabulary(*(str(folder / name) for name in pairs[0]))
    return OPTVocabulary(str(folder / TOKENIZER))


def _adds_tokens(folder: pathlib.Path) -> bool:
    values = tokenizer_values(folder)
    table = values.get("model", {}).get("vocab", {})
    return any(token["content"] not in table for token in values.get("added_tokens") or [])


def _is_whole(file: pathlib.Path) -> bool:
    """Whether a SentencePiece model has its last part; a cut one opens with fewer pieces."""
    content = sentencepiece_model_pb2.ModelProto.FromString(file.read_bytes())
    return content.HasField("normalizer_spec")


@functools.cache
def _load_sentencepiece(path: str) -> SentencePieceVocabulary:
    file = pathlib.Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"SentencePiece model not found: {path}; Run.vocabulary names it")
    try:
        vocabulary = SentencePieceVocabulary(str(file))
        is_whole = _is_whole(file)
    except Exception as e:  # a protobuf error or sentencepiece's RuntimeError
        raise UserError(f"{path} is not a SentencePiece model") from e
    if not is_whole:
        raise UserError(f"{path} is cut off: it ends before its normaliser; copy it again")
    ids = (vocabulary.bos_id, vocabulary.pad_id, vocabulary.eos_id, vocabulary.unk_id)
    if ids != (BOS_ID, PAD_ID, EOS_ID, UNK_ID):
        raise UserError(
            f"{path} has bos, pad, eos, unk ids {ids}, not (0, 1, 2, 3); "
            "train one with optiml_jax.data.vocabulary.train_sentencepiece"
        )
    return vocabulary
