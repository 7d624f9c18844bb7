"""Reader of FLAN v2's sets of dialogues, which FLAN v2 mixes as a collection of their own.

`Run.data["flan_dialog"]` is a clone of FLAN as for `reader.py`, often the same one; rows lie in its
folder `datasets` (or beside it) as they are published:
  qrecc/qrecc_train.json
  wiki_dialog/data_train.jsonl-00000-of-00099.gz, ...; some of the files are enough
  task_master/TM-1-2019/self-dialogs.json, ..., as in a clone of Taskmaster
or in the forms of `files/rows.py`, or as TFDS prepared them. What is read of a row is in
`dialog_tasks.yaml`.
"""

import os

from optiml_jax.data.example import TaskSource
from optiml_jax.errors import UserError
from tasks.flan.facts import read_dialog_facts
from tasks.flan.reader import Texts, flan_folder, tasks_of
from tasks.flan.templates import FlanConfig
from tasks.flan.templates_v2 import read_dialog_texts
from tasks.splits import Manifest


def find_tasks(
    root: str | os.PathLike, manifest: Manifest, benchmark: str = "flan_dialog"
) -> list[TaskSource]:
    """The sets that have rows, sorted by name. Opens no file of rows.

    Args:
      root: see above.
      manifest: says which tasks are trained on.
      benchmark: first part of the task names.

    Raises:
      UserError: `FlanConfig.templates` is not "v2", the folder is missing or holds nothing, or the
        templates are damaged or code; see also `rows.find_splits`.
    """
    if FlanConfig().templates != "v2":
        raise UserError(
            f"benchmark {benchmark!r}: only FLAN v2 has templates for dialogues; set "
            "FlanConfig.templates = 'v2', or take the benchmark out of Run.data"
        )
    folder = flan_folder(root, benchmark)
    read, forms = read_dialog_texts(folder)
    texts = Texts(read.patterns, option_lists=read.option_lists, dialog_forms=forms)
    return tasks_of(folder, manifest, benchmark, read_dialog_facts(), texts)
