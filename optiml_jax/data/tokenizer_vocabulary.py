"""Any tokenizer.json of Hugging Face's as a vocabulary (byte-level BPE, SentencePiece-style).

The special tokens are those that the files name. As in the project's other vocabularies, none is
added, none is read in data text - `</s>` in a text is spelled out - and decoding leaves them out.
Added tokens that are not special are words like others, and are found in a text as `transformers`
finds them.
"""

import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import tokenizers

from optiml_jax.data.text_vocabulary import TextVocabulary
from optiml_jax.data.vocabulary_files import BPE_FILES, TOKENIZER, special_tokens
from optiml_jax.errors import UserError
from optiml_jax.files import fingerprint, read_json


def tokenizer_values(folder: pathlib.Path) -> dict[str, Any]:
    """The content of a folder's tokenizer.json, made from vocabulary and merges where it has none.

    Raises:
      UserError: neither, or a damaged file.
    """
    if (folder / TOKENIZER).is_file():
        return read_json(folder / TOKENIZER, "the tokenizer")
    vocab = read_json(folder / BPE_FILES[1][0], "the vocabulary file")
    lines = (folder / BPE_FILES[1][1]).read_text("utf-8").split("\n")
    merges = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    words = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    words["use_regex"] = True
    values = {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": words,
        "decoder": words,
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    }
    if (folder / "added_tokens.json").is_file():
        special = set(special_tokens(folder).values())
        added = read_json(folder / "added_tokens.json", "the added tokens")
        for content, number in sorted(added.items(), key=lambda item: item[1]):
            values["added_tokens"].append(_added_token(content, number, content in special))
    return values


def _added_token(content: str, number: int, special: bool) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": content, **flags, "special": special}


class TokenizerVocabulary(TextVocabulary):
    """The vocabulary of a folder in Hugging Face's form. Picklable.

    Raises:
      UserError: no tokenizer there, a damaged one, or one without an end-of-text token.
    """

    def __init__(self, folder: str):
        self._folder = str(folder)
        self._load()

    def _load(self) -> None:
        folder = pathlib.Path(self._folder)
        values = tokenizer_values(folder)
        table = values["model"]["vocab"]
        if isinstance(table, list):  # Unigram: (piece, score) by id
            table = {piece: i for i, (piece, _) in enumerate(table)}
        added = values.get("added_tokens") or []
        names = special_tokens(folder)
        special = {token["content"] for token in added if token["special"]} | set(names.values())
        ids = {**table, **{token["content"]: token["id"] for token in added}}
        self._special_tokens = {text: ids[text] for text in special if text in ids}
        self._special_ids = frozenset(self._special_tokens.values())
        self._size = 1 + max(ids.values())
        self._named = {key: ids.get(text) for key, text in names.items()}
        if self._named.get("eos_token") is None:
            raise UserError(
                f"the tokenizer in {folder} names no end-of-text token; set eos_token in "
                "tokenizer_config.json"
            )
        kept = [token for token in added if token["content"] not in special]
        plain = {"truncation": None, "padding": None, "post_processor": None, "added_tokens": kept}
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps({**values, **plain}))
        except Exception as e:  # tokenizers raises bare Exceptions
            raise UserError(f"the tokenizer in {folder} is damaged or unknown: {e}") from e
        self._fingerprint = fingerprint({**values, **plain, "special": sorted(self._special_ids)})

    def __getstate__(self) -> dict:
        return {"_folder": self._folder}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._load()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TokenizerVocabulary) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        return f"TokenizerVocabulary({self._folder!r})"

    @property
    def fingerprint(self) -> str:
        """Hash of all that decides the ids, wherever the files lie."""
        return self._fingerprint

    @property
    def special_tokens(self) -> Mapping[str, int]:
        """Name -> id of the tokens that stand for no text."""
        return self._special_tokens

    @property
    def bos_id(self) -> int | None:
        return self._named.get("bos_token")

    @property
    def eos_id(self) -> int:
        return self._named["eos_token"]

    @property
    def pad_id(self) -> int:
        pad = self._named.get("pad_token")
        return self.eos_id if pad is None else pad

    @property
    def unk_id(self) -> int | None:
        return self._named.get("unk_token")

    @property
    def vocab_size(self) -> int:
        return self._size

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def _encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        encoded = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [e.ids for e in encoded]

    def _decode(self, ids: Iterable[int]) -> str:
        kept = [int(i) for i in ids if int(i) not in self._special_ids]
        return self._tokenizer.decode(kept, skip_special_tokens=False)
