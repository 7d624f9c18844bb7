"""The tasks of PromptSource (bigscience-workshop/promptsource): finding templates and rows.

`Run.data["promptsource"]` is a folder F, a clone of PromptSource or one like it:
  templates: F/templates if it is there, else F/promptsource/templates;
  rows: F/datasets if it is there, else the folder `datasets` beside F, with the templates' own
      layout, <dataset>[/<subset>]/<split>.jsonl and so on (see `files/rows.py`).
A data set without rows there is no task. Reading a task is in `task.py`, rendering in
`templates.py`; facts about data sets are in `tasks.yaml`.
"""

import fnmatch
import logging
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from optiml_jax.data.example import TaskSource, check_unique_names
from optiml_jax.errors import UserError
from tasks import taxonomy
from tasks.files.promises import check_folder
from tasks.files.rows import Split, find_splits
from tasks.promptsource.task import TemplateTask
from tasks.promptsource.templates import PromptSourceConfig, Template, read_templates
from tasks.splits import Manifest, Row

UPSTREAM = "https://github.com/bigscience-workshop/promptsource"
FACTS_FILE = pathlib.Path(__file__).parent / "tasks.yaml"

_PARTS = (("train", "train"), ("val", "validation"), ("dev", "validation"), ("test", "test"))
_ROUND = re.compile(r"(.+)_(r\d+)$")  # ANLI: train_r1, dev_r1, ...


def find_tasks(
    root: str | os.PathLike, manifest: Manifest, benchmark: str = "promptsource"
) -> list[TaskSource]:
    """The tasks of the data sets that have both templates and rows, sorted by name.

    Args:
      root: see above.
      manifest: says which tasks are trained on and which are scored.
      benchmark: first part of the task names.

    No file of rows is opened, and only template files of data sets that have rows.

    Raises:
      UserError: a folder is missing or holds nothing, or a template file is damaged; see also
        `read_templates` and `rows.find_splits`.
    """
    templates_folder, rows_folder = _folders(pathlib.Path(root).expanduser(), benchmark)
    check_folder(rows_folder)
    facts, config = _read_facts(), PromptSourceConfig()
    skipped: dict[str, list[str]] = {}
    sources = []
    paths = sorted(templates_folder.rglob("templates.yaml"))
    for path in paths:
        dataset = path.parent.relative_to(templates_folder).as_posix()
        splits = find_splits(rows_folder / dataset)
        if not splits:
            skipped.setdefault(f"have no rows in {rows_folder}", []).append(dataset)
            continue
        templates, also = read_templates(path), facts["also_used"].get(dataset, ())
        hidden = any(fnmatch.fnmatchcase(dataset, glob) for glob in facts["no_test_labels"])
        for suffix, group in _rounds(splits).items():
            name = f"{benchmark}/{dataset}{suffix}"
            row = manifest.lookup(name, None)
            prompts = _selected(templates, row, also)
            if not prompts:
                skipped.setdefault("have no template of the original task", []).append(dataset)
                continue
            row.check_prompts(name, len(prompts))
            category = row.category or taxonomy.category("promptsource", dataset)
            if category == taxonomy.MISC:
                skipped.setdefault("count as Misc.", []).append(dataset + suffix)
            parts = _parts(group, row, hidden)
            if not parts:
                skipped.setdefault("have no rows for their part", []).append(dataset + suffix)
                continue
            if row.trained and "train" not in parts:  # the plan will refuse them
                skipped.setdefault("have no training rows", []).append(dataset + suffix)
            task = TemplateTask(
                name=name,
                category=category,
                dataset=dataset,
                templates_file=str(path),
                prompts=tuple(template.id for template in prompts),
                parts=parts,
                own_validation=row.trained and "validation" not in parts,
                pooled_test="test" not in row.role,
                num_test=row.instances,
                ranked=row.metric == "acc_rank",
                config=config,
            )
            sources.append(task.source())
    for reason, names in skipped.items():
        shown = ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")
        logging.warning(
            "%d of %d %s data sets %s: %s", len(names), len(paths), benchmark, reason, shown
        )
    if not sources:
        raise UserError(
            f"no task of benchmark {benchmark!r}: none of the {len(paths)} data sets of "
            f"{templates_folder} has rows in {rows_folder}; put them there as "
            "<dataset>[/<subset>]/<split>.jsonl, .parquet or .arrow"
        )
    check_unique_names([s.name for s in sources])
    return sources


# --- which rows and templates ---------------------------------------------------------------------


def _selected(templates: Sequence[Template], row: Row, also: Sequence[str]) -> list[Template]:
    """The templates that the manifest names, else those of the original task and of `also`."""
    if row.prompts == "all":
        return list(templates)
    if isinstance(row.prompts, tuple):
        return [t for t in templates if t.name.strip() in row.prompts]
    return [t for t in templates if t.original_task or t.name.strip() in also]


def _rounds(splits: Mapping[str, Split]) -> dict[str, dict[str, Split]]:
    """`/r1` -> its splits by their plain names; all under "" where there are no rounds."""
    if not all(_ROUND.match(name) for name in splits):
        return {"": dict(splits)}
    rounds: dict[str, dict[str, Split]] = {}
    for name, split in splits.items():
        plain, number = _ROUND.match(name).groups()
        rounds.setdefault(f"/{number}", {})[plain] = split
    return rounds


def _parts(splits: Mapping[str, Split], row: Row, hidden: bool) -> dict[str, tuple[Split, ...]]:
    """Which splits are "train", "validation" and "test" of the task; absent parts are left out.

    Scored rows are the test split where it has labels, else the validation split. Of a task that is
    not trained on, "train" holds what demonstrations are taken from.
    """
    found = {part: [] for _, part in _PARTS}
    for name, split in splits.items():
        for prefix, part in _PARTS:
            if name.startswith(prefix):
                found[part].append(split)
    test = [] if hidden else found["test"]
    used_as_test = "test" if test else "validation"
    if "test" in row.role or "dev" in row.role:
        parts = {"test": test or found["validation"]}
        if used_as_test == "test":
            parts["validation"] = found["validation"]
    else:
        parts = {"validation": found["validation"] or test}
    spare = parts.pop("validation", [])
    parts["train"] = found["train"]
    if row.trained or "exclude" in row.role:
        parts["validation"] = spare
    elif not found["train"]:
        parts["train"] = spare
    return {part: tuple(chosen) for part, chosen in parts.items() if chosen}


def _folders(root: pathlib.Path, benchmark: str) -> tuple[pathlib.Path, pathlib.Path]:
    templates = _first_folder(root / "templates", root / "promptsource" / "templates")
    rows = _first_folder(root / "datasets", root.resolve().parent / "datasets")
    if templates is None:
        raise UserError(
            f"no data of benchmark {benchmark!r}: folder not found: {root / 'templates'} (nor "
            f"promptsource/templates); give the root of a clone of {UPSTREAM}"
        )
    if rows is None:
        raise UserError(
            f"no rows for benchmark {benchmark!r}: folder not found: {root / 'datasets'} (nor "
            "`datasets` beside it); put <dataset>[/<subset>]/<split>.jsonl there"
        )
    return templates, rows


def _first_folder(*folders: pathlib.Path) -> pathlib.Path | None:
    return next((folder for folder in folders if folder.is_dir()), None)


def _read_facts() -> dict[str, Any]:
    return yaml.safe_load(FACTS_FILE.read_text("utf-8"))
