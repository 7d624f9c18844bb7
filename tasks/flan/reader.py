"""Reader of FLAN 2021 (google-research/FLAN): templates from the user's copy, rows of data sets.

`Run.data["flan"]` is a folder F, a clone of FLAN or one like it:
  templates: F/flan/templates.py, F/templates.py (parsed, never executed) or F/templates.json;
  rows: F/datasets if it is there, else the folder `datasets` beside F, with Hugging Face's names,
      <dataset>[/<subset>]/<split>.jsonl and so on (see `files/rows.py`); data sets that are not
      there are looked for among those that TFDS prepared on this machine (`FlanConfig.tfds_dir`);
  F/task_config.yaml adds or replaces tasks.
Which tasks there are, and what their templates need of a row, is in `tasks.yaml`. A task
without rows is left out. Reading a task is in `task.py`; FLAN v2's sets of dialogues are a
collection of their own (`dialog_reader.py`).
"""

import dataclasses
import logging
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from optiml_jax.data.example import TaskSource, check_unique_names
from optiml_jax.data.training_prompts import slots
from optiml_jax.errors import UserError
from tasks import taxonomy
from tasks.files.promises import check_folder
from tasks.files.rows import Split, SplitFiles, find_splits
from tasks.files.text_files import data_folder
from tasks.flan.dialogs import DialogForms
from tasks.flan.facts import PARTS, TaskFacts, read_facts, split_name
from tasks.flan.option_lists import OptionLists
from tasks.flan.prompts_v2 import PromptsV2, prompts_v2
from tasks.flan.task import FlanTask
from tasks.flan.templates import (
    FlanConfig,
    Template,
    find_templates,
    read_templates,
    repair,
    select,
)
from tasks.flan.templates_v2 import FACTS, ZERO_SHOT, read_templates_v2, usable
from tasks.splits import Manifest, Row

UPSTREAM = "https://github.com/google-research/FLAN"

_OF = re.compile(r"-\d+-of-(\d+)")

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Texts:
    """What a clone has for the prompts.

    Attributes:
      templates: pattern name -> its templates, those that `FlanConfig.templates` asks for.
      typos: what `repair` mends.
      option_lists: of FLAN v2; None: the templates are FLAN 2021's.
      dialog_forms: given where the tasks are dialogues.
    """

    templates: Mapping[str, list[Template]]
    typos: Sequence[Mapping[str, Any]] = ()
    option_lists: OptionLists | None = None
    dialog_forms: DialogForms | None = None


def find_tasks(
    root: str | os.PathLike, manifest: Manifest, benchmark: str = "flan"
) -> list[TaskSource]:
    """The tasks that have both templates and rows, sorted by name. Opens no file of rows.

    Args:
      root: see above.
      manifest: says which tasks are trained on and which are scored.
      benchmark: first part of the task names.

    Raises:
      UserError: the folder is missing or holds nothing, the templates are damaged or code, or
        task_config.yaml is not well-formed; see also `rows.find_splits`.
    """
    folder = flan_folder(root, benchmark)
    texts = _texts(folder, benchmark)
    facts, typos = read_facts(folder)
    return tasks_of(folder, manifest, benchmark, facts, dataclasses.replace(texts, typos=typos))


def flan_folder(root: str | os.PathLike, benchmark: str) -> pathlib.Path:
    """The clone; it and the folder of its rows are checked."""
    folder = data_folder(root, benchmark, f"give a clone of {UPSTREAM}")
    check_folder(_rows_folder(folder))
    return folder


def tasks_of(
    folder: pathlib.Path,
    manifest: Manifest,
    benchmark: str,
    facts: Mapping[str, TaskFacts],
    texts: Texts,
) -> list[TaskSource]:
    """Those of the tasks that have both templates and rows; see `find_tasks`.

    Args:
      folder: the clone.
      manifest, benchmark: see `find_tasks`.
      facts: the tasks by name.
      texts: of the clone.
    """
    skipped: dict[str, list[str]] = {}
    sources = []
    with_templates = {name: task for name, task in facts.items() if task.pattern in texts.templates}
    logger.info(
        "%d of %d tasks of FLAN have templates in %s", len(with_templates), len(facts), folder
    )
    for name, task in sorted(with_templates.items()):
        row = manifest.lookup(f"{benchmark}/{name}", None)
        found = _reader(folder, benchmark, task, texts, row)
        if isinstance(found, str):
            skipped.setdefault(found, []).append(name)
            continue
        if found.category == taxonomy.MISC:
            logger.warning("task %s of cluster %r counts as Misc.", found.name, task.cluster)
        if row.trained and "train" not in found.parts:
            skipped.setdefault("have no training rows", []).append(name)
        row.check_prompts(found.name, len(found.templates))
        sources.append(found.source())
    for reason, names in skipped.items():
        shown = ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")
        logger.warning("%d of %d %s tasks %s: %s", len(names), len(facts), benchmark, reason, shown)
    if not sources:
        raise UserError(
            f"no task of benchmark {benchmark!r} in {folder} has templates and rows; put rows into "
            f"{folder / 'datasets'} as <dataset>[/<subset>]/<split>.jsonl, .parquet or .arrow, or "
            "set FlanConfig.tfds_dir to the folder of prepared TFDS data sets"
        )
    check_unique_names([s.name for s in sources])
    return sources


def _texts(folder: pathlib.Path, benchmark: str) -> Texts:
    if FlanConfig().templates == "v2":
        read = read_templates_v2(folder)
        return Texts(read.patterns, option_lists=read.option_lists)
    path = find_templates(folder)
    if path is None:
        raise UserError(
            f"no templates of benchmark {benchmark!r}: {folder} holds no flan/templates.py, "
            f"templates.py or templates.json; give a clone of {UPSTREAM}"
        )
    return Texts(read_templates(path))


def _reader(
    folder: pathlib.Path, benchmark: str, facts: TaskFacts, texts: Texts, row: Row
) -> FlanTask | str:
    """The reader of a task, or why there is none."""
    config = FlanConfig()
    facts, splits = _rows(folder, facts, config)
    if not splits:
        return "have no rows"
    templates = texts.templates[facts.pattern]
    repaired = config.fix_typos and config.templates == "2021"
    chosen = chosen_templates(facts, templates, texts.typos if repaired else [])
    prompts = None if texts.option_lists is None else _prompts(facts, texts, config)
    if not chosen or (texts.option_lists is not None and prompts is None):
        return "have no template for their rows"
    parts = _parts(facts, splits, row)
    if not parts:
        return "have no rows for their part"
    return FlanTask(
        name=f"{benchmark}/{facts.name}",
        category=row.category or taxonomy.category("flan", facts.name, facts.cluster),
        facts=facts,
        templates=tuple(chosen),
        prompts=prompts,
        splits=splits,
        parts=parts,
        pooled_test=not any(role.startswith("test") for role in row.role),
        num_test=row.instances,
        ranked=row.metric == "acc_rank",
        seed=config.seed,
    )


def chosen_templates(
    facts: TaskFacts, templates: list[Template], typos: list[dict]
) -> list[Template]:
    """The templates that ask for the task's own target, repaired; of FLAN v2 the zero-shot ones."""
    templates = [t for t in templates if t.kind in ("", ZERO_SHOT)]
    return select(repair(templates, typos), facts.targets, facts.constants, facts.slots)


def _prompts(facts: TaskFacts, texts: Texts, config: FlanConfig) -> PromptsV2 | None:
    """The training prompts of FLAN v2."""

    def used(pattern: str, inverted: bool) -> list[Template]:
        templates = texts.templates.get(pattern, [])
        return usable(templates, facts.targets, facts.constants, facts.slots, inverted)

    if facts.turns is not None:
        inverse = facts.pattern + FACTS["inverted_dialogs"]
        inverted = used(inverse, inverted=True) if config.inverted else []
        plain = used(facts.pattern, inverted=False)
        return prompts_v2("flan_dialog", plain, None, inverted, texts.dialog_forms)
    found = used(facts.pattern, config.inverted)
    apart = any("options_" in slots(template.source) for template in found)
    lists = texts.option_lists if facts.has_options and apart else None
    return prompts_v2("flan", found, lists)


def _rows(
    root: pathlib.Path, facts: TaskFacts, config: FlanConfig
) -> tuple[TaskFacts, dict[str, Split]]:
    """The facts for the rows found, and the splits that they name."""
    facts = facts.fixed() if config.fix_typos else facts
    if config.templates == "v2" and facts.name not in FACTS["rows_of_2021"]:
        facts = facts.all_rows()
    splits = {}
    if facts.files is not None:
        place = _rows_folder(root) / facts.folder
        splits = _published(place, facts.files.get("published", {})) or find_splits(place)
    if splits:
        facts = facts.for_files()
    elif facts.tfds:
        tfds_dir = config.tfds_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
        splits = find_splits(pathlib.Path(tfds_dir).expanduser() / facts.tfds.partition(":")[0])
    used = {split_name(rows) for rows in facts.splits.values()}
    return facts, {name: split for name, split in splits.items() if name in used}


def _published(place: pathlib.Path, globs: Mapping[str, Sequence[str]]) -> dict[str, Split]:
    """The splits of files in the form in which upstream publishes them.

    Of files in shards a part is enough, since a data set may be very large; the log names it.
    """
    splits: dict[str, Split] = {}
    for split, patterns in globs.items():
        files = [file for pattern in patterns for file in sorted(place.glob(pattern))]
        if files:
            splits[split] = SplitFiles(split, tuple(map(str, files)))
        whole = {int(number[1]) for file in files if (number := _OF.search(file.name))}
        if whole and len(files) < max(whole):
            logger.warning(
                "%s: %d of the %d files of split %r are there; rows of the others are not used",
                *(place, len(files), max(whole), split),
            )
    return splits


def _rows_folder(root: pathlib.Path) -> pathlib.Path:
    own = root / "datasets"
    return own if own.is_dir() else root.resolve().parent / "datasets"


def _parts(facts: TaskFacts, splits: dict[str, Split], row: Row) -> tuple[str, ...]:
    """The parts that have rows; none if the essential ones are missing.

    One that only lacks its training rows stays, for the plan to refuse it. Of a task that is not
    trained on, "train" holds what demonstrations are taken from.
    """
    parts = [p for p in PARTS if p in facts.splits and split_name(facts.splits[p]) in splits]
    scored = any(role.startswith(("dev", "test")) for role in row.role)
    if scored and "test" not in parts:
        return ()
    return tuple(p for p in parts if p != "test" or scored)
