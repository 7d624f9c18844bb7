"""Models in Hugging Face's form, a folder of config.json and safetensors: read and write.

Tensors are streamed one by one, without torch; nothing is unpickled. Which tensor is which
parameter, the architecture says (`model/*/huggingface.py`); the project's own checkpoints are in
manager.py.
"""

import contextlib
import json
import logging
import math
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import ml_dtypes  # noqa: F401  (makes "bfloat16" a NumPy type)
import numpy as np
import safetensors
import safetensors.numpy

from optiml_jax.errors import UserError
from optiml_jax.files import disk_errors, read_json
from optiml_jax.model.config import DTYPES, DecoderConfig
from optiml_jax.model.decoder import (
    abstract_model,
    huggingface_form,
    huggingface_form_of,
    huggingface_model_types,
    huggingface_tensors,
)
from optiml_jax.model.huggingface_form import TensorLayout, length
from optiml_jax.sharding.rules import param_shardings

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
TOKENIZER_FILES = (
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
# metaseq's names of the same files; its folder has no tokenizer_config.json.
METASEQ_TOKENIZER_FILES = {"gpt2-vocab.json": "vocab.json", "gpt2-merges.txt": "merges.txt"}


# ---- reading ---------------------------------------------------------------------------------


def fetch(source: str | os.PathLike) -> pathlib.Path:
    """The local folder of a model: `source` itself, or the Hub's files for a name.

    Args:
      source: a folder, or a name on the Hub (`facebook/opt-125m`), with a revision if one is
        wanted (`facebook/opt-125m@refs/pr/1`). Where the Hub's main branch has no safetensors, the
        conversion that the Hub's own bot offers is taken.

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

    wanted = ["config.json", "generation_config.json", "*.safetensors", INDEX, *TOKENIZER_FILES]

    def snapshot(revision: str | None) -> pathlib.Path:
        return pathlib.Path(
            huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=wanted)
        )

    try:
        folder = snapshot(revision)
        if revision is None and not any(folder.glob("*.safetensors")):
            for pull in huggingface_hub.get_repo_discussions(name):
                if pull.is_pull_request and pull.author == "SFconvertbot" and pull.status == "open":
                    logging.info("%s has no safetensors; taking %s", name, pull.git_reference)
                    return snapshot(pull.git_reference)
    except Exception as e:  # the Hub's client raises many kinds, some of them httpx's own
        reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        raise UserError(
            f"cannot get {name} from the Hugging Face Hub ({reason}); "
            "check the name and the network, or give a local folder"
        ) from e
    return folder


def read_config(folder: str | os.PathLike) -> DecoderConfig:
    """The configuration in a folder's config.json.

    Raises:
      UserError: a model of no known architecture, or one of a form that ours does not have.
    """
    path = pathlib.Path(folder) / "config.json"
    values = read_json(path, "the configuration of a Hugging Face model")
    form = huggingface_form_of(values.get("model_type"))
    if form is None:
        raise UserError(
            f"{path}: model_type is {values.get('model_type')!r}; only "
            f"{', '.join(map(repr, huggingface_model_types()))} can be read"
        )
    return form.read_config(values, str(path))


def read_huggingface(
    source: str | os.PathLike,
    *,
    mesh: jax.sharding.Mesh | None = None,
    preset: str = "standard",
    dtype: str = "float32",
) -> tuple[DecoderConfig, dict[str, Any]]:
    """Reads a model, tensor by tensor, each device only its own part.

    Args:
      source: a folder or a name on the Hub; see `fetch`.
      mesh: where the parameters shall lie; None puts them on the default device.
      preset: the rule table for the mesh.
      dtype: type of the parameters, whatever that of the file is.

    Returns:
      (config, params), params a pure nested dict as from `init_params`.

    Raises:
      UserError: a tensor is missing, unknown or of another shape than config.json says; no
        safetensors in the folder; a damaged file.
    """
    folder = fetch(source)
    config = read_config(folder)
    shardings = None
    if mesh is not None:
        shardings = param_shardings(abstract_model(config)[1], mesh, preset)
    form = huggingface_form(config)
    with _open_tensors(folder, form.canonical_name) as tensors:
        leaves = huggingface_tensors(config)
        _settle_aliases(folder, form.aliases(config), tensors)
        _check_tensors(folder, leaves, tensors)
        params: dict[str, Any] = {}
        for leaf in leaves:
            node, sharding = params, shardings
            for key in leaf.path[:-1]:
                node = node.setdefault(key, {})
                sharding = None if sharding is None else sharding[key]
            if sharding is None:
                sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
            else:
                sharding = sharding[leaf.path[-1]]
            node[leaf.path[-1]] = _read_leaf(leaf, tensors, sharding, dtype)
    return config, params


def _read_leaf(
    leaf: TensorLayout, tensors: Mapping[str, Any], sharding: jax.sharding.Sharding, dtype: str
) -> jax.Array:
    stacked = leaf.num_layers is not None
    shape = (leaf.num_layers, *leaf.shape) if stacked else leaf.shape
    parts: dict[tuple, np.ndarray] = {}  # devices with the same part share one reading of it

    def part(index: tuple[slice, ...]) -> np.ndarray:
        index = tuple(slice(*s.indices(size)[:2]) for s, size in zip(index, shape, strict=True))
        key = tuple((s.start, s.stop) for s in index)
        if key not in parts:
            names = leaf.names()[index[0]] if stacked else leaf.names()
            inner = index[1:] if stacked else index
            out = np.empty((len(names), *map(length, inner)), dtype)
            for i, name in enumerate(names):
                out[i] = leaf.ours(tensors[name], inner)
            parts[key] = out if stacked else out[0]
        return parts[key]

    return jax.make_array_from_callback(shape, sharding, part)


@contextlib.contextmanager
def _open_tensors(
    folder: pathlib.Path, canonical_name: Callable[[str], str]
) -> Iterator[dict[str, Any]]:
    """Yields canonical name -> safetensors slice, for all files of the folder."""
    if (folder / INDEX).exists():
        index = read_json(folder / INDEX, "the index of a Hugging Face model")
        files = sorted(set(index.get("weight_map", {}).values()))
    elif (folder / WEIGHTS).exists():
        files = [WEIGHTS]
    else:
        raise UserError(_no_weights(folder))
    tensors: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        for file in files:
            try:
                opened = stack.enter_context(safetensors.safe_open(folder / file, "numpy"))
            except FileNotFoundError as e:
                raise UserError(f"{folder / file} is missing, though {INDEX} names it") from e
            except (safetensors.SafetensorError, OSError) as e:
                raise UserError(f"{folder / file} is damaged: {e}; copy it again") from e
            for name in opened.keys():  # noqa: SIM118  (not a dict)
                tensors[canonical_name(name)] = opened.get_slice(name)
        yield tensors


def _no_weights(folder: pathlib.Path) -> str:
    if any(folder.glob("pytorch_model*.bin")):
        return (
            f"{folder} holds its weights as pytorch_model.bin only, a pickle, which is not read; "
            'convert it where torch is installed: python -c "import transformers as t; '
            f"t.AutoModelForCausalLM.from_pretrained('{folder}').save_pretrained('{folder}')\""
        )
    return f"{folder} holds neither {WEIGHTS} nor {INDEX}"


def _settle_aliases(
    folder: pathlib.Path, aliases: Mapping[str, str], tensors: dict[str, Any]
) -> None:
    """Leaves one name of tied tensors; files keep one of the two, and not always the same."""
    for alias, name in aliases.items():
        if alias not in tensors:
            continue
        other = tensors.pop(alias)
        if name not in tensors:
            tensors[name] = other
        elif not np.array_equal(other[:], tensors[name][:]):
            raise UserError(
                f"{folder}: {alias} differs from {name}, but config.json says that they are tied"
            )


def _check_tensors(
    folder: pathlib.Path, leaves: list[TensorLayout], tensors: dict[str, Any]
) -> None:
    """Compares names and shapes with what config.json asks for."""
    expected = {name: leaf.their_shape for leaf in leaves for name in leaf.names()}
    for name, shape in expected.items():
        if name not in tensors:
            raise UserError(f"{folder}: tensor {name} is missing")
        if tuple(tensors[name].get_shape()) != shape:
            raise UserError(
                f"{folder}: tensor {name} has shape {list(tensors[name].get_shape())}; "
                f"config.json asks for {list(shape)}"
            )
    for name in tensors:
        if name not in expected:
            raise UserError(
                f"{folder}: tensor {name} belongs to no part of the model in config.json"
            )


# ---- writing ---------------------------------------------------------------------------------


def write_huggingface(
    folder: str | os.PathLike,
    config: DecoderConfig,
    params: Mapping[str, Any],
    *,
    dtype: str = "float32",
    max_shard_bytes: int = 5 * 2**30,
    tokenizer_from: str | os.PathLike | None = None,
) -> None:
    """Writes a folder that `transformers` loads; it appears whole or not at all.

    Args:
      folder: must not exist, or be empty.
      config: the model.
      params: pure nested dict of its parameters, JAX or NumPy arrays.
      dtype: type of the tensors: float32, bfloat16 or float16.
      max_shard_bytes: a model larger than that is cut into several files.
      tokenizer_from: a folder whose tokenizer files are copied; None copies none.

    Raises:
      UserError: the folder is not empty; the model has no form in Hugging Face's; a weight
        does not fit float16; a full disk.
    """
    folder = pathlib.Path(folder)
    _check_writable(folder, dtype)
    values = huggingface_form(config).write_config(config, dtype)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        with disk_errors(folder, "a Hugging Face model"):
            temporary.mkdir(parents=True)
            _write_weights(temporary, config, params, np.dtype(dtype), max_shard_bytes)
            _write_config(temporary, config, values)
            if tokenizer_from is not None:
                defaults = huggingface_form(config).tokenizer_config
                _copy_tokenizer(pathlib.Path(tokenizer_from), temporary, defaults)
            os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _copy_tokenizer(
    source: pathlib.Path, folder: pathlib.Path, defaults: Mapping[str, Any]
) -> None:
    """Copies what there is; a vocabulary without configuration gets the architecture's."""
    names = {**METASEQ_TOKENIZER_FILES, **{name: name for name in TOKENIZER_FILES}}
    for theirs, ours in names.items():
        if (source / theirs).exists():
            shutil.copyfile(source / theirs, folder / ours)
    if (folder / "vocab.json").exists() and not (folder / "tokenizer_config.json").exists():
        _dump(folder / "tokenizer_config.json", dict(defaults))


def _check_writable(folder: pathlib.Path, dtype: str) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists already; choose a new folder or remove it")
    if dtype not in DTYPES:
        raise UserError(f"cannot write tensors as {dtype!r}; choose one of {', '.join(DTYPES)}")


def _write_config(folder: pathlib.Path, config: DecoderConfig, values: dict[str, Any]) -> None:
    ids = {"bos_token_id": config.bos_id, "eos_token_id": values["eos_token_id"]}
    ids["pad_token_id"] = config.pad_id
    _dump(folder / "config.json", values)
    _dump(folder / "generation_config.json", {"_from_model_config": True, **ids})


def _write_weights(
    folder: pathlib.Path,
    config: DecoderConfig,
    params: Mapping[str, Any],
    dtype: np.dtype,
    max_shard_bytes: int,
) -> None:
    shards: list[list[tuple[str, TensorLayout, int | None]]] = [[]]
    total = used = 0
    for leaf in huggingface_tensors(config):
        size = math.prod(leaf.shape) * dtype.itemsize
        for i, name in enumerate(leaf.names()):
            if shards[-1] and used + size > max_shard_bytes:
                shards.append([])
                used = 0
            shards[-1].append((name, leaf, None if leaf.num_layers is None else i))
            used, total = used + size, total + size
    files = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    if len(shards) == 1:
        files = [WEIGHTS]
    weight_map = {}
    for file, shard in zip(files, shards, strict=True):
        tensors = {name: _tensor(name, leaf, i, params, dtype) for name, leaf, i in shard}
        _save(tensors, folder / file)
        weight_map |= dict.fromkeys(tensors, file)
    if len(shards) > 1:
        _dump(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _tensor(
    name: str, leaf: TensorLayout, layer: int | None, params: Mapping[str, Any], dtype: np.dtype
) -> np.ndarray:
    value: Any = params
    for key in leaf.path:
        value = value[key]
    value = np.asarray(value if layer is None else value[layer])
    with np.errstate(over="ignore"):
        out = leaf.theirs(value).astype(dtype, order="C")
    if np.isfinite(value).all() and not np.isfinite(out).all():
        raise UserError(f"{name} has values too large for {dtype}; write bfloat16 instead")
    return out


def _save(tensors: dict[str, np.ndarray], path: pathlib.Path) -> None:
    try:
        safetensors.numpy.save_file(tensors, path, metadata={"format": "pt"})
    except safetensors.SafetensorError as e:
        # The library hides the operating system's error number in its text.
        number = re.search(r"os error (\d+)", str(e))
        raise (OSError(int(number[1]), str(e)) if number else e) from e


def _dump(path: pathlib.Path, values: Any) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", "utf-8")
