"""The vocabulary of a run: from its settings, else from a checkpoint that they name."""

import contextlib
import logging
from collections.abc import Iterator, Sequence

import gin

from optiml_jax.cli.settings import Evaluate, Run, expand
from optiml_jax.data.text_vocabulary import TextVocabulary
from optiml_jax.data.vocabulary import load_vocabulary
from optiml_jax.data.vocabulary_files import spec_in_checkpoint
from optiml_jax.errors import UserError

_log = logging.getLogger(__name__)


def load_run_vocabulary(run: Run, places: Sequence[str] = ()) -> TextVocabulary:
    """The vocabulary of a run; where its files are gone, that of a checkpoint.

    Args:
      places: checkpoints that may hold it, before those that the settings name: of the evaluation,
        of the start of training, and the run's own.
    """
    return _find(run, places)[1]


def run_vocabulary(run: Run) -> str:
    """The specification of what `load_run_vocabulary` loads, for other processes."""
    return _find(run, ())[0]


def _find(run: Run, places: Sequence[str]) -> tuple[str, TextVocabulary]:
    try:
        return run.vocabulary, load_vocabulary(run.vocabulary)
    except UserError as e:
        for place in (*places, *_named_checkpoints(), run.run_dir):
            with contextlib.suppress(UserError):
                spec = spec_in_checkpoint(place)
                vocabulary = load_vocabulary(spec)
                _log.warning("%s; taking the vocabulary of the checkpoint %s", e, place)
                return spec, vocabulary
        raise


def _named_checkpoints() -> Iterator[str]:
    """Folders of checkpoints that the settings name."""
    named = Evaluate().checkpoint
    for place in [named] if isinstance(named, str | int) else named:
        if "/" in str(place):
            yield expand(str(place), "Evaluate.checkpoint")
    with contextlib.suppress(ValueError):  # not set
        if place := gin.query_parameter("TrainConfig.init_from"):
            yield expand(str(place), "TrainConfig.init_from")
