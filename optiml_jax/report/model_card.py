"""The model card of a checkpoint that is written for others: what it was trained on, its scores."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from optiml_jax.errors import UserError
from optiml_jax.evaluate.records import RunFolder
from optiml_jax.evaluate.rollup import rollup
from optiml_jax.report.run_tables import column_table, details_table
from optiml_jax.report.tables import Table, render


def model_card(name: str, metadata: Mapping[str, Any], step_folder: pathlib.Path) -> str:
    """Markdown with the front matter that the Hub reads.

    Args:
      name: of the model.
      metadata: of the checkpoint.
      step_folder: of the checkpoint; the plan and the evaluations of its run are looked for beside
        it, and what is not there is said to be missing.
    """
    run = step_folder.parent.parent
    parts = [
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\n---",
        f"# {name}",
        f"{metadata['model'].get('architecture', 'opt')} decoder, converted from a checkpoint of "
        f"optiml_jax, step {metadata.get('step', 0)}.",
        _origin(metadata),
        "## Training data",
        _mixture(run / "plan" / "train" / "plan.json"),
        "## Scores",
        _scores(run / "evaluation", step_folder),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _origin(metadata: Mapping[str, Any]) -> str:
    lines = []
    origins = {"source": "weights read from", "init_from": "started from the weights of"}
    for key, text in origins.items():
        if metadata.get(key):  # the end of a path says enough, and nothing about a machine
            parts = pathlib.PurePath(str(metadata[key])).parts[-2:]
            lines.append(f"- {text} `{'/'.join(parts).lstrip('/')}`")
    for key in ("num_steps", "global_batch_size", "seed"):
        if metadata.get(key) is not None:
            lines.append(f"- {key}: {metadata[key]}")
    if metadata.get("optimizer"):
        lines.append(f"- optimizer: `{json.dumps(metadata['optimizer'])}`")
    return "\n".join(lines)


def _mixture(plan_file: pathlib.Path) -> str:
    try:
        meta = json.loads(plan_file.read_text("utf-8"))
    except (OSError, ValueError):
        return "Not known: the checkpoint lies beside no plan."
    summary = meta["summary"]
    rows = [
        (benchmark, str(share["tasks"]), f"{share['examples']:,}", f"{100 * share['share']:.1f} %")
        for benchmark, share in summary["benchmarks"].items()
    ]
    title = (
        f"{len(meta['tasks'])} tasks, {summary['examples']:,} examples, "
        f"{summary['tokens']:,} tokens in the plan"
    )
    table = Table(title, ("benchmark", "tasks", "examples", "share"), tuple(rows), 1, ())
    return render(table, "markdown").strip()


def _scores(evaluations: pathlib.Path, step_folder: pathlib.Path) -> str:
    found = {}
    for file in sorted(evaluations.glob("*/tasks.json")):
        try:
            run = RunFolder(file.parent).load()[0]
            if pathlib.Path(str(run.get("checkpoint", ""))).name == step_folder.name:
                found[file.parent.name] = rollup([file.parent])
        except UserError:
            continue
    if not found:
        return "Not evaluated."
    tables = [column_table(found, depth=1), details_table(found)]
    note = "Percent, by level and number of shots; the best constant answer beside, where known."
    return note + "\n\n" + "\n\n".join(render(table, "markdown").strip() for table in tables)
