"""The vocabulary of a run: from its settings, else from a checkpoint named there."""

import contextlib
import logging
import re
from collections.abc import Iterator, Sequence

import gin

from optiml_jax.cli.settings import Evaluate, Run, expand
from optiml_jax.data.prompts import PromptConfig
from optiml_jax.data.text_vocabulary import TextVocabulary
from optiml_jax.data.vocabulary import load_vocabulary
from optiml_jax.data.vocabulary_files import spec_in_checkpoint
from optiml_jax.errors import UserError

_log = logging.getLogger(__name__)


def load_run_vocabulary(run: Run, places: Sequence[str] = ()) -> TextVocabulary:
    """The vocabulary of a run; if its files are missing, that of a checkpoint.

    Args:
      places: checkpoints to try before those of the settings: the evaluation's, the one that
        training starts from, and the run's own.
    """
    return _find(run, places)[1]


def run_vocabulary(run: Run) -> str:
    """The spec of the vocabulary that `load_run_vocabulary` loads, for other processes."""
    return _find(run, ())[0]


def _find(run: Run, places: Sequence[str]) -> tuple[str, TextVocabulary]:
    try:
        return run.vocabulary, _checked(load_vocabulary(run.vocabulary))
    except UserError as e:
        for place in (*places, *_named_checkpoints(), run.run_dir):
            with contextlib.suppress(UserError):
                spec = spec_in_checkpoint(place)
                vocabulary = load_vocabulary(spec)
                _log.warning("%s; using the vocabulary of the checkpoint %s", e, place)
                return spec, _checked(vocabulary)
        raise


def _checked(vocabulary: TextVocabulary) -> TextVocabulary:
    """Warns of a chat template with special tokens that the vocabulary lacks."""
    named = re.findall(r"<\|[^<>|\s]+\|>", PromptConfig().chat or "")
    if unknown := [token for token in named if token not in vocabulary.special_tokens]:
        _log.warning(
            "PromptConfig.chat: %s is not a special token of the vocabulary; it is read as text",
            unknown[0],
        )
    return vocabulary


def _named_checkpoints() -> Iterator[str]:
    """Folders of checkpoints that the settings name."""
    named = Evaluate().checkpoint
    for place in [named] if isinstance(named, str | int) else named:
        if "/" in str(place):
            yield expand(str(place), "Evaluate.checkpoint")
    with contextlib.suppress(ValueError):  # not set
        if place := gin.query_parameter("TrainConfig.init_from"):
            yield expand(str(place), "TrainConfig.init_from")
