"""`optiml convert`: a Hugging Face OPT or OPT-IML folder into a checkpoint, and back."""

import os
import pathlib
import sys

from optiml_jax.checkpoint import huggingface
from optiml_jax.checkpoint.manager import CheckpointManager, load_metadata, load_params
from optiml_jax.cli import main as command_line
from optiml_jax.cli.settings import Convert, configured, expand
from optiml_jax.data.vocabulary import load_vocabulary, padded_size, vocabulary_fingerprint
from optiml_jax.errors import UserError
from optiml_jax.model.architectures import config_from_dict
from optiml_jax.sharding.rules import abstract_params


def main() -> None:
    settings = configured(Convert)
    destination = pathlib.Path(expand(settings.destination, "Convert.destination"))
    source = expand(settings.source, "Convert.source")
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise UserError(f"{destination} exists already; choose a new folder or remove it")
    directions = {"optiml": from_huggingface, "huggingface": to_huggingface}
    if settings.to not in directions:
        raise UserError(f"Convert.to={settings.to!r}; choose one of {', '.join(directions)}")
    directions[settings.to](source, destination, settings)


def from_huggingface(source: str, destination: pathlib.Path, settings: Convert) -> None:
    """Writes the checkpoint <destination>/checkpoints/0, parameters only."""
    spec = expand(settings.vocabulary or f"opt:{_absolute(source)}", "Convert.vocabulary")
    vocabulary = load_vocabulary(spec)
    config, params = huggingface.read_huggingface(source)
    if padded_size(vocabulary) != config.vocab_size:
        raise UserError(
            f"{source} has vocab_size {config.vocab_size}, its vocabulary {spec} "
            f"{padded_size(vocabulary)}; set Convert.vocabulary to the model's own"
        )
    metadata = {
        "model": config.to_dict(),
        "vocabulary": {
            "spec": spec,
            "fingerprint": vocabulary_fingerprint(vocabulary),
            "padded_size": config.vocab_size,
        },
        "bos_id": config.bos_id,
        "step": 0,
        "source": source,
    }
    manager = CheckpointManager(destination / "checkpoints", async_save=False)
    manager.save(0, {"params": params}, metadata)
    manager.close()
    print(f"{config.num_params:,} parameters: {destination}")
    print(f"fine-tune it: optiml train ... --gin.TrainConfig.init_from={destination}")


def to_huggingface(source: str, destination: pathlib.Path, settings: Convert) -> None:
    """Writes a folder that `transformers` loads, with the tokenizer if it is OPT's."""
    metadata = load_metadata(source)
    config = config_from_dict(metadata["model"])
    params = load_params(source, abstract_params(config))
    kind, _, place = metadata["vocabulary"]["spec"].partition(":")
    tokenizer = huggingface.fetch(place) if kind == "opt" else None
    huggingface.write_huggingface(
        destination, config, params, dtype=settings.dtype, tokenizer_from=tokenizer
    )
    print(f"{config.num_params:,} parameters as {settings.dtype}: {destination}")
    if tokenizer is None:
        print("without a tokenizer: transformers has none for the project's SentencePiece models")


def _absolute(source: str) -> str:
    return os.path.abspath(source) if os.path.isdir(source) else source


if __name__ == "__main__":
    sys.exit(command_line.main([pathlib.Path(__file__).stem, *sys.argv[1:]]))
