"""The files of a vocabulary, so that a checkpoint can keep them; imports no TensorFlow.

A specification is `<kind>:<place>`; what the kinds mean is in vocabulary.py.
"""

import json
import logging
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from optiml_jax.errors import UserError
from optiml_jax.files import damage, read_json
from optiml_jax.paths import local_copies, path_of

logger = logging.getLogger(__name__)

# metaseq's names, then Hugging Face's.
BPE_FILES = (("gpt2-vocab.json", "gpt2-merges.txt"), ("vocab.json", "merges.txt"))
TOKENIZER = "tokenizer.json"
# What else Hugging Face's tokenizers keep beside the tables.
MORE_FILES = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
SENTENCEPIECE = "vocabulary.model"
HUB_FILES = (TOKENIZER, *BPE_FILES[1], *MORE_FILES)  # what is wanted of a model on the Hub
IN_CHECKPOINT = "tokenizer"  # the folder in a step folder
_KIND = "vocabulary.json"
_DESCRIPTION = "optiml.json"  # of a step folder, see checkpoint/manager.py
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def vocabulary_files(spec: str) -> dict[str, pathlib.Path]:
    """Name in a checkpoint -> file, for everything that a specification needs.

    Raises:
      UserError: there is no such vocabulary.
    """
    kind, _, place = spec.partition(":")
    if kind == "sentencepiece":
        file = pathlib.Path(place).expanduser()
        if not file.is_file():
            raise UserError(f"SentencePiece model not found: {place}; Run.vocabulary names it")
        return {SENTENCEPIECE: file}
    if kind == "checkpoint":
        return vocabulary_files(spec_in_checkpoint(place))
    found = files_of_folder(vocabulary_folder(place))
    if TOKENIZER not in found and BPE_FILES[1][0] in found and BPE_FILES[1][1] not in found:
        raise UserError(f"the merges file not found next to {found[BPE_FILES[1][0]]}")
    if TOKENIZER not in found and BPE_FILES[1][0] not in found:
        raise UserError(
            f"no vocabulary in {place}: it must hold tokenizer.json, or gpt2-vocab.json and "
            "gpt2-merges.txt (or vocab.json and merges.txt)"
        )
    return found


def files_of_folder(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Hugging Face's name -> file, for the tokenizer's files that a folder has."""
    names = {name: name for name in (TOKENIZER, *MORE_FILES)}
    for theirs, ours in zip(*BPE_FILES, strict=True):
        names |= {theirs: ours, ours: ours}
    return {ours: folder / name for name, ours in names.items() if (folder / name).is_file()}


def is_on_hub(place: str) -> bool:
    """Whether a place is not a local folder but may be a model's name on the Hub."""
    folder = pathlib.Path(place).expanduser()
    return not (folder.is_dir() or folder.is_absolute()) and bool(_HUB_NAME.fullmatch(place))


def vocabulary_folder(place: str) -> pathlib.Path:
    """The folder of a place: itself, or the Hub's files for a model's name.

    Raises:
      UserError: neither, or the Hub cannot be reached.
    """
    folder = pathlib.Path(place).expanduser()
    if folder.is_dir():
        return folder
    if not is_on_hub(place):
        raise UserError(f"vocabulary folder not found: {place}")
    import huggingface_hub

    try:
        return pathlib.Path(huggingface_hub.snapshot_download(place, allow_patterns=[*HUB_FILES]))
    except Exception as e:  # no network, no such repository, no disk: one way out for all
        reason = str(e).strip().split("\n")[0]
        raise UserError(
            f"cannot download the vocabulary of {place} from the Hugging Face Hub ({reason}); "
            "give a local folder"
        ) from e


def content_for_checkpoint(spec: str) -> dict[str, bytes]:
    """Path in a step folder -> content, from which `spec_in_checkpoint` finds the vocabulary."""
    files = {name: file.read_bytes() for name, file in vocabulary_files(spec).items()}
    files[_KIND] = (json.dumps({"kind": kind_of(spec)}) + "\n").encode()
    return {f"{IN_CHECKPOINT}/{name}": content for name, content in files.items()}


def kind_of(spec: str) -> str:
    """`opt`, `huggingface` or `sentencepiece`."""
    kind, _, place = spec.partition(":")
    return kind_of(spec_in_checkpoint(place)) if kind == "checkpoint" else kind


def spec_of_step(folder: str | os.PathLike) -> str | None:
    """The specification of a step folder's own vocabulary; None: it has none.

    Raises:
      UserError: its files are not as they were written; says how to get them back.
    """
    step = path_of(folder).absolute()
    folder = step / IN_CHECKPOINT
    if not folder.is_dir():
        return None
    _check_whole(step)
    kind = read_json(folder / _KIND, "the vocabulary of a checkpoint")["kind"]
    folder = local_copies(folder)
    place = folder / SENTENCEPIECE if kind == "sentencepiece" else folder
    return f"{kind}:{place}"


def _check_whole(step: pathlib.Path) -> None:
    """UserError unless the vocabulary's files are those that the checkpoint's description lists."""
    manifest = read_json(step / _DESCRIPTION, "the description of a checkpoint", dict)
    files = manifest.get("files", {})
    listed = {k: v for k, v in files.items() if k.startswith(f"{IN_CHECKPOINT}/")}
    there = {f"{IN_CHECKPOINT}/{file.name}" for file in (step / IN_CHECKPOINT).iterdir()}
    problem = damage(step, listed)
    if foreign := sorted(there - {*listed}):
        problem = problem or f"{foreign[0]} does not belong to it"
    if problem is None:
        return
    about = manifest.get("metadata", {})
    again = "optiml train, which continues from the previous checkpoint"
    if source := about.get("source"):
        again = f"optiml convert --gin.Convert.source={source} into another folder"
    raise UserError(
        f"the vocabulary in the checkpoint {step} is damaged ({problem}); set Run.vocabulary to "
        f"where the vocabulary came from (it was {about.get('vocabulary', {}).get('spec')}), or "
        f"make the checkpoint again: {again}"
    )


def spec_in_checkpoint(place: str) -> str:
    """The specification of the vocabulary in a checkpoint.

    Args:
      place: a run folder, its `checkpoints` folder or one step folder; of several steps the newest.

    Raises:
      UserError: none there, or all are damaged.
    """
    path = path_of(place).expanduser().absolute()
    steps = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    numbered = [f for f in steps.glob("*") if f.name.isdigit()] if steps.is_dir() else []
    problems = []
    for folder in (path, *sorted(numbered, key=lambda f: -int(f.name))):
        try:
            spec = spec_of_step(folder)
        except UserError as e:
            problems.append(str(e))
            continue
        if spec is not None:
            for problem in problems:
                logger.warning("%s; taking that of %s", problem, folder)
            return spec
    raise UserError(problems[0] if problems else f"no checkpoint with a vocabulary in {place}")


def special_tokens(folder: pathlib.Path) -> dict[str, str]:
    """`bos_token`, `eos_token`, ... -> text, as far as a folder says."""
    found: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if not (folder / name).is_file():
            continue
        values: Mapping[str, Any] = read_json(folder / name, "the tokenizer's configuration")
        for key in ("bos_token", "eos_token", "pad_token", "unk_token"):
            value = values.get(key)
            text = value.get("content") if isinstance(value, dict) else value
            if isinstance(text, str):
                found[key] = text
    return found
