"""`optiml convert`: other programs' weights into a checkpoint, and back to Hugging Face."""

import pathlib
import sys

from optiml_jax.checkpoint import conversion, huggingface
from optiml_jax.checkpoint.manager import load_metadata
from optiml_jax.checkpoint.metaseq import is_metaseq
from optiml_jax.cli import main as command_line
from optiml_jax.cli.settings import Convert, configured, expand
from optiml_jax.data.vocabulary import load_vocabulary, padded_size, vocabulary_fingerprint
from optiml_jax.errors import UserError
from optiml_jax.model.architectures import config_from_dict


def main() -> None:
    settings = configured(Convert)
    destination = pathlib.Path(expand(settings.destination, "Convert.destination"))
    source = expand(settings.source, "Convert.source")
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise UserError(f"{destination} exists already; choose a new folder or remove it")
    directions = {"optiml": into_checkpoint, "huggingface": to_huggingface}
    if settings.to not in directions:
        raise UserError(f"Convert.to={settings.to!r}; choose one of {', '.join(directions)}")
    directions[settings.to](source, destination, settings)


def into_checkpoint(source: str, destination: pathlib.Path, settings: Convert) -> None:
    """Writes the checkpoint <destination>/checkpoints/0, parameters only."""
    with conversion.open_weights(source) as weights:
        config = weights.config
        spec = settings.vocabulary or f"opt:{_folder_of(source)}"
        spec = expand(spec, "Convert.vocabulary")
        vocabulary = load_vocabulary(spec)
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
        conversion.into_checkpoint(weights, destination, metadata, settings.dtype)
    print(f"{config.num_params:,} parameters: {destination}")
    print(f"fine-tune it: optiml train ... --gin.TrainConfig.init_from={destination}")


def to_huggingface(source: str, destination: pathlib.Path, settings: Convert) -> None:
    """Writes a folder that `transformers` loads, with the tokenizer if it is OPT's."""
    metadata = load_metadata(source)
    config = config_from_dict(metadata["model"])
    kind, _, place = metadata["vocabulary"]["spec"].partition(":")
    tokenizer = huggingface.fetch(place) if kind == "opt" else None
    conversion.out_of_checkpoint(
        source, destination, config, settings.dtype, tokenizer_from=tokenizer
    )
    print(f"{config.num_params:,} parameters: {destination}")
    if tokenizer is None:
        print("without a tokenizer: transformers has none for the project's SentencePiece models")


def _folder_of(source: str) -> str:
    """The folder of a source, or its name on the Hub."""
    path = pathlib.Path(source).absolute()
    if path.is_dir():
        return str(path)
    return str(path.parent) if is_metaseq(path) else source


if __name__ == "__main__":
    sys.exit(command_line.main([pathlib.Path(__file__).stem, *sys.argv[1:]]))
