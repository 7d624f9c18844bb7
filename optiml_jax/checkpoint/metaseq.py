"""OPT in metaseq's formats, as tensors under Hugging Face's names; read only.

The files that facebookresearch/metaseq writes (metaseq/checkpoint_utils.py, scripts/reshard*.py,
distributed/stitch_fsdp_ckpt.py):

- one file: `restored.pt`, `checkpoint_last.pt`, `consolidated.pt`;
- tensor parallelism: `<name>-model_part-<p>.pt`, each with its rows of k, v, q, fc1 and the
  embedding, its columns of out_proj and fc2, and a copy of the rest;
- FSDP: `<name>[-model_part-<p>]-shard<s>.pt`, in which the parameters of each wrapped module are
  one flat array, cut into equal parts and padded at the end. `shard_metadata` describes them; files
  of `reshard_mp.py` lack it, and the parameters are then in the order of the modules;
- keys, values and queries in one `qkv_proj`, in this order, or in three tensors.

Files are read by torch_files.py, which executes none of their code.
"""

import logging
import math
import pathlib
import re
import resource
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from optiml_jax.checkpoint.tensors import Joined, Reshaped, Rows, Tensor
from optiml_jax.checkpoint.torch_files import plain, read_torch_file
from optiml_jax.errors import UserError
from optiml_jax.model.architectures import model_config
from optiml_jax.model.opt.config import SIZES, OPTConfig

logger = logging.getLogger(__name__)

_NAME = re.compile(r"(?P<name>.+?)(-model_part-(?P<part>\d+))?(-shard(?P<shard>\d+))?\.pt")
# Which checkpoint of a folder is used if none is named.
_PREFERRED = ("restored", "consolidated", "checkpoint_last", "reshard", "reshard_no_os")
_FLAT = re.compile(r"(?:(?P<path>.+)\.)?(?P<name>flat_param_\d+)")
_WRAPPERS = re.compile(r"(_fsdp_wrapped_module|_fpw_module)\.")
_ROWS = re.compile(r"embed_tokens|output_projection|fc1|(k|q|v)_proj")
_COLUMNS = re.compile(r"(fc2|out_proj)\.weight")
_IGNORED = re.compile(r"(^|\.)(version|_float_tensor)$")
# Fields of metaseq's configuration that change the computation, with OPT's values.
_FIXED = {"activation_fn": "relu", "no_scale_embedding": True, "alibi": False}
_RENAMED = {
    "decoder.layer_norm.": "decoder.final_layer_norm.",
    "decoder.project_in_dim.": "decoder.project_in.",
    "decoder.project_out_dim.": "decoder.project_out.",
    "decoder.output_projection.": "lm_head.",
}


def is_metaseq(source: str | pathlib.Path) -> bool:
    """Whether `source` is a metaseq file, a folder of them, or a prefix of their names."""
    path = pathlib.Path(source)
    if path.is_dir():
        return not (path / "config.json").exists() and bool(_groups(path))
    return path.suffix == ".pt" or path.name in _groups(path.parent)


def open_metaseq(source: str | pathlib.Path) -> tuple[OPTConfig, dict[str, Tensor]]:
    """The configuration and the lazily read tensors, by Hugging Face's names.

    Args:
      source: a folder, one of its files, or a prefix of their names: `<folder>/reshard`.

    Raises:
      UserError: several checkpoints, missing files, or files of a different model.
    """
    files = _find_files(pathlib.Path(source))
    _allow_open_files(sum(map(len, files)) + 64)
    states = [[read_torch_file(path) for path in shards] for shards in files]
    for paths, shards in zip(files, states, strict=True):
        for path, state in zip(paths, shards, strict=True):
            if not isinstance(state, dict) or not isinstance(state.get("model"), dict):
                raise UserError(f"{path} is not a metaseq checkpoint: it has no entry 'model'")
    known = _model_fields(states[0][0])
    _check_fields(known, files[0][0])
    parts = [_unflattened(shards, known, len(files), files[0][0]) for shards in states]
    tensors = dict(_renamed(_glued(parts, files[0][0])))
    return _config(tensors, known, files[0][0]), tensors


# ---- files -----------------------------------------------------------------------------------


def _groups(folder: pathlib.Path) -> dict[str, list[tuple[int, int, pathlib.Path]]]:
    """Name -> (part, shard, file) of the checkpoints of a folder."""
    groups: dict[str, list[tuple[int, int, pathlib.Path]]] = {}
    for path in sorted(folder.glob("*.pt")) if folder.is_dir() else []:
        match = _NAME.fullmatch(path.name)
        number = (int(match["part"] or 0), int(match["shard"] or 0), path)
        groups.setdefault(match["name"], []).append(number)
    return groups


def _find_files(source: pathlib.Path) -> list[list[pathlib.Path]]:
    """The files by part and shard."""
    folder = source if source.is_dir() else source.parent
    groups = _groups(folder)
    if source.is_dir():
        wanted = next((name for name in _PREFERRED if name in groups), None)
        if wanted is None and len(groups) > 1:
            raise UserError(
                f"{folder} holds several checkpoints ({', '.join(groups)}); name one: "
                f"Convert.source={folder / next(iter(groups))}"
            )
        wanted = wanted or next(iter(groups))
    else:
        match = _NAME.fullmatch(source.name)
        wanted = match["name"] if match else source.name
    if wanted not in groups:
        raise UserError(f"no files {folder / wanted}*.pt")
    found = {(part, shard): path for part, shard, path in groups[wanted]}
    parts, shards = (max(numbers) + 1 for numbers in zip(*found, strict=True))
    missing = [k for k in np.ndindex(parts, shards) if k not in found]
    if missing:
        part, shard = missing[0]
        raise UserError(
            f"{folder / wanted}: {len(missing)} of {parts * shards} files are missing, "
            f"model part {part} shard {shard} first"
        )
    return [[found[part, shard] for shard in range(shards)] for part in range(parts)]


def _allow_open_files(number: int) -> None:
    """Each mapped file holds a file descriptor, and OPT-175B has 992 files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < number:
        limit = number if hard == resource.RLIM_INFINITY else min(number, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


# ---- FSDP ------------------------------------------------------------------------------------


def _unflattened(
    shards: Sequence[Mapping[str, Any]],
    known: Mapping[str, Any],
    num_parts: int,
    path: pathlib.Path,
) -> dict[str, Tensor]:
    """The tensors of one model part, taken out of flat arrays where its shards have them."""
    tensors: dict[str, Tensor] = {}
    described = [_described(shard) for shard in shards]
    for key, value in shards[0]["model"].items():
        match = _FLAT.fullmatch(key)
        if match is None:
            if isinstance(value, np.ndarray):
                tensors[_WRAPPERS.sub("", key)] = value
            continue
        pieces = []
        for shard, description in zip(shards, described, strict=True):
            piece = shard["model"].get(key)
            if piece is None:
                raise UserError(f"{path}: {key} is in the first shard but not in all shards")
            padding = description[key]["padding"] if key in description else 0
            pieces.append(Rows(piece, 0, piece.shape[0] - padding))
        flat = pieces[0] if len(pieces) == 1 else Joined(pieces, 0)
        if key in described[0]:
            names, shapes = described[0][key]["names"], described[0][key]["shapes"]
        else:
            names, shapes = _in_order_of_modules(match["path"], known, num_parts, path)
        start = 0
        for name, shape in zip(names, shapes, strict=True):
            name = f"{match['path']}.{name}" if match["path"] else name
            tensors[_WRAPPERS.sub("", name)] = Reshaped(flat, start, tuple(shape))
            start += math.prod(shape)
        if not 0 <= flat.shape[0] - start < len(shards) * (key not in described[0]) + 1:
            raise UserError(
                f"{path}: {key} holds {flat.shape[0]:,} numbers, its parameters are {start:,}; "
                "are all shards of one checkpoint?"
            )
    return tensors


def _described(state: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Flat array -> its names, shapes and padding, if the file has them."""
    described = {}
    metadata = plain(state.get("shard_metadata")) or {}
    for module in metadata.get("param_metadata", ()):
        for name, params in module["params"].items():
            full = f"{module['fsdp_path']}.{name}" if module["fsdp_path"] else name
            described[full] = params
    return described


def _in_order_of_modules(
    module: str | None, known: Mapping[str, Any], num_parts: int, path: pathlib.Path
) -> tuple[list[str], list[tuple[int, ...]]]:
    """Names and shapes in a flat array without metadata."""
    wanted = ("decoder_embed_dim", "decoder_ffn_embed_dim", "vocab_size", "max_positions")
    missing = [name for name in wanted if not known.get(name)]
    if missing or known.get("decoder_input_dim", known["decoder_embed_dim"]) != known[wanted[0]]:
        raise UserError(
            f"{path}: the parameters are flattened, but neither shard_metadata nor the "
            f"configuration in the file says how ({', '.join(missing) or 'with projections'}); "
            "unflatten them with metaseq's scripts/reshard_fsdp.py first"
        )
    d, f, vocabulary, positions = (known[name] for name in wanted)
    if not module:
        shapes = {"decoder.embed_tokens.weight": (vocabulary // num_parts, d)}
        shapes["decoder.embed_positions.weight"] = (positions + 2, d)
        if known.get("decoder_normalize_before", True):
            shapes |= {"decoder.layer_norm.weight": (d,), "decoder.layer_norm.bias": (d,)}
        return list(shapes), list(shapes.values())
    shapes = {
        "self_attn.qkv_proj.weight": (3 * d // num_parts, d),
        "self_attn.qkv_proj.bias": (3 * d // num_parts,),
        "self_attn.out_proj.weight": (d, d // num_parts),
        "self_attn.out_proj.bias": (d,),
        "self_attn_layer_norm.weight": (d,),
        "self_attn_layer_norm.bias": (d,),
        "fc1.weight": (f // num_parts, d),
        "fc1.bias": (f // num_parts,),
        "fc2.weight": (d, f // num_parts),
        "fc2.bias": (d,),
        "final_layer_norm.weight": (d,),
        "final_layer_norm.bias": (d,),
    }
    return list(shapes), list(shapes.values())


# ---- tensor parallelism and names ------------------------------------------------------------


def _glued(parts: Sequence[dict[str, Tensor]], path: pathlib.Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of the whole model, assembled from its model parts."""
    for name in parts[0]:
        if any(name not in part for part in parts):
            raise UserError(f"{path}: {name} is in the first model part but not in all parts")
        pieces = [part[name] for part in parts]
        if "qkv_proj" in name:
            for place, kind in enumerate(("k_proj", "v_proj", "q_proj")):
                thirds = [piece.shape[0] // 3 for piece in pieces]
                rows = [
                    Rows(piece, place * third, (place + 1) * third)
                    for piece, third in zip(pieces, thirds, strict=True)
                ]
                yield name.replace("qkv_proj", kind), _joined(rows, 0)
        elif _ROWS.search(name):
            yield name, _joined(pieces, 0)
        elif _COLUMNS.search(name):
            yield name, _joined(pieces, 1)
        else:
            for number, piece in enumerate(pieces[1:], 1):
                if not np.array_equal(piece[:], pieces[0][:]):
                    logger.warning(
                        "%s differs between model parts 0 and %d; part 0 is used", name, number
                    )
            yield name, pieces[0]


def _joined(pieces: Sequence[Tensor], axis: int) -> Tensor:
    return pieces[0] if len(pieces) == 1 else Joined(pieces, axis)


def _renamed(tensors: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in tensors:
        if _IGNORED.search(name):
            continue
        for theirs, new in _RENAMED.items():
            if name.startswith(theirs):
                name = new + name.removeprefix(theirs)
        yield name if name.startswith("lm_head") else f"model.{name}", tensor


# ---- configuration ---------------------------------------------------------------------------


def _model_fields(state: Mapping[str, Any]) -> dict[str, Any]:
    """metaseq's own configuration of the model, where the file has one."""
    fields: dict[str, Any] = {}
    for place in (plain(state.get("args")), plain(state.get("cfg"))):
        if isinstance(place, dict):
            fields |= place["model"] if isinstance(place.get("model"), dict) else place
    positions = fields.get("max_target_positions") or fields.get("tokens_per_sample")
    return {"vocab_size": 50272, **fields, "max_positions": positions or 2048}


def _check_fields(known: Mapping[str, Any], path: pathlib.Path) -> None:
    for name, fixed in _FIXED.items():
        if (known.get(name, fixed) or None) != (fixed or None):
            raise UserError(
                f"{path}: {name} is {known[name]!r}; OPT's is {fixed!r}, and only OPT can be read"
            )


def _config(
    tensors: Mapping[str, Tensor], known: Mapping[str, Any], path: pathlib.Path
) -> OPTConfig:
    """The configuration: sizes from the tensors, the rest from the file or a published model."""
    prefix = "model.decoder."
    layers = [re.match(rf"{re.escape(prefix)}layers\.(\d+)\.", name) for name in tensors]
    try:
        vocab_size, embed_dim = tensors[prefix + "embed_tokens.weight"].shape
        rows, d_model = tensors[prefix + "embed_positions.weight"].shape
        ffn_dim = tensors[prefix + "layers.0.fc1.weight"].shape[0]
    except KeyError as e:
        raise UserError(f"{path}: tensor {e.args[0]} is missing; is this an OPT model?") from e
    num_layers = 1 + max(int(match[1]) for match in layers if match)
    final_norm = prefix + "final_layer_norm.weight" in tensors
    heads = known.get("decoder_attention_heads") or _published_heads(d_model, num_layers, path)
    return model_config(
        architecture="opt",
        vocab_size=vocab_size,
        embed_dim=embed_dim,
        max_positions=rows - 2,
        d_model=d_model,
        ffn_dim=ffn_dim,
        num_layers=num_layers,
        num_heads=heads,
        pre_layer_norm=bool(known.get("decoder_normalize_before", final_norm)),
        final_layer_norm=final_norm,
        dropout=float(known.get("dropout", 0.1)),
        attention_dropout=float(known.get("attention_dropout", 0.0)),
    )


def _published_heads(d_model: int, num_layers: int, path: pathlib.Path) -> int:
    for size in SIZES.values():
        if (size["d_model"], size["num_layers"]) == (d_model, num_layers):
            return size["num_heads"]
    raise UserError(
        f"{path} does not give the number of attention heads, and no published OPT has "
        f"{num_layers} layers of width {d_model}; add cfg.model.decoder_attention_heads to the file"
    )
