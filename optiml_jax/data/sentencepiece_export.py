"""The project's SentencePiece models as Hugging Face's tokenizer.json, with equal ids.

The merges that SentencePiece does not store follow from its pieces: it joins the pair whose piece
has the best score, and so does a BPE whose merges are listed in the order of their pieces.
"""

import json
import pathlib
from typing import Any

import sentencepiece

from optiml_jax.errors import UserError

_SPACE = "\u2581"


def export_sentencepiece(model_file: str, folder: pathlib.Path, leading_id: int | None) -> None:
    """Writes tokenizer.json and tokenizer_config.json, which `transformers` loads.

    A literal `</s>` in a text is the special token to `transformers`, and spelled out to us; all
    other texts get the same ids from both.

    Args:
      model_file: a model of `train_sentencepiece`.
      folder: exists.
      leading_id: special id in front of every text; None: nothing is.

    Raises:
      UserError: the model is of another kind than the project's.
    """
    model = sentencepiece.SentencePieceProcessor(model_file=model_file)
    pieces = [model.id_to_piece(i) for i in range(len(model))]
    control = [i for i in range(len(model)) if model.is_control(i) or model.is_unknown(i)]
    if not any(model.is_byte(i) for i in range(len(model))):
        raise UserError(f"{model_file} has no byte pieces; only models with byte fallback fit")
    normal = [i for i in range(len(model)) if i not in control and not model.is_byte(i)]
    words = [i for i in normal if _is_defined(model, i)]
    values = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(i, pieces[i], special=i in control) for i in (*control, *words)],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE},
        "pre_tokenizer": None,
        "post_processor": None if leading_id is None else _leading(leading_id, pieces[leading_id]),
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": pieces[model.unk_id()],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {piece: i for i, piece in enumerate(pieces)},
            "merges": _merges(model, pieces, [i for i in normal if i not in words]),
        },
    }
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": pieces[model.bos_id() if leading_id is None else leading_id],
        "eos_token": pieces[model.eos_id()],
        "pad_token": pieces[model.pad_id()],
        "unk_token": pieces[model.unk_id()],
        "clean_up_tokenization_spaces": False,
    }
    for name, content in (("tokenizer.json", values), ("tokenizer_config.json", config)):
        text = json.dumps(content, ensure_ascii=False, indent=1)
        (folder / name).write_text(text + "\n", "utf-8")


def _is_defined(model: sentencepiece.SentencePieceProcessor, i: int) -> bool:
    """Whether a piece is one of `user_defined_symbols`, which are found before anything is joined.

    SentencePiece gives them the score 0, which a trained piece has only as the first.
    """
    return model.id_to_piece(i) == "\n"


def _merges(
    model: sentencepiece.SentencePieceProcessor, pieces: list[str], ids: list[int]
) -> list[list[str]]:
    known = {pieces[i] for i in ids}
    merges = []
    for i in sorted(ids, key=lambda i: (-model.get_score(i), i)):
        piece = pieces[i]
        cuts = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        merges += [list(cut) for cut in cuts if cut[0] in known and cut[1] in known]
    return merges


def _added(number: int, content: str, special: bool) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": content, **flags, "special": special}


def _leading(number: int, token: str) -> dict[str, Any]:
    """In front of every text, as in training."""
    special = {"SpecialToken": {"id": token, "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [special, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [
            special,
            {"Sequence": {"id": "A", "type_id": 0}},
            {"Sequence": {"id": "B", "type_id": 1}},
        ],
        "special_tokens": {token: {"id": token, "ids": [number], "tokens": [token]}},
    }
