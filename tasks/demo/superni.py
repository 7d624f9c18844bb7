"""Task files and split lists of the demo bench in the format of Super-NaturalInstructions v2."""

from collections.abc import Sequence
from typing import Any

from tasks.demo.families import Candidate

NUM_INSTANCES = 400
NUM_POSITIVE = 4
NUM_NEGATIVE = 2
NUM_CANDIDATES = NUM_INSTANCES + NUM_POSITIVE + NUM_NEGATIVE


def stem(task: dict[str, Any]) -> str:
    """Name of a task's file, without suffix."""
    category = task["category"].lower().replace(" ", "_")
    return f"demo{task['number']:03d}_{category}_{task['name']}"


def task_content(task: dict[str, Any], candidates: Sequence[Candidate]) -> dict[str, Any]:
    """The content of the task's JSON file.

    Args:
      task: its entry in `tasks.yaml`.
      candidates: `NUM_CANDIDATES` of them.
    """
    instances = candidates[:NUM_INSTANCES]
    positive = candidates[NUM_INSTANCES : NUM_INSTANCES + NUM_POSITIVE]
    negative = candidates[NUM_INSTANCES + NUM_POSITIVE :]

    def example(candidate: Candidate, output: str, explanation: str) -> dict[str, str]:
        facts = {"output": candidate.output, "wrong": candidate.wrong, "input": candidate.input}
        return {
            "input": candidate.input,
            "output": output,
            "explanation": explanation.format(**facts),
        }

    return {
        "Contributors": ["optiml_jax"],
        "Source": ["optiml_jax_demo"],
        "URL": [],
        "Categories": [task["category"]],
        "Reasoning": [],
        "Definition": [task["definition"]],
        "Input_language": ["English"],
        "Output_language": ["English"],
        "Instruction_language": ["English"],
        "Domains": ["Synthetic"],
        "Positive Examples": [example(c, c.output, task["explanation"]) for c in positive],
        "Negative Examples": [example(c, c.wrong, task["wrong"]) for c in negative],
        "Instances": [
            {"id": f"{stem(task)[:7]}-{i:06d}", "input": c.input, "output": [c.output]}
            for i, c in enumerate(instances)
        ],
        "Instance License": ["Apache 2.0"],
    }


def split_lists(tasks: Sequence[dict[str, Any]]) -> dict[str, str]:
    """File -> text, of the two lists."""
    lists = {"train": "", "test": ""}
    for task in tasks:
        lists["test" if task.get("held_out") else "train"] += f"{stem(task)}\n"
    return {f"splits/default/{split}_tasks.txt": text for split, text in lists.items()}
