"""`optiml convert`: converts other programs' weights to a checkpoint, and back."""

import contextlib
import dataclasses
import logging
import pathlib
import sys
import tempfile
from typing import Any

import jax

from optiml_jax.checkpoint import conversion, huggingface
from optiml_jax.checkpoint.adapters import describe_base, is_peft, read_peft, write_peft
from optiml_jax.checkpoint.manager import find_checkpoint, load_metadata
from optiml_jax.checkpoint.metaseq import is_metaseq
from optiml_jax.checkpoint.weights import Weights
from optiml_jax.cli import main as command_line
from optiml_jax.cli.settings import Convert, configured, expand
from optiml_jax.data.sentencepiece_export import export_sentencepiece
from optiml_jax.data.vocabulary import load_vocabulary, vocabulary_fingerprint
from optiml_jax.data.vocabulary_files import (
    SENTENCEPIECE,
    content_for_checkpoint,
    kind_of,
    spec_of_step,
    vocabulary_files,
)
from optiml_jax.errors import UserError
from optiml_jax.model.architectures import config_from_dict
from optiml_jax.model.config import DecoderConfig
from optiml_jax.model.decoder import huggingface_form
from optiml_jax.paths import path_of, plain_path
from optiml_jax.report.model_card import model_card


def main() -> None:
    settings = configured(Convert)
    destination = path_of(expand(settings.destination, "Convert.destination"))
    source = expand(settings.source, "Convert.source")
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise UserError(f"{destination} exists already; choose a new folder or remove it")
    into = adapters_into_checkpoint if is_peft(source) else into_checkpoint
    directions = {"optiml": into, "huggingface": to_huggingface, "peft": to_peft}
    if settings.to not in directions:
        raise UserError(f"Convert.to={settings.to!r}; choose one of {', '.join(directions)}")
    if settings.to != "optiml":
        plain_path(destination, "Convert.destination")
    directions[settings.to](source, destination, settings)


def into_checkpoint(source: str, destination: pathlib.Path, settings: Convert) -> None:
    """Writes the checkpoint <destination>/checkpoints/0, parameters and vocabulary only."""
    plain_path(source, "Convert.source")
    with contextlib.ExitStack() as stack:
        weights = stack.enter_context(conversion.open_weights(source))
        spec, place = _vocabulary_spec(source, weights, settings), source
        if weights.tokenizer is not None and settings.vocabulary is None:
            place = stack.enter_context(tempfile.TemporaryDirectory())
            for name, content in weights.tokenizer.items():
                (pathlib.Path(place) / name).write_bytes(content)
            spec = f"huggingface:{place}"
        vocabulary = load_vocabulary(spec)
        if vocabulary.vocab_size > weights.config.vocab_size:
            raise UserError(
                f"{source} has an embedding of {weights.config.vocab_size} rows but its vocabulary "
                f"{spec} {vocabulary.vocab_size} tokens; set Convert.vocabulary to the model's own"
            )
        weights = conversion.padded(weights)
        metadata = {
            "model": weights.config.to_dict(),
            "vocabulary": {
                "spec": spec.replace(place, source) if place != source else spec,
                "fingerprint": vocabulary_fingerprint(vocabulary),
                "padded_size": weights.config.vocab_size,
            },
            "bos_id": weights.config.bos_id,
            "step": 0,
            "source": source,
        }
        files = content_for_checkpoint(spec)
        conversion.into_checkpoint(weights, destination, metadata, settings.dtype, files)
    print(f"{weights.config.num_params:,} parameters: {destination}")
    print(f"to fine-tune it: optiml train ... --gin.TrainConfig.init_from={destination}")
    print(f"with its vocabulary: --gin.Run.vocabulary=checkpoint:{destination}")


def adapters_into_checkpoint(source: str, destination: pathlib.Path, settings: Convert) -> None:
    """Writes a checkpoint of the adapters in a PEFT folder, for `Convert.base`."""
    if settings.base is None:
        raise UserError(f"{source} has adapters; set Convert.base to the checkpoint they adapt")
    step_folder = find_checkpoint(expand(settings.base, "Convert.base"), ("params",))
    base = load_metadata(step_folder)
    config, adapters = read_peft(pathlib.Path(source), config_from_dict(base["model"]))
    metadata = {
        **{name: base[name] for name in ("vocabulary", "bos_id") if name in base},
        "model": config.to_dict(),
        "base": describe_base(step_folder),
        "step": 0,
        "source": source,
    }
    files = content_for_checkpoint(spec_of_step(step_folder) or base["vocabulary"]["spec"])
    conversion.save_params(jax.tree.map(jax.numpy.asarray, adapters), destination, metadata, files)
    numbers = sum(leaf.size for leaf in jax.tree.leaves(adapters))
    print(f"{numbers:,} parameters of adapters of rank {config.lora_rank}: {destination}")


def to_peft(source: str, destination: pathlib.Path, settings: Convert) -> None:
    """Writes the adapters of a checkpoint as a folder that PEFT loads."""
    name = settings.base or load_metadata(source).get("base", {}).get("checkpoint", "")
    with conversion.whole_folder(destination) as temporary:
        write_peft(source, temporary, name)
    print(f"adapters: {destination}")


def _vocabulary_spec(source: str, weights: Weights, settings: Convert) -> str:
    kind = huggingface_form(weights.config).vocabulary
    return expand(settings.vocabulary or f"{kind}:{_folder_of(source)}", "Convert.vocabulary")


def to_huggingface(source: str, destination: pathlib.Path, settings: Convert) -> None:
    """Writes a folder that `transformers` loads, with tokenizer and model card."""
    step_folder = find_checkpoint(source)
    metadata = load_metadata(step_folder)
    config = config_from_dict(metadata["model"]).as_evaluated()
    tokens = config.vocab_size - config.vocab_padding
    config = dataclasses.replace(config, vocab_size=tokens, vocab_padding=0)
    spec = _vocabulary_of(step_folder, metadata, settings)

    def more(folder: pathlib.Path) -> None:
        if spec is not None:
            write_tokenizer(spec, folder, config, metadata.get("bos_id", config.bos_id))
        card = model_card(destination.name, metadata, step_folder)
        (folder / "README.md").write_text(card, "utf-8")

    conversion.out_of_checkpoint(step_folder, destination, config, settings.dtype, more=more)
    print(f"{config.num_params:,} parameters: {destination}")


def write_tokenizer(
    spec: str, folder: pathlib.Path, config: DecoderConfig, leading_id: int | None
) -> None:
    """Writes the tokenizer's files into a folder in Hugging Face's format."""
    files = vocabulary_files(spec)
    if kind_of(spec) == "sentencepiece":
        export_sentencepiece(str(files[SENTENCEPIECE]), folder, leading_id)
    else:
        huggingface.copy_tokenizer(files, folder, huggingface_form(config).tokenizer_config)


def _vocabulary_of(
    step_folder: pathlib.Path, metadata: dict[str, Any], settings: Convert
) -> str | None:
    """`Convert.vocabulary`, else the checkpoint's own, else that of its run."""
    if settings.vocabulary:
        spec = expand(settings.vocabulary, "Convert.vocabulary")
        found = vocabulary_fingerprint(load_vocabulary(spec))
        if found != metadata["vocabulary"]["fingerprint"]:
            raise UserError(
                f"Convert.vocabulary = {spec}: not the vocabulary that {step_folder} was trained "
                f"with ({metadata['vocabulary']['spec']})"
            )
        return spec
    spec = spec_of_step(step_folder) or metadata["vocabulary"]["spec"]
    try:
        vocabulary_files(spec)
    except UserError as e:
        logging.warning("written without a tokenizer: %s; Convert.vocabulary can name one", e)
        return None
    return spec


def _folder_of(source: str) -> str:
    """The folder of a source, or its name on the Hub."""
    path = pathlib.Path(source).absolute()
    if path.is_dir():
        return str(path)
    return str(path.parent) if is_metaseq(path) else source


if __name__ == "__main__":
    sys.exit(command_line.main([pathlib.Path(__file__).stem, *sys.argv[1:]]))
