"""The checkpoints to evaluate, and their weights."""

import dataclasses
import glob
import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import gin
import jax

from optiml_jax.checkpoint.adapters import load_model_params
from optiml_jax.checkpoint.manager import find_checkpoint, load_metadata
from optiml_jax.cli.settings import Evaluate, Run, configured, expand
from optiml_jax.cli.vocabularies import load_run_vocabulary
from optiml_jax.data.vocabulary import padded_size, vocabulary_fingerprint
from optiml_jax.errors import UserError
from optiml_jax.frozen import changes, refuse_changes
from optiml_jax.model.architectures import config_from_dict, model_config
from optiml_jax.model.config import DecoderConfig
from optiml_jax.model.decoder import abstract_model, init_params
from optiml_jax.paths import matching, path_of
from optiml_jax.sharding.rules import abstract_params, param_shardings
from optiml_jax.train.config import FINE_TUNING_FIELDS, TrainConfig
from optiml_jax.train.start import run_model

logger = logging.getLogger(__name__)
# Fields of the model that change neither its parameters nor, beyond rounding, its answers.
FREE_FIELDS = FINE_TUNING_FIELDS | {"vocab_size"}


@dataclasses.dataclass(frozen=True)
class Model:
    """A model to evaluate.

    Attributes:
      name: "step_<n>" for a checkpoint of the run itself, "<its run>_step_<n>" for another, "init".
      config, graphdef, params: the model.
      metadata: of the checkpoint, with its folder as `checkpoint`.
    """

    name: str
    config: DecoderConfig
    graphdef: Any
    params: Any
    metadata: dict[str, Any]


def checkpoints_dir(run: Run) -> pathlib.Path:
    return path_of(run.run_dir).absolute() / "checkpoints"


def find_places(run: Run, settings: Evaluate) -> list[str]:
    """`Evaluate.checkpoint` expanded to "init", "latest" and folders, without duplicates."""
    asked = settings.checkpoint
    asked = [asked] if isinstance(asked, str | int) else asked
    return list(dict.fromkeys(place for one in asked for place in _places(run, str(one))))


def _places(run: Run, one: str) -> list[str]:
    if one.isdigit():
        return [str(checkpoints_dir(run) / one)]
    one = expand(one, "Evaluate.checkpoint")
    if one != "all" and not glob.has_magic(one):
        return [one]
    if "/" in one:
        found = [path for path in matching(one) if path.is_dir()]
    else:  # steps of this run
        steps = checkpoints_dir(run).glob("*" if one == "all" else one)
        found = [path for path in steps if path.name.isdigit()]
    if not found:
        raise UserError(
            f"Evaluate.checkpoint = {one!r}: no such checkpoint; those of this run are in "
            f"{checkpoints_dir(run)}"
        )
    return [str(path) for path in sorted(found, key=_by_step)]


def _by_step(folder: pathlib.Path) -> tuple[str, int, str]:
    return str(folder.parent), int(folder.name) if folder.name.isdigit() else 0, folder.name


def load_model(
    run: Run, settings: Evaluate, place: str, mesh: jax.sharding.Mesh, preset: str
) -> Model:
    """The model of one of the places, its weights loaded onto devices in their type."""
    if place == "init":
        return _untrained(run, settings, mesh, preset)
    place = str(checkpoints_dir(run)) if place == "latest" else place
    step_folder = find_checkpoint(place, ("params",))
    metadata = {**load_metadata(step_folder), "checkpoint": str(step_folder)}
    config = _computed(config_from_dict(metadata["model"]).as_evaluated())
    check_model(run, step_folder, metadata["model"])
    dtype = params_dtype(settings, config)
    params = load_model_params(step_folder, abstract_params(config, mesh, preset, dtype))
    return Model(_name(run, step_folder), config, abstract_model(config)[0], params, metadata)


def check_model(run: Run, step_folder: pathlib.Path, stored: Mapping[str, Any]) -> None:
    """Compares the checkpoint's model with what gin sets of `model_config`.

    Raises:
      UserError: it is a checkpoint of this run with another model. For other checkpoints the
        differences are logged and their own model is evaluated.
    """
    if not gin.get_bindings("model_config"):
        return
    wanted = model_config(vocab_size=stored["vocab_size"]).to_dict()
    asked = {f"model_config.{k}": v for k, v in wanted.items() if k not in FREE_FIELDS}
    found = {f"model_config.{k}": v for k, v in stored.items()}
    what = f"the checkpoint {step_folder}"
    if step_folder.parent.resolve() == checkpoints_dir(run).resolve():
        refuse_changes(what, found, asked, "restore them, or choose another run_dir")
    if differences := changes(found, asked):
        logger.info("%s is evaluated with its own model: %s", what, "; ".join(differences))


def _name(run: Run, step_folder: pathlib.Path) -> str:
    name, parent = f"step_{step_folder.name}", step_folder.parent
    if parent.resolve() == checkpoints_dir(run).resolve():
        return name
    owner = parent.parent if parent.name == "checkpoints" else parent
    return f"{owner.name}_{name}"


def params_dtype(settings: Evaluate, config: DecoderConfig) -> str:
    """The type of the weights in evaluation."""
    computed = "bfloat16" if config.dtype == "bfloat16" else "float32"
    return settings.params_dtype or computed


def cast_params(params: Any, dtype: str) -> Any:
    """The parameters cast to another type, with their shardings."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, params)

    def cast(params: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.astype(dtype), params)

    return jax.jit(cast, out_shardings=shardings)(params)


def _computed(config: DecoderConfig) -> DecoderConfig:
    """The model of a checkpoint, with the compute dtype of gin."""
    try:
        dtype = gin.query_parameter("model_config.dtype")
    except ValueError:  # not set
        return config
    return dataclasses.replace(config, dtype=dtype)


def _untrained(run: Run, settings: Evaluate, mesh: jax.sharding.Mesh, preset: str) -> Model:
    """The weights with which `optiml train` of this run starts."""
    vocabulary = load_run_vocabulary(run)
    train = configured(TrainConfig, plan_dir="", run_dir="")
    config = run_model(padded_size(vocabulary), train.init_from).as_evaluated()
    if train.init_from:
        step_folder = find_checkpoint(train.init_from, ("params",))
        dtype = params_dtype(settings, config)
        params = load_model_params(step_folder, abstract_params(config, mesh, preset, dtype))
        metadata = {**load_metadata(step_folder), "checkpoint": str(step_folder)}
        return Model("init", config, abstract_model(config)[0], params, metadata)
    shardings = param_shardings(abstract_model(config)[1], mesh, preset)
    metadata = {
        "vocabulary": {"fingerprint": vocabulary_fingerprint(vocabulary)},
        "step": 0,
        "seed": train.seed,
    }
    graphdef, params = init_params(config, train.seed, shardings)
    params = cast_params(params, params_dtype(settings, config))
    return Model("init", config, graphdef, params, metadata)
