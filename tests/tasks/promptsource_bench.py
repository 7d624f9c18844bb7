"""Writes small folders in PromptSource's layout: templates beside the rows they are made for."""

import json
import pathlib
import uuid
from collections.abc import Sequence
from typing import Any

import yaml


def template(jinja: str, answer_choices: str | None = None, **changes: Any) -> dict[str, Any]:
    """The fields of a template; `original_task` and other metadata can be changed, too."""
    identifier = str(uuid.uuid5(uuid.NAMESPACE_OID, jinja + str(answer_choices)))
    metadata = {"choices_in_prompt": False, "languages": ["en"], "metrics": ["Accuracy"]}
    metadata["original_task"] = changes.pop("original_task", True)
    return {
        "answer_choices": answer_choices,
        "id": identifier,
        "jinja": jinja,
        "name": f"name of {identifier[:4]}",
        "reference": "",
        "metadata": metadata,
        **changes,
    }


def write_templates(folder: pathlib.Path, dataset: str, templates: Sequence[dict]) -> pathlib.Path:
    """Writes `<folder>/<dataset>/templates.yaml` with upstream's two tags; returns its path."""
    path = folder / dataset / "templates.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"dataset: {dataset}", "templates:"]
    for content in templates:
        plain = {k: v for k, v in content.items() if k != "metadata"}
        lines.append(f"  {content['id']}: !Template")
        lines += [f"    {x}" for x in yaml.safe_dump(plain, allow_unicode=True).splitlines()]
        lines.append("    metadata: !TemplateMetadata")
        metadata = yaml.safe_dump(content["metadata"])
        lines += [f"      {x}" for x in metadata.splitlines()]
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def write_rows(folder: pathlib.Path, dataset: str, **splits: Sequence[dict]) -> None:
    """Writes `<folder>/<dataset>/<split>.jsonl`."""
    (folder / dataset).mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / dataset / f"{split}.jsonl").write_text(text, "utf-8")
