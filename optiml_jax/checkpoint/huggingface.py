"""Reads and writes models as Hugging Face folders of config.json and weight files.

Tensors are read and written piece by piece (weights.py), without torch. The project's own
checkpoints are in manager.py.
"""

import contextlib
import dataclasses
import json
import logging
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import tokenizers

from optiml_jax.checkpoint.safetensors_files import INDEX, TORCH_INDEX, TORCH_WEIGHTS, open_folder
from optiml_jax.checkpoint.weights import Weights, checked, write_weights
from optiml_jax.data.vocabulary_files import (
    BPE_FILES,
    HUB_FILES,
    TOKENIZER,
    files_of_folder,
    special_tokens,
)
from optiml_jax.errors import UserError
from optiml_jax.files import disk_errors, read_json
from optiml_jax.model.config import DTYPES, DecoderConfig
from optiml_jax.model.decoder import (
    huggingface_form,
    huggingface_form_of,
    huggingface_model_types,
)
from optiml_jax.model.huggingface_form import HuggingFaceForm

_GENERATION = "generation_config.json"

# ---- reading ---------------------------------------------------------------------------------


def fetch(source: str | os.PathLike) -> pathlib.Path:
    """The local folder of a model: `source` itself, or files downloaded from the Hub.

    Args:
      source: a folder, or a name on the Hub (`facebook/opt-125m`), optionally with a revision
        (`facebook/opt-125m@refs/pr/1`). If the main branch has no safetensors, the conversion by
        the Hub's own bot is used, else pytorch_model.bin.

    Raises:
      UserError: neither a folder nor a name that the Hub knows, or no network.
    """
    folder = pathlib.Path(source).expanduser()
    if folder.is_dir():
        return folder
    match = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@(.+))?", str(source))
    if match is None:
        raise UserError(f"{source} is neither a folder nor a model's name on the Hugging Face Hub")
    return _download(*match.groups())


def _download(name: str, revision: str | None) -> pathlib.Path:
    import huggingface_hub

    small = ["config.json", _GENERATION, *HUB_FILES]

    def snapshot(*weights: str, revision: str | None = revision) -> pathlib.Path:
        return pathlib.Path(
            huggingface_hub.snapshot_download(
                name, revision=revision, allow_patterns=[*small, *weights]
            )
        )

    try:
        folder = snapshot("*.safetensors", INDEX)
        if any(folder.glob("*.safetensors")):
            return folder
        pulls = [] if revision else huggingface_hub.get_repo_discussions(name)
        for pull in pulls:
            if pull.is_pull_request and pull.author == "SFconvertbot" and pull.status == "open":
                logging.info("%s has no safetensors; using %s", name, pull.git_reference)
                return snapshot("*.safetensors", INDEX, revision=pull.git_reference)
        return snapshot(TORCH_WEIGHTS, "pytorch_model-*.bin", TORCH_INDEX)
    except Exception as e:  # the Hub's client raises many kinds of errors, some of them httpx's
        reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        raise UserError(
            f"cannot get {name} from the Hugging Face Hub ({reason}); "
            "check the name and the network, or give a local folder"
        ) from e


def read_config(folder: str | os.PathLike) -> DecoderConfig:
    """The configuration in a folder's config.json, with the special ids that its other files name.

    What stands in front of a text is the tokenizer's to say, and generation_config.json may have
    further ids that end one: transformers asks these files too.

    Raises:
      UserError: an unknown architecture, a variant that is not implemented here, a damaged file.
    """
    folder = pathlib.Path(folder)
    path = folder / "config.json"
    values = read_json(path, "the configuration of a Hugging Face model")
    form = huggingface_form_of(values.get("model_type"))
    if form is None:
        raise UserError(
            f"{path}: model_type is {values.get('model_type')!r}; only "
            f"{', '.join(map(repr, huggingface_model_types()))} are supported"
        )
    config = form.config(_with_all_ends(values, folder), str(path))
    if form.vocabulary != "huggingface":
        return config
    return dataclasses.replace(config, bos_id=_leading_id(folder, form, values, config.bos_id))


def _with_all_ends(values: Mapping[str, Any], folder: pathlib.Path) -> Mapping[str, Any]:
    """config.json's values, with the end-of-text ids that only generation_config.json has."""
    if not (folder / _GENERATION).is_file():
        return values
    generation = read_json(folder / _GENERATION, "the settings of generation", dict)
    own = _as_list(values.get("eos_token_id"))
    more = [i for i in _as_list(generation.get("eos_token_id")) if i not in own]
    return {**values, "eos_token_id": [*own, *more]} if more else values


def _as_list(ids: Any) -> list:
    return [*ids] if isinstance(ids, list) else [] if ids is None else [ids]


def _leading_id(
    folder: pathlib.Path, form: HuggingFaceForm, values: Mapping[str, Any], bos_id: int | None
) -> int | None:
    """The id in front of every text, as the folder's tokenizer puts it there; None: nothing.

    config.json's own, `bos_id`, is often one that nothing uses; it counts where no tokenizer is.
    """
    files, settings = files_of_folder(folder), {}
    if "tokenizer_config.json" in files:
        settings = read_json(files["tokenizer_config.json"], "the tokenizer's configuration", dict)
    if TOKENIZER in files:
        found = _first_special_id(files[TOKENIZER])
        if found is not None:
            return found
    elif BPE_FILES[1][0] not in files and "add_bos_token" not in settings:
        return None if values["model_type"] in form.without_bos else bos_id
    text = special_tokens(folder).get("bos_token")
    if not settings.get("add_bos_token") or text is None:
        return None
    found = _tokenizer(files[TOKENIZER]).token_to_id(text) if TOKENIZER in files else None
    return bos_id if found is None else found


def _first_special_id(file: pathlib.Path) -> int | None:
    """What the post-processor of a tokenizer.json puts in front of a text."""
    encoded = _tokenizer(file).encode("a")
    return encoded.ids[0] if encoded.ids and encoded.special_tokens_mask[0] else None


def _tokenizer(file: pathlib.Path) -> tokenizers.Tokenizer:
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(file))
    except Exception as e:  # tokenizers raises bare Exceptions
        raise UserError(f"{file} is damaged or unknown ({e}); copy it again") from e
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


@contextlib.contextmanager
def open_huggingface(source: str | os.PathLike) -> Iterator[Weights]:
    """Yields the weights of a folder or a name on the Hub; the data is read lazily.

    Raises:
      UserError: a tensor is missing, unknown or of a different shape from config.json's; no weights
        in the folder; a damaged file.
    """
    folder = fetch(source)
    config = read_config(folder)
    with open_folder(folder) as tensors:
        yield checked(Weights(str(folder), config, tensors))


# ---- writing ---------------------------------------------------------------------------------


def write_huggingface(
    folder: str | os.PathLike,
    config: DecoderConfig,
    params: Mapping[str, Any],
    *,
    dtype: str | None = None,
    max_shard_bytes: int = 5 * 2**30,
    tokenizer_from: str | os.PathLike | None = None,
    progress: Callable[[int], Any] = lambda _: None,
    more: Callable[[pathlib.Path], Any] = lambda _: None,
) -> None:
    """Writes a folder that `transformers` loads, atomically.

    Args:
      folder: must not exist, or be empty.
      config: the model.
      params: pure nested dict of its parameters: arrays, or TensorStores, which are read lazily
        (`weights.stored_params`).
      dtype: type of the tensors: float32, bfloat16 or float16; None: that of each parameter.
      max_shard_bytes: a larger model is split into several files.
      tokenizer_from: a folder whose tokenizer files are copied; None copies none.
      progress: called with the size in bytes of every piece written.
      more: called with the temporary folder, to add further files.

    Raises:
      UserError: the folder is not empty; Hugging Face cannot express the model; a weight does not
        fit float16; a full disk.
    """
    folder = pathlib.Path(folder)
    _check_writable(folder, dtype)
    huggingface_form(config).write_config(config, "float32")  # before anything is written
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        with disk_errors(folder, "a Hugging Face model"):
            temporary.mkdir(parents=True)
            written = write_weights(temporary, config, params, dtype, max_shard_bytes, progress)
            _write_config(temporary, config, written)
            if tokenizer_from is not None:
                defaults = huggingface_form(config).tokenizer_config
                copy_tokenizer(files_of_folder(pathlib.Path(tokenizer_from)), temporary, defaults)
            more(temporary)
            os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def copy_tokenizer(
    files: Mapping[str, pathlib.Path], folder: pathlib.Path, defaults: Mapping[str, Any]
) -> None:
    """Copies a tokenizer's files; if it has no configuration, the architecture's is added."""
    for name, file in files.items():
        shutil.copyfile(file, folder / name)
    if files and not (folder / "tokenizer_config.json").exists():
        _dump(folder / "tokenizer_config.json", dict(defaults))


def _check_writable(folder: pathlib.Path, dtype: str | None) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists already; choose a new folder or remove it")
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"cannot write tensors as {dtype!r}; choose one of {', '.join(DTYPES)}")


def _write_config(folder: pathlib.Path, config: DecoderConfig, dtype: str) -> None:
    values = huggingface_form(config).write_config(config, dtype)
    ids = {"bos_token_id": config.bos_id, "eos_token_id": values["eos_token_id"]}
    ids["pad_token_id"] = config.pad_id
    _dump(folder / "config.json", values)
    _dump(folder / _GENERATION, {"_from_model_config": True, **ids})


def _dump(path: pathlib.Path, values: Any) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", "utf-8")
