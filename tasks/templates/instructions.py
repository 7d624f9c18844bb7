"""The hand-written instruction sentences of tasks whose upstream has none (data/instructions.yaml).

The paper (section 2.2) wrote one for each task of such collections and published none; these are
this project's own. A file `instructions.yaml` in the folder of a user's data (task: sentence) adds
sentences for tasks of the user's own and replaces ours.
"""

import functools
import os
import pathlib
from typing import Any

from optiml_jax.errors import UserError
from optiml_jax.yaml_files import read_yaml

INSTRUCTIONS_FILE = pathlib.Path(__file__).parents[1] / "data" / "instructions.yaml"


def instructions(collection: str, root: str | os.PathLike | None = None) -> dict[str, str]:
    """Task (without the benchmark) -> its sentence.

    Args:
      collection: "crossfit", "exmix", "reasoning" or "t5".
      root: the folder of the user's data, or None.

    Raises:
      UserError: the user's file is damaged or holds something else than sentences.
    """
    sentences = dict(_own_sentences()[collection])
    if root is not None:
        sentences |= read_mapping(pathlib.Path(root).expanduser() / "instructions.yaml")
    for task, sentence in sentences.items():
        if not isinstance(task, str) or not isinstance(sentence, str) or not sentence.strip():
            raise UserError(
                f"{root}/instructions.yaml: {task!r} must be the name of a task with one sentence "
                f"in quotation marks, not {sentence!r}"
            )
    return sentences


def read_mapping(path: pathlib.Path) -> dict[Any, Any]:
    """The mapping in a YAML file; empty when there is no such file. Tags of Python are refused.

    Raises:
      UserError: it is not UTF-8, not YAML, or no mapping; the message names file and line.
    """
    if not path.is_file():
        return {}
    return read_yaml(path, path.name)


@functools.cache
def _own_sentences() -> dict[str, dict[str, str]]:
    return read_mapping(INSTRUCTIONS_FILE)
