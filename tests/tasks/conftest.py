"""Writes small benches in the file format of natural-instructions."""

import json
import pathlib

import pytest


def task_content(n: int = 30, **changes) -> dict:
    """A well-formed v2 task file with n instances that answer yes or no in turn."""
    return {
        "Contributors": ["us"],
        "Source": ["invented"],
        "Categories": ["Mathematics"],
        "Definition": ["Say whether the number is even."],
        "Input_language": ["English"],
        "Output_language": ["English"],
        "Domains": ["Numbers"],
        "Positive Examples": [
            {"input": "1002", "output": "yes", "explanation": "It ends with 2."},
            {"input": "1003", "output": "no", "explanation": "It ends with 3."},
        ],
        "Negative Examples": [],
        "Instances": [
            {"id": f"id-{i}", "input": str(i), "output": ["no" if i % 2 else "yes"]}
            for i in range(n)
        ],
        **changes,
    }


@pytest.fixture
def write_bench(tmp_path):
    """`write_bench({stem: content}, test=(stems))`: the bench's root folder.

    Stems in neither `test` nor `excluded` are training tasks; a content that is a string is
    written as it is.
    """

    def write(tasks: dict, test=(), excluded=()) -> pathlib.Path:
        root = tmp_path / "bench"
        for folder in (root / "tasks", root / "splits" / "default"):
            folder.mkdir(parents=True, exist_ok=True)
        for stem, content in tasks.items():
            text = content if isinstance(content, str) else json.dumps(content, indent=4)
            (root / "tasks" / f"{stem}.json").write_text(text, "utf-8")
        train = [stem for stem in tasks if stem not in (*test, *excluded)]
        for name, stems in (("train", train), ("test", test), ("excluded", excluded)):
            lines = "".join(f"{stem}\n" for stem in stems)
            (root / "splits" / "default" / f"{name}_tasks.txt").write_text(lines)
        return root

    write.content = task_content
    return write
